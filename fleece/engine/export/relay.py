"""Clients of a point talk to this, never to the source's own server.

A client that says nothing, or never leaves, must not hang QEMU when the point ends (its NBD server
waits for whoever still haggles), nor keep the point. So the source's server has no client but this
one, which haggles for it, shows the disks of the one point alone, and cuts everybody off at the
end.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable, Mapping

from fleece.closing import Closing
from fleece.engine.clients.crowd import LIMIT, Crowd
from fleece.engine.clients.peer import Gone, Peer, join
from fleece.engine.export.address import Listening
from fleece.engine.export.handshake import Handshake, Way


class Relay(Closing):
    """Serves the exports of a source's server to clients, from threads of its own.

    Args:
        door: where clients come in.
        ways: to the exports, by the names that clients are told.
    """

    def __init__(self, door: Listening, ways: Mapping[str, Way]) -> None:
        self._tls: ssl.SSLContext | None = door.tls
        self._ways = ways
        self._crowd = Crowd(door.socket, self._serve)

    def close(self) -> None:
        """Cut off everybody. No connection to the source's server is left. Safe to repeat."""
        self._crowd.close()

    def _serve(self, client: Peer, known: Callable[[], None]) -> None:
        with contextlib.ExitStack() as stack:
            handshake = Handshake(
                client,
                self._ways,
                lambda path: _dial(path, client.stop, stack),
                None if (tls := self._tls) is None else lambda: client.secure(tls),
            )
            server = handshake.agree()
            known()
            join(client, server)


def _dial(path: str, stop: int, stack: contextlib.ExitStack) -> Peer:
    end = stack.enter_context(socket.socket(socket.AF_UNIX))
    try:
        end.connect(path)
    except OSError as error:
        raise Gone from error
    return Peer(end, stop, LIMIT)
