"""Spans of the calendar, as users write them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from fleece.errors import UsageError

_DURATION = re.compile(r"(?=\d)(?:(\d{1,4})y)?(?:(\d{1,6})m)?(?:(\d{1,7})d)?(?:(\d{1,8})h)?")


@dataclass(frozen=True)
class Duration:
    """A span of the calendar."""

    years: int = 0
    months: int = 0
    days: int = 0
    hours: int = 0

    @staticmethod
    def parse(text: str) -> Duration:
        """From a text as `2y5m7d3h`; each part may be left out, not all of them.

        Raises:
            UsageError: it is none.
        """
        found = _DURATION.fullmatch(text)
        parts = Duration(*(int(part or 0) for part in found.groups())) if found else Duration()
        if parts == Duration():
            raise UsageError(
                f"not a duration: {text}", hint="write it as 2y5m7d3h: years, months, days, hours"
            )
        return parts

    def before(self, moment: datetime) -> datetime:
        """The moment that lies this long before another one.

        A day that the month does not have counts on into the next month.
        """
        months = moment.year * 12 + moment.month - 1 - self.years * 12 - self.months
        try:
            first = moment.replace(year=months // 12, month=months % 12 + 1, day=1)
            return first + timedelta(days=moment.day - 1 - self.days, hours=-self.hours)
        except (ValueError, OverflowError):
            return datetime.min.replace(tzinfo=UTC)
