"""What a store still has of one disk's line: also of deltas that are damaged, cut or salvaged."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from fleece.delta.header import Header
from fleece.delta.wreck import Wreck
from fleece.errors import DeltaError, StoreError, UsageError
from fleece.store.catalogue import LATEST, Catalogue
from fleece.store.order import oldest_first


@dataclass(frozen=True)
class Remains:
    """A file with a readable header, in whatever state the rest is.

    Attributes:
        key: of the file.
        where: it is, for messages.
        header: its self-description.
        root: of the disk at its point, hexadecimal; None: nothing in it says so any more.
        whole: it opens as a delta. Its data may be damaged all the same.
    """

    key: str
    where: str
    header: Header
    root: str | None
    whole: bool


@dataclass(frozen=True)
class Line:
    """All that is left to restore a disk of a point from.

    Attributes:
        header: of the point's own delta.
        root: that the disk had at the point; None: nothing says so any more.
        members: the deltas that lead to the point, newest first, down to a full or to where one is
            missing.
        others: other files of the same disk, of which parts may serve: older points of a broken
            line, and copies.
    """

    header: Header
    root: str | None
    members: tuple[Remains, ...]
    others: tuple[Remains, ...]


def line_of(catalogue: Catalogue, point: str, disk: str, guest: str | None = None) -> Line:
    """Find all that is left of a disk at a point.

    Args:
        catalogue: of the store.
        point: an id, a prefix of one, or `latest`.
        disk: the disk's name.
        guest: which guest, if `point` could mean several.

    Raises:
        StoreError: no file of this disk at this point has a readable header.
        UsageError: the point could be several.
    """
    found = [r for r in _all(catalogue) if guest is None or r.header.guest == guest]
    newest = _named(found, point, disk, catalogue.where)
    mine = [r for r in found if _same_disk(r.header, newest.header)]
    members = [newest]
    while (parent := members[-1].header.parent) is not None:
        sequence = members[-1].header.point.sequence
        fitting = [
            r
            for r in mine
            if r.header.point.id == parent.point
            and r.header.point.sequence < sequence
            and r.root in (None, parent.root)
        ]
        if not fitting:
            break
        members.append(_best(fitting))
    broken = members[-1].header.parent is not None
    numbers = {member.header.point.sequence for member in members}
    others = [
        r
        for r in mine
        if r not in members
        and (broken or r.header.point.sequence in numbers)
        and r.header.point.sequence <= newest.header.point.sequence
    ]
    others.sort(key=lambda r: -r.header.point.sequence)
    return Line(newest.header, _root(newest, mine), tuple(members), tuple(others))


@contextlib.contextmanager
def opened(catalogue: Catalogue, remains: Remains) -> Iterator[Wreck]:
    """The file, open for what it still proves."""
    with catalogue.wreck(remains.key) as wreck:
        yield wreck


def _all(catalogue: Catalogue) -> Iterator[Remains]:
    for entry in catalogue.entries:
        yield Remains(entry.key, entry.where, entry.header, entry.root, whole=True)
    for damaged in catalogue.damaged:
        with contextlib.suppress(DeltaError), catalogue.wreck(damaged.key) as wreck:
            root = None if wreck.root is None else wreck.root.hex()
            yield Remains(damaged.key, wreck.where, wreck.header, root, whole=False)


def _named(found: list[Remains], text: str, disk: str, where: str) -> Remains:
    """The best file of the disk at the point that a text means."""
    if not text:  # which any id begins with
        raise UsageError("the name of a point is empty", where=where)
    ids = {r.header.point.id for r in found}
    if text == LATEST:
        if len({r.header.guest for r in found}) > 1:
            raise UsageError("the store holds several guests", where=where, hint="name one")
        wanted = {r.header.point.id for r in oldest_first(found, lambda r: r.header)[-1:]}
    else:
        wanted = {text} if text in ids else {name for name in ids if name.startswith(text)}
    if len(wanted) > 1:
        raise UsageError(f"'{text}' matches {len(wanted)} points", where=where)
    fitting = [r for r in found if r.header.point.id in wanted and r.header.disk == disk]
    if not fitting:
        raise StoreError(
            f"nothing is left of disk {disk} at point {text}: no file with a readable header",
            where=where,
            hint="'fleece list' shows what is there",
        )
    return _best(fitting)


def _best(copies: list[Remains]) -> Remains:
    return max(copies, key=lambda r: (r.whole, r.root is not None, r.header.salvaged is None))


def _same_disk(one: Header, other: Header) -> bool:
    """Their leaves can be compared by hash; the disk may have been resized."""
    mine, theirs = one.geometry, other.geometry
    return (one.guest, one.chain, one.disk) == (other.guest, other.chain, other.disk) and (
        mine.leaf_size,
        mine.fan_out,
        mine.algorithm.name,
    ) == (theirs.leaf_size, theirs.fan_out, theirs.algorithm.name)


def _root(newest: Remains, mine: list[Remains]) -> str | None:
    """A point's root: of its own file, or as those name it that build on it."""
    said = (r.header.parent for r in mine)
    named = [p.root for p in said if p is not None and p.point == newest.header.point.id]
    return newest.root or next(iter(named), None)
