"""How much the bitmaps in an image call dirty: qemu-img does not say, an export does."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from fleece.cancel import CancelToken
from fleece.source.image.hold import HeldImages, dirty_in
from fleece.source.image.inventory import ImageDisk
from fleece.source.segments import Bitmap


def dirty_bytes(disk: ImageDisk, bitmaps: Sequence[str], folder: Path, cancel: CancelToken) -> int:
    """Bytes of disk that any of some bitmaps in an image call dirty.

    Args:
        disk: whose image it is.
        bitmaps: their names.
        folder: for the server's socket, private to this user.
        cancel: ends the wait for the server.

    Raises:
        PointError: one of them is gone, or inconsistent.
        SourceError: somebody writes to the image.
    """
    with contextlib.closing(HeldImages(folder, cancel)) as held:
        return dirty_in(held.serve(disk, bitmaps), bitmaps, cancel).total


def told_bytes(disk: ImageDisk, bitmap: Bitmap, folder: Path, cancel: CancelToken) -> int:
    """What one bitmap calls dirty, as `dirty_bytes`; 0: it is inconsistent, and tells nothing."""
    return 0 if bitmap.inconsistent else dirty_bytes(disk, (bitmap.name,), folder, cancel)
