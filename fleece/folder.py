"""Open what lies in a folder that somebody else may write into: only what it seems to be.

Each name is looked up relative to the folder's own descriptor, no symbolic link is followed, and a
file is opened only if it is a regular one: a pipe, a device or a socket is refused without waiting
for whoever is at its other end. New files are made exclusively. So nobody who can make names in the
folder can have another file of the host read, cut or written through it (symlink(7), open(2)).

Every failure is an `OSError` whose `filename` is the whole path and whose `strerror` says what it
was; rooms turn it into an error of their own family.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fleece.closing import Closing
from fleece.writing import taken

PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700

_LOOK = os.O_NOFOLLOW | os.O_CLOEXEC
_TEMPORARY = ".new-"
_LONGEST_STEM = 50
"""Characters, of four bytes at most, that a temporary name has of the name that it stands for."""


class Kind(enum.Enum):
    """What a name in a folder is."""

    FILE = "regular file"
    FOLDER = "folder"
    LINK = "symbolic link"
    OTHER = "special file"

    @staticmethod
    def of(mode: int) -> Kind:
        """The kind that a file's mode (stat(2)) tells."""
        if stat.S_ISREG(mode):
            return Kind.FILE
        if stat.S_ISDIR(mode):
            return Kind.FOLDER
        return Kind.LINK if stat.S_ISLNK(mode) else Kind.OTHER


@dataclass(frozen=True)
class Found:
    """A name in a folder, not followed and not opened."""

    name: str
    kind: Kind


class Folder(Closing):
    """An open folder. Use it as a context manager, or `close` it.

    Attributes:
        path: where it was opened; for messages, and for programs that take no descriptor.
        descriptor: of the folder.
    """

    def __init__(self, descriptor: int, path: Path) -> None:
        self.descriptor = descriptor
        self.path = path

    @staticmethod
    def open(path: str | os.PathLike[str]) -> Folder:
        """Open a folder that the user named: links on the way to it are the user's own affair.

        Raises:
            OSError: there is none, or it cannot be opened.
        """
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        return Folder(os.open(path, flags), Path(path))

    def close(self) -> None:
        """Close it; safe to repeat."""
        if self.descriptor >= 0:
            with contextlib.suppress(OSError):  # it is closed then too, and held nothing unwritten
                os.close(self.descriptor)
            self.descriptor = -1

    def folder(self, name: str) -> Folder:
        """Open a folder in this one.

        Raises:
            OSError: there is none of that name, or it is a link or a file.
        """
        return Folder(self._open(name, os.O_RDONLY | os.O_DIRECTORY, 0), self.path / name)

    def make_folder(self, name: str, mode: int = PRIVATE_FOLDER) -> Folder:
        """Make a folder in this one, with just that mode whatever the umask, and open it.

        It keeps the group of a folder whose files all have that (the set-group-id bit).

        Raises:
            FileExistsError: something has the name.
            OSError: it cannot be made.
        """
        with self._naming(name):
            os.mkdir(name, mode, dir_fd=self.descriptor)
        try:
            made = self.folder(name)
        except PermissionError:
            self._open_up(name, mode)
            made = self.folder(name)
        try:
            set_mode(made.descriptor, mode)
        except BaseException:
            made.close()
            raise
        return made

    def _open_up(self, name: str, mode: int) -> None:
        """Let the owner into a folder that the umask kept even them out of."""
        descriptor = self._open(name, os.O_PATH | os.O_DIRECTORY, 0)
        try:
            with self._naming(name):
                os.chmod(f"/proc/self/fd/{descriptor}", mode)
        finally:
            os.close(descriptor)

    def names(self) -> Iterator[str]:
        """All names in it, in no order, one at a time: however many there are.

        Raises:
            OSError: it cannot be listed.
        """
        with self._naming(None), os.scandir(self.descriptor) as items:
            for item in items:
                yield item.name

    def entries(self) -> list[Found]:
        """All names in it, in order, but not what they lead to.

        Raises:
            OSError: it cannot be listed.
        """
        with self._naming(None), os.scandir(self.descriptor) as items:
            found = [Found(item.name, _kind(item)) for item in items]
        return sorted(found, key=lambda one: one.name)

    def stat(self, name: str) -> os.stat_result:
        """What a name is (lstat(2)).

        Raises:
            OSError: there is none.
        """
        with self._naming(name):
            return os.lstat(name, dir_fd=self.descriptor)

    def has(self, name: str) -> bool:
        """Whether anything has the name.

        Raises:
            OSError: that cannot be told.
        """
        try:
            self.stat(name)
        except FileNotFoundError:
            return False
        return True

    def file(self, name: str, flags: int = os.O_RDONLY, *, sole: bool = False) -> int:
        """Open a regular file that is there; gives its descriptor.

        Args:
            name: of the file.
            flags: of open(2), without those that would make or cut it.
            sole: it must have no other name (a hard link): what is written into it is then written
                into nothing else.

        Raises:
            OSError: there is none, it cannot be opened, or it is no regular file.
        """
        descriptor = self._open(name, flags | os.O_NONBLOCK | os.O_NOCTTY, 0)
        try:
            found = os.fstat(descriptor)
            kind = Kind.of(found.st_mode)
            if kind is not Kind.FILE:
                raise self._error(errno.EINVAL, f"is a {kind.value}, not a regular file", name)
            if sole and found.st_nlink != 1:
                raise self._error(
                    errno.EINVAL, "has other names (hard links), and those must not change", name
                )
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def new_file(self, name: str, mode: int = PRIVATE_FILE, flags: int = os.O_RDWR) -> int:
        """Make a file that must not be there, with just that mode whatever the umask.

        Raises:
            FileExistsError: something has the name, be it a link that leads nowhere.
            OSError: it cannot be made.
        """
        descriptor = self._open(name, flags | os.O_CREAT | os.O_EXCL, mode)
        try:
            set_mode(descriptor, mode)
        except BaseException:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                self.remove(name)
            raise
        return descriptor

    def lasting_file(self, name: str, mode: int = PRIVATE_FILE) -> int:
        """Open a regular file to read and write; make it, empty, if nothing has the name.

        Raises:
            OSError: it cannot be made or opened, or it is no regular file.
        """
        while True:
            with contextlib.suppress(FileNotFoundError):
                return self.file(name, os.O_RDWR)
            with contextlib.suppress(FileExistsError):
                return self.new_file(name, mode)

    def read(self, name: str, most: int) -> bytes:
        """All of a small file.

        Args:
            name: of the file.
            most: bytes that it may have; a longer one is refused before it is read.

        Raises:
            OSError: it cannot be read, is no regular file, or is longer.
        """
        descriptor = self.file(name)
        try:
            with self._naming(name):
                data = bytearray()
                while part := os.pread(descriptor, most + 1 - len(data), len(data)):
                    data += part
        finally:
            os.close(descriptor)
        if len(data) > most:
            raise self._error(errno.EFBIG, f"is longer than the {most} bytes it may have", name)
        return bytes(data)

    def put(
        self, name: str, data: bytes, mode: int = PRIVATE_FILE, *, durable: bool = True
    ) -> None:
        """Put a small file under a name: all of it, or what was there stays.

        Whatever has the name is replaced, a link itself rather than what it leads to.

        Args:
            name: of the file.
            data: all of it.
            mode: of the file.
            durable: it is on stable storage when this returns.

        Raises:
            OSError: it cannot be written.
        """
        temporary = f"{_temporary(name)}{secrets.token_hex(8)}"
        self.put_new(temporary, data, mode, durable=durable)
        try:
            self.rename(temporary, name)
        except BaseException:
            with contextlib.suppress(OSError):
                self.remove(temporary)
            raise
        if durable:
            self.sync()

    def unfinished(self, name: str) -> list[str]:
        """What runs that were killed while they put a file under a name left of it.

        What others are putting there at the moment is among it.
        """
        start = _temporary(name)
        return [found.name for found in self.entries() if found.name.startswith(start)]

    def put_new(
        self, name: str, data: bytes, mode: int = PRIVATE_FILE, *, durable: bool = True
    ) -> None:
        """Make a small file whose bytes are durable; that it has its name is not, before `sync`.

        Args:
            name: of the file.
            data: all of it.
            mode: of the file.
            durable: else its bytes are not either.

        Raises:
            FileExistsError: something has the name.
            OSError: it cannot be written; nothing is left of it.
        """
        descriptor = self.new_file(name, mode)
        try:
            try:
                with self._naming(name):
                    view = memoryview(data)
                    while len(view):
                        view = view[taken(os.write(descriptor, view)) :]
                    if durable:
                        os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except BaseException:
            with contextlib.suppress(OSError):
                self.remove(name)
            raise

    def rename(self, name: str, new: str, into: Folder | None = None) -> None:
        """Rename what has a name, over whatever has the new one (rename(2)); not durable yet.

        Raises:
            OSError: it cannot be renamed.
        """
        there = self if into is None else into
        with there._naming(new), self._naming(name):
            os.rename(name, new, src_dir_fd=self.descriptor, dst_dir_fd=there.descriptor)

    def remove(self, name: str) -> None:
        """Remove a file or a link.

        Raises:
            OSError: it cannot be removed.
        """
        with self._naming(name):
            os.unlink(name, dir_fd=self.descriptor)

    def remove_folder(self, name: str) -> None:
        """Remove a folder and the files in it, which may be links; a folder in it is an error.

        Raises:
            OSError: it cannot be removed.
        """
        with self.folder(name) as gone:
            for found in gone.entries():
                gone.remove(found.name)
        self.remove_empty(name)

    def remove_empty(self, name: str) -> None:
        """Remove a folder in which nothing is (rmdir(2)).

        Raises:
            OSError: it cannot be removed.
        """
        with self._naming(name):
            os.rmdir(name, dir_fd=self.descriptor)

    def sync(self) -> None:
        """Make durable what has which name in it.

        Raises:
            OSError: it failed.
        """
        with self._naming(None):
            os.fsync(self.descriptor)

    def _open(self, name: str, flags: int, mode: int) -> int:
        with self._naming(name):
            try:
                return os.open(name, flags | _LOOK, mode, dir_fd=self.descriptor)
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENOTDIR) and self._is_link(name):
                    raise OSError(errno.ELOOP, "is a symbolic link: not followed") from None
                if error.errno == errno.ENXIO:  # a socket, or a pipe that nobody reads (open(2))
                    raise OSError(errno.EINVAL, "is a special file, not a regular file") from None
                raise

    def _is_link(self, name: str) -> bool:
        return Kind.of(self.stat(name).st_mode) is Kind.LINK

    @contextlib.contextmanager
    def _naming(self, name: str | None) -> Iterator[None]:
        """Refuse what is not a name; give an error the whole path."""
        try:
            if name is not None and (not name or "/" in name or name in (".", "..")):
                raise OSError(errno.EINVAL, "is not a file's name")
            yield
        except OSError as error:
            error.filename = str(self.path if name is None else self.path / name)
            raise

    def _error(self, number: int, text: str, name: str) -> OSError:
        return OSError(number, text, str(self.path / name))


def _temporary(name: str) -> str:
    """How the names of files begin that shall have a name: short, whatever bytes it is made of."""
    return f".{name[:_LONGEST_STEM]}{_TEMPORARY}"


_NO_MODES = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)
"""What file systems without modes answer: there the mount decides who may do what."""


def set_mode(descriptor: int, mode: int) -> None:
    """Give what is ours and has no looser mode just that mode, if the file system has modes.

    Raises:
        OSError: it cannot be given.
    """
    now = stat.S_IMODE(os.fstat(descriptor).st_mode)
    wanted = mode | (now & stat.S_ISGID)
    if now != wanted:
        try:
            os.fchmod(descriptor, wanted)
        except OSError as error:
            if error.errno not in _NO_MODES:
                raise


def _kind(item: os.DirEntry[str]) -> Kind:
    """As the folder itself tells it where that is told: without a look at each file."""
    if item.is_symlink():
        return Kind.LINK
    if item.is_dir(follow_symlinks=False):
        return Kind.FOLDER
    return Kind.FILE if item.is_file(follow_symlinks=False) else Kind.OTHER
