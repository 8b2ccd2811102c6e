"""Begin and remove persistent bitmaps in images, by qemu-img."""

from __future__ import annotations

import time

from fleece.cancel import CancelToken
from fleece.disk.use import User
from fleece.errors import SourceError
from fleece.programs import file_name, finished_whole, program
from fleece.source.image.inventory import ImageDisk

GRANULARITY = 64 * 1024
"""Bytes of disk per bit of a bitmap: the leaf size."""

_PATIENCE = 10.0
"""Seconds in which a reader of the image may end: a server of an engine that was just killed."""
_PAUSE = 0.1


def begin_bitmap(disk: ImageDisk, name: str, cancel: CancelToken) -> None:
    """Have a new bitmap record what is written to an image from now on.

    Raises:
        SourceError: somebody has the image open, or qemu-img refuses.
    """
    _change(disk, name, cancel, "--add", "-g", str(GRANULARITY))


def remove_bitmap(disk: ImageDisk, name: str, cancel: CancelToken) -> None:
    """Remove a bitmap; one that is gone already is fine.

    Raises:
        SourceError: somebody has the image open, or qemu-img refuses.
    """
    _change(disk, name, cancel, "--remove")


def settled_writer(disk: ImageDisk, cancel: CancelToken) -> tuple[str, User] | None:
    """Who writes to an image, but for a qemu-img that soon ends: a killed run can leave one.

    Raises:
        SourceError: that cannot be told.
    """
    limit = time.monotonic() + _PATIENCE
    while (found := disk.writer()) is not None:
        if found[1].name != "qemu-img" or time.monotonic() > limit:
            return found
        cancel.check()
        time.sleep(_PAUSE)
    return None


def _change(disk: ImageDisk, name: str, cancel: CancelToken, *words: str) -> None:
    """Run `qemu-img bitmap`, to its end in any case.

    While it has the image open all bitmaps in there are marked as in use, and they stay so if it is
    ended too early: other stores' as well.
    """
    command = [program("qemu-img"), "bitmap", *words, "-f", disk.format, "--"]
    limit = time.monotonic() + _PATIENCE
    while True:
        done = finished_whole([*command, file_name(disk.path), name], cancel)
        if done.code == 0 or ("--remove" in words and "not found" in done.said):
            return
        if "lock" not in done.said:
            raise SourceError(f"qemu-img refused: {done.said}", where=disk.path)
        found = disk.writer()
        if found is not None or time.monotonic() > limit:
            user = "by a program that reads it" if found is None else f"({found[1]})"
            raise SourceError(
                f"is in use {user}", where=disk.path, hint="run it again when that has ended"
            )
        cancel.check()
        time.sleep(_PAUSE)
