"""Points that are being written, or that a run which was killed left unfinished."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fleece.delta.header import Header, PointRef
from fleece.delta.partial import Proven
from fleece.delta.reader import DeltaReader
from fleece.errors import DeltaError, StoreError
from fleece.store.backend import Batch, NewObject
from fleece.store.catalogue import Access, Catalogue, Entry
from fleece.store.keeping import outlast
from fleece.store.names import final_name


@dataclass(frozen=True)
class UnfinishedPoint:
    """An interrupted backup's point: for each disk and part a file with a whole header, no other.

    Attributes:
        batch: what it is in.
        heads: the headers, in the order of the point's disks.
        parts: the headers of its parts, in theirs.
    """

    batch: Batch
    heads: tuple[Header, ...]
    parts: tuple[Header, ...] = ()

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


def unfinished(access: Access, batch: Batch) -> UnfinishedPoint | None:
    """The point in a batch, if its deltas are those that their own headers name.

    Raises:
        StoreError: it cannot be listed.
    """
    heads: dict[str, Header] = {}
    for name in batch.names():
        try:
            with access.partial(batch.open(name)) as left:
                heads[name] = left.header
        except DeltaError:
            return None
    first = next(iter(heads.values()), None)
    if first is None or batch.name != access.point_name(first.point.id):
        return None
    common = {(h.guest, h.chain, h.point, h.disks, h.parts) for h in heads.values()}
    names = [access.delta_name(name) for name in (*first.disks, *first.parts)]
    fits = len(common) == 1 and sorted(names) == sorted(heads)
    if not fits or any(heads[access.delta_name(h.disk)] != h for h in heads.values()):
        return None
    found = [heads[name] for name in names]
    count = len(first.disks)
    return UnfinishedPoint(batch, tuple(found[:count]), tuple(found[count:]))


class PartialPoint:
    """A point that is being written. Either `commit` or `discard` ends it.

    Args:
        batch: what it is in until it is whole.
        guest: whose point.
        point: its id.
        sequence: its number.
        access: how deltas of the store are opened.
    """

    def __init__(self, batch: Batch, guest: str, point: str, sequence: int, access: Access) -> None:
        self.where = batch.where
        self._batch = batch
        self._guest = access.file_name(guest)
        self._final = final_name(access.point_name(point), sequence)
        self._access = access
        self._names: list[str] = []

    def key(self, disk: str) -> str:
        """The key that a disk's delta will have."""
        return f"{self._guest}/{self._final}/{self._access.delta_name(disk)}"

    def place(self, disk: str) -> str:
        """Where a disk's delta will be, for messages."""
        return self._access.backend.name(self.key(disk))

    def create(self, disk: str, most: int | None = None) -> NewObject:
        """The file of one disk's delta, to write front to back.

        Args:
            disk: its name.
            most: about how many bytes it can have at most; None: nobody knows.
        """
        name = self._access.delta_name(disk)
        made = self._batch.create(name, most)
        self._names.append(name)
        return made

    def reopen(self, disk: str) -> tuple[NewObject, Proven]:
        """The file of one disk's unfinished delta, cut to what is proven of it.

        Returns:
            (file, proven): the file is written on from the proven part's end.

        Raises:
            StoreError: it cannot be read or cut.
        """
        name = self._access.delta_name(disk)
        with self._access.partial(self._batch.open(name)) as left:
            proven = left.proven()
        made = self._batch.reopen(name, proven.end)
        self._names.append(name)
        return made, proven

    def keep(self, parts: Iterable[str]) -> None:
        """Keep the finished deltas of parts as they are.

        Raises:
            StoreError: one is not whole.
        """
        for part in parts:
            name = self._access.delta_name(part)
            with self._access.read(self._batch.open(name)) as delta:
                length = delta.length
            self._batch.reopen(name, length)
            self._names.append(name)

    def commit(
        self,
        check: Callable[[DeltaReader], None] = lambda delta: None,
        known: Catalogue | None = None,
    ) -> None:
        """Make the point durable and visible; when this returns, it is both.

        Args:
            check: is given each delta, durable and not yet seen; its error ends the commit.
            known: the store's, with what the point builds on, which is kept as long as the point
                is; None: it builds on nothing, or the storage can keep nothing.

        Raises:
            StoreError: it is not in the store.
        """
        self._batch.seal()
        entries = []
        for name in self._names:
            with self._access.read(self._batch.open(name)) as delta:
                check(delta)
                delta.offer_pages()
                entries.append(Entry.of(delta, f"{self._guest}/{self._final}/{name}"))
        outlast(self._access, entries, known)
        self._batch.commit(self._final)

    def discard(self) -> None:
        """Remove what was written, as far as that is possible."""
        with contextlib.suppress(StoreError):
            self._batch.discard()
