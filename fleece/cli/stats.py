"""The verb `stats`: what is stored of each guest, and what rules would free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict

import fleece
from fleece.cancel import CancelToken
from fleece.cli.keep import rules_of
from fleece.cli.output import Output
from fleece.cli.table import Column, table
from fleece.cli.words import StatsWords
from fleece.errors import StoreError
from fleece.terminal import counted, human

_COLUMNS = (
    Column("GUEST", gives_way=True),
    Column("POINTS", right=True),
    Column("RESTORED", right=True),
    Column("DATA", right=True),
    Column("STORED", right=True),
    Column("RATIO", right=True),
    Column("PRUNE FREES", right=True),
)


def stats(output: Output, cancel: CancelToken, words: StatsWords) -> None:
    """`fleece stats STORE [--keep-...]`."""
    place = fleece.open_store(words.store, words.secret, cancel)
    output.charge(place.usage)
    catalogue = place.catalogue()
    found = fleece.stats(catalogue, words.guest)
    freed = _freed(place, words, cancel)
    for guest in found if output.machine else ():
        output.row(
            "guest",
            "",
            **asdict(guest),
            ratio=_ratio(guest),
            freed_bytes=None if freed is None else freed.get(guest.guest, 0),
        )
    if found and not output.machine:
        rows = [_row(guest, freed) for guest in found]
        output.listing(table(_COLUMNS, rows, output.width()))
    if catalogue.damaged:
        raise StoreError(
            f"{counted(len(catalogue.damaged), 'damaged file')}: what they hold is not counted",
            where=words.store,
            hint="'fleece verify' tells which points need them",
        )
    stored = sum(guest.stored_bytes for guest in found)
    points = sum(guest.points for guest in found)
    text = f"{counted(points, 'point')} of {counted(len(found), 'guest')}, {human(stored)} stored"
    if freed is not None:
        text += f"; prune would free at most {human(sum(freed.values()))}"
    output.succeed(text, guests=len(found), points=points, stored_bytes=stored)


def _freed(store: fleece.Store, words: StatsWords, cancel: CancelToken) -> Mapping[str, int] | None:
    """Bytes that `prune` would free by the same rules, by guest; None: no rule is given."""
    rules = rules_of(words)
    if rules == fleece.KeepRules():
        return None
    freed: Counter[str] = Counter()
    for point in fleece.prune(store, rules, words.guest, dry_run=True, cancel=cancel).points:
        freed[point.guest] += 0 if point.reasons else point.stored_bytes
    return freed


def _ratio(guest: fleece.GuestStats) -> float | None:
    """How many bytes of disk can be restored of one that is stored."""
    if not guest.stored_bytes:
        return None
    return round(guest.restored_bytes / guest.stored_bytes, 2)


def _row(guest: fleece.GuestStats, freed: Mapping[str, int] | None) -> tuple[str, ...]:
    ratio = _ratio(guest)
    return (
        guest.guest,
        str(guest.points),
        human(guest.restored_bytes),
        human(guest.data_bytes),
        human(guest.stored_bytes),
        "" if ratio is None else f"{ratio:.1f}",
        "" if freed is None else human(freed.get(guest.guest, 0)),
    )
