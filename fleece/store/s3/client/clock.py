"""The server's clock, as its answers tell it: a lock counts by that, whatever this host's says."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from fleece.store.s3.client.problems import moment_in


class Clock:
    """What the server's clock shows; this host's, as long as no answer has told."""

    def __init__(self) -> None:
        self._heard: tuple[str, float] | None = None

    def heard(self, text: str | None) -> None:
        """Take in the `Date` of an answer that has just come."""
        if text:
            self._heard = text, time.monotonic()

    def now(self) -> datetime:
        """What it shows now, in UTC, to about a second."""
        if self._heard is not None:
            text, then = self._heard
            if (told := moment_in(text)) is not None:
                return told.astimezone(UTC) + timedelta(seconds=time.monotonic() - then)
        return datetime.now(UTC)
