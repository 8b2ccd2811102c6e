"""Which guests a configuration means: those that it names, and those of a libvirt that match."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import fleece
from fleece.cancel import CancelToken
from fleece.errors import FleeceError, UsageError
from fleece.fleet.config import Config, GuestConfig
from fleece.fleet.document import unknown
from fleece.guests import Shard, is_meant


@dataclass(frozen=True)
class PlannedGuest:
    """A guest that is looked after.

    Attributes:
        name: in its store.
        source: that it is opened by.
        config: the entry that means it.
    """

    name: str
    source: str
    config: GuestConfig


@dataclass(frozen=True)
class Plan:
    """Who is looked after.

    Attributes:
        guests: in the order of their entries.
        unknown: hosts that could not be asked for their guests, with the reason.
    """

    guests: tuple[PlannedGuest, ...]
    unknown: Mapping[str, FleeceError]


def plan(
    config: Config,
    names: Collection[str] = (),
    cancel: CancelToken | None = None,
    *,
    shard: Shard | None = None,
) -> Plan:
    """Say which guests a configuration means now.

    A guest that an entry names is that entry's alone, for its store; one that several patterns
    match is the first one's.

    Args:
        config: the configuration.
        names: of the guests that are wanted; none: all.
        cancel: of the run.
        shard: only guests of this one; None: all.

    Raises:
        UsageError: a guest is wanted that the configuration does not mean.
        Interrupted: it was cancelled.
    """
    found, failed = _listed(config, cancel or CancelToken())
    guests: dict[tuple[str, str], PlannedGuest] = {}
    for entry in config.guests:
        if entry.name is not None and entry.source is not None:
            guests[entry.store.name, entry.name] = PlannedGuest(entry.name, entry.source, entry)
    for entry in config.guests:
        for each in _matching(entry, found):
            key = (entry.store.name, each.name)
            guests.setdefault(key, dataclasses.replace(each, config=entry))
    order = {id(entry): number for number, entry in enumerate(config.guests)}
    planned = sorted(guests.values(), key=lambda guest: order[id(guest.config)])
    _are_there(names, planned, failed)
    wanted = [
        guest
        for guest in planned
        if (not names or guest.name in names) and is_meant(shard, guest.name)
    ]
    return Plan(tuple(wanted), failed)


def _listed(
    config: Config, cancel: CancelToken
) -> tuple[dict[str, list[fleece.FoundGuest]], dict[str, FleeceError]]:
    """What each host has that is asked for by a pattern; and why others could not be asked."""
    found: dict[str, list[fleece.FoundGuest]] = {}
    failed: dict[str, FleeceError] = {}
    hosts = {each.host.name: each.host for each in config.guests if each.pattern is not None}
    for name, host in hosts.items():
        try:
            found[name] = fleece.guests_of("libvirt", host.connect, cancel)
        except fleece.SourceError as error:
            cancel.check()
            failed[name] = error
    return found, failed


def _matching(
    entry: GuestConfig, found: Mapping[str, Sequence[fleece.FoundGuest]]
) -> Iterator[PlannedGuest]:
    for guest in found.get(entry.host.name, ()):
        if entry.matches(guest.name):
            yield PlannedGuest(guest.name, guest.source, entry)


def _are_there(
    names: Collection[str], planned: Sequence[PlannedGuest], failed: Mapping[str, FleeceError]
) -> None:
    known = [guest.name for guest in planned]
    for name in names:
        if name not in known:
            for error in failed.values():
                raise error
            raise UsageError(f"no guest '{name}' is looked after", hint=unknown(name, known))
