"""How much the bitmaps in an image call dirty: qemu-img does not say, an export does."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from fleece.cancel import CancelToken
from fleece.source.image.hold import HeldImages, dirty_in
from fleece.source.image.inventory import ImageDisk
from fleece.temporary import temporary_folder


def dirty_bytes(disk: ImageDisk, bitmaps: Sequence[str], cancel: CancelToken) -> int:
    """Bytes of disk that any of some bitmaps in an image call dirty.

    Raises:
        SourceError: somebody writes to the image, or a bitmap in it is inconsistent.
    """
    with (
        temporary_folder() as folder,
        contextlib.closing(HeldImages(folder, cancel)) as held,
    ):
        return dirty_in(held.serve(disk, bitmaps), bitmaps, cancel).total
