"""Writing to what may take nothing.

A file on FUSE can take 0 bytes of a write without an error: QEMU 11's exports do so beyond their
end. Whoever writes the rest again and again would do it for ever.
"""

from __future__ import annotations

import errno


def taken(count: int) -> int:
    """How many bytes a write took, of at least one.

    Raises:
        OSError: none.
    """
    if count == 0:
        raise OSError(errno.EIO, "a write of it takes no bytes")
    return count
