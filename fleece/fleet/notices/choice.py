"""What of a run's findings somebody is told now, and what is remembered of that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime

from fleece.fleet.notices.kinds import Kind
from fleece.fleet.notices.letter import News
from fleece.fleet.notices.memory import Told
from fleece.fleet.notices.settings import Notice
from fleece.fleet.notices.trouble import Findings, Matter

_SLACK = 0.9
"""Of `again`: a timer does not run at the same second each day."""

_ORDER = (Kind.DAMAGE, Kind.FAILURE, Kind.STALE, Kind.RECOVERY)
"""The worst first."""


def chosen(
    notice: Notice, known: Mapping[Matter, Told], findings: Findings, now: datetime
) -> list[News]:
    """What is told, the worst first.

    Args:
        notice: who is told.
        known: what is going on that they were told of.
        findings: of the run.
        now: in UTC.
    """
    news = [*_troubles(notice, known, findings, now)]
    if Kind.RECOVERY in notice.kinds:
        news += [
            News(Kind.RECOVERY, matter, told.what, told.since)
            for matter, told in known.items()
            if matter in findings.well
        ]
    return sorted(news, key=lambda one: (_ORDER.index(one.kind), one.matter))


def _troubles(
    notice: Notice, known: Mapping[Matter, Told], findings: Findings, now: datetime
) -> Iterator[News]:
    for matter, trouble in findings.troubles.items():
        told = known.get(matter)
        if trouble.kind in notice.kinds and (
            told is None or told.kind is not trouble.kind or _again(notice, told, now)
        ):
            since = now if told is None else told.since
            yield News(trouble.kind, matter, trouble.what, since)


def _again(notice: Notice, told: Told, now: datetime) -> bool:
    """Whether it is time to tell once more of what goes on."""
    return notice.again is None or told.last <= now - (now - notice.again.before(now)) * _SLACK


def remembered(
    known: Mapping[Matter, Told],
    findings: Findings,
    sent: Sequence[News],
    owed: bool,
    now: datetime,
) -> dict[Matter, Told]:
    """What is going on afterwards that somebody was told of.

    Args:
        known: the same before the run.
        findings: of the run.
        sent: what they were told.
        owed: they are still to be told of what is well again.
        now: in UTC.
    """
    kept = {
        matter: told
        for matter, told in known.items()
        if (owed or matter not in findings.well) and not _is_gone(matter, findings)
    }
    for news in sent:
        if news.kind is not Kind.RECOVERY:
            kept[news.matter] = Told(news.kind, news.what, news.since, now)
    return kept


def _is_gone(matter: Matter, findings: Findings) -> bool:
    """Whether it is of a guest that is not looked after any more: that never gets well."""
    of_guest = bool(matter.store and matter.guest)
    return (
        of_guest
        and findings.known is not None
        and (matter.store, matter.guest) not in findings.known
    )
