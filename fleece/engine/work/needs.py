"""What fleece needs of the host: looked for before a point is taken, and told by `doctor`."""

from __future__ import annotations

import importlib.util
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fleece.cancel import CancelToken
from fleece.engine.work.kvm import examine_kvm
from fleece.errors import FleeceError, Interrupted, StoreError, TargetError, UsageError
from fleece.nbd.binding import libnbd
from fleece.nbd.nbdkit import check_nbdkit, check_same_python
from fleece.programs import program
from fleece.source.base import Transport
from fleece.source.place import default_scratch, room_of
from fleece.store.backend import Backend
from fleece.store.open import open_backend
from fleece.store.store import read_marker

_LEAST = 64 * 1024
"""Bytes without which no store takes a point: header, tree and footer of one delta."""

_FILE_SYSTEMS = "dissect.volume", "dissect.extfs", "dissect.xfs", "dissect.ntfs", "dissect.fat"


@dataclass(frozen=True)
class Need:
    """Something that fleece needs, and whether it is there.

    Attributes:
        name: of it.
        purpose: what it is needed for.
        room: bytes that it has left; None: nothing is to be had in it.
        trouble: why it cannot be used; None: it is ready.
        hint: what to do about that.
    """

    name: str
    purpose: str
    room: int | None = None
    trouble: str | None = None
    hint: str | None = None

    @property
    def ready(self) -> bool:
        """Whether it can be used."""
        return self.trouble is None


def check_backup_needs(transport: Transport, cancel: CancelToken | None = None) -> None:
    """See that all is there that the engine needs of a point, before anything is changed.

    What its source needs, the source tells (`Source.check_needs`).

    Args:
        transport: how the point will be read.
        cancel: ends the wait for nbdkit.

    Raises:
        UsageError: something is missing; it says what to install.
    """
    if transport is Transport.PUSH:
        check_nbdkit(cancel)
    else:
        libnbd()


def room_in(backend: Backend) -> int | None:
    """Bytes that a store can still take; None: nobody can tell.

    Raises:
        StoreError: there is no room at all, or that cannot be told.
    """
    left = backend.room()
    if left is not None and left < _LEAST:
        raise StoreError(
            f"there is no room: {left} bytes are left",
            where=backend.where,
            hint="make room there",
        )
    return left


def examine_host(
    scratch: Path | None = None,
    store: str | os.PathLike[str] | None = None,
    cancel: CancelToken | None = None,
) -> tuple[Need, ...]:
    """Look for all that fleece needs on this host.

    Args:
        scratch: folder for scratch files; None: the default one.
        store: a store; None: none is looked at.
        cancel: ends it.

    Raises:
        Interrupted: `cancel` was called.
    """
    found = [
        _need("libnbd", "reading points, serving, NBD URIs", _silent(libnbd)),
        _need("qemu-img", "backup, audit, restore, images", _silent(lambda: program("qemu-img"))),
        _need("qemu-nbd", "images that are not raw", _silent(lambda: program("qemu-nbd"))),
        _need(
            "nbdkit",
            "serve, boot-test, backup --transport push",
            _silent(lambda: check_nbdkit(cancel)),
        ),
        _need("nbdkit's Python", "serve, boot-test", _silent(lambda: check_same_python(cancel))),
        _need("qemu-system-x86_64", "boot-test", _silent(_machine)),
        _need("file systems", "files", _silent(_check_file_systems)),
        _kvm(cancel),
        _need("scratch", "backup, audit", lambda: _check_scratch(scratch or _default_scratch())),
    ]
    if store is not None:
        found.append(_need("store", "backup", lambda: _check_store(store)))
    return tuple(found)


def _need(name: str, purpose: str, check: Callable[[], int | None]) -> Need:
    try:
        return Need(name, purpose, check())
    except Interrupted:
        raise
    except FleeceError as error:
        trouble = error.what if error.where is None else f"{error.where}: {error.what}"
        return Need(name, purpose, None, trouble, error.hint)


def _silent(check: Callable[[], object]) -> Callable[[], None]:
    """A check of which nothing is told but a failure."""

    def run() -> None:
        check()

    return run


def _machine() -> str:
    return program("qemu-system-x86_64", "qemu-system-x86")


def _check_file_systems() -> None:
    missing = [name for name in _FILE_SYSTEMS if not _is_installed(name)]
    if missing:
        raise UsageError(
            f"the library that reads file systems is missing ({', '.join(missing)})",
            hint="pip install 'fleece-backup[files]'",
        )


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:
        return False


def _kvm(cancel: CancelToken | None) -> Need:
    purpose = "boot-test without emulation"
    try:
        found = examine_kvm(cancel=cancel)
    except UsageError as error:
        return Need("KVM", purpose, None, error.what, error.hint)
    if found.works:
        return Need("KVM", purpose)
    return Need("KVM", purpose, None, str(found).removeprefix("KVM "), found.hint)


def _default_scratch() -> Path:
    """The default scratch folder, or where the first backup will make it."""
    place = default_scratch()
    return next(path for path in (place, *place.parents) if os.path.exists(path))


def _check_scratch(folder: Path) -> int:
    try:
        is_folder = stat.S_ISDIR(os.stat(folder).st_mode)
        room = room_of(os.statvfs(folder))
    except OSError as error:
        raise TargetError(error.strerror or str(error), where=folder) from error
    if not is_folder:
        raise TargetError("is not a folder", where=folder, hint="choose another one with --scratch")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise TargetError(
            "this user may not write there",
            where=folder,
            hint="choose another folder with --scratch",
        )
    if room.left <= 0:
        raise TargetError(
            f"{room.state}: no backup can begin",
            where=folder,
            hint="make room there, or choose another folder with --scratch",
        )
    return room.left


def _check_store(store: str | os.PathLike[str]) -> int | None:
    backend = open_backend(store)
    read_marker(backend)
    left = room_in(backend)
    if not backend.writable():
        raise StoreError("this user may not write there", where=store)
    return left
