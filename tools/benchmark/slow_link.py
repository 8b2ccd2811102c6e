"""A link to a server on this host on which each request takes a while: a relay for TCP."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

_CHUNK = 1 << 20


class SlowLink:
    """It listens at `port`, and passes on; a context.

    Args:
        server: port of what is at the other end, on this host.
        seconds: that each request waits: what a client says after the server has said something.

    Attributes:
        port: that it listens at.
        requests: how many there were.
        rounds: how many of them began while none was on its way: so many times nothing else was
            waited for.
    """

    def __init__(self, server: int, seconds: float) -> None:
        self._server, self._seconds = server, seconds
        self._lock = threading.Lock()
        self._under_way = 0
        self.requests = self.rounds = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> SlowLink:
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = socket.create_connection(("127.0.0.1", self._server))
                for end in client, server:
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                asking = threading.Event()  # a request is on its way, or its answer
                for work in self._there, self._back:
                    threading.Thread(
                        target=work, args=(client, server, asking), daemon=True
                    ).start()

    def _there(self, client: socket.socket, server: socket.socket, asking: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(_CHUNK):
                if not asking.is_set():
                    asking.set()
                    with self._lock:
                        self.requests += 1
                        self.rounds += not self._under_way
                        self._under_way += 1
                    time.sleep(self._seconds)
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    def _back(self, client: socket.socket, server: socket.socket, asking: threading.Event) -> None:
        with contextlib.suppress(OSError), client, server:
            while data := server.recv(_CHUNK):
                if asking.is_set():
                    asking.clear()
                    with self._lock:
                        self._under_way -= 1
                client.sendall(data)
