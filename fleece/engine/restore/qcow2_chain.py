"""Restore a disk's line of points as a qcow2 backing chain, a file for each point."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from fleece import events
from fleece.cancel import CancelToken
from fleece.delta.chain import Chain, ChainMap
from fleece.disk.image import ImageFormat, open_image
from fleece.disk.qcow2 import Backing
from fleece.engine.restore.image import RestoreResult, check_unread, prove, write_chain
from fleece.engine.restore.options import RestoreOptions
from fleece.engine.work.new_file import (
    check_named,
    is_there,
    open_path,
    qcow2_image,
    qcow2_layout,
    qemu_img,
    target_errors,
)
from fleece.engine.work.pool import Counter
from fleece.errors import TargetError, UsageError
from fleece.extents import Extents
from fleece.folder import Folder
from fleece.nbd.binding import libnbd
from fleece.store.store import Store

_READ, _READ_TO_SEARCH = 0o444, 2
"""Permissions to read, and by how many bits they are above those to search a folder."""

MOST_IMAGES = 256
"""QEMU opens all images of a chain at once, by default with 1024 open files."""


def restore_as_chain(
    store: Store,
    point: str,
    disk: str,
    target: str,
    options: RestoreOptions | None = None,
    listener: events.Listener = events.ignore,
    cancel: CancelToken | None = None,
) -> RestoreResult:
    """Make a folder of qcow2 images, one for each delta of a line, each backed by the older one.

    They need no fleece any more: `qemu-img` and QEMU read the newest through all of them. The
    folder gets its name when all files are whole, checked by qemu-img, and the newest is proven by
    the point's root. Of a line with more than `MOST_IMAGES` deltas, the oldest are one image.

    Args:
        store: to read.
        point: an id, a prefix of one, or `latest`.
        disk: the disk's name.
        target: the folder to make.
        options: the guest, and the permissions of the images; the folder lets those pass who may
            read them.
        listener: hears `Progress`, and `Warned` if an image stands for several deltas.
        cancel: stops it, leaving nothing.

    Raises:
        UsageError: another option is set.
        StoreError: the point is not there, or the chain is damaged.
        TargetError: the target exists, or cannot be written.
        VerifyError: the newest image does not have the point's root.
    """
    cancel = cancel or CancelToken()
    libnbd()  # with which the newest image is read back: missed before anything is made
    options = options or RestoreOptions()
    guest, mode = options.guest, options.mode
    if options != RestoreOptions(guest, mode=mode):
        raise UsageError("a chain is a new folder of qcow2 images", where=target)
    catalogue = store.catalogue()
    entry = catalogue.find(point, guest, disk, listener).disk(disk)
    with catalogue.chain(entry) as chain, _new_folder(Path(target), mode) as folder:
        first = min(len(chain.deltas), MOST_IMAGES) - 1
        if first < len(chain.deltas) - 1:
            listener(events.Warned(_joined(chain, first)))
        oldest = chain.below(first)
        total = _data_bytes(oldest) + sum(d.footer.data_bytes for d in chain.deltas[:first])
        counter = Counter(listener, events.Phase.RESTORE, disk, total)
        backing: Backing | None = None
        for owner in reversed(range(first + 1)):
            head = chain.deltas[owner].header
            name = f"{head.point.sequence:06d}-{head.point.id}.qcow2"
            where, path = f"{target}/{name}", _made(folder, name)
            part = oldest if backing is None else chain
            data, zeros = _extents(_pictures(part, owner, backing))
            layout = qcow2_layout(head.size, data, zeros if backing else None, where=where)
            with contextlib.closing(qcow2_image(path, layout, backing, where=where)) as image:
                write_chain(part, _pictures(part, owner, backing), image, counter, cancel)
                image.flush()
            qemu_img("check", "-q", "-f", "qcow2", "--", path, where=target, cancel=cancel)
            _finish(folder, name, mode)
            backing = Backing(name, ImageFormat.QCOW2.value)
        check_unread(chain, chain.maps(), cancel)
        with open_image(path, ImageFormat.QCOW2, TargetError, cancel=cancel) as newest:
            prove(newest, chain, entry, listener, cancel)
    return RestoreResult(
        entry.header.point.id, disk, target, head.size, entry.root, total, len(chain.deltas)
    )


def _data_bytes(chain: Chain) -> int:
    return sum(picture.extents(zero=False).total for picture in chain.maps())


def _joined(chain: Chain, first: int) -> str:
    point = chain.deltas[first].header.point.id
    older = len(chain.deltas) - 1 - first
    return (
        f"the chain is long: the image of point {point} is its first, "
        f"and the {older} older points have none"
    )


def _pictures(chain: Chain, owner: int, backing: Backing | None) -> Iterator[ChainMap]:
    """Maps of what one image holds: all of the chain, or over a backing file one delta of it."""
    return chain.maps() if backing is None else _held_by(chain, owner)


def _extents(pictures: Iterable[ChainMap]) -> tuple[Extents, Extents]:
    """What maps show as data, and what as zeros, in bytes of disk."""
    data, zeros = [], []
    for picture in pictures:
        data.append(picture.extents(zero=False))
        zeros.append(picture.extents(zero=True))
    return Extents.joined(data), Extents.joined(zeros)


def _held_by(chain: Chain, owner: int) -> Iterator[ChainMap]:
    """Maps of all that one delta of a chain holds, covered by newer ones or not."""
    for rows in chain.deltas[owner].index():
        start = rows["offset"].astype(np.int64)
        end = start + rows["length"].astype(np.int64)
        number = np.full(len(start), owner, np.int32)
        yield ChainMap(start, end, number, np.arange(len(start)), rows)


@contextlib.contextmanager
def _new_folder(final: Path, mode: int | None) -> Iterator[Folder]:
    if is_there(final):
        raise TargetError("exists already", where=final, hint="choose a new name")
    partial = f".fleece-{secrets.token_hex(8)}.partial"
    with target_errors(final), Folder.open(final.parent) as parent:
        try:
            with parent.make_folder(partial) as made:
                yield made
                if mode is not None:
                    os.fchmod(made.descriptor, mode | (mode & _READ) >> _READ_TO_SEARCH)
                made.sync()
                parent.rename(partial, final.name)
                check_named(parent, made.descriptor, final)
            parent.sync()
        finally:
            with contextlib.suppress(OSError):
                parent.remove_folder(partial)


def _made(folder: Folder, name: str) -> str:
    """Make an empty file for an image; gives a path to it that nobody can lead elsewhere."""
    os.close(folder.new_file(name))
    return f"{open_path(folder.descriptor)}/{name}"


def _finish(folder: Folder, name: str, mode: int | None) -> None:
    """Give an image its mode, and make it durable."""
    descriptor = folder.file(name)
    try:
        if mode is not None:
            os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
