"""Hold images still, and serve them to be read, for as long as a point lives.

Each image is served by a read-only qemu-nbd: its death harms nothing, whereas all bitmaps in an
image are lost when a writer of it dies. It locks a qcow2 image as QEMU does, but lets others begin
to write to a raw one, also to one behind a qcow2 image (seen on 7.2). So the same locks are taken
here as well. All of them go when the engine's process does.
"""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fleece.cancel import CancelToken
from fleece.disk.nbd import NbdDisk
from fleece.disk.use import kept_still
from fleece.errors import PointError, SourceError
from fleece.extents import Extents
from fleece.nbd.connection import DIRTY_BITMAP
from fleece.nbd.server import ServedImage, greets, qemu_nbd
from fleece.nbd.uri import unix_uri
from fleece.source.image.inventory import ImageDisk


@dataclass(frozen=True)
class _Served:
    """A disk that is served.

    Attributes:
        disk: it.
        process: its qemu-nbd.
        place: of the socket.
        states: what its files were when all of them were held.
    """

    disk: ImageDisk
    process: subprocess.Popen[bytes]
    place: Path
    states: tuple[tuple[int, ...], ...]

    def ended(self) -> PointError:
        """The error that its server has ended."""
        return PointError(
            f"the qemu-nbd that serves disk {self.disk.name} has ended",
            where=self.disk.path,
            hint="run the backup again",
        )


class HeldImages:
    """Images that nobody writes to, and that are served. Use `close`.

    Args:
        folder: for the servers' sockets, private to this user.
        cancel: ends the wait for a server.

    Attributes:
        warnings: what the user should know of how they are held.
    """

    def __init__(self, folder: Path, cancel: CancelToken) -> None:
        self.warnings: list[str] = []
        self._folder = folder
        self._cancel = cancel
        self._stack = contextlib.ExitStack()
        self._served: list[_Served] = []

    def serve(self, disk: ImageDisk, bitmaps: Sequence[str] = ()) -> str:
        """Hold one more disk's image, and serve it; gives the NBD URI.

        Args:
            disk: it.
            bitmaps: in its image, for which the export has a meta context each (`context_of`).

        Raises:
            PointError: it has not all of the bitmaps any more.
            SourceError: somebody writes to it, or it cannot be served.
        """
        for path in disk.files:
            alone = path == disk.path
            if not self._stack.enter_context(kept_still(path, SourceError, alone=alone)):
                self.warnings.append(
                    f"{path}: its file system takes no locks, so that a guest that is started "
                    "during the backup is not kept from the image"
                )
        place = self._folder / f"{len(self._served)}.sock"
        words = ["--read-only", "--shared=0", *(f"--bitmap={name}" for name in bitmaps)]
        image = ServedImage(disk.path, disk.format, SourceError)
        try:
            process = self._stack.enter_context(qemu_nbd(image, place, words, self._cancel))
        except SourceError as error:
            if gone := disk.lost(bitmaps, self._cancel):
                raise PointError(
                    f"bitmap {gone[0]} of disk {disk.name} is gone, or tells nothing any more",
                    where=disk.path,
                    hint="run the backup again",
                ) from error
            raise
        self._served.append(_Served(disk, process, place, _states(disk)))
        return unix_uri(str(place))

    def look(self) -> None:
        """Raise `PointError` if a server has ended. Cheap."""
        for served in self._served:
            if served.process.poll() is not None:
                raise served.ended()

    def check(self) -> None:
        """Raise `PointError` if an image is not what it was when it was held."""
        self.look()
        for served in self._served:
            # One that is being killed lets go of its clients before it counts as ended.
            if not greets(served.place, self._cancel):
                raise served.ended()
            found = served.disk.writer()
            if found is not None or _states(served.disk) != served.states:
                user = "" if found is None else f" ({found[1]})"
                raise PointError(
                    f"disk {served.disk.name} was written to while it was read{user}",
                    where=served.disk.path,
                    hint="back it up when nobody uses it",
                )

    def close(self) -> None:
        """End the servers, and let go of the images. Safe to repeat.

        Raises:
            SourceError: a server did not end well; all were tried.
        """
        self._served.clear()
        self._stack.close()


def context_of(bitmap: str) -> str:
    """The meta context of a bitmap that is served."""
    return f"{DIRTY_BITMAP}{bitmap}"


def dirty_in(uri: str, bitmaps: Sequence[str], cancel: CancelToken) -> Extents:
    """What any of some bitmaps that are served with an image call dirty, in bytes of disk.

    Raises:
        SourceError: the server does not say.
    """
    disk = NbdDisk(uri, cancel=cancel)
    dirty = Extents.empty()
    for name in bitmaps:
        found = disk.dirty_extents(context_of(name), Extents.whole(disk.size))
        if found is None:
            raise SourceError(f"the export lacks bitmap {name}", where=uri)
        dirty = dirty.union(found)
    return dirty


def _states(disk: ImageDisk) -> tuple[tuple[int, ...], ...]:
    """What changes when somebody writes to a file. Of a block device the kernel tells nothing."""
    found = []
    for path in disk.files:
        try:
            state = os.stat(path)
        except OSError as error:
            raise PointError(error.strerror or str(error), where=path) from error
        changed = 0 if stat.S_ISBLK(state.st_mode) else state.st_mtime_ns
        found.append((state.st_dev, state.st_ino, state.st_size, changed))
    return tuple(found)
