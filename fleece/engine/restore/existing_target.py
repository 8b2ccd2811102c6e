"""Targets of a restore that are there already: block devices, NBD exports, images in place.

None of them is used by anybody else when it is opened, nor while it is written: QEMU's programs are
kept from it by the locks that they heed, mounts by the kernel. Of an export that is its server's.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from fleece.cancel import CancelToken
from fleece.disk.base import ReadableDisk, Reader, WritableDisk, Writer
from fleece.disk.image import ImageFormat, open_for_writing, probe_format
from fleece.disk.nbd import NbdDisk
from fleece.disk.part import Part
from fleece.disk.raw import RawDisk
from fleece.disk.use import Hold, claimed
from fleece.errors import TargetError
from fleece.extents import Extents
from fleece.nbd.uri import is_uri


def stands(target: str) -> bool:
    """Whether a target cannot be replaced by a new file: it is an NBD URI or a block device."""
    return is_uri(target) or is_block_device(target)


def format_by_name(target: str) -> ImageFormat | None:
    """What the name of a target says of its format; None: nothing, or it is not an image file."""
    return ImageFormat.QCOW2 if target.endswith(".qcow2") and not stands(target) else None


@contextlib.contextmanager
def open_standing(
    target: str, image_format: ImageFormat | None, size: int, cancel: CancelToken
) -> Iterator[WritableDisk]:
    """Open a target that exists, to be written in place.

    Image files, and devices that hold qcow2, are written through qemu-nbd.

    Args:
        target: an NBD URI, a block device, or an image file.
        image_format: None: raw; of a file, if its content does not look like anything else.
        size: of the disk, in bytes. A device or an export may be larger; the rest is not touched.
        cancel: ends every wait for a server or a program.

    Raises:
        TargetError: it is not there, in use, read-only or too small, or its format cannot be told.
    """
    if is_uri(target):
        export = NbdDisk(target, TargetError, cancel=cancel)
        if export.read_only:
            raise TargetError("the export takes no writes", where=target)
        yield _fitting(export, size, exact=False)
    elif is_block_device(target) and image_format is not ImageFormat.QCOW2:
        with _raw_device(target) as device:
            yield _fitting(device, size, exact=False)
    else:
        found = image_format or _raw(target, cancel)
        with _served(target, found, cancel) as image:
            served = _fitting(image, size, exact=True, name=target)
            if found != ImageFormat.RAW:
                yield served
                return
            with contextlib.closing(RawDisk(target, TargetError)) as file:
                yield _ReadDirectly(served, file)


@contextlib.contextmanager
def _raw_device(target: str) -> Iterator[RawDisk]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(claimed(target, TargetError, Hold.OVERWRITTEN))
        yield stack.enter_context(contextlib.closing(RawDisk(target, TargetError, writable=True)))


@contextlib.contextmanager
def _served(target: str, image_format: ImageFormat, cancel: CancelToken) -> Iterator[WritableDisk]:
    """An image that a qemu-nbd of our own opens, which locks it itself."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(claimed(target, TargetError, Hold.NOTHING))
        yield stack.enter_context(open_for_writing(target, image_format, TargetError, cancel))


def _raw(target: str, cancel: CancelToken) -> ImageFormat:
    """Raw, unless the content looks like another format: then only the user knows what it is.

    A guest can write any header into its raw disk, also one that names another file of the host as
    the place of its data. What is restored over such a disk would land there.
    """
    found = probe_format(target, TargetError, cancel)
    if found != ImageFormat.RAW:
        raise TargetError(
            f"looks like {found}, but a guest can write that into a raw disk, too",
            where=target,
            hint=f"say what it is: --format {ImageFormat.RAW} or --format {ImageFormat.QCOW2}",
        )
    return ImageFormat.RAW


@dataclass(frozen=True)
class _ReadDirectly:
    """A raw image file that qemu-nbd writes, and holds QEMU's locks of, but that is read here.

    What qemu-nbd says is written is in the page cache that both share.
    """

    served: WritableDisk
    file: ReadableDisk

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return self.served.size

    @property
    def where(self) -> str:
        """Its name in messages."""
        return self.file.where

    def reader(self) -> AbstractContextManager[Reader]:
        """A new reader of the file."""
        return self.file.reader()

    def zero_extents(self, within: Extents) -> Extents:
        """The file's holes."""
        return self.file.zero_extents(within)

    def writer(self) -> AbstractContextManager[Writer]:
        """A new writer, through qemu-nbd."""
        return self.served.writer()

    def flush(self) -> None:
        """Make everything that was written durable."""
        self.served.flush()


def _fitting(
    disk: WritableDisk, size: int, *, exact: bool, name: str | None = None
) -> WritableDisk:
    rounded = -(-size // 512) * 512
    if disk.size < size or (exact and disk.size not in (size, rounded)):
        raise TargetError(
            f"has {disk.size} bytes, and the disk has {size}",
            where=name or disk.where,
            hint="'qemu-img resize' makes it fit" if exact else None,
        )
    return Part(disk, size)


def is_block_device(target: str) -> bool:
    """Whether a target is a block device, or a link to one."""
    try:
        return stat.S_ISBLK(os.stat(target).st_mode)
    except OSError:
        return False
