"""A scratch that QEMU cannot see or use: why, and what to do about it."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from fleece.errors import SourceError
from fleece.source.qemu.monitor import CommandError, Monitor, Peer

_MISSING = ("No such file or directory", "Not a directory")
_DENIED = ("Permission denied", "Operation not permitted", "Read-only file system")
_HINT = "choose a folder that it can use with --scratch"


def add_node(monitor: Monitor, path: Path, options: dict[str, object]) -> None:
    """Have QEMU open a scratch file as a node (`blockdev-add`).

    Args:
        monitor: of the QEMU.
        path: of the file.
        options: of the node.

    Raises:
        SourceError: QEMU cannot, and why.
    """
    with_reasons(monitor, path, "blockdev-add", options)


def with_reasons(monitor: Monitor, path: Path, command: str, arguments: dict[str, object]) -> None:
    """Run a command for which QEMU must use a file or socket in the work folder.

    Raises:
        SourceError: QEMU refused it; if it cannot use the path, with the likely reason.
    """
    try:
        monitor.execute(command, arguments)
    except CommandError as error:
        told = next((text for text in (*_MISSING, *_DENIED) if text in error.reason), None)
        if told is None:
            raise
        why = _reason(monitor.peer, path, denied=told in _DENIED)
        raise SourceError(
            f"QEMU (process {monitor.peer.pid}, user {_user(monitor.peer.uid)}) cannot open the "
            f"scratch ({told}): {why}",
            where=path,
            hint=_HINT,
        ) from error


def _reason(peer: Peer, path: Path, *, denied: bool) -> str:
    """What may keep a process from a path that is there for us."""
    elsewhere = "it may run in another mount namespace (PrivateTmp of a service, a container)"
    barred = "its user may not go there, or AppArmor or SELinux keeps it out"
    try:
        same = os.path.samestat(
            os.stat(f"/proc/{peer.pid}/root{path.parent}"), os.stat(path.parent)
        )
    except FileNotFoundError:
        same = False
    except OSError:  # this user may not know
        return barred if denied else elsewhere
    return barred if same else elsewhere


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
