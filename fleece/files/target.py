"""Where copies go: a folder, written through descriptors, so that no link leads out of it.

Every name is made relative to the descriptor of the folder that it is in (openat(2) and the like),
and no link is ever followed below the folder that the caller has named. A file gets its name when
it is whole. What exists is replaced only with `force`, and then by a rename; what was made here is
not even then, because two files of one name would count as copied and only one be there.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import stat
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

from fleece.errors import TargetError
from fleece.naming import name_new
from fleece.writeback import Writeback
from fleece.writing import taken

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_UNFIT = (errno.EFBIG, errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)
_PERMISSIONS = 0o777
"""Of a mode, what is copied: owners are not, so set-id bits would give rights to somebody else."""


class UnfitError(TargetError):
    """The target can hold no file of this name or size, or has it made already: others it can."""


class _Made:
    """The paths that were made in one run."""

    def __init__(self) -> None:
        self._paths: dict[str, list[str]] = {}

    def add(self, path: str) -> None:
        """Remember a path."""
        self._paths.setdefault(_folded(path), []).append(path)

    def has(self, path: str, found: os.stat_result) -> bool:
        """Whether what was found at a path was made in this run, under this or another spelling."""
        return any(
            path == made or _is_at(made, found) for made in self._paths.get(_folded(path), ())
        )


def _folded(path: str) -> str:
    """The same for all spellings that some file system takes for one name."""
    return unicodedata.normalize("NFC", path).casefold()


def _is_at(path: str, found: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.lstat(path), found)
    except OSError:
        return False


class Folder:
    """A folder, open. Use it as a context manager.

    Args:
        descriptor: of the folder; closed in the end.
        where: its path, for messages.
        made: it is new.
        replaces: files that exist, unless they were made in this run; None: no file at all.
    """

    def __init__(self, descriptor: int, where: str, *, made: bool, replaces: _Made | None) -> None:
        self._descriptor = descriptor
        self._replaces = replaces
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
        return Folder(descriptor, str(path), made=False, replaces=_Made() if force else None)

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
                    raise TargetError("exists and is not a folder", where=where) from error
                raise
        return Folder(descriptor, where, made=made, replaces=self._replaces)

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
            UnfitError: it was made just now, or this file system can have no such file.
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
        """Raise if something has this name, unless it may be replaced.

        Raises:
            UnfitError: it was made in this run.
            TargetError: it is there otherwise.
        """
        where = self._path(name)
        with _errors(where):
            try:
                found = os.lstat(name, dir_fd=self._descriptor)
            except FileNotFoundError:
                return
        if stat.S_ISDIR(found.st_mode):
            raise TargetError("exists and is a folder", where=where)
        if self._replaces is None:
            raise TargetError("exists already", where=where, hint="--force replaces it")
        if self._replaces.has(where, found):
            raise UnfitError("another file has got this name just now", where=where)

    def _name(self, partial: str, name: str) -> None:
        """Give a whole file its name; without `force` even one that appeared meanwhile is kept."""
        here = self._descriptor
        with _errors(self._path(name)):
            if self._replaces is None:
                name_new(partial, name, here)
                return
            os.rename(partial, name, src_dir_fd=here, dst_dir_fd=here)
        self._replaces.add(self._path(name))

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
        self._writeback = Writeback(descriptor)

    def write(self, offset: int, data: bytes | bytearray) -> None:
        """Write all of `data` at `offset`."""
        view = memoryview(data)
        with _errors(self._where):
            while len(view):
                count = taken(os.pwrite(self._descriptor, view, offset))
                view, offset = view[count:], offset + count
            self._writeback.wrote(len(data))

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
