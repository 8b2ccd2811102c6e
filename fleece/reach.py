"""Connect to a unix socket, and say in plain words why that cannot be done."""

from __future__ import annotations

import errno
import os
import socket
import stat
from dataclasses import dataclass

LONGEST = 107
"""Bytes of a unix socket's path (unix(7), `sun_path` without its end)."""

_DENIED = (errno.EACCES, errno.EPERM)
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ECONNREFUSED)


@dataclass(frozen=True)
class Obstacle:
    """Why a socket cannot be reached.

    Attributes:
        what: in one clause.
        hint: what to do; None: what the caller knows of whoever should listen.
    """

    what: str
    hint: str | None = None


def connected(path: str, limit: float) -> socket.socket:
    """A connection to a unix socket.

    Args:
        path: of the socket.
        limit: seconds to wait for it; also the timeout that the socket has then.

    Raises:
        OSError: as connect(2); `obstacle` explains it.
    """
    end = socket.socket(socket.AF_UNIX)
    try:
        end.settimeout(limit)
        end.connect(path)
    except BaseException:
        end.close()
        raise
    return end


def may_be_served(error: OSError) -> bool:
    """Whether somebody may listen all the same on a socket that could not be connected to.

    Who may not open it, or waits too long for it, has not learned that nobody does.
    """
    return error.errno not in _ABSENT


def obstacle(path: str, number: int | None) -> Obstacle:
    """Why connect(2) to a unix socket failed.

    Args:
        path: of the socket.
        number: the errno; None: it had none, like Python's own for a time that is up.
    """
    if len(os.fsencode(path)) > LONGEST:
        return Obstacle(
            f"the path is too long for a unix socket ({LONGEST} bytes at most)",
            "use a shorter path, or a symbolic link to its folder",
        )
    if number in _DENIED:
        return Obstacle(
            "permission denied: this user may not open the socket",
            "run fleece as root or as the user who listens there, or let this user write to it",
        )
    if number in (None, errno.EAGAIN, errno.ETIMEDOUT):
        return Obstacle("it takes no more connections: who listens there is busy or hangs")
    kind = _kind(path)
    if kind is not None:
        return Obstacle(kind)
    if number == errno.ECONNREFUSED:
        return Obstacle("nobody listens on this socket")
    return Obstacle(os.strerror(number or 0))


def _kind(path: str) -> str | None:
    """What is wrong with what is at a path; None: it is a socket, or cannot be looked at."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "there is no such socket"
    except OSError:
        return None
    if stat.S_ISSOCK(mode):
        return None
    return "this is a folder, not a socket" if stat.S_ISDIR(mode) else "this is not a socket"
