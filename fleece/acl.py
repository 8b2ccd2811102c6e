"""Let one more user into a folder of one's own, by an access control list (acl(5)).

Its owner may do that without being root, where the file system keeps such lists.
"""

from __future__ import annotations

import os
import struct

_VERSION = 2
_ANY = 0xFFFFFFFF
_USER_OBJ, _USER, _GROUP_OBJ, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x10, 0x20
_ALL = 7


def admit(folder: int, user: int) -> None:
    """Let a user read, write and enter a folder; what either of you makes in it is open to both.

    What the others could do in it they cannot any more.

    Args:
        folder: its descriptor.
        user: the user's number.

    Raises:
        OSError: the file system has no such lists, or the folder is somebody else's.
    """
    os.setxattr(folder, "system.posix_acl_access", _list({user}))
    os.setxattr(folder, "system.posix_acl_default", _list({user, os.geteuid()}))


def _list(users: set[int]) -> bytes:
    """As Linux keeps it: `struct posix_acl_xattr_header` and its entries, in their order."""
    entries = [(_USER_OBJ, _ALL, _ANY), *((_USER, _ALL, user) for user in sorted(users))]
    entries += [(_GROUP_OBJ, 0, _ANY), (_MASK, _ALL, _ANY), (_OTHER, 0, _ANY)]
    return struct.pack("<I", _VERSION) + b"".join(struct.pack("<HHI", *each) for each in entries)
