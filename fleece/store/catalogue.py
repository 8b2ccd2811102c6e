"""What a store holds, by the deltas' own words: no name, no mtime, no database is consulted."""

from __future__ import annotations

import contextlib
import functools
import hmac
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from fleece import events
from fleece.delta.blob import Blob
from fleece.delta.chain import Chain
from fleece.delta.header import Header, ParentRef
from fleece.delta.part import is_part
from fleece.delta.partial import PartialDelta
from fleece.delta.protection import Protection
from fleece.delta.reader import DeltaReader, RecordFile
from fleece.delta.wreck import Wreck
from fleece.errors import DeltaError, StoreError, UsageError, WrongKey
from fleece.guests import GuestChoice, is_meant
from fleece.hashing import XXH3_128
from fleece.keys import Secret
from fleece.likely import advice, meant
from fleece.store.backend import Backend
from fleece.store.names import SUFFIX, safe_name
from fleece.store.order import moment_of, oldest_first

LATEST = "latest"
_NAMED = 8
"""Guests that a message names."""
_ALMOST = 0.8
"""How like a point's id a text is of which one digit or two are wrong, or missing."""
_ALIKE = "'fleece init --like' makes a store that takes the deltas of another"

_File = TypeVar("_File", bound=RecordFile)


@dataclass(frozen=True)
class Access:
    """What the deltas of a store are opened with, and how they must be protected.

    A file that is not protected as its store is, or has another hash, counts as damaged: who puts
    one there without the key shall not have it believed.

    Attributes:
        backend: where they are.
        secret: the store's key file or passphrase; None: it has no key.
        protection: what its deltas are protected by; None: nothing.
        algorithm: the name of its deltas' hash.
    """

    backend: Backend
    secret: Secret | None = None
    protection: Protection | None = None
    algorithm: str = XXH3_128.name

    def file_name(self, name: str) -> str:
        """What the folder of a guest, or the file of a disk, is called; hidden by encryption."""
        return self._hidden(name) or safe_name(name)

    def point_name(self, point: str) -> str:
        """What stands for a point's id in the names of folders and notes; hidden by encryption."""
        return (self._hidden(f"point\0{point}") or point)[:32]

    def note_name(self, chain_id: str, disk: str) -> str:
        """What stands for a chain's disk in the name of a note; hidden by encryption."""
        return self._hidden(f"note\0{chain_id}\0{disk}") or f"{chain_id}-{safe_name(disk)}"

    def _hidden(self, name: str) -> str | None:
        if self.protection is None or not self.protection.encrypted:
            return None
        return hmac.digest(self.protection.key.of_names, name.encode(), "sha256").hex()[:32]

    def delta_name(self, disk: str) -> str:
        """What the delta of a disk is called, in the folder of its point."""
        return self.file_name(disk) + SUFFIX

    def open(self, key: str) -> DeltaReader:
        """Open a delta of the store.

        Raises:
            DeltaError: it is damaged, incomplete, no delta, or not of this store's kind.
        """
        return self.read(self.backend.open(key))

    def read(self, blob: Blob) -> DeltaReader:
        """Open a delta of the store that is elsewhere yet.

        Raises:
            DeltaError: as `open` does.
        """
        return self._opened(DeltaReader, blob)

    def header(self, key: str) -> Header | None:
        """The header of a file of which the rest may be damaged; None: that is damaged too."""
        try:
            with RecordFile(self.backend.open(key), self.secret) as file:
                return file.header
        except (DeltaError, WrongKey):
            return None

    def wreck(self, key: str) -> Wreck:
        """Open a file of the store that may be damaged.

        Raises:
            DeltaError: its header is, or it is not of this store's kind.
        """
        return self._opened(Wreck, self.backend.open(key))

    def partial(self, blob: Blob) -> PartialDelta:
        """Open a delta of the store that is not finished.

        Raises:
            DeltaError: its header is not whole, or it is not of this store's kind.
        """
        return self._opened(PartialDelta, blob)

    def _opened(self, kind: type[_File], blob: Blob) -> _File:
        try:
            file = kind(blob, self.secret)
        except WrongKey as error:
            raise DeltaError(
                "is protected by a key that is not its store's", where=blob.name, hint=_ALIKE
            ) from error
        try:
            self.check(file)
        except DeltaError:
            file.close()
            raise
        return file

    def check(self, delta: RecordFile) -> None:
        """Raise `DeltaError` unless an open delta is of this store's kind."""
        if delta.protection != self.protection or delta.geometry.algorithm.name != self.algorithm:
            raise DeltaError(
                "is not protected as its store is, or has another hash",
                where=delta.where,
                hint=_ALIKE,
            )

    def read_entry(self, key: str) -> Entry:
        """Open a delta and describe it.

        Raises:
            DeltaError: as `open` does.
        """
        with self.open(key) as delta:
            return Entry.of(delta, key)


@dataclass(frozen=True)
class Entry:
    """One finished delta: its header, and what its footer adds.

    Attributes:
        key: that it has in its store; of a file outside of any, its path.
        where: it is now, for messages.
        header: its self-description.
        root: of the disk at the point, hexadecimal.
        data_bytes, zero_bytes: bytes of disk in its data and zero records.
        stored_bytes: the file's length.
    """

    key: str
    where: str = field(compare=False)
    header: Header
    root: str
    data_bytes: int
    zero_bytes: int
    stored_bytes: int

    @staticmethod
    def of(delta: DeltaReader, key: str) -> Entry:
        """Describe an open delta, which has a key."""
        last = delta.footer
        return Entry(
            key,
            delta.where,
            delta.header,
            last.root.hex(),
            last.data_bytes,
            last.zero_bytes,
            delta.length,
        )

    def as_parent(self) -> ParentRef:
        """How a delta that builds on this one names it."""
        return ParentRef(self.header.point.id, self.root, self.header.size)


@dataclass(frozen=True)
class Damaged:
    """A file of a store that should be a delta and is not a whole one.

    Attributes:
        key: of the file.
        error: what is wrong with it.
    """

    key: str
    error: DeltaError


@dataclass(frozen=True)
class StoredPoint:
    """The deltas of one point.

    Attributes:
        guest, chain, id, sequence, time: as in the headers.
        disks: by disk name; the headers say which ones must be there.
        missing: the names of disks and parts whose delta is not.
        parts: of the machine, by their names; likewise.
    """

    guest: str
    chain: str
    id: str
    sequence: int
    time: str
    disks: dict[str, Entry]
    missing: tuple[str, ...]
    parts: dict[str, Entry] = field(default_factory=dict)

    @property
    def deltas(self) -> dict[str, Entry]:
        """Of all its disks and parts, by name."""
        return self.disks | self.parts

    @property
    def complete(self) -> bool:
        """A point counts only when all disks and parts that its headers name are there."""
        return not self.missing

    @property
    def tags(self) -> tuple[str, ...]:
        """Those that its backup gave it; `fleece.store.marks` knows what was made of them since."""
        return _head(self).tags

    @property
    def moment(self) -> datetime:
        """When it was taken, by its own words, in UTC.

        Raises:
            StoreError: they are no time.
        """
        found = moment_of(self.time)
        if found is None:
            raise StoreError(
                f"point {self.id} has no time that rules can be applied to ({self.time})",
                where=next(iter(self.deltas.values())).where,
            )
        return found

    def disk(self, name: str) -> Entry:
        """The delta of one disk.

        Raises:
            UsageError: the point has no disk of that name.
        """
        if name not in self.disks:
            raise UsageError(
                f"point {self.id} has no disk {name}",
                hint=f"its disks are: {', '.join(sorted(self.disks))}",
            )
        return self.disks[name]

    def delta(self, name: str) -> Entry:
        """The delta of one disk or part.

        Raises:
            UsageError: the point has none of that name.
        """
        if is_part(name) and name not in self.parts:
            there = ", ".join(sorted(self.parts)) or "none"
            raise UsageError(f"point {self.id} has no part {name}", hint=f"its parts are: {there}")
        return self.parts[name] if is_part(name) else self.disk(name)


@dataclass(frozen=True)
class _Link:
    """Where a delta stands among the others.

    Attributes:
        parent: that it builds on, the best one; None: it is a full, or there is none.
        depth: number of deltas in the best line to it; infinite if each is broken.
        end: the oldest delta of that line: a full, or the one whose parent is not there.
    """

    parent: Entry | None
    depth: float
    end: Entry


class Catalogue:
    """All points of a store, by guest, each guest's oldest first (`fleece.store.order`).

    Args:
        entries: the deltas that were found.
        damaged: the files that should be deltas and are not whole ones.
        where: the store's name in messages.
        access: what the deltas are opened with.
        foreign: names of what is not fleece's.
        notes: keys of the pins and tags beside deltas.
    """

    def __init__(
        self,
        entries: list[Entry],
        damaged: list[Damaged],
        where: str,
        access: Access,
        foreign: Sequence[str] = (),
        notes: Sequence[str] = (),
    ) -> None:
        self.access = access
        self.notes = frozenset(notes)
        self.foreign = tuple(foreign)
        self.entries = tuple(entries)
        self.damaged = tuple(damaged)
        self.where = where
        self._copies: dict[tuple[str, str, str, str], list[Entry]] = {}
        self._links: dict[str, _Link] = {}
        groups: dict[tuple[str, str, str], list[Entry]] = {}
        # A parent's sequence is below its child's: this order knows every parent's depth in time.
        for entry in sorted(entries, key=lambda e: e.header.point.sequence):
            head = entry.header
            self._links[entry.key] = self._link(entry)
            key = (head.guest, head.chain, head.disk, head.point.id)
            self._copies.setdefault(key, []).append(entry)
            groups.setdefault((head.guest, head.chain, head.point.id), []).append(entry)
        for group in (*self._copies.values(), *groups.values()):
            group.sort(key=self._worth)
        guests: dict[str, list[StoredPoint]] = {}
        for point in sorted((_point(group) for group in groups.values()), key=lambda p: p.id):
            guests.setdefault(point.guest, []).append(point)
        self._guests = {name: oldest_first(mine, _head) for name, mine in sorted(guests.items())}
        self.points = tuple(itertools.chain.from_iterable(self._guests.values()))

    def named(self, guest: GuestChoice) -> list[StoredPoint]:
        """The points of one guest, of a shard, or all, complete or not, oldest first.

        Raises:
            StoreError: a guest is named and has none. That may be a slip of the pen.
        """
        if not isinstance(guest, str):
            return [point for point in self.points if is_meant(guest, point.guest)]
        if guest not in self._guests:
            raise StoreError(
                f"there is no point of guest {guest}",
                where=self.where,
                hint=advice(guest, self._guests),
            )
        return list(self._guests[guest])

    def of_guest(self, guest: str) -> list[StoredPoint]:
        """The complete points of a guest, of whatever chain, oldest first."""
        return [point for point in self._guests.get(guest, ()) if point.complete]

    def of_chain(self, guest: str, chain_id: str) -> list[StoredPoint]:
        """The complete points of one chain of a guest, oldest first."""
        return [point for point in self.of_guest(guest) if point.chain == chain_id]

    def find(
        self,
        text: str,
        guest: str | None = None,
        disk: str | None = None,
        listener: events.Listener = events.ignore,
    ) -> StoredPoint:
        """The point that an id, an unambiguous prefix of one, or `latest` means.

        Args:
            text: the same.
            guest: whose; None: the only one's.
            disk: `latest` is the newest point that has this disk or part, if one has it.
            listener: hears `Warned` if that is not the guest's newest.

        Raises:
            StoreError: there is none, not all of its deltas are there, or `latest` cannot be told
                because a damaged file may be newer.
            UsageError: there is more than one, or the text is empty.
        """
        if not text:  # which any id begins with
            raise UsageError("the name of a point is empty", where=self.where)
        points = self.named(guest)
        if text == LATEST:
            found = self._latest(points, disk, listener)
        else:
            found = [point for point in points if point.id == text]
            found = found or [point for point in points if point.id.startswith(text)]
        if not found:
            raise self._no_point(text, points)
        if len(found) > 1:
            alike = len({point.id for point in found}) == 1
            raise UsageError(
                f"'{text}' matches {len(found)} points",
                where=self.where,
                hint="name the guest with --guest" if alike else "give more digits",
            )
        if found[0].missing:
            raise StoreError(
                f"point {found[0].id} is incomplete: no delta for {', '.join(found[0].missing)}",
                where=self.where,
            )
        return found[0]

    def _no_point(self, text: str, points: Sequence[StoredPoint]) -> StoreError:
        begun = {point.id[: len(text)]: point.id for point in points} | {LATEST: LATEST}
        likely = meant(text, begun, _ALMOST)
        return StoreError(
            f"no such point: {text}",
            where=self.where,
            hint="'fleece list' shows what is there"
            if likely is None
            else f"did you mean {begun[likely]}?",
        )

    def _latest(
        self, points: Sequence[StoredPoint], disk: str | None, listener: events.Listener
    ) -> list[StoredPoint]:
        """The newest of some points, that has a disk if one is named; none, if there are none."""
        whole = [point for point in points if point.complete]
        having = [point for point in whole if disk in point.deltas] or whole
        guests = sorted({point.guest for point in having})
        if len(guests) > 1:
            names = ", ".join(guests[:_NAMED]) + (", …" if len(guests) > _NAMED else "")
            raise UsageError(
                "the store holds several guests",
                where=self.where,
                hint=f"name one with --guest: {names}",
            )
        for point in having[-1:]:
            self._check_newest(point)
            newest = self.of_guest(point.guest)[-1]
            if newest != point:
                listener(
                    events.Warned(
                        f"the newest point, {newest.id}, has no disk {disk}: point {point.id} of "
                        f"{point.time} is the newest that has it"
                    )
                )
        return having[-1:]

    def _check_newest(self, point: StoredPoint) -> None:
        """Refuse to guess: a damaged file may be of a newer point."""
        for damaged in self.damaged:
            head = self.access.header(damaged.key)
            if head is None or _may_be_newer(head, point):
                raise StoreError(
                    "which point is the latest is unknown: a damaged file may be newer than "
                    f"{point.id} ({damaged.error})",
                    where=self.where,
                    hint="name a point by its id",
                )

    def line(self, entry: Entry) -> list[Entry]:
        """The deltas that lead to an entry, newest first, by their headers' parents alone.

        Raises:
            StoreError: one is missing.
        """
        self.check_line(entry)
        line = [entry]
        while (parent := self.parent(line[-1])) is not None:
            line.append(parent)
        return line

    def check_line(self, entry: Entry) -> None:
        """Check that all deltas that lead to an entry are there, at a cost that no line's length
        adds to.

        Raises:
            StoreError: one is missing.
        """
        end = self._linked(entry).end
        if end.header.parent is not None:
            raise self._missing(end, end.header.parent.point)

    def parent(self, entry: Entry) -> Entry | None:
        """The delta that an entry builds on; None: it is a full, or that is not there."""
        return self._linked(entry).parent

    @property
    def closed(self) -> bool:
        """Whether all that any delta builds on is there."""
        return all(
            entry.header.parent is None or self.parent(entry) is not None for entry in self.entries
        )

    def depth(self, entry: Entry) -> int:
        """The number of deltas in an entry's line.

        Raises:
            StoreError: one is missing.
        """
        self.check_line(entry)
        return int(self._linked(entry).depth)

    def takes(self, entry: Entry) -> bool:
        """Whether all that an entry of another store would build on here is here."""
        return self._link(entry).end.header.parent is None

    def learn(self, entry: Entry) -> None:
        """Know a delta that was committed since: what it is built on, and what builds on it.

        Points stay those that were read.
        """
        head = entry.header
        self._links[entry.key] = self._link(entry)
        self._copies.setdefault((head.guest, head.chain, head.disk, head.point.id), []).append(
            entry
        )

    def copies(self, entry: Entry) -> list[Entry]:
        """All deltas of an entry's point and disk, the one that is used first; it may be elsewhere.

        Several may state the same disk: a copy, or a merged delta beside the one it stands for.
        All are right. The one whose line is unbroken and shortest is used; then keys decide.
        """
        head = entry.header
        return list(self._copies.get((head.guest, head.chain, head.disk, head.point.id), ()))

    def beside(self, entry: Entry) -> list[Entry]:
        """The deltas that go where one goes, itself too."""
        return list(self._points_by_key[point_key(entry)])

    @functools.cached_property
    def _points_by_key(self) -> dict[str, list[Entry]]:
        found: dict[str, list[Entry]] = {}
        for entry in self.entries:
            found.setdefault(point_key(entry), []).append(entry)
        return found

    def _worth(self, entry: Entry) -> tuple[float, str]:
        return self._links[entry.key].depth, entry.key

    def _linked(self, entry: Entry) -> _Link:
        """Where an entry stands; it may be one that is not in the store."""
        return self._links.get(entry.key) or self._link(entry)

    def _link(self, entry: Entry) -> _Link:
        """What is known already of the entry's parent decides where it stands."""
        parent = entry.header.parent
        if parent is None:
            return _Link(None, 1, entry)
        fitting = [one for one in self._candidates(entry) if one.root == parent.root]
        if not fitting:
            return _Link(None, math.inf, entry)
        best = min(fitting, key=self._worth)
        below = self._links[best.key]
        return _Link(best, 1 + below.depth, below.end)

    def _candidates(self, entry: Entry) -> list[Entry]:
        """The deltas that may be the one that an entry builds on, whatever their root."""
        head, parent = entry.header, entry.header.parent
        if parent is None:
            return []
        known = self._copies.get((head.guest, head.chain, head.disk, parent.point), [])
        return [one for one in known if one.header.point.sequence < head.point.sequence]

    def _missing(self, child: Entry, parent: str) -> StoreError:
        other_root = bool(self._candidates(child))
        what = "is not in the store" if not other_root else "is there with another root"
        text = f"the delta that it builds on, point {parent} of {child.header.what}, {what}"
        if self.damaged:
            text += f" ({len(self.damaged)} damaged: {self.damaged[0].error})"
        return StoreError(
            text,
            where=child.where,
            hint="bring the missing delta back; 'fleece verify' shows what is whole",
        )

    @contextlib.contextmanager
    def chain(self, entry: Entry) -> Iterator[Chain]:
        """Open the deltas that lead to an entry."""
        with contextlib.ExitStack() as stack:
            yield Chain([stack.enter_context(self.open(part)) for part in self.line(entry)])

    def open(self, entry: Entry) -> DeltaReader:
        """Open one delta.

        Raises:
            DeltaError: it is damaged, or gone.
        """
        return self.access.open(entry.key)

    def read_entry(self, key: str) -> Entry:
        """Describe a delta that is in the store and not in this catalogue.

        Raises:
            DeltaError: it is damaged, incomplete, or not protected as the store is.
        """
        return self.access.read_entry(key)

    def wreck(self, key: str) -> Wreck:
        """Open one of the store's files for what it still proves.

        Raises:
            DeltaError: its header is damaged, or it is not protected as the store is.
        """
        return self.access.wreck(key)


def point_key(entry: Entry) -> str:
    """The key of what a delta is dropped with: the objects of a point."""
    return entry.key.rpartition("/")[0]


def _head(point: StoredPoint) -> Header:
    return next(iter(point.deltas.values())).header


def _may_be_newer(head: Header, point: StoredPoint) -> bool:
    """Whether what a header is of may be a newer point of a point's guest."""
    if head.guest != point.guest:
        return False
    if head.chain == point.chain:
        return head.point.sequence >= point.sequence
    mine, other = moment_of(point.time), moment_of(head.point.time)
    return mine is None or other is None or other >= mine


def _point(group: list[Entry]) -> StoredPoint:
    """The point of some entries, the best of each disk and part first."""
    head = group[0].header
    disks: dict[str, Entry] = {}
    parts: dict[str, Entry] = {}
    for entry in group:
        mine = disks if entry.header.part is None else parts
        mine.setdefault(entry.header.disk, entry)
    named = {name for entry in group for name in (*entry.header.disks, *entry.header.parts)}
    missing = tuple(sorted(named - disks.keys() - parts.keys()))
    ref = head.point
    return StoredPoint(
        head.guest, head.chain, ref.id, ref.sequence, ref.time, disks, missing, parts
    )
