"""Exports and bitmaps as a command line names them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from fleece.delta.header import is_name
from fleece.delta.part import is_part
from fleece.errors import UsageError
from fleece.nbd.uri import is_uri, socket_of

_SHOWN = "nbd://HOST[:PORT]/[EXPORT] or nbd+unix:///[EXPORT]?socket=PATH, with nbds for TLS"
_OWN_NAME = "give it a name of its own: --disk NAME=URI"
_UNNAMED = "disk"
"""What the disk of an export without a name is called."""


@dataclass(frozen=True)
class Place:
    """A disk, and the URI of its export."""

    name: str
    uri: str


@dataclass(frozen=True)
class Proof:
    """What tells what was written since a point.

    Attributes:
        point: its id. Every bitmap began at or before it: the user says so.
        bitmaps: by the disk's name; of no other disk anything is told.
    """

    point: str
    bitmaps: Mapping[str, tuple[str, ...]]


def places(uri: str, named: Sequence[tuple[str, str]]) -> tuple[Place, ...]:
    """The disks of a source.

    Args:
        uri: of the first disk's export, whose name it has, unless it is among the named ones.
        named: disks by name and URI.

    Raises:
        UsageError: something of that cannot be, or two are alike.
    """
    own = () if uri in [there for _, there in named] else (Place(_export_of(uri), uri),)
    found = (*own, *(Place(name, there) for name, there in named))
    for place in found:
        _check(place)
        if [other.uri for other in found].count(place.uri) > 1:
            raise UsageError("two disks are the same export", where=place.uri)
        if [other.name for other in found].count(place.name) > 1:
            what = f"two disks are called {place.name}"
            raise UsageError(what, where=place.uri, hint=_OWN_NAME)
    return found


def _export_of(uri: str) -> str:
    """The export's name in a URI (doc/uri.md of the NBD project)."""
    try:
        path = urlsplit(uri).path
    except ValueError as error:
        raise UsageError(f"this is no NBD URI ({error})", where=uri) from error
    return unquote(path.removeprefix("/")) or _UNNAMED


def is_place(uri: str) -> bool:
    """Whether a text is the URI of an export: nbd+unix and nbds+unix name a socket, others none."""
    return is_uri(uri) and uri.partition(":")[0].endswith("+unix") is bool(socket_of(uri))


def _check(place: Place) -> None:
    if not is_uri(place.uri):
        raise UsageError("this is no NBD URI", where=place.uri, hint=f"write {_SHOWN}")
    if not is_place(place.uri):
        raise UsageError(
            "nbd+unix and nbds+unix name a socket, and no other scheme does",
            where=place.uri,
            hint=f"write {_SHOWN}",
        )
    if not is_name(place.name) or is_part(place.name):
        raise UsageError(
            "a disk's name must be printable, of 1 to 1024 characters, and not begin with @",
            where=place.uri,
            hint=_OWN_NAME,
        )


def proof(bitmaps: Sequence[str], since: str | None, disks: Sequence[str]) -> Proof | None:
    """What bitmaps, each named `[DISK=]NAME`, prove; None: none is named.

    Args:
        bitmaps: without a disk, one of that name on every disk.
        since: the id of the point that they all began at or before.
        disks: their names.

    Raises:
        UsageError: one is given without the other, or `since` is no point's id.
    """
    if not bitmaps and since is None:
        return None
    if since is None:
        raise UsageError(
            "--bitmap proves nothing without the point that it began at or before",
            hint="name that with --since, or leave --bitmap out",
        )
    if not bitmaps:
        raise UsageError(
            "--since has no effect without --bitmap", hint="name the bitmap that began by then"
        )
    if not re.fullmatch("[0-9a-f]{10}", since):
        raise UsageError(
            "--since takes the id of a point, as 'fleece backup' printed it: 10 of 0-9a-f",
            where=since,
        )
    found: dict[str, tuple[str, ...]] = {}
    for text in bitmaps:
        disk, equals, name = text.partition("=")
        one = bool(equals) and disk in disks
        for each in (disk,) if one else disks:
            found[each] = (*found.get(each, ()), name if one else text)
    return Proof(since, found)
