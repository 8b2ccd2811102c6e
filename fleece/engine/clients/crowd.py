"""All clients of one socket: a thread for each, so many at a time, and an end for all of them.

Nobody is known when he connects, and becomes so by what he says. Who stays a stranger is hung up on
soon, and strangers never take up all places.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from collections.abc import Callable
from typing import TypeAlias

from fleece.closing import Closing
from fleece.engine.clients.peer import Gone, Peer, ready

MOST = 128
"""Connections at a time; who comes then is hung up on."""

STRANGERS = 32
"""How many of them may be strangers."""

LIMIT = 10.0
"""Seconds that one may stay a stranger."""

_PAUSE = 50
"""Milliseconds until a connection that could not be taken is tried again."""

Serve: TypeAlias = Callable[[Peer, Callable[[], None]], None]
"""Serves one client to its end, or raises `Gone`. It is given what to call once it knows him."""


class Crowd(Closing):
    """Lets clients in and serves them, from threads of its own.

    Args:
        door: a socket that listens and never blocks.
        serve: serves one.
    """

    def __init__(self, door: socket.socket, serve: Serve) -> None:
        self._door = door
        self._serve = serve
        self._lock = threading.Lock()
        self._living: set[threading.Thread] = set()
        self._strangers: set[threading.Thread] = set()
        self._stop, self._stopper = os.pipe()
        self._accepting = threading.Thread(target=self._accept, name="fleece-clients", daemon=True)
        self._accepting.start()

    def close(self) -> None:
        """Cut off everybody, and let nobody in any more; no thread is left. Safe to repeat."""
        if self._stopper < 0:
            return
        os.close(self._stopper)
        self._stopper = -1
        self._accepting.join()
        with contextlib.suppress(OSError):
            self._door.shutdown(socket.SHUT_RDWR)  # else who comes waits until it is closed
        with self._lock:
            living = [*self._living]
        for thread in living:
            thread.join()
        os.close(self._stop)

    def _accept(self) -> None:
        events = {self._door.fileno(): select.POLLIN, self._stop: select.POLLIN}
        while self._stop not in ready(events):
            try:
                client, _ = self._door.accept()
            except OSError:  # it left at once, or this process has too many files open
                ready({self._stop: select.POLLIN}, _PAUSE)
                continue
            with self._lock:
                full = len(self._living) >= MOST or len(self._strangers) >= STRANGERS
            if full or not self._begin(client):
                client.close()

    def _begin(self, client: socket.socket) -> bool:
        """Serve a client by a thread of its own; gives whether the system has one."""
        thread = threading.Thread(target=self._attend, args=(client,), daemon=True)
        with self._lock:
            try:
                thread.start()
            except RuntimeError:
                return False
            self._living.add(thread)
            self._strangers.add(thread)
        return True

    def _attend(self, client: socket.socket) -> None:
        peer = Peer(client, self._stop, LIMIT)
        try:
            with contextlib.suppress(Gone):
                self._serve(peer, self._know)
        finally:
            peer.socket.close()
            self._know()
            with self._lock:
                self._living.discard(threading.current_thread())

    def _know(self) -> None:
        """The calling thread's client is a stranger no more."""
        with self._lock:
            self._strangers.discard(threading.current_thread())
