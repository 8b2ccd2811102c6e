"""Targets of a restore: new image files that get their name only when they are whole.

Until then a file is made beside the target, exclusively and for this user alone; it is handed on as
what is open, never by its name, so that whoever may write into the folder cannot have another file
written in its place.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fleece import events
from fleece.cancel import CancelToken
from fleece.disk.base import WritableDisk
from fleece.disk.image import ImageFormat, open_for_writing
from fleece.disk.qcow2 import Backing, Layout, Qcow2Image
from fleece.disk.raw import RawDisk
from fleece.disk.use import Claim, Hold, claimed
from fleece.engine.work.ownership import dress
from fleece.errors import TargetError
from fleece.extents import Extents
from fleece.folder import Folder
from fleece.naming import name_new
from fleece.programs import file_name, finished, program
from fleece.there import is_folder
from fleece.writing import taken


@dataclass(frozen=True)
class Manner:
    """How a file is made.

    Attributes:
        force: replace a file that exists.
        mode: its permissions; None: those of the file that it replaces, else this user's alone.
        listener: hears `Warned` of what could not be kept of a file that is replaced.
        cancel: ends every wait for qemu-img and qemu-nbd.
    """

    force: bool = False
    mode: int | None = None
    listener: events.Listener = events.ignore
    cancel: CancelToken = field(default_factory=CancelToken)


@dataclass(frozen=True)
class NewFile:
    """A file that is being made, open.

    Attributes:
        where: the path that it will have; for messages.
        descriptor: of it, to read and write.
    """

    where: str
    descriptor: int

    @property
    def path(self) -> str:
        """A path to what is open, whatever has its name; for this process and those it starts."""
        return open_path(self.descriptor)

    def write(self, data: bytes) -> None:
        """Write all of `data` where the last write ended.

        Raises:
            TargetError: it cannot be written.
        """
        view = memoryview(data)
        with target_errors(self.where):
            while len(view):
                view = view[taken(os.write(self.descriptor, view)) :]


def open_path(descriptor: int) -> str:
    """A path to what is open here: no name on the way to it can be changed (proc_pid_fd(5))."""
    return f"/proc/{os.getpid()}/fd/{descriptor}"


@contextlib.contextmanager
def open_target(
    path: str,
    image_format: ImageFormat,
    size: int,
    manner: Manner,
    held: Extents | None = None,
) -> Iterator[WritableDisk]:
    """Make a blank image beside the target; give it the target's name if all went well.

    Args:
        path: the target.
        image_format: raw (sparse) or qcow2.
        size: of the disk in bytes.
        manner: how to make it.
        held: all that will be written, in bytes of disk; None: it is not known yet. A qcow2 image
            is then written through qemu-nbd, which is slower.

    Raises:
        TargetError: it exists, is in use, or cannot be made.
    """
    with (
        new_file(path, manner) as file,
        _blank(file, image_format, size, held, manner.cancel) as disk,
    ):
        yield disk


@contextlib.contextmanager
def new_file(path: str, manner: Manner) -> Iterator[NewFile]:
    """Give a file to fill, made beside `path`; rename it to that, durably, if all went well.

    Args:
        path: the file wanted.
        manner: how to make it. While a file is to be replaced, QEMU's programs cannot write to it.

    Raises:
        TargetError: it exists, is in use, or cannot be made.
    """
    final = Path(path)
    with contextlib.ExitStack() as stack:
        old = stack.enter_context(_replaced(final)) if _exists(final, manner.force) else None
        with target_errors(final):
            folder = stack.enter_context(Folder.open(final.parent))
            partial = f".fleece-{secrets.token_hex(8)}.partial"
            descriptor = folder.new_file(partial)
        stack.callback(os.close, descriptor)
        try:
            yield NewFile(path, descriptor)
            replaced = None if old is None else old.descriptor
            with target_errors(final):
                dress(descriptor, replaced, manner.mode, manner.listener, path)
                os.fsync(descriptor)
                if old is not None:
                    old.check()
                _name(folder, partial, final, manner.force)
                check_named(folder, descriptor, final)
                folder.sync()
        except BaseException:
            with contextlib.suppress(OSError):
                folder.remove(partial)
            raise
        _remove_other_name(folder, partial, path, manner.listener)


def _remove_other_name(folder: Folder, name: str, path: str, listener: events.Listener) -> None:
    """Remove the name that a file had while it was made, if it still has it."""
    try:
        folder.remove(name)
    except FileNotFoundError:
        pass
    except OSError as error:
        listener(
            events.Warned(
                f"{folder.path / name}: cannot be removed ({error.strerror}): another name of "
                f"{path}, which is whole; remove it"
            )
        )


def _exists(final: Path, force: bool) -> bool:
    """Whether there is a file to replace.

    Raises:
        TargetError: there is something that is not to be replaced, or cannot be.
    """
    if not is_there(final):
        return False
    if not force:
        raise TargetError("exists already", where=final, hint="--force replaces it")
    check_replaceable(final)
    return True


def check_replaceable(path: Path) -> None:
    """Refuse what exists and cannot be replaced by a file.

    Raises:
        TargetError: it is no regular file.
    """
    with target_errors(path):
        mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        raise TargetError(
            "is a symbolic link, not a regular file",
            where=path,
            hint="name the file that it leads to",
        )
    if stat.S_ISDIR(mode):
        raise TargetError("is a folder, not a regular file", where=path)
    if not stat.S_ISREG(mode):
        raise TargetError("is not a regular file", where=path)


@contextlib.contextmanager
def _replaced(final: Path) -> Iterator[Claim]:
    """A file that is to be replaced: whoever has it open would keep one without a name."""
    with claimed(str(final), TargetError, Hold.REPLACED) as claim:
        yield claim


def is_there(path: Path) -> bool:
    """Whether anything has this path; if not, it can be made as far as can be told.

    Raises:
        TargetError: its folder is not there or cannot be looked into, or no file can have its name.
    """
    with target_errors(path):
        if not is_folder(path.parent):
            raise TargetError("the folder does not exist", where=path.parent)
        try:
            path.lstat()
        except FileNotFoundError:
            return False
        return True


@contextlib.contextmanager
def _blank(
    file: NewFile,
    image_format: ImageFormat,
    size: int,
    held: Extents | None,
    cancel: CancelToken,
) -> Iterator[WritableDisk]:
    if image_format is ImageFormat.RAW:
        with target_errors(file.where):
            os.ftruncate(file.descriptor, size)
        with contextlib.closing(RawDisk(file.path, TargetError, writable=True)) as raw:
            raw.where = file.where
            yield raw
        return
    layout = qcow2_layout(size, Extents.empty() if held is None else held, where=file.where)
    if held is not None:
        with contextlib.closing(qcow2_image(file.path, layout, where=file.where)) as written:
            yield written
        return
    _create_qcow2(file.path, size, cancel, where=file.where)
    opened = open_for_writing(file.path, image_format, TargetError, cancel, name=file.where)
    with opened as image:
        yield image


def qcow2_layout(size: int, held: Extents, zeros: Extents | None = None, *, where: str) -> Layout:
    """Plan a qcow2 image (`Layout.of`).

    Raises:
        TargetError: no qcow2 image has this size.
    """
    try:
        return Layout.of(size, held, zeros)
    except ValueError as error:
        raise TargetError(str(error), where=where, hint="restore to raw") from error


def qcow2_image(
    path: str, layout: Layout, backing: Backing | None = None, *, where: str
) -> Qcow2Image:
    """Open a new qcow2 image in a file that is blank, or on a device.

    Raises:
        TargetError: it cannot be opened.
    """
    return Qcow2Image(path, layout, TargetError, backing, where)


def _create_qcow2(path: str, size: int, cancel: CancelToken, *, where: str) -> None:
    words = ["--", file_name(path), str(size)]
    qemu_img("create", "-q", "-f", "qcow2", *words, where=where, cancel=cancel)


def qemu_img(*words: str, where: str, cancel: CancelToken) -> bytes:
    """Run qemu-img; gives what it printed.

    Args:
        words: its own.
        where: the target's name in messages.
        cancel: ends it.

    Raises:
        TargetError: it failed.
        Interrupted: `cancel` was called.
    """
    done = finished([program("qemu-img"), *words], cancel)
    if done.code != 0:
        text = re.sub(r"/proc/[0-9]+/fd/[0-9]+", lambda _: where, done.said)
        raise TargetError(f"qemu-img {words[0]} failed: {text}", where=where)
    return done.out


def _name(folder: Folder, partial: str, final: Path, force: bool) -> None:
    """Give the image its name; without `force` even a file that appeared meanwhile is kept."""
    if force:
        folder.rename(partial, final.name)
        return
    try:
        name_new(partial, final.name, folder.descriptor)
    except FileExistsError:
        raise TargetError("exists already", where=final, hint="--force replaces it") from None


def check_named(folder: Folder, descriptor: int, final: Path) -> None:
    """Check that what has the name now is what was made: others may write into the folder too.

    Raises:
        TargetError: it is not.
    """
    if not os.path.samestat(folder.stat(final.name), os.fstat(descriptor)):
        raise TargetError(
            "is not what was written: somebody put another file there",
            where=final,
            hint="restore to a folder that only you may write to",
        )


@contextlib.contextmanager
def target_errors(where: Path | str) -> Iterator[None]:
    """Turn errors of the system into the target's."""
    try:
        yield
    except OSError as error:
        raise TargetError(error.strerror or str(error), where=where) from error
