"""A regular file that deltas are read out of (`fleece.delta.blob.Blob`)."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

from fleece.errors import DeltaError
from fleece.folder import Folder


class FileBlob:
    """A regular file, open for reading by any number of threads.

    Args:
        name: of the file, for messages.
        opener: opens it, without waiting for what may be a pipe, and gives its descriptor.

    Attributes:
        name: where it is, for messages.
        length: in bytes.

    Raises:
        DeltaError: it cannot be opened, or it is no regular file.
    """

    def __init__(self, name: str, opener: Callable[[], int]) -> None:
        self.name = name
        try:
            self._descriptor = opener()
        except OSError as error:
            raise self._error(error) from error
        found = os.fstat(self._descriptor)
        self.length = found.st_size
        if not stat.S_ISREG(found.st_mode):
            self.close()
            raise DeltaError("not a regular file", where=name)

    def read_at(self, position: int, length: int) -> bytes:
        """Exactly `length` bytes.

        Raises:
            DeltaError: the file ends before, or cannot be read.
        """
        parts: list[bytes] = []
        while length > 0:
            try:
                part = os.pread(self._descriptor, length, position)
            except OSError as error:
                raise self._error(error) from error
            if not part:
                raise DeltaError("the file is cut", where=self.name)
            parts.append(part)
            position, length = position + len(part), length - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def data_from(self, position: int) -> int:
        """Where the file next has data, at or behind a position; `length`: nowhere."""
        try:
            return os.lseek(self._descriptor, position, os.SEEK_DATA)
        except OSError as error:
            return self.length if error.errno == errno.ENXIO else position

    def close(self) -> None:
        """Close it; safe to repeat."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _error(self, error: OSError) -> DeltaError:
        return DeltaError(f"cannot be read ({error.strerror})", where=self.name)


def named_file(path: str | os.PathLike[str]) -> FileBlob:
    """A file that the user named: links on the way to it are the user's own affair.

    Raises:
        DeltaError: it cannot be opened, or it is no regular file.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    return FileBlob(os.fspath(path), lambda: os.open(path, flags))


def stored_file(path: str) -> FileBlob:
    """A file in a folder of a store: a link is not followed.

    Raises:
        DeltaError: it cannot be opened, or it is no regular file.
    """
    place = Path(path)

    def opened() -> int:
        with Folder.open(place.parent) as folder:
            return folder.file(place.name)

    return FileBlob(path, opened)
