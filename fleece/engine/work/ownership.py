"""Whose a finished file is, and who may read it: its owner, its mode, its attributes."""

from __future__ import annotations

import errno
import os
import stat

from fleece import events
from fleece.errors import TargetError
from fleece.folder import PRIVATE_FILE

_PERMISSIONS = 0o777
_GROUP = 0o070
_ACCESS_LIST = "system.posix_acl_access"
_OF_CONTENT = ("security.capability", "security.ima", "security.evm")
"""What speaks of the content, which is another now."""


def dress(
    descriptor: int,
    old: int | None,
    mode: int | None,
    listener: events.Listener,
    where: str,
) -> None:
    """Give a file that is whole its owner, mode and extended attributes.

    Those of the file that it replaces, as far as this user may give them: owner, group and mode,
    and the attributes, among them access lists and the label of SELinux. Where the group cannot be
    given, nobody else's group gets its rights.

    Args:
        descriptor: of the file.
        old: descriptor of the file that it replaces; None: it replaces none.
        mode: its permissions; None: those of the old one, else this user's alone.
        listener: hears `Warned` of what could not be kept.
        where: the file's name in messages.

    Raises:
        TargetError: not even the mode can be given.
    """
    lost: list[str] = []
    wanted = PRIVATE_FILE if mode is None else mode
    if old is not None:
        found = os.fstat(old)
        lost = _give_owner(descriptor, found)
        if mode is None:
            wanted = stat.S_IMODE(found.st_mode) & _PERMISSIONS
            wanted &= ~_GROUP if os.fstat(descriptor).st_gid != found.st_gid else _PERMISSIONS
        lost += _give_attributes(descriptor, old, acl=mode is None and "group" not in lost)
    try:
        os.fchmod(descriptor, wanted)
    except OSError as error:
        raise TargetError(f"cannot be given its mode ({error.strerror})", where=where) from error
    if lost:
        what = ", ".join(lost)
        listener(events.Warned(f"{where}: not kept of the file that it replaces: {what}"))


def _give_owner(descriptor: int, old: os.stat_result) -> list[str]:
    """Give owner and group, or the group alone; tells what could not be given."""
    lost = []
    for name, ids in (("owner", (old.st_uid, -1)), ("group", (-1, old.st_gid))):
        own = os.fstat(descriptor)
        if (own.st_uid if name == "owner" else own.st_gid) in ids:
            continue
        try:
            os.fchown(descriptor, *ids)
        except OSError:
            lost.append(name)
    return lost


def _give_attributes(descriptor: int, old: int, *, acl: bool) -> list[str]:
    lost = []
    try:
        names = os.listxattr(old)
    except OSError:  # a file system that has none
        return []
    for name in names:
        if name in _OF_CONTENT or (name == _ACCESS_LIST and not acl):
            continue
        try:
            value = os.getxattr(old, name)
            if _value(descriptor, name) != value:
                os.setxattr(descriptor, name, value)
        except OSError:
            lost.append(name)
    return lost


def _value(descriptor: int, name: str) -> bytes | None:
    try:
        return os.getxattr(descriptor, name)
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
        return None
