"""Clients of a point talk to this, never to the source's own server.

A client that says nothing, or never leaves, must not hang QEMU when the point ends (its NBD server
waits for whoever still haggles), nor keep the point. So the source's server has no client but this
one, which haggles for it, shows the disks of the one point alone, and cuts everybody off at the
end.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import threading
from collections.abc import Callable, Mapping

from fleece.engine.export.address import Listening
from fleece.engine.export.handshake import Handshake, Way
from fleece.engine.export.peer import Gone, Peer, join, ready

MOST = 128
"""Connections at a time; who comes then is hung up on."""

HAGGLING = 32
"""How many of them may still haggle."""

LIMIT = 10.0
"""Seconds to haggle."""

_PAUSE = 50
"""Milliseconds until a connection that could not be taken is tried again."""


class Relay:
    """Serves the exports of a source's server to clients, from threads of its own.

    Args:
        door: where clients come in.
        ways: to the exports, by the names that clients are told.
    """

    def __init__(self, door: Listening, ways: Mapping[str, Way]) -> None:
        self._door = door
        self._ways = ways
        self._lock = threading.Lock()
        self._living: set[threading.Thread] = set()
        self._haggling = 0
        self._stop, self._stopper = os.pipe()
        self._accepting = threading.Thread(target=self._accept, name="fleece-export", daemon=True)
        self._accepting.start()

    def close(self) -> None:
        """Cut off everybody. No connection to the source's server is left. Safe to repeat."""
        if self._stopper < 0:
            return
        os.close(self._stopper)
        self._stopper = -1
        self._accepting.join()
        with self._lock:
            living = [*self._living]
        for thread in living:
            thread.join()
        os.close(self._stop)

    def _accept(self) -> None:
        door = self._door.socket
        events = {door.fileno(): select.POLLIN, self._stop: select.POLLIN}
        while self._stop not in ready(events):
            try:
                client, _ = door.accept()
            except OSError:  # it left at once, or this process has too many files open
                ready({self._stop: select.POLLIN}, _PAUSE)
                continue
            with self._lock:
                full = len(self._living) >= MOST or self._haggling >= HAGGLING
            if full or not self._begin(client):
                client.close()

    def _begin(self, client: socket.socket) -> bool:
        """Serve a client by a thread of its own; gives whether the system has one."""
        thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
        with self._lock:
            try:
                thread.start()
            except RuntimeError:
                return False
            self._living.add(thread)
            self._haggling += 1
        return True

    def _serve(self, client: socket.socket) -> None:
        try:
            with contextlib.ExitStack() as stack, contextlib.suppress(Gone):
                self._relay(client, stack)
        finally:
            with self._lock:
                self._living.discard(threading.current_thread())

    def _relay(self, client: socket.socket, stack: contextlib.ExitStack) -> None:
        peer = Peer(client, self._stop, LIMIT)
        stack.callback(lambda: peer.socket.close())
        handshake = Handshake(
            peer, self._ways, lambda path: self._dial(path, stack), self._securing(peer)
        )
        try:
            server = handshake.agree()
        finally:
            with self._lock:
                self._haggling -= 1
        join(peer, server)

    def _dial(self, path: str, stack: contextlib.ExitStack) -> Peer:
        end = stack.enter_context(socket.socket(socket.AF_UNIX))
        try:
            end.connect(path)
        except OSError as error:
            raise Gone from error
        return Peer(end, self._stop, LIMIT)

    def _securing(self, peer: Peer) -> Callable[[], None] | None:
        tls: ssl.SSLContext | None = self._door.tls
        return None if tls is None else lambda: peer.secure(tls)
