"""Where copies go: a folder, written through descriptors, so that no link leads out of it.

Every name is made relative to the descriptor of the folder that it is in (openat(2) and the like),
and no link is ever followed below the folder that the caller has named. A file gets its name when
it is whole. What exists is replaced only with `force`, and then by a rename.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from fleece.errors import TargetError

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_UNFIT = (errno.EFBIG, errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)
_PERMISSIONS = 0o777
"""Of a mode, what is copied: owners are not, so set-id bits would give rights to somebody else."""


class UnfitError(TargetError):
    """The target's file system can hold no file of this name or size: others it can."""


class Folder:
    """A folder, open. Use it as a context manager.

    Args:
        descriptor: of the folder; closed in the end.
        where: its path, for messages.
        made: it is new.
        force: replace files that exist.
    """

    def __init__(self, descriptor: int, where: str, *, made: bool, force: bool) -> None:
        self._descriptor = descriptor
        self._force = force
        self.where = where
        self.made = made

    @staticmethod
    def open(path: Path, *, force: bool) -> Folder:
        """The folder at a path of the caller's own, in which links are his affair.

        Raises:
            TargetError: there is none.
        """
        with _errors(path):
            descriptor = os.open(path, _FOLDER & ~os.O_NOFOLLOW)
        return Folder(descriptor, str(path), made=False, force=force)

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._descriptor)

    def folder(self, name: str) -> Folder:
        """A folder in this one; made, for this user alone, if it is not there.

        Raises:
            TargetError: it is something else, or cannot be made.
        """
        made = True
        where = self._path(name)
        with _errors(where):
            try:
                os.mkdir(name, 0o700, dir_fd=self._descriptor)
            except FileExistsError:
                made = False
            try:
                descriptor = os.open(name, _FOLDER, dir_fd=self._descriptor)
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENOTDIR):
                    raise TargetError("is there and is no folder", where=where) from error
                raise
        return Folder(descriptor, where, made=made, force=self._force)

    def finish(self, mode: int | None, mtime: int | None) -> None:
        """Give a folder that is new its mode and time, when all is in it."""
        if not self.made:
            return
        with _errors(self.where):
            os.fchmod(self._descriptor, _mode(mode, 0o777))
            if mtime is not None:
                os.utime(self._descriptor, ns=(mtime, mtime))

    @contextlib.contextmanager
    def file(self, name: str, mode: int | None, mtime: int | None) -> Iterator[NewFile]:
        """Make a file; it gets its name if all went well, and is gone if not.

        Args:
            name: of the file.
            mode: its permissions; None: what the umask leaves.
            mtime: in nanoseconds; None: now.

        Raises:
            TargetError: it exists, or cannot be made.
        """
        self.check_free(name)
        where, partial = self._path(name), _partial()
        with _errors(where):
            descriptor = os.open(partial, _NEW, 0o600, dir_fd=self._descriptor)
        try:
            with contextlib.closing(NewFile(descriptor, where)) as file:
                yield file
                with _errors(where):
                    os.fchmod(descriptor, _mode(mode, 0o666))
                    if mtime is not None:
                        os.utime(descriptor, ns=(mtime, mtime))
            self._name(partial, name)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(partial, dir_fd=self._descriptor)

    def link(self, name: str, target: str, mtime: int | None) -> None:
        """Make a symbolic link; where it leads to is not looked at.

        Raises:
            TargetError: it exists, or cannot be made.
        """
        self.check_free(name)
        where, partial = self._path(name), _partial()
        with _errors(where):
            os.symlink(target, partial, dir_fd=self._descriptor)
        try:
            with _errors(where):
                if mtime is not None:
                    times = (mtime, mtime)
                    os.utime(partial, ns=times, dir_fd=self._descriptor, follow_symlinks=False)
            self._name(partial, name)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(partial, dir_fd=self._descriptor)

    def check_free(self, name: str) -> None:
        """Raise `TargetError` if something has this name, unless it may be replaced."""
        where = self._path(name)
        with _errors(where):
            try:
                found = os.lstat(name, dir_fd=self._descriptor)
            except FileNotFoundError:
                return
        if stat.S_ISDIR(found.st_mode):
            raise TargetError("is there and is a folder", where=where)
        if not self._force:
            raise TargetError("exists already", where=where, hint="--force replaces it")

    def _name(self, partial: str, name: str) -> None:
        """Give a whole file its name; without `force` even one that appeared meanwhile is kept."""
        here = self._descriptor
        with _errors(self._path(name)):
            if not self._force:
                try:
                    os.link(partial, name, src_dir_fd=here, dst_dir_fd=here, follow_symlinks=False)
                    return
                except OSError as error:
                    if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                        raise
            os.rename(partial, name, src_dir_fd=here, dst_dir_fd=here)

    def _path(self, name: str) -> str:
        return os.path.join(self.where, name)

    def sync(self) -> None:
        """Make all of the file system that this folder is in durable (syncfs(2)): one call for
        any number of files.

        Raises:
            TargetError: it failed, now or since this folder was opened.
        """
        if _syncfs(self._descriptor) != 0:
            number = ctypes.get_errno()
            raise TargetError(os.strerror(number), where=self.where)


class NewFile:
    """A file that is being written."""

    def __init__(self, descriptor: int, where: str) -> None:
        self._descriptor = descriptor
        self._where = where

    def write(self, offset: int, data: bytes | bytearray) -> None:
        """Write all of `data` at `offset`."""
        view = memoryview(data)
        with _errors(self._where):
            while len(view):
                count = os.pwrite(self._descriptor, view, offset)
                view, offset = view[count:], offset + count

    def end_at(self, size: int) -> None:
        """Set the size; what was not written is a hole."""
        with _errors(self._where):
            os.ftruncate(self._descriptor, size)

    def close(self) -> None:
        """Close it."""
        os.close(self._descriptor)


def _mode(mode: int | None, default: int) -> int:
    """The permissions to give: those of the source, or as of any new file."""
    return default & ~_umask() if mode is None else mode & _PERMISSIONS


def _umask() -> int:
    """Of this process, without changing it (proc_pid_status(5))."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0o077


def _partial() -> str:
    return f".fleece-{secrets.token_hex(8)}.partial"


def _load_syncfs() -> Callable[[int], int]:
    found = ctypes.CDLL(None, use_errno=True).syncfs
    found.argtypes, found.restype = [ctypes.c_int], ctypes.c_int
    call: Callable[[int], int] = found
    return call


_syncfs = _load_syncfs()


@contextlib.contextmanager
def _errors(where: Path | str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        family = UnfitError if error.errno in _UNFIT else TargetError
        raise family(error.strerror or str(error), where=where) from error
