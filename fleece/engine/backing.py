"""Restore a disk's line of points as a qcow2 backing chain, a file for each point."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fleece import events
from fleece.cancel import CancelToken
from fleece.delta.chain import Chain, ChainMap
from fleece.disk.image import ImageFormat, open_for_writing
from fleece.disk.part import Part
from fleece.engine.pool import Counter
from fleece.engine.restore import RestoreResult, check_unread, prove, write_chain, write_zeros
from fleece.engine.target import is_there, sync
from fleece.errors import TargetError
from fleece.programs import child_environment, program
from fleece.store.folder import FolderStore


def restore_as_chain(
    store: FolderStore,
    point: str,
    disk: str,
    target: str,
    *,
    guest: str | None = None,
    listener: events.Listener = events.ignore,
    cancel: CancelToken | None = None,
) -> RestoreResult:
    """Make a folder of qcow2 images, one for each delta of a line, each backed by the older one.

    They need no fleece any more: `qemu-img` and QEMU read the newest through all of them. The
    folder gets its name when all files are whole, checked by qemu-img, and the newest is proven by
    the point's root.

    Args:
        store: to read.
        point: an id, a prefix of one, or `latest`.
        disk: the disk's name.
        target: the folder to make.
        guest: which guest, if `latest` could mean several.
        listener: hears `Progress`.
        cancel: stops it, leaving nothing.

    Raises:
        StoreError: the point is not there, or the chain is damaged.
        TargetError: the target exists, or cannot be written.
        VerifyError: the newest image does not have the point's root.
    """
    cancel = cancel or CancelToken()
    catalogue = store.catalogue()
    entry = catalogue.find(point, guest).disk(disk)
    with catalogue.chain(entry) as chain, _new_folder(Path(target)) as folder:
        for delta in chain.deltas:
            if (size := delta.header.size) % 512:
                raise TargetError(f"a qcow2 image cannot have {size} bytes: no multiple of 512")
        total = sum(delta.footer.data_bytes for delta in chain.deltas)
        counter = Counter(listener, events.Phase.RESTORE, disk, total)
        backing: Path | None = None
        for owner in reversed(range(len(chain.deltas))):
            head = chain.deltas[owner].header
            path = folder / f"{head.point.sequence:06d}-{head.point.id}.qcow2"
            size = head.size
            _create(path, backing, size)
            with open_for_writing(str(path), ImageFormat.QCOW2, TargetError) as image:
                if backing is not None:
                    write_zeros(_held_by(chain, owner), image, cancel)
                write_chain(chain, _held_by(chain, owner), image, counter, cancel)
                image.flush()
                if owner == 0:
                    check_unread(chain, chain.maps(), cancel)
                    prove(Part(image, size), chain, entry, listener, cancel)
            _judge(path)
            sync(path)
            backing = path
    return RestoreResult(
        entry.header.point.id, disk, target, size, entry.root, total, len(chain.deltas)
    )


def _held_by(chain: Chain, owner: int) -> Iterator[ChainMap]:
    """Maps of all that one delta of a chain holds, covered by newer ones or not."""
    for rows in chain.deltas[owner].index():
        start = rows["offset"].astype(np.int64)
        end = start + rows["length"].astype(np.int64)
        number = np.full(len(start), owner, np.int32)
        others = [rows[:0]] * len(chain.deltas)
        others[owner] = rows
        yield ChainMap(start, end, number, np.arange(len(start)), tuple(others))


@contextlib.contextmanager
def _new_folder(final: Path) -> Iterator[Path]:
    if is_there(final):
        raise TargetError("exists already", where=final, hint="choose a new name")
    partial = final.with_name(f".{final.name[:200]}.{secrets.token_hex(4)}.partial")
    try:
        partial.mkdir()
        yield partial
        sync(partial)
        partial.rename(final)
        sync(final.parent)
    except OSError as error:
        raise TargetError(error.strerror or str(error), where=final) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _create(path: Path, backing: Path | None, size: int) -> None:
    words = ["-b", backing.name, "-F", ImageFormat.QCOW2.value] if backing else []
    _qemu_img(path, "create", "-q", "-f", "qcow2", *words, "--", str(path), str(size))


def _judge(path: Path) -> None:
    _qemu_img(path, "check", "-q", "-f", "qcow2", "--", str(path))


def _qemu_img(path: Path, *words: str) -> None:
    done = subprocess.run(
        [program("qemu-img"), *words], capture_output=True, check=False, env=child_environment()
    )
    if done.returncode != 0:
        raise TargetError(" ".join(done.stderr.decode(errors="replace").split()), where=path)
