"""Open a guest of libvirt's, running or off."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

from fleece.cancel import CancelToken
from fleece.source.libvirt.at_rest import RestingSource
from fleece.source.libvirt.connection import Libvirt, Refused
from fleece.source.libvirt.domain import Code, Domain, reached
from fleece.source.libvirt.freeze import Freezer
from fleece.source.libvirt.source import LibvirtSource
from fleece.source.libvirt.xml import parsed
from fleece.source.options import FoundGuest, FreezeWish

TAGS = "urn:fleece"
"""The namespace of the element in a domain's metadata that has its tags (virsh(1), `metadata`)."""


def open_guest(
    place: str,
    uri: str | None = None,
    scratch: Path | None = None,
    scratch_limit: int | None = None,
    freeze: FreezeWish = FreezeWish.NO,
    cancel: CancelToken | None = None,
) -> LibvirtSource | RestingSource:
    """Open a guest.

    Args:
        place: its name, UUID or id.
        uri: of the libvirt that has it; None: libvirt's own default.
        scratch: folder for scratch files and sockets; None: one that only this user writes to
            (`place.default_scratch`).
        scratch_limit: bytes that a point's scratch files may take; None: as much as the file system
            has, less a reserve.
        freeze: whether the file systems of a guest that is on are frozen for the moment of a point.
            One that is off needs no freeze.
        cancel: of the run that uses it.

    Raises:
        SourceError: libvirt cannot be reached, or has no such guest.
        UsageError: libvirt's Python bindings are missing.
    """
    domain = Domain(place, uri, cancel)
    try:
        if not domain.is_active():
            return RestingSource(domain, scratch, cancel)
        must = freeze is FreezeWish.MUST
        freezer = None if freeze is FreezeWish.NO else Freezer(domain, required=must)
        return LibvirtSource(domain, scratch, scratch_limit, freezer)
    except BaseException:
        domain.close()
        raise


def known_guests(uri: str | None = None, cancel: CancelToken | None = None) -> list[FoundGuest]:
    """All guests that a libvirt has, on or off, by name.

    Args:
        uri: of the libvirt; None: libvirt's own default.
        cancel: of the run that asks.

    Raises:
        SourceError: libvirt cannot be reached.
        UsageError: libvirt's Python bindings are missing.
    """
    with contextlib.closing(reached(uri, "libvirt:", cancel or CancelToken())) as libvirt:
        domains = libvirt.calls("the guests", lambda: libvirt.connection.listAllDomains(0))
        found = [_found(libvirt, domain) for domain in domains]
    return sorted((each for each in found if each is not None), key=lambda each: each.name)


def _found(libvirt: Libvirt, domain: Any) -> FoundGuest | None:
    """What a domain is called; None: it is gone by now."""
    try:
        name, uuid, on = libvirt.calls(
            "a guest's name", lambda: (domain.name(), domain.UUIDString(), domain.isActive())
        )
        return FoundGuest(name, f"libvirt:{uuid}", bool(on), _tags(libvirt, domain))
    except Refused as error:
        if error.number == Code.NO_DOMAIN:
            return None
        raise


def _tags(libvirt: Libvirt, domain: Any) -> frozenset[str]:
    """The words of an element in a domain's metadata."""
    kind = libvirt.lib.VIR_DOMAIN_METADATA_ELEMENT
    try:
        text = libvirt.calls("a guest's metadata", lambda: domain.metadata(kind, TAGS))
    except Refused as error:
        if error.number == Code.NO_METADATA:
            return frozenset()
        raise
    words = "".join(parsed(text, libvirt.calls.where).itertext())
    return frozenset(re.split(r"[\s,]+", words)) - {""}
