"""What a guest has in a bucket, as its listing and its changes say: its points, and what is left.

Nothing is decided by a clock. Objects under a folder of base B become seen by the guest's change
B + 1 or never. So if that is there and does not name them, they are dead, whoever writes them. If
it was lost although later ones are there, they count as a point: their own headers say which.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from fleece.store.s3.change import Change
from fleece.store.s3.client.answers import Listed
from fleece.store.s3.names import DATA, DataFolder


@dataclass
class View:
    """A guest's part of a store.

    Attributes:
        guest: its key.
        changes: by number; of those that cannot be read, None.
        folders: what there is under `data/`, by folder: keys below the store's prefix.
        notes: what lies beside deltas, by its key in the store.
        points: the objects' keys below the store's prefix, by point and name in it.
        head: number of the last change that there was.
    """

    guest: str
    changes: dict[int, Change | None] = field(default_factory=dict)
    folders: dict[DataFolder, dict[str, Listed]] = field(default_factory=dict)
    notes: dict[str, Listed] = field(default_factory=dict)
    points: dict[str, Mapping[str, str]] = field(default_factory=dict)
    head: int = 0

    def settle(self) -> None:
        """Make points and head out of the rest."""
        based = (folder.base for folder in self.folders)
        self.head = max([0, *self.changes, *based])
        self.points = {}
        for number in sorted(self.changes):
            self._apply(self.changes[number])
        named = self._named()
        for folder, objects in self.folders.items():
            lost = folder.base < self.head and self.changes.get(folder.base + 1) is None
            if lost and folder.name not in named:
                names = {key.rpartition("/")[2]: key for key in objects}
                self.points[folder.name] = names

    @property
    def lacks_head(self) -> bool:
        """Whether somebody has seen a later change than are here.

        It is lost, or was made while the listing went on.
        """
        return self.head > max([0, *self.changes])

    def add(self, number: int, change: Change) -> None:
        """Take in a change that was made since."""
        self.changes[number] = change
        self.head = max(self.head, number)
        self._apply(change)

    def _apply(self, change: Change | None) -> None:
        if change is None or not change.point:
            return
        if change.objects:
            self.points[change.point] = change.objects
        else:
            self.points.pop(change.point, None)

    def _named(self) -> set[str]:
        """Folders of which changes name objects, whatever became of them since."""
        return {
            key.split("/")[2]
            for change in self.changes.values()
            if change is not None
            for key in change.objects.values()
            if key.startswith(f"{self.guest}/{DATA}/")
        }

    def used(self) -> set[str]:
        """Keys of all objects that are seen."""
        return {key for objects in self.points.values() for key in objects.values()}

    def left(self, writer: str) -> Iterator[tuple[DataFolder, list[str]]]:
        """Objects that are not seen and never will be, or that a writer who is dead has left.

        Args:
            writer: the caller, who holds the guest's lock: of its own kind nobody else lives.
        """
        used = self.used()
        for folder, objects in self.folders.items():
            unused = [key for key in objects if key not in used]
            if unused and self.is_left(folder, writer):
                yield folder, unused

    def is_left(self, folder: DataFolder, writer: str) -> bool:
        """Whether what is not seen of a folder is such."""
        return folder.base < self.head or folder.writer == writer
