"""Points that are being written, or that a run which was killed left unfinished."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from fleece.delta.header import Header, PointRef
from fleece.delta.partial import Proven
from fleece.errors import DeltaError
from fleece.folder import Folder, Kind
from fleece.store.catalogue import Access
from fleece.store.errors import store_errors
from fleece.store.names import PARTIAL, final_name, is_delta
from fleece.store.removal import remove_folder
from fleece.store.sink import DeltaFile


@dataclass(frozen=True)
class UnfinishedPoint:
    """What a dead run left of a point: for each disk a file with a whole header, no other delta.

    Attributes:
        folder: where it is.
        heads: the headers, in the order of the point's disks.
    """

    folder: Path
    heads: tuple[Header, ...]

    @property
    def guest(self) -> str:
        """Whose point it is."""
        return self.heads[0].guest

    @property
    def chain(self) -> str:
        """The line of points that it belongs to."""
        return self.heads[0].chain

    @property
    def ref(self) -> PointRef:
        """Which point it is."""
        return self.heads[0].point


def partials(guest: Folder) -> list[str]:
    """The names of the folders of points that were not finished, in a guest's folder."""
    found = guest.entries()
    return [one.name for one in found if one.kind is Kind.FOLDER and one.name.startswith(PARTIAL)]


def unfinished(access: Access, guest: Folder, name: str) -> UnfinishedPoint | None:
    """The point in a partial folder, if its deltas are those that their own headers name.

    Raises:
        OSError: it cannot be listed.
    """
    with guest.folder(name) as folder:
        items = folder.entries()
    heads: dict[str, Header] = {}
    for item in items:
        if not is_delta(item):
            continue
        try:
            with access.partial(str(guest.path / name / item.name)) as left:
                heads[item.name] = left.header
        except DeltaError:
            return None
    first = next(iter(heads.values()), None)
    if first is None or name != f"{PARTIAL}{access.point_name(first.point.id)}":
        return None
    common = {(head.guest, head.chain, head.point, head.disks) for head in heads.values()}
    names = [access.delta_name(disk) for disk in first.disks]
    fits = len(common) == 1 and sorted(names) == sorted(heads)
    if not fits or any(heads[access.delta_name(h.disk)] != h for h in heads.values()):
        return None
    return UnfinishedPoint(guest.path / name, tuple(heads[name] for name in names))


class PartialPoint:
    """A point that is being written. Either `commit` or `discard` ends it.

    Args:
        folder: where it is until it is whole.
        final: where it will be.
        access: how deltas of the store are opened.
    """

    def __init__(self, folder: Path, final: Path, access: Access) -> None:
        self.folder = folder
        self.final = final
        self._access = access
        self._root = access.root
        self._files: dict[str, DeltaFile] = {}

    @staticmethod
    def resumed(left: UnfinishedPoint, access: Access) -> PartialPoint:
        """Go on with a point that a dead run left."""
        final = final_name(access.point_name(left.ref.id), left.ref.sequence)
        return PartialPoint(left.folder, left.folder.with_name(final), access)

    def file_name(self, disk: str) -> str:
        """The name of a disk's delta within its point's folder."""
        return self._access.delta_name(disk)

    def place(self, disk: str) -> str:
        """Where a disk's delta will be."""
        return str(self.final / self.file_name(disk))

    def create(self, disk: str) -> DeltaFile:
        """The file of one disk's delta, to write front to back."""
        path = self.folder / self.file_name(disk)
        with store_errors(path), self._root.holding(path) as (folder, name):
            made = DeltaFile(path, folder.new_file(name, self._root.mode))
        self._files[disk] = made
        return made

    def reopen(self, disk: str) -> tuple[DeltaFile, Proven]:
        """The file of one disk's delta that a dead run left, cut to what is proven of it.

        Returns:
            (file, proven): the file is written on from the proven part's end.

        Raises:
            StoreError: it cannot be read or cut.
        """
        path = self.folder / self.file_name(disk)
        with self._access.partial(str(path)) as left:
            proven = left.proven()
        with store_errors(path), self._root.holding(path) as (folder, name):
            descriptor = folder.file(name, os.O_RDWR, sole=True)
            made = DeltaFile(path, descriptor, keep=proven.end)
        self._files[disk] = made
        return made, proven

    def commit(self) -> None:
        """Make the point durable and visible; when this returns, it is both.

        Raises:
            StoreError: it is not in the store.
        """
        with store_errors(self.folder), self._root.holding(self.folder) as (guest, name):
            for file in self._files.values():
                file.close_durably()
            with guest.folder(name) as folder:
                folder.sync()
            for file in self._files.values():
                self._access.read_entry(str(file.path))
            guest.rename(name, self.final.name)
            guest.sync()

    def discard(self) -> None:
        """Remove what was written, as far as that is possible."""
        for file in self._files.values():
            file.abandon()
        with contextlib.suppress(OSError), self._root.holding(self.folder) as (guest, name):
            remove_folder(guest, name)
