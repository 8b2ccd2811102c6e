"""A report as one page of HTML that needs nothing else: no script, no font, no network."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from fleece.errors import UsageError
from fleece.fleet import drawn
from fleece.fleet.report import GuestReport, Report, State, StoreReport, Trouble
from fleece.terminal import counted, human, local_time, shown, span
from fleece.version import VERSION

if TYPE_CHECKING:
    from jinja2 import Environment

_ROWS = 4000
"""Points that the tables of all guests list together."""
_MOST_ROWS, _LEAST_ROWS = 40, 3
_SCREENS = 50
"""Screenshots of drills: those of the guests that were drilled last."""
_PNG = b"\x89PNG\r\n\x1a\n"
_MOST_TROUBLE = 200
"""That is listed; the guests tell all of theirs."""


@dataclass(frozen=True)
class Told:
    """A trouble, and whose it is.

    Attributes:
        store: its name.
        guest: its name; None: it is the store's.
        anchor: of the guest on the page, or of the store.
        trouble: itself.
    """

    store: str
    guest: str | None
    anchor: str
    trouble: Trouble


def page(report: Report) -> str:
    """Write the page.

    Args:
        report: what it tells.

    Raises:
        UsageError: the template library is not installed.
    """
    environment = _environment()
    style = _file("report.css")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    told = sorted(_told(report), key=lambda each: -each.trouble.state)
    histories = [guest.past for guest in report.guests if guest.past is not None]
    rows = min(_MOST_ROWS, max(_LEAST_ROWS, _ROWS // max(1, len(histories))))
    every = (point for past in histories for point in past.points)
    return environment.get_template("report.html").render(
        report=report,
        style=style,
        style_hash=digest,
        told=told[:_MOST_TROUBLE],
        untold=max(0, len(told) - _MOST_TROUBLE),
        State=State,
        growth=drawn.growth(every, report.made),
        totals=[*_totals(report)],
        screens=_screens(report),
        rows=rows,
        version=VERSION,
        days=drawn.DAYS,
    )


def _environment() -> Environment:
    try:
        import jinja2
    except ImportError as error:
        raise UsageError(
            "a report is written with the Python package jinja2, which is missing",
            hint="install python3-jinja2, or 'pip install fleece-backup[report]'",
        ) from error
    made = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(_file),
        # Names come from guests and stores: nothing in them may turn the text around.
        finalize=lambda value: shown(value) if type(value) is str else value,
    )
    made.globals |= {
        "strip": drawn.strip,
        "timeline": drawn.timeline,
        "disk_map": drawn.disk_map,
        "kind_of": drawn.kind_of,
        "kinds": drawn.NAMES,
        "counted": counted,
    }
    made.filters |= {"human": human, "span": span, "time": _time, "day": _day}
    return made


def _file(name: str) -> str:
    return importlib.resources.files("fleece.fleet").joinpath(name).read_text("utf-8")


def _time(moment: str | datetime) -> str:
    """A time for people, to the minute."""
    text = moment if isinstance(moment, str) else moment.isoformat(timespec="seconds")
    found = local_time(text).split()
    return f"{found[0]} {found[1][:5]}" if len(found) > 2 else text


def _day(moment: datetime) -> str:
    return f"{moment.astimezone():%Y-%m-%d}"


def _anchored(report: Report) -> Iterator[tuple[StoreReport, str, GuestReport | None]]:
    """Each store and guest, with what it is called on the page."""
    for number, store in enumerate(report.stores):
        yield store, f"s{number}", None
        for place, guest in enumerate(store.guests):
            yield store, f"s{number}g{place}", guest


def _told(report: Report) -> Iterator[Told]:
    """All troubles, those of a store before those of its guests."""
    for host, error in report.unknown.items():
        what = f"the guests of host {host} are unknown: {error}"
        yield Told(
            "", None, "glance", Trouble(State.BAD, what, "see that its libvirt can be reached")
        )
    for store, anchor, guest in _anchored(report):
        for trouble in store.trouble if guest is None else guest.trouble:
            yield Told(store.name, None if guest is None else guest.name, anchor, trouble)


def _totals(report: Report) -> Iterator[tuple[str, str]]:
    """What it all comes to."""
    past = [guest.past for guest in report.guests if guest.past is not None]
    stored = sum(one.status.stored_bytes for one in past)
    restored = sum(one.restored_bytes for one in past)
    yield "guests", str(len(report.guests))
    yield "points", str(sum(one.status.points for one in past))
    yield "stored", human(stored)
    yield "can be restored", human(restored)
    if stored:
        yield "for each byte stored", f"{restored / stored:.1f}"
    yield "not all verified", str(sum(one.status.unverified > 0 for one in past))
    yield "never drilled", str(sum(not one.drills for one in past))


def _screens(report: Report) -> dict[str, str]:
    """The pictures of drills, as a page has them within itself, by anchor."""
    found: list[tuple[datetime, str, bytes]] = []
    for _, anchor, guest in _anchored(report):
        for drill in guest.past.drills if guest is not None and guest.past is not None else ():
            if drill.screenshot is not None and drill.screenshot.startswith(_PNG):
                found.append((drill.time, anchor, drill.screenshot))
    newest = sorted(found, reverse=True)[:_SCREENS]
    return {
        anchor: f"data:image/png;base64,{base64.b64encode(picture).decode()}"
        for _, anchor, picture in newest
    }
