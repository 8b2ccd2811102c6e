"""Which points to keep: rules with the meaning that restic's users know. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from fleece.durations import Duration
from fleece.errors import UsageError
from fleece.store.catalogue import StoredPoint
from fleece.store.marks import TagLists

ALL = -1
"""As the count of a rule: keep one of every bucket, however many there are."""


@dataclass(frozen=True)
class KeepRules:
    """What to keep; a point stays if any rule keeps it.

    Attributes:
        last: so many newest points.
        hourly, daily, weekly, monthly, yearly: the newest point of each of the newest so many
            hours (days, ...) that have one, by UTC; weeks are those of ISO 8601. While a rule has
            counts left, it also keeps the oldest point.
        within: every point that is younger than this, seen from the newest one.
        tags: every point that has all tags of any of these lists.
        only: the others are for points that have all tags of any of these lists; the rest stays.

    The counts may be `ALL`.
    """

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    within: Duration | None = None
    tags: TagLists = ()
    only: TagLists = ()

    def check(self) -> None:
        """Refuse rules that would keep nothing, or make no sense.

        Raises:
            UsageError: they do.
        """
        if self == KeepRules(only=self.only):
            raise UsageError("no rule says what to keep", hint="give --keep-last 7, for example")
        if min(count for count, _, _ in self._buckets()) < ALL:
            raise UsageError("a --keep-* count must be a number of 0 or more, or -1 for all")

    def _buckets(self) -> tuple[tuple[int, str, Callable[[datetime, int], object]], ...]:
        return (
            (self.last, "last", lambda _, nth: nth),
            (self.hourly, "hourly", lambda at, _: (at.date(), at.hour)),
            (self.daily, "daily", lambda at, _: at.date()),
            (self.weekly, "weekly", lambda at, _: tuple(at.isocalendar())[:2]),
            (self.monthly, "monthly", lambda at, _: (at.year, at.month)),
            (self.yearly, "yearly", lambda at, _: at.year),
        )

    def apply(self, times: Sequence[datetime], now: datetime) -> list[list[str]]:
        """For each point, the rules that keep it.

        Args:
            times: of the points, newest point first (`fleece.store.order`; clocks may jump).
            now: a point of the future does not say what the newest is.
        """
        reasons: list[list[str]] = [[] for _ in times]
        past = [moment for moment in times if moment <= now]
        if self.within is not None:
            since = self.within.before(max(past)) if past else None
            for nth, moment in enumerate(times):
                if since is None or moment > since:
                    reasons[nth].append("within")
        for count, name, bucket in self._buckets():
            left, last = count, None
            for nth, moment in enumerate(times):
                value = bucket(moment, nth)
                if left != 0 and (value != last or nth == len(times) - 1):
                    reasons[nth].append(name)
                    last = value
                    left -= left > 0
        return reasons


def choose(
    points: Sequence[StoredPoint], rules: KeepRules, now: datetime
) -> dict[str, tuple[str, ...]]:
    """The points of one guest that stay: by id, with the reasons.

    The rules hold for each set of disks by itself, so that a backup of one disk alone does not
    count as one of all. The newest point of each disk in each chain always stays: the guest's next
    incremental builds on it.

    Args:
        points: complete ones, oldest first.
        rules: what to keep.
        now: by the clock.
    """
    kept: dict[str, list[str]] = {}
    groups: dict[frozenset[str], list[StoredPoint]] = {}
    for point in reversed(points):
        groups.setdefault(frozenset(point.disks), []).append(point)
    for group in groups.values():
        for point, reasons in zip(
            group, rules.apply([point.moment for point in group], now), strict=True
        ):
            if reasons:
                kept.setdefault(point.id, []).extend(reasons)
    seen: set[tuple[str, str]] = set()
    for point in reversed(points):
        mine = {(point.chain, disk) for disk in point.disks}
        if not mine <= seen:
            kept.setdefault(point.id, []).append("newest")
            seen |= mine
    return {name: tuple(reasons) for name, reasons in kept.items()}
