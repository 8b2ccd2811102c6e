"""What people say of points after these are made: small notes beside their deltas, pins and tags.

A backup's own tags are in its deltas' headers, durable with the point. What `set_tags` made of them
since is a note, which then says all of them. Notes are proven by the store's key, hidden if it is
encrypted, and named by the listing: to know which points have one costs nothing more.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from fleece.errors import StoreError, UsageError
from fleece.store import keeping
from fleece.store.backend import Kept
from fleece.store.catalogue import Catalogue, StoredPoint, point_key
from fleece.store.envelope import unwrap, wrap
from fleece.store.errors import Gone
from fleece.store.names import PIN, TAGS

MOST_TAGS = 64
_FORMAT = {"format": "fleece tags", "version": 1}
_KIND = "tags"
_LONGEST_TAG = 100
_LONGEST = 1 << 16

TagLists: TypeAlias = Sequence[Sequence[str]]
"""Which points are meant: those that have all tags of any list."""


@dataclass(frozen=True)
class Marks:
    """What is said of a point.

    Attributes:
        tags: in the order of the alphabet.
        pinned: prune keeps it.
        kept: what keeps its deltas from everybody; None: nothing, or nobody asked.
        trouble: why its tags cannot be told; None: they can.
    """

    tags: tuple[str, ...] = ()
    pinned: bool = False
    kept: Kept | None = None
    trouble: StoreError | None = None

    def meant(self, lists: TagLists) -> bool:
        """Whether a point with these has all tags of any list."""
        return is_meant(self.tags, lists)


def checked(tags: Iterable[str]) -> tuple[str, ...]:
    """Tags as a point has them: each once, in the order of the alphabet.

    Raises:
        UsageError: one cannot be a tag, or there are too many.
    """
    found = tuple(sorted(set(tags)))
    for tag in found:
        if not tag.isprintable() or not 0 < len(tag) <= _LONGEST_TAG or "," in tag:
            raise UsageError(
                f"a tag is 1 to {_LONGEST_TAG} printable characters, none of them a comma: {tag!r}"
            )
        if tag != tag.strip():
            raise UsageError(f"a tag neither begins nor ends with a space: {tag!r}")
    if len(found) > MOST_TAGS:
        raise UsageError(f"a point has at most {MOST_TAGS} tags, not {len(found)}")
    return found


def note_keys(catalogue: Catalogue, point: StoredPoint, ending: str) -> list[str]:
    """The keys that a point's note of a kind can have: beside any copy of its deltas."""
    name = catalogue.access.point_name(point.id)
    copies = (copy for entry in point.deltas.values() for copy in catalogue.copies(entry))
    return sorted({f"{point_key(copy)}/{name}{ending}" for copy in copies})


def noted_tags(catalogue: Catalogue, point: StoredPoint) -> tuple[str, ...] | None:
    """The tags that a note says; None: there is none.

    Raises:
        StoreError: there is one, and what it says cannot be told.
    """
    access = catalogue.access
    for key in note_keys(catalogue, point, TAGS):
        if key not in catalogue.notes:
            continue
        try:
            raw = access.backend.get(key, _LONGEST)
        except Gone:
            continue
        try:
            said = json.loads(unwrap(access.protection, _KIND, raw) or "null")
            if not (_FORMAT | {"point": point.id}).items() <= said.items():
                raise ValueError("it is of something else")
            return checked(map(str, said["tags"]))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, UsageError) as e:
            raise StoreError(
                f"the note of the tags of point {point.id} cannot be believed ({e})",
                where=access.backend.name(key),
                hint="'fleece tag --set' writes it anew",
            ) from e
    return None


def tags_of(catalogue: Catalogue, point: StoredPoint) -> tuple[str, ...]:
    """The tags of a point.

    Raises:
        StoreError: they cannot be told.
    """
    said = noted_tags(catalogue, point)
    return point.tags if said is None else said


def note_tags(catalogue: Catalogue, point: StoredPoint, tags: Iterable[str]) -> None:
    """Say durably which tags a point has; the guest's lock is held.

    Raises:
        UsageError: these cannot be.
    """
    access, said = catalogue.access, _FORMAT | {"point": point.id, "tags": checked(tags)}
    first, *others = note_keys(catalogue, point, TAGS)
    access.backend.sweep(first)
    access.backend.put(first, wrap(access.protection, _KIND, json.dumps(said)))
    for key in others:
        access.backend.delete(key)


def is_meant(tags: Sequence[str], lists: TagLists) -> bool:
    """Whether a point with these tags has all of any list; of no list, each has."""
    return not lists or any(set(each) <= set(tags) for each in lists)


def tagged(
    catalogue: Catalogue, points: Sequence[StoredPoint], lists: TagLists
) -> list[StoredPoint]:
    """Those of some points that have all tags of any list; without a list, all.

    Raises:
        StoreError: that cannot be told.
    """
    if not lists:
        return list(points)
    return [point for point in points if is_meant(tags_of(catalogue, point), lists)]


def marks(
    catalogue: Catalogue, points: Sequence[StoredPoint], *, locks: bool = False
) -> list[Marks]:
    """What is said of some points, of each in its turn.

    Args:
        catalogue: of the store.
        points: which.
        locks: ask what keeps them from everybody, too: in a bucket that is a request for each
            delta of which this host does not remember it.
    """
    kept = keeping.kept_points(catalogue, points) if locks else {}
    found: list[Marks] = []
    for point in points:
        pinned = not catalogue.notes.isdisjoint(note_keys(catalogue, point, PIN))
        try:
            said = Marks(tags_of(catalogue, point), pinned, kept.get(point.id))
        except StoreError as error:
            said = Marks((), pinned, kept.get(point.id), error)
        found.append(said)
    return found
