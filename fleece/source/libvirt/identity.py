"""Which guest a domain is, and how a work folder notes it."""

from __future__ import annotations

from fleece.delta.header import is_name
from fleece.delta.identity import GuestIdentity
from fleece.source.libvirt.domain import Domain


def identity_of(domain: Domain) -> GuestIdentity:
    """Its UUID, and its name if a store can have it."""
    return GuestIdentity(domain.uuid, domain.name if is_name(domain.name) else None)


def holder_of(domain: Domain) -> str:
    """What a work folder notes of the guest that it was made for.

    Another libvirt may have a guest of the same UUID, which has its own job and its own freeze.
    """
    return f"libvirt {domain.uuid} {domain.home}"
