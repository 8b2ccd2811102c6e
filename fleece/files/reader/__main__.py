"""The reader's start: a socket as standard input, the library, limits, and then requests."""

from __future__ import annotations

import contextlib
import resource
import socket

from fleece.files.wire import Wire, WireError

_MOST_MEMORY = 1 << 30
_MOST_FILES = 64


def _limit() -> None:
    """What a hostile file system may make of this process: no large one, and nothing written."""
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_MOST_FILES, _MOST_FILES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _main() -> None:
    wire = Wire(socket.socket(fileno=0))
    missing = ""
    try:
        from fleece.files.reader.service import Service
    except ImportError as error:
        missing = str(error)
    opening, _ = wire.receive()
    if missing:
        wire.send({"failed": "missing", "what": missing})
        return
    _limit()
    service = Service(wire, opening["size"])
    wire.send({"end": True})
    while True:
        service.answer(wire.receive()[0])


if __name__ == "__main__":
    with contextlib.suppress(WireError):  # the other side has ended, or ended this
        _main()
