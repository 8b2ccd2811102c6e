"""Targets of a restore: new image files that get their name only when they are whole."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

from fleece.disk.base import WritableDisk
from fleece.disk.image import ImageFormat, open_for_writing
from fleece.disk.raw import RawDisk
from fleece.errors import TargetError
from fleece.naming import name_new
from fleece.programs import child_environment, program


@contextlib.contextmanager
def open_target(
    path: str, image_format: ImageFormat, size: int, *, force: bool
) -> Iterator[WritableDisk]:
    """Make a blank image beside the target; give it the target's name if all went well.

    Args:
        path: the target.
        image_format: raw (sparse) or qcow2.
        size: of the disk in bytes.
        force: replace a file that exists.

    Raises:
        TargetError: it exists, or it cannot be made.
    """
    with new_file(path, force=force) as partial, _blank(partial, image_format, size) as disk:
        yield disk


@contextlib.contextmanager
def new_file(path: str, *, force: bool) -> Iterator[Path]:
    """Give the path of a file to make beside `path`; rename it to that, durably, if all went well.

    Args:
        path: the file wanted.
        force: replace a file that exists.

    Raises:
        TargetError: it exists, or it cannot be made.
    """
    final = Path(path)
    _refuse(final, force)
    partial = final.with_name(f".{final.name[:200]}.{secrets.token_hex(4)}.partial")
    try:
        yield partial
        with _target_errors(final):
            sync(partial)
            _name(partial, final, force)
            sync(final.parent)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def _refuse(final: Path, force: bool) -> None:
    if is_there(final):
        if not force:
            raise TargetError("exists already", where=final, hint="--force replaces it")
        with _target_errors(final):
            regular = final.is_file()
        if not regular:
            raise TargetError("is not a regular file", where=final)


def is_there(path: Path) -> bool:
    """Whether anything has this path; if not, it can be made as far as can be told.

    Raises:
        TargetError: its folder is not there or cannot be looked into, or no file can have its name.
    """
    with _target_errors(path):
        if not path.parent.is_dir():
            raise TargetError("the folder does not exist", where=path.parent)
        try:
            path.lstat()
        except FileNotFoundError:
            return False
        return True


@contextlib.contextmanager
def _blank(path: Path, image_format: ImageFormat, size: int) -> Iterator[WritableDisk]:
    if image_format is ImageFormat.RAW:
        with _target_errors(path), open(path, "xb") as file:
            file.truncate(size)
        with contextlib.closing(RawDisk(str(path), TargetError, writable=True)) as raw:
            yield raw
        return
    if size % 512:
        raise TargetError(
            f"a qcow2 image cannot have {size} bytes: no multiple of 512",
            where=path,
            hint="restore to raw",
        )
    made = subprocess.run(
        [program("qemu-img"), "create", "-q", "-f", "qcow2", "--", str(path), str(size)],
        capture_output=True,
        check=False,
        env=child_environment(),
    )
    if made.returncode != 0:
        raise TargetError(made.stderr.decode(errors="replace").strip(), where=path)
    with open_for_writing(str(path), image_format, TargetError) as image:
        yield image


def _name(partial: Path, final: Path, force: bool) -> None:
    """Give the image its name; without `force` even a file that appeared meanwhile is kept."""
    if force:
        partial.replace(final)
        return
    try:
        name_new(partial, final)
    except FileExistsError:
        raise TargetError("exists already", where=final, hint="--force replaces it") from None


def sync(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _target_errors(where: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TargetError(error.strerror or str(error), where=where) from error
