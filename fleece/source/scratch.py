"""The room for what the guest overwrites while a backup reads: a budget, and what is left of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator

from fleece.errors import PointError
from fleece.source.place import RESERVE, Room, room_of
from fleece.source.workfolder import WorkFolder

_ROUGHLY = 16
_HINT = "make room there, choose another folder with --scratch, or allow more with --scratch-limit"


class Scratch:
    """The scratch files of one point.

    A reserve is kept of the file system, and of the limit: what the guest writes between two looks,
    and while the point is taken down. It is 256 MiB, or half if that is less.

    Args:
        work: the point's work folder.
        limit: bytes that the files may take together; None: the file system alone bounds them.
    """

    def __init__(self, work: WorkFolder, limit: int | None = None) -> None:
        self._work = work
        self._limit = limit

    def file(self, number: int) -> str:
        """The name of a disk's scratch file, as an overlay."""
        return f"s{number}.qcow2"

    def raw_file(self, number: int) -> str:
        """The name of a disk's scratch file, as a raw one of the disk's size, with holes."""
        return f"s{number}.raw"

    def length(self, number: int) -> int:
        """Where a disk's scratch file ends.

        Raises:
            PointError: it cannot be looked at.
        """
        with self._looking():
            return self._work.folder.stat(self.file(number)).st_size

    def room(self) -> Room:
        """What is left now.

        Raises:
            PointError: the folder cannot be looked at.
        """
        with self._looking():
            state = os.statvfs(self._work.folder.descriptor)
            used = sum(file.st_blocks * 512 for file in self._work.scratch_files())
        found = room_of(state)
        if self._limit is None:
            return found
        allowed = Room(
            self._limit - used - min(RESERVE, self._limit // 2),
            f"the scratch has taken {used} of the {self._limit} bytes that it may take",
        )
        return min(found, allowed, key=lambda room: room.left)

    @contextlib.contextmanager
    def _looking(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise PointError(
                f"the scratch cannot be watched ({error.strerror})", where=self._work.path
            ) from error

    def check_start(self) -> None:
        """Refuse to begin what would have to be given up at once.

        Raises:
            PointError: there is no room at all.
        """
        room = self.room()
        if room.left <= 0:
            raise PointError(
                f"{room.state}: no backup can begin", where=self._work.path.parent, hint=_HINT
            )

    def doubt(self, estimate: int) -> str | None:
        """A warning for the user if there may be too little room; None: it should do."""
        room = self.room()
        if estimate <= room.left:
            return None
        return (
            f"{self._work.path.parent}: the backup may have to be given up: the scratch can take "
            f"{room.left} bytes, and the guest may overwrite {estimate} meanwhile; {_HINT}"
        )

    def given_up(self, room: Room) -> PointError:
        """The error of a backup that ends because there is no room left."""
        return PointError(
            f"{room.state}; the backup was given up before the guest had to stop",
            where=self._work.path,
            hint=_HINT,
        )


def estimate(disks: Iterable[tuple[int, int | None]]) -> int:
    """A guess of what the guest overwrites during a backup, in bytes.

    Of a disk that was backed up before, as much as it wrote since: the backup takes less time than
    has passed. Of a disk that is read as a whole, a sixteenth.

    Args:
        disks: of each its size, and what was written on it since, as far as is known, in bytes;
            None: it is read as a whole.
    """
    return sum(
        size // _ROUGHLY if written is None else min(written, size) for size, written in disks
    )
