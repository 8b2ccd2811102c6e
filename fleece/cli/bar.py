"""The bar that shows how far a run is, on standard error if that is a terminal."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fleece import events
from fleece.events import Phase
from fleece.terminal import cells, human, is_plain, shown, span

if TYPE_CHECKING:
    from tqdm import tqdm

_NAMES = {
    Phase.BACKUP: "backing up",
    Phase.RESTORE: "restoring",
    Phase.PROOF: "reading back",
    Phase.VERIFY: "verifying",
    Phase.ROOT: "hashing",
    Phase.AUDIT: "auditing",
    Phase.IMPORT: "importing",
    Phase.SALVAGE: "salvaging",
    Phase.MERGE: "merging",
    Phase.FILES: "copying files of",
    Phase.COPY: "copying to",
}
_WINDOW = 10.0
"""Seconds that the rate is taken over."""
_TICK = 1.0


def named(event: events.Progress) -> str:
    """What a phase does, to what, for people."""
    return shown(f"{_NAMES[event.phase]} {event.subject}")


class Rate:
    """How fast bytes are read or written, over the last seconds; zeros that nobody reads are none.

    Args:
        clock: seconds, of no matter which moment.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque([(clock(), 0)])

    def at(self, count: int) -> float:
        """Bytes a second, now that so many are through."""
        now = self._clock()
        self._seen.append((now, count))
        while len(self._seen) > 2 and self._seen[1][0] <= now - _WINDOW:
            self._seen.popleft()
        then, before = self._seen[0]
        return (count - before) / (now - then) if now > then else 0.0


class Bar:
    """One bar at a time; it goes on when nothing is told, so that nobody takes a wait for an end.

    Raises:
        ImportError, OSError: there is no library for it.
    """

    def __init__(self) -> None:
        from tqdm import tqdm

        tqdm.monitor_interval = 0
        self._library = tqdm
        self._lock = threading.Lock()
        self._bar: tqdm[Any] | None = None
        self._last: events.Progress | None = None
        self._rate = Rate()
        self._end = threading.Event()

    @staticmethod
    def wanted() -> bool:
        """Whether standard error is a terminal that can draw one."""
        return sys.stderr.isatty() and not is_plain()

    def show(self, event: events.Progress) -> None:
        """Show how far it is; a phase that is new has a bar of its own."""
        last = self._last
        if last is None or (last.phase, last.subject) != (event.phase, event.subject):
            self.end()
            self._begin(event)
        with self._lock:
            self._last = event
            self._draw()

    def end(self) -> None:
        """Take the bar away."""
        self._end.set()
        with self._lock:
            bar, self._bar, self._last = self._bar, None, None
            if bar is not None:
                bar.close()

    def _begin(self, event: events.Progress) -> None:
        self._rate, self._end = Rate(), threading.Event()
        self._bar = self._library(
            total=event.total,
            desc=named(event),
            file=sys.__stderr__,
            leave=False,
            dynamic_ncols=True,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {unit}",  # {postfix} begins with a comma
        )
        threading.Thread(
            target=self._tick, args=(self._end,), name="fleece-bar", daemon=True
        ).start()

    def _tick(self, end: threading.Event) -> None:
        while not end.wait(_TICK):
            with self._lock:
                if not end.is_set():
                    self._draw()

    def _draw(self) -> None:
        bar, event = self._bar, self._last
        if bar is None or event is None:
            return
        speed = self._rate.at(event.done - event.known)
        passed = span(bar.format_dict["elapsed"])
        left = f", {span((event.total - event.done) / speed)} left" if speed > 0 else ""
        bar.total, bar.n = event.total, event.done
        through = f"{human(event.done)} of {human(event.total)}"
        bar.unit = f"{through}, {human(round(speed))}/s, {passed}{left}"
        bar.set_description_str(_cut(named(event), (bar.ncols or 80) // 3), refresh=False)
        bar.refresh()


def _cut(text: str, room: int) -> str:
    """A text without its middle, where it has no room: the last name of a path says most."""
    if cells(text) <= room:
        return text
    begin, end = text[: len(text) // 2], text[len(text) // 2 :]
    while begin and cells(begin) + cells(end) >= room:
        begin, end = (begin[:-1], end) if cells(begin) > cells(end) else (begin, end[1:])
    return f"{begin}…{end}"
