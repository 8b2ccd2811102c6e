"""The pages of a delta: TREE and INDEX pages, and the DIRECTORY that lists them.

Pages are what makes opening a delta cheap: the directory alone is read, a page only when it is
needed, and each is checked against the directory's hash of it.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fleece.delta.layout import (
    INDEX_PAGE_ROWS,
    INDEX_ROW,
    MAX_FRAME,
    MAX_PAGE,
    MAX_RECORD,
    TREE_PAGE_NODES,
    Kind,
    Tag,
    directory_row,
    own_hash,
    seal,
    unseal,
)
from fleece.errors import DeltaError
from fleece.extents import Int64Array
from fleece.tree import Geometry, Level

_COUNT = struct.Struct("<II")
_KINDS = {kind.value: kind for kind in (Tag.TREE, Tag.INDEX)}

IndexRows = npt.NDArray[np.void]
"""Structured rows of `layout.INDEX_ROW`."""


@dataclass(frozen=True)
class Page:
    """One row of the directory.

    Attributes:
        tag: TREE or INDEX.
        level: of the tree nodes; 0 for an INDEX page.
        count: nodes or rows in it.
        first, last: smallest and largest node number, or disk offset, in it.
        position, length: of its frame in the file, in bytes.
        hash: the frame's own hash.
    """

    tag: Tag
    level: int
    count: int
    first: int
    last: int
    position: int
    length: int
    hash: bytes


class PageTable:
    """The pages of one kind and level by what they span: found by binary search, none is read.

    Args:
        listed: pages by ascending key.
        where: the file's name in messages.

    Raises:
        DeltaError: they overlap, or are out of order.
    """

    def __init__(self, listed: Sequence[Page], where: object) -> None:
        self.pages = tuple(listed)
        self._first = np.array([page.first for page in self.pages], np.int64)
        self._last = np.array([page.last for page in self.pages], np.int64)
        if np.any(self._first[1:] <= self._last[:-1]):
            raise DeltaError("the directory's pages are out of order", where=where)

    def spanning(self, low: int, high: int) -> tuple[Page, ...]:
        """The pages that can hold keys in `[low, high)`."""
        first = np.searchsorted(self._last, low, side="left")
        return self.pages[first : np.searchsorted(self._first, high, side="left")]

    def reaching(self, low: int, high: int) -> tuple[Page, ...]:
        """The pages whose ranges, each from its key on, can touch `[low, high)`."""
        first = max(0, int(np.searchsorted(self._first, low, side="right")) - 1)
        return self.pages[first : np.searchsorted(self._first, high, side="left")]

    def below(self, keys: Int64Array) -> Int64Array:
        """int64[n]: for each key the number of the last page that begins at or below it, or -1."""
        return np.searchsorted(self._first, keys, side="right") - 1


def tree_pages(levels: Iterable[Level], geometry: Geometry) -> Iterator[tuple[bytes, Page]]:
    """TREE frames with their directory rows (`position` 0 until they are written).

    Args:
        levels: nodes in order, levels from 1 up, of a level any number at a time.
        geometry: of the disk.
    """
    width = 8 + geometry.fan_out * geometry.algorithm.size
    most = min(TREE_PAGE_NODES, MAX_PAGE // 2 // width)
    for level, parts in itertools.groupby(levels, key=lambda part: part.level):
        pairs = ((part.nodes, part.children) for part in parts)
        for nodes, children in in_batches(pairs, most):
            body = _COUNT.pack(level, len(nodes)) + nodes.astype("<u8").tobytes()
            frame = seal(Tag.TREE, body + children.tobytes(), geometry.algorithm)
            yield frame, _page(Tag.TREE, level, nodes, frame, geometry)


def index_pages(parts: Iterable[IndexRows], geometry: Geometry) -> Iterator[tuple[bytes, Page]]:
    """INDEX frames with their directory rows, of rows by ascending offset, some at a time."""
    for (part,) in in_batches(((rows,) for rows in parts), INDEX_PAGE_ROWS):
        frame = seal(Tag.INDEX, _COUNT.pack(0, len(part)) + part.tobytes(), geometry.algorithm)
        yield frame, _page(Tag.INDEX, 0, part["offset"], frame, geometry)


def in_batches(
    parts: Iterable[tuple[npt.NDArray[Any], ...]], most: int
) -> Iterator[tuple[npt.NDArray[Any], ...]]:
    """The same rows in the same order, `most` at a time, and what is left at the end.

    Args:
        parts: arrays of the same length that belong together, row by row; not empty.
        most: rows in a batch.
    """
    waiting: list[tuple[npt.NDArray[Any], ...]] = []
    count = 0
    for part in parts:
        waiting.append(part)
        count += len(part[0])
        if count >= most:
            whole = tuple(np.concatenate(column) for column in zip(*waiting, strict=True))
            for at in range(0, count - count % most, most):
                yield tuple(column[at : at + most] for column in whole)
            rest = tuple(column[count - count % most :] for column in whole)
            count = len(rest[0])
            waiting = [rest] if count else []
    if count:
        yield tuple(np.concatenate(column) for column in zip(*waiting, strict=True))


def _page(
    tag: Tag, level: int, keys: npt.NDArray[np.generic], frame: bytes, geometry: Geometry
) -> Page:
    return Page(
        tag,
        level,
        len(keys),
        int(keys[0]),
        int(keys[-1]),
        0,
        len(frame),
        own_hash(frame, geometry.algorithm),
    )


def parse_tree(frame: bytes, page: Page, geometry: Geometry, where: object) -> Level:
    """The nodes of a TREE page.

    Raises:
        DeltaError: damaged, or not the page that the directory promised.
    """
    body = _body(frame, page, geometry, where)
    width = geometry.fan_out * geometry.algorithm.size
    if len(body) != _COUNT.size + page.count * (8 + width) or _COUNT.unpack_from(body) != (
        page.level,
        page.count,
    ):
        raise DeltaError("a tree page is not what the directory says", where=where)
    nodes = np.frombuffer(body, "<u8", page.count, _COUNT.size).astype(np.int64)
    children = np.frombuffer(body, np.uint8, offset=_COUNT.size + 8 * page.count)
    _check_keys(nodes, page, where)
    return Level(
        page.level, nodes, children.reshape(page.count, geometry.fan_out, geometry.algorithm.size)
    )


WHOLE = (Kind.DATA, Kind.ZERO)
"""The kinds of rows in the index of a whole delta."""


def parse_index(
    frame: bytes,
    page: Page,
    geometry: Geometry,
    where: object,
    kinds: Sequence[Kind] = WHOLE,
) -> IndexRows:
    """The rows of an INDEX page: sorted by offset, disjoint, within the disk.

    Args:
        frame: of the page.
        page: the directory's row of it.
        geometry: of the disk.
        where: the file's name in messages.
        kinds: that a row may have.

    Raises:
        DeltaError: damaged, or not the page that the directory promised.
    """
    body = _body(frame, page, geometry, where)
    if len(body) != _COUNT.size + page.count * INDEX_ROW.itemsize or _COUNT.unpack_from(body) != (
        0,
        page.count,
    ):
        raise DeltaError("an index page is not what the directory says", where=where)
    rows = np.frombuffer(body, INDEX_ROW, page.count, _COUNT.size)
    offset, length = rows["offset"], rows["length"]
    data = rows["kind"] == Kind.DATA
    fits = (
        (length > 0)
        & np.isin(rows["kind"], kinds)
        & (~data | (length <= MAX_RECORD))
        & (rows["frame_length"] <= MAX_FRAME)
    )
    if not bool(np.all(fits)):
        raise DeltaError("the index has fields that are out of bounds", where=where)
    if bool(np.any(offset > geometry.size)) or bool(np.any(length > geometry.size - offset)):
        raise DeltaError("the index points outside the disk", where=where)
    _check_keys(offset.astype(np.int64), page, where)
    if bool(np.any(offset[1:] < (offset + length)[:-1])):
        raise DeltaError("the index has ranges that overlap", where=where)
    return rows


def _body(frame: bytes, page: Page, geometry: Geometry, where: object) -> memoryview:
    if own_hash(frame, geometry.algorithm) != page.hash:
        raise DeltaError(f"a {page.tag.name} page does not match the directory", where=where)
    return unseal(frame, page.tag, geometry.algorithm, where)


def _check_keys(keys: npt.NDArray[np.int64], page: Page, where: object) -> None:
    if int(keys[0]) != page.first or int(keys[-1]) != page.last or np.any(keys[1:] <= keys[:-1]):
        raise DeltaError(f"a {page.tag.name} page is out of order", where=where)


def pack_directory(listed: list[Page], geometry: Geometry) -> bytes:
    """The DIRECTORY frame."""
    rows = np.zeros(len(listed), directory_row(geometry.algorithm))
    for at, page in enumerate(listed):
        rows[at] = (
            page.tag.value,
            page.level,
            page.count,
            page.first,
            page.last,
            page.position,
            page.length,
            page.hash,
        )
    return seal(Tag.DIRECTORY, rows.tobytes(), geometry.algorithm)


def parse_directory(frame: bytes, geometry: Geometry, end: int, where: object) -> list[Page]:
    """The pages that a DIRECTORY frame lists, each of a sane size and before `end` in the file.

    Raises:
        DeltaError: damaged.
    """
    body = unseal(frame, Tag.DIRECTORY, geometry.algorithm, where)
    dtype = directory_row(geometry.algorithm)
    if len(body) % dtype.itemsize:
        raise DeltaError("the directory has the wrong length", where=where)
    listed = []
    for tag, level, count, first, last, position, length, digest in np.frombuffer(
        body, dtype
    ).tolist():
        if (kind := _KINDS.get(tag)) is None:
            raise DeltaError("the directory lists a page of no known kind", where=where)
        page = Page(kind, level, count, first, last, position, length, bytes(digest))
        if not (count > 0 and length <= MAX_PAGE and position + length <= end):
            raise DeltaError("the directory lists a page that cannot be", where=where)
        if not (level <= geometry.height and first <= last < max(geometry.size, 1)):
            raise DeltaError("the directory lists a page outside the disk", where=where)
        listed.append(page)
    return listed
