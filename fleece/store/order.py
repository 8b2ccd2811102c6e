"""Which point of a guest is the later one.

Within a chain its sequence says so, whatever clocks did. Between chains nothing does but the time
that each point names. A store has several chains of a guest if deltas of several stores were
imported into it: also of one that was lost and made again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import TypeVar

from fleece.delta.header import Header

_NEVER = datetime.min.replace(tzinfo=UTC)

T = TypeVar("T")


def moment_of(text: str) -> datetime | None:
    """A point's time (RFC 3339), in UTC; None: it is no time."""
    try:
        found = datetime.fromisoformat(text)
        return found.replace(tzinfo=found.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def oldest_first(items: Iterable[T], head: Callable[[T], Header]) -> list[T]:
    """Put what belongs to one guest's points in order; what belongs to one point stays as it is.

    A point counts as no later than those after it in its chain: a clock that was ahead once says
    nothing of the points since. One whose time cannot be read has that of the next.

    Args:
        items: points, or files of points.
        head: gives the header of one.
    """
    chains: dict[str, list[T]] = {}
    for item in items:
        chains.setdefault(head(item).chain, []).append(item)
    placed: list[tuple[datetime, str, int, T]] = []
    for name, line in chains.items():
        newest_first = sorted(line, key=lambda one: head(one).point.sequence, reverse=True)
        times = [moment_of(head(item).point.time) for item in newest_first]
        time = next((known for known in times if known is not None), _NEVER)
        for item, own in zip(newest_first, times, strict=True):
            time = time if own is None else min(time, own)
            placed.append((time, name, head(item).point.sequence, item))
    return [item for *_, item in sorted(placed, key=lambda one: one[:3])]
