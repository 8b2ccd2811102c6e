"""Which guests a configuration means: those that it names, and those of a libvirt that match."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import fleece
from fleece.cancel import CancelToken
from fleece.errors import FleeceError, UsageError
from fleece.fleet.config import Config, GuestConfig, HostConfig
from fleece.fleet.document import unknown
from fleece.guests import Shard, is_meant


@dataclass(frozen=True)
class PlannedGuest:
    """A guest that is looked after.

    Attributes:
        name: in its store.
        source: that it is opened by.
        host: that has it; of a source that is no libvirt's, whatever.
        config: the entry that means it.
    """

    name: str
    source: str
    host: HostConfig
    config: GuestConfig

    @property
    def options(self) -> fleece.SourceOptions:
        """How it is opened."""
        of_libvirt = self.source.startswith("libvirt:")
        connect = self.host.connect if of_libvirt else None
        return dataclasses.replace(self.config.options, connect=connect)


@dataclass(frozen=True)
class Plan:
    """Who is looked after.

    Attributes:
        guests: in the order of their entries.
        unknown: hosts that could not be asked for their guests, with the reason.
        refused: names of guests of which nobody can say which one is meant, with the reason.
    """

    guests: tuple[PlannedGuest, ...]
    unknown: Mapping[str, FleeceError]
    refused: Mapping[str, FleeceError]

    @property
    def troubles(self) -> tuple[tuple[str, FleeceError], ...]:
        """What is unknown and what is refused, in words, with the reason."""
        return (
            *((f"the guests of host '{name}' are unknown", e) for name, e in self.unknown.items()),
            *((f"guest '{name}' is not looked after", e) for name, e in self.refused.items()),
        )


def plan(
    config: Config,
    names: Collection[str] = (),
    cancel: CancelToken | None = None,
    *,
    shard: Shard | None = None,
) -> Plan:
    """Say which guests a configuration means now.

    A guest that an entry names is that entry's alone, for its store; one that several patterns
    match is the first one's. One that several hosts have, by its UUID, is the one's where it is on.

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
    refused: dict[str, FleeceError] = {}
    for entry in config.guests:
        if entry.name is not None and entry.source is not None:
            one = PlannedGuest(entry.name, entry.source, entry.hosts[0], entry)
            guests[entry.store.name, entry.name] = one
    named = frozenset(guests)
    for entry in config.guests:
        for each in _matching(entry, found):
            key = (entry.store.name, each.name)
            other = guests.setdefault(key, each)
            if key not in named and other.source != each.source:
                refused[each.name] = _ambiguous(each, other)
    order = {id(entry): number for number, entry in enumerate(config.guests)}
    planned = sorted(guests.values(), key=lambda guest: order[id(guest.config)])
    _are_there(names, planned, failed)
    wanted = [
        each for each in planned if (not names or each.name in names) and is_meant(shard, each.name)
    ]
    chosen = {each.name for each in wanted}
    return Plan(
        tuple(each for each in wanted if each.name not in refused),
        failed,
        {name: error for name, error in refused.items() if name in chosen},
    )


def _ambiguous(one: PlannedGuest, other: PlannedGuest) -> UsageError:
    return UsageError(
        f"hosts '{other.host.name}' and '{one.host.name}' have a guest of this name each",
        where=one.config.where,
        hint="add a [[guest]] for each of them, with a 'name' of its own",
    )


def _listed(
    config: Config, cancel: CancelToken
) -> tuple[dict[str, list[fleece.FoundGuest]], dict[str, FleeceError]]:
    """What each host has that is asked for by a pattern; and why others could not be asked."""
    found: dict[str, list[fleece.FoundGuest]] = {}
    failed: dict[str, FleeceError] = {}
    hosts = {
        host.name: host for each in config.guests if each.pattern is not None for host in each.hosts
    }
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
    """Those of an entry's hosts that match; of one that several have, where it is on goes first."""
    pairs = [(guest, host) for host in entry.hosts for guest in found.get(host.name, ())]
    for guest, host in sorted(pairs, key=lambda pair: not pair[0].running):
        if entry.matches(guest):
            yield PlannedGuest(guest.name, guest.source, host, entry)


def _are_there(
    names: Collection[str], planned: Sequence[PlannedGuest], failed: Mapping[str, FleeceError]
) -> None:
    known = [guest.name for guest in planned]
    for name in names:
        if name not in known:
            for error in failed.values():
                raise error
            raise UsageError(f"no guest '{name}' is looked after", hint=unknown(name, known))
