"""The pictures of a report, as the paths of an SVG: bounded, whatever there is to draw."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import fleece
from fleece.errors import StoreError
from fleece.terminal import counted, human, local_time

DAYS = 30
"""Of the strip that all guests share."""
GROWTH_DAYS = 90
"""Of the chart of what was stored."""

_WIDTH = 720
_BASE = 44
"""Where the ticks of a time line stand."""
_LOWEST, _HIGHEST = 8, 34
_CELL = 10
_COLUMNS = 64
_AGES = 5
"""Classes of age that a disk's cells have."""

_KINDS = ("missing", "full", "rescan", "differential", "incremental")
"""Of points, the one first that stands for a day, or for a place of a time line."""


@dataclass(frozen=True)
class Path:
    """What is drawn alike.

    Attributes:
        kind: for the style sheet.
        data: of the path.
    """

    kind: str
    data: str


@dataclass(frozen=True)
class Drawing:
    """A picture.

    Attributes:
        width, height: in its own units.
        paths: in their order.
        label: the same in words.
        begin, end: of its time; None: it has none.
    """

    width: int
    height: int
    paths: tuple[Path, ...]
    label: str
    begin: datetime | None = None
    end: datetime | None = None


def kind_of(told: fleece.PointHistory) -> str:
    """How a point is drawn, and called."""
    return str(told.mode) if told.point.complete else "missing"


def strip(points: Sequence[fleece.PointHistory], now: datetime) -> Drawing:
    """The last days, a cell each: what kind of point there is of it.

    Args:
        points: of a guest.
        now: in UTC.
    """
    today = now.astimezone().date()
    days: dict[int, str] = {}
    for moment, told in _placed(points):
        ago = (today - moment.astimezone().date()).days
        if 0 <= ago < DAYS:
            days[ago] = min(days.get(ago, "incremental"), kind_of(told), key=_KINDS.index)
    found = _joined((kind, DAYS - 1 - ago) for ago, kind in sorted(days.items(), reverse=True))
    paths = [Path(kind, "".join(f"M{5 * x + 2} 1v12" for x in xs)) for kind, xs in found]
    empty = "".join(f"M{5 * x + 2} 6v2" for x in range(DAYS) if DAYS - 1 - x not in days)
    return Drawing(
        5 * DAYS,
        14,
        (Path("none", empty), *paths),
        f"points on {len(days)} of the last {DAYS} days",
    )


def _placed(
    points: Iterable[fleece.PointHistory],
) -> Iterator[tuple[datetime, fleece.PointHistory]]:
    """Those that say when they were taken."""
    for told in points:
        try:
            yield told.point.moment, told
        except StoreError:
            continue


def _joined(pairs: Iterable[tuple[str, int]]) -> list[tuple[str, list[int]]]:
    found: dict[str, list[int]] = {}
    for kind, place in pairs:
        found.setdefault(kind, []).append(place)
    return sorted(found.items())


def timeline(points: Sequence[fleece.PointHistory], now: datetime) -> Drawing:
    """All points of a guest, from the first one to now: the higher, the more is stored of it.

    Below the line is what was verified, and what failed; above it, what is pinned.

    Args:
        points: of a guest.
        now: in UTC.
    """
    placed = [*_placed(points)]
    begin = min((moment for moment, _ in placed), default=now)
    length = max((now - begin).total_seconds(), 1.0)

    def across(moment: datetime) -> int:
        share = max(0.0, min(1.0, (moment - begin).total_seconds() / length))
        return 4 + round(share * (_WIDTH - 8))

    most = max((told.stored_bytes for _, told in placed), default=0)
    heights: dict[tuple[str, int], int] = {}
    for moment, told in placed:
        key = kind_of(told), across(moment)
        heights[key] = max(heights.get(key, 0), _height(told.stored_bytes, most))
    paths = [Path("axis", f"M0 {_BASE + 1}h{_WIDTH}")]
    for kind in reversed(_KINDS):
        data = "".join(
            f"M{x} {_BASE}v-{high}" for (k, x), high in sorted(heights.items()) if k == kind
        )
        paths += [Path(kind, data)] if data else []
    paths += _below(placed, across)
    pins = sorted({across(moment) for moment, told in placed if told.marks.pinned})
    paths += [Path("pinned", "".join(f"M{x} 8l-4-7h8z" for x in pins))] if pins else []
    return Drawing(_WIDTH, 56, tuple(paths), _said(points), begin, now)


def _height(stored: int, most: int) -> int:
    """By the logarithm: a full is a thousand times an incremental."""
    if stored <= 0 or most <= 1:
        return _LOWEST
    lost = math.log2(most / stored) / 16
    return round(_HIGHEST - min(1.0, lost) * (_HIGHEST - _LOWEST))


def _below(
    placed: Sequence[tuple[datetime, fleece.PointHistory]], across: Callable[[datetime], int]
) -> Iterator[Path]:
    """What was verified, neighbours joined, and what failed."""
    runs: list[tuple[int, int]] = []
    open_run = False
    for moment, told in placed:
        x = across(moment)
        if told.verified is not None:
            begin = runs.pop()[0] if open_run else x
            runs.append((begin, max(begin, x)))
        open_run = told.verified is not None
    if runs:
        yield Path("verified", "".join(f"M{a} 50h{max(b - a, 1)}" for a, b in runs))
    failed = sorted({across(moment) for moment, told in placed if told.failed})
    if failed:
        yield Path("failed", "".join(f"M{x - 3} 47l6 6m0-6l-6 6" for x in failed))


def _said(points: Sequence[fleece.PointHistory]) -> str:
    """A time line in words."""
    kinds = Counter(kind_of(told) for told in points)
    words = [f"{kinds[kind]} {NAMES[kind]}" for kind in reversed(_KINDS) if kinds[kind]]
    for count, word in (
        (sum(told.verified is not None for told in points), "verified"),
        (sum(told.failed for told in points), "failed verification"),
        (sum(told.marks.pinned for told in points), "pinned"),
    ):
        words += [f"{count} {word}"] if count else []
    return f"{counted(len(points), 'point')}: {', '.join(words)}"


NAMES = {
    "incremental": "incremental",
    "differential": "differential",
    "rescan": "rescan",
    "full": "full",
    "missing": "incomplete",
}
"""What kinds of points are called."""


def growth(points: Iterable[fleece.PointHistory], now: datetime) -> Drawing:
    """What was stored on each of the last days, of points that are still there.

    Args:
        points: of all guests.
        now: in UTC.
    """
    today = now.astimezone().date()
    days: Counter[int] = Counter()
    for moment, told in _placed(points):
        ago = (today - moment.astimezone().date()).days
        if 0 <= ago < GROWTH_DAYS:
            days[ago] += told.stored_bytes
    most = max(days.values(), default=0)
    bars = "".join(
        f"M{8 * (GROWTH_DAYS - 1 - ago) + 4} 60v-{max(1, round(56 * stored / most))}"
        for ago, stored in sorted(days.items(), reverse=True)
        if stored
    )
    label = f"stored in the last {GROWTH_DAYS} days: {human(sum(days.values()))}"
    if most:
        label += f"; the most on one day: {human(most)}"
    paths = Path("axis", f"M0 61h{8 * GROWTH_DAYS}"), Path("stored", bars)
    begin = now - timedelta(GROWTH_DAYS - 1)
    return Drawing(8 * GROWTH_DAYS, 62, paths, label, begin, now)


@dataclass(frozen=True)
class Age:
    """A class of age of a disk's data.

    Attributes:
        kind: for the style sheet: `age0` is the newest.
        what: the points that it has, for people.
        data_bytes: of the disk.
    """

    kind: str
    what: str
    data_bytes: int


def disk_map(picture: fleece.Picture) -> tuple[Drawing, tuple[Age, ...]]:
    """A disk in cells, each as new as the point that most of its data is from.

    The newest point is a class of its own; those before are shared out evenly.

    Args:
        picture: of the disk.
    """
    count = len(picture.points)
    classes = [_age(owner, count) for owner in range(count)]
    cells: dict[str, list[int]] = {}
    for number in range(len(picture.data)):
        empty = picture.filled(number) == 0
        kind = "none" if empty else f"age{classes[picture.owner(number)]}"
        cells.setdefault(kind, []).append(number)
    paths = tuple(Path(kind, "".join(_runs(mine))) for kind, mine in sorted(cells.items()))
    rows = -(-len(picture.data) // _COLUMNS)
    total = picture.data_bytes.tolist()
    ages = tuple(
        Age(f"age{age}", _span(picture, mine), sum(total[owner] for owner in mine))
        for age in range(_AGES)
        if (mine := [owner for owner in range(count) if classes[owner] == age])
    )
    label = (
        f"{human(sum(total))} of {human(picture.size)} is data, {human(total[0])} of it from the "
        f"newest point; a cell is {human(picture.cell)}"
    )
    return Drawing(_COLUMNS * _CELL, rows * _CELL, paths, label), ages


def _age(owner: int, count: int) -> int:
    """0 for the newest, then 1 and more for even shares of those before."""
    if owner == 0:
        return 0
    return 1 + (owner - 1) * (_AGES - 1) // max(count - 1, _AGES - 1)


def _span(picture: fleece.Picture, owners: Sequence[int]) -> str:
    newest, oldest = (local_time(picture.points[at].time)[:10] for at in (owners[0], owners[-1]))
    if owners == [0]:
        return f"newest point, {newest}"
    return oldest if newest == oldest else f"{oldest} to {newest}"


def _runs(cells: Sequence[int]) -> Iterator[str]:
    """Rectangles of cells that follow one another in a row."""
    begin = end = -1
    for number in (*cells, -1):
        if number == end and number % _COLUMNS:
            end += 1
            continue
        if end > begin:
            x, y, wide = begin % _COLUMNS * _CELL, begin // _COLUMNS * _CELL, (end - begin) * _CELL
            yield f"M{x} {y}h{wide - 1}v{_CELL - 1}h-{wide - 1}z"
        begin, end = number, number + 1
