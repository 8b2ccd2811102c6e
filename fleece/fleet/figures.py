"""How the guests and stores are, as figures for who watches them."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import fleece
from fleece.errors import FleeceError
from fleece.fleet.config import HERE, HostConfig
from fleece.fleet.plan import Plan, PlannedGuest

Opener = Callable[[], fleece.Store]


@dataclass(frozen=True)
class Place:
    """What a figure is about.

    Attributes:
        guest: its name; empty: it is about the whole store.
        store: its name.
        host: that has the guest, or that looks.
    """

    guest: str
    store: str
    host: str


@dataclass(frozen=True)
class Figures:
    """What was found.

    Attributes:
        guests: by where they are; None: the store has nothing of one that is looked after.
        stale_after: seconds; of those that say so, in the store that they are backed up into.
        stores: by theirs; or why one cannot be read.
        hosts: whether each libvirt that was asked could tell its guests.
    """

    guests: Mapping[Place, fleece.GuestStatus | None]
    stale_after: Mapping[Place, float]
    stores: Mapping[Place, fleece.StoreStatus | FleeceError]
    hosts: Mapping[str, bool]


def of_stores(openers: Mapping[str, Opener]) -> Figures:
    """Of all that is in some stores.

    Args:
        openers: open each, by its name.
    """
    here = socket.gethostname()
    stores = {name: _status(opener) for name, opener in openers.items()}
    guests = {
        Place(guest.guest, name, here): guest
        for name, status in stores.items()
        if isinstance(status, fleece.StoreStatus)
        for guest in status.guests
    }
    return Figures(guests, {}, {Place("", name, here): each for name, each in stores.items()}, {})


def of_plan(plan: Plan, openers: Mapping[str, Opener]) -> Figures:
    """Of the guests that are looked after here, in their stores and where they are copied to.

    Args:
        plan: the guests.
        openers: open each store of it, by its name.
    """
    here = socket.gethostname()
    stores = {name: _status(opener) for name, opener in openers.items()}
    known = {
        name: {guest.guest: guest for guest in status.guests}
        for name, status in stores.items()
        if isinstance(status, fleece.StoreStatus)
    }
    guests: dict[Place, fleece.GuestStatus | None] = {}
    stale: dict[Place, float] = {}
    now = datetime.now(UTC)
    for guest in plan.guests:
        host = _named(guest.host, here)
        for name in stores_of(guest):
            if name in known:
                guests[Place(guest.name, name, host)] = known[name].get(guest.name)
        after = guest.config.stale_after
        if after is not None:
            place = Place(guest.name, guest.config.store.name, host)
            stale[place] = (now - after.before(now)).total_seconds()
    hosts = {_named(guest.host, here): True for guest in plan.guests}
    hosts |= {here if name == HERE else name: False for name in plan.unknown}
    named = {Place("", name, here): status for name, status in stores.items()}
    return Figures(guests, stale, named, hosts)


def stores_of(guest: PlannedGuest) -> tuple[str, ...]:
    """The names of the stores that a guest's points are in, or are copied to."""
    store = guest.config.store
    return (store.name, *store.copy_to)


def _named(host: HostConfig, here: str) -> str:
    return here if host.name == HERE else host.name


def _status(opener: Opener) -> fleece.StoreStatus | FleeceError:
    try:
        return fleece.status(opener().catalogue())
    except fleece.StoreError as error:
        return error
