"""A regular file that deltas are read out of (`fleece.delta.blob.Blob`)."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

from fleece.errors import DeltaError, StoreError, UnreadableError
from fleece.folder import Folder
from fleece.handles import Handle, Replaced

_BROKEN = frozenset(
    {errno.EIO, errno.EBADMSG, errno.EUCLEAN, errno.EILSEQ, errno.ENODATA, errno.EREMOTEIO}
)
"""What the kernel answers to a read of what a device, or a file system, has lost."""
_OF_THE_FILE = _BROKEN | {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.EINVAL,
    errno.ENXIO,
    errno.ENODEV,
    errno.ENAMETOOLONG,
}
"""Why a file cannot be opened by anybody. Any other reason is not the file's fault."""


class FileBlob:
    """A regular file, open for reading by any number of threads.

    It counts against no limit of open files: see `fleece.handles`.

    Args:
        name: of the file, for messages.
        opener: opens it, without waiting for what may be a pipe, and gives its descriptor.

    Attributes:
        name: where it is, for messages.
        length: in bytes.

    Raises:
        DeltaError: there is none, it is lost, or it is no regular file.
        StoreError: it cannot be opened for another reason: by this user, or now.
    """

    def __init__(self, name: str, opener: Callable[[], int]) -> None:
        self.name = name
        try:
            self._handle = Handle(opener)
        except OSError as error:
            raise self._not_opened(error) from error
        status = self._handle.status
        self.length = status.st_size
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise DeltaError("not a regular file", where=name)

    def read_at(self, position: int, length: int) -> bytes:
        """Exactly `length` bytes.

        Raises:
            DeltaError: the file ends before.
            UnreadableError: what it lies on cannot read it.
            StoreError: it was replaced or removed meanwhile, too many files are open, or the system
                refuses for another reason that is none of the file's.
        """
        descriptor = self._take()
        try:
            part = os.pread(descriptor, length, position)
            if len(part) == length:
                return part
            parts = [part]
            while part and (length := length - len(part)) > 0:
                position += len(part)
                part = os.pread(descriptor, length, position)
                parts.append(part)
        except OSError as error:
            broken = UnreadableError if error.errno in _BROKEN else StoreError
            raise self._error(error, broken) from error
        finally:
            self._handle.give()
        if length > 0:
            raise DeltaError("the file is cut", where=self.name)
        return b"".join(parts)

    def data_from(self, position: int) -> int:
        """Where the file next has data, at or behind a position; `length`: nowhere.

        Raises:
            StoreError: it was replaced or removed meanwhile, or too many files are open.
        """
        descriptor = self._take()
        try:
            return os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError as error:
            return self.length if error.errno == errno.ENXIO else position
        finally:
            self._handle.give()

    def close(self) -> None:
        """Close it; safe to repeat."""
        self._handle.close()

    def _take(self) -> int:
        try:
            return self._handle.take()
        except Replaced:
            raise StoreError(
                "was replaced or removed while it was read",
                where=self.name,
                hint="a prune or a merge does that; run it again",
            ) from None
        except OSError as error:
            raise self._not_opened(error) from error

    def _not_opened(self, error: OSError) -> StoreError:
        return self._error(error, DeltaError if error.errno in _OF_THE_FILE else StoreError)

    def _error(self, error: OSError, family: type[StoreError]) -> StoreError:
        if error.errno in (errno.EMFILE, errno.ENFILE):  # no fault of the file
            return StoreError(
                "too many files are open", where=self.name, hint="raise the limit (ulimit -n)"
            )
        denied = error.errno in (errno.EACCES, errno.EPERM)
        hint = "run fleece as a user who may" if denied else None
        return family(f"cannot be read ({error.strerror})", where=self.name, hint=hint)


def named_file(path: str | os.PathLike[str]) -> FileBlob:
    """A file that the user named: links on the way to it are the user's own affair.

    Raises:
        DeltaError: there is none, it is lost, or it is no regular file.
        StoreError: this user may not open it, or the system cannot now.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    return FileBlob(os.fspath(path), lambda: os.open(path, flags))


def stored_file(path: str) -> FileBlob:
    """A file in a folder of a store: a link is not followed.

    Raises:
        DeltaError: there is none, it is lost, or it is no regular file.
        StoreError: this user may not open it, or the system cannot now.
    """
    place = Path(path)

    def opened() -> int:
        with Folder.open(place.parent) as folder:
            return folder.file(place.name)

    return FileBlob(path, opened)
