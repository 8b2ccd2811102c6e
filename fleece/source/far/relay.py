"""Pass bytes between sockets of one's own and those that an NBD server listens on.

Nobody but this process is connected to the server then. A line that is cut leaves the connections
of sshd where they are, and a job must not be ended while somebody is connected
(../libvirt/takedown.py): here they can be closed.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fleece.closing import Closing

_PIECE = 1 << 18


class Relay(Closing):
    """Listens, until it is closed.

    Args:
        folder: that its sockets are made in.
        targets: paths of the sockets that it leads to, each by a socket of its own.

    Attributes:
        sockets: where it listens.
        moved: when it last passed something on (`time.monotonic`).

    Raises:
        OSError: it cannot listen.
    """

    def __init__(self, folder: Path, targets: Sequence[str]) -> None:
        self.sockets = tuple(folder / f"{number}.sock" for number in range(len(targets)))
        self.moved = time.monotonic()
        self._over = False
        self._lock = threading.Lock()
        self._ends: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            for path, target in zip(self.sockets, targets, strict=True):
                end = socket.socket(socket.AF_UNIX)
                self._ends.add(end)
                end.bind(str(path))
                end.listen()
                self._start(self._accept, end, target)
            undo.pop_all()

    def close(self) -> None:
        """Close all connections, on both sides, and listen no more. Safe to repeat."""
        with self._lock:
            self._over = True
            for end in self._ends:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        while self._threads:
            self._threads.pop().join()
        for path in self.sockets:
            path.unlink(missing_ok=True)

    def _start(self, work: Callable[..., None], *given: object) -> threading.Thread:
        made = threading.Thread(target=work, args=given, name="fleece-relay", daemon=True)
        self._threads.append(made)
        made.start()
        return made

    def _accept(self, listening: socket.socket, target: str) -> None:
        with contextlib.suppress(OSError), listening:
            while True:
                came, _ = listening.accept()
                self._start(self._pass_on, came, target)

    def _pass_on(self, came: socket.socket, target: str) -> None:
        led = socket.socket(socket.AF_UNIX)
        with came, led:
            with self._lock:
                if self._over:
                    return
                self._ends |= {came, led}
            try:
                with contextlib.suppress(OSError):
                    led.connect(target)
                    back = self._start(self._pump, led, came)
                    self._pump(came, led)
                    back.join()
            finally:
                with self._lock:
                    self._ends -= {came, led}

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        piece = memoryview(bytearray(_PIECE))
        with contextlib.suppress(OSError):
            while count := source.recv_into(piece):
                sink.sendall(piece[:count])
                self.moved = time.monotonic()
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
