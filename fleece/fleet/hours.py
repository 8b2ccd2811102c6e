"""Hours of the week, as a configuration writes them: `22:00-06:00`, `Mon-Fri 08:00-18:00`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MINUTES = 24 * 60
_WRITTEN = re.compile(r"(?:([A-Z][a-z]{2})(?:-([A-Z][a-z]{2}))? )?(..):(..)-(..):(..)")


@dataclass(frozen=True)
class Hours:
    """The same hours of some days, by the clock of this host.

    Attributes:
        text: as they are written.
        days: on which they begin, Monday is 0.
        begin, end: minutes since the midnight before; the end can be on the next day.
    """

    text: str
    days: frozenset[int]
    begin: int
    end: int

    @staticmethod
    def parse(text: str) -> Hours:
        """Read what the schema has found to be hours. Hours that end before they begin end on the
        next day; those of which both are one time are 24.
        """
        found = _WRITTEN.fullmatch(text)
        assert found is not None
        first, last = (None if found[n] is None else _DAYS.index(found[n]) for n in (1, 2))
        begin = int(found[3]) * 60 + int(found[4])
        end = int(found[5]) * 60 + int(found[6])
        if first is None:
            days = frozenset(range(7))
        else:
            count = (0 if last is None else (last - first) % 7) + 1
            days = frozenset((first + nth) % 7 for nth in range(count))
        return Hours(text, days, begin, end if end > begin else end + _MINUTES)

    def hold(self, moment: datetime) -> bool:
        """Whether a moment of this host's time is in them."""
        minute = moment.hour * 60 + moment.minute
        return any(
            (moment.weekday() - ago) % 7 in self.days
            and self.begin <= minute + ago * _MINUTES < self.end
            for ago in (0, 1)
        )


def by_the_clock() -> datetime:
    """Now, in this host's time."""
    return datetime.now(UTC).astimezone()
