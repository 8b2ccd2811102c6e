"""Whose points are meant, and whether a chain is that guest's: names can repeat over many hosts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fleece.delta.header import Header, is_name
from fleece.delta.identity import GuestIdentity
from fleece.errors import PointError, UsageError
from fleece.source.base import MayLackGuest, Source
from fleece.store.catalogue import Catalogue, StoredPoint


def guest_name(source: Source, wanted: str | None) -> str:
    """The guest's name in the store.

    Args:
        source: whose own name it is, unless another one is wanted.
        wanted: by the caller.

    Raises:
        UsageError: no header could hold it.
    """
    guest = source.guest() if wanted is None else wanted
    if not is_name(guest):
        raise UsageError("the guest's name must be printable, of 1 to 1024 characters")
    return guest


@dataclass(frozen=True)
class Bond:
    """Whose the next point of a chain is.

    Attributes:
        identity: of the guest; None: the source tells none.
        adopted: why nothing is built on the source's bitmaps: the chain was another
            guest's until now. None: it is this guest's.
    """

    identity: GuestIdentity | None
    adopted: str | None = None


def bound(
    source: Source,
    catalogue: Catalogue,
    guest: str,
    chain_id: str,
    *,
    adopt: bool = False,
) -> Bond:
    """Check that a chain is a guest's.

    A chain is the guest's of its newest point. One that says of no guest (of a fleece before this
    was told, or of a source that tells no identity) may be any guest's. And disks without a guest
    may be any chain's: whoever names the guest says whose they are.

    Args:
        source: of the guest.
        catalogue: of the store.
        guest, chain_id: its name in the store, and its chain.
        adopt: if it is another guest's, it is this one's from now on.

    Raises:
        PointError: it is another guest's.
        UsageError: there is nothing to adopt.
    """
    points = [p for p in catalogue.points if (p.guest, p.chain) == (guest, chain_id)]
    owner, identity = _owner(points), source.identity()
    if identity is None and isinstance(source, MayLackGuest) and source.lacks_guest:
        identity = owner
    _check(owner, identity, guest, catalogue.where, adopt=adopt)
    if not adopt:
        return Bond(identity)
    return Bond(identity, f"the chain was that of another guest: {owner}")


def check_taken_in(head: Header, catalogue: Catalogue, *, adopt: bool = False) -> None:
    """Check that a delta from elsewhere is of the guest whose points it joins.

    Args:
        head: its header.
        catalogue: of the store.
        adopt: it is to join them whatever guest it is of.

    Raises:
        PointError: it is of another guest.
        UsageError: there is nothing to adopt.
    """
    known = [point for point in catalogue.points if point.guest == head.guest]
    line = [p for p in known if p.chain == head.chain and p.sequence <= head.point.sequence]
    _check(_owner(line or known), head.identity, head.guest, catalogue.where, adopt=adopt)


def _check(
    owner: GuestIdentity | None,
    identity: GuestIdentity | None,
    guest: str,
    where: str,
    *,
    adopt: bool,
) -> None:
    foreign = owner is not None and not owner.is_of(identity)
    if adopt and not foreign:
        raise UsageError(
            f"there is nothing to adopt: the store has no points of another guest as {guest}",
            where=where,
            hint="leave --adopt out",
        )
    if foreign and not adopt:
        this = "this one has neither UUID nor name" if identity is None else f"this is {identity}"
        raise PointError(
            f"the points of {guest} are of another guest: {owner}; {this}",
            where=where,
            hint="--guest NAME keeps this guest's points apart; --adopt says that it is the same",
        )


def _owner(points: Sequence[StoredPoint]) -> GuestIdentity | None:
    """The guest of the newest of some points."""
    if not points:
        return None
    told = (entry.header.identity for entry in points[-1].disks.values())
    return next((identity for identity in told if identity is not None), None)
