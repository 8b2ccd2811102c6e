"""What a provider answers, taken apart by type: nothing in it is believed before it is checked."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fleece.delta.header import is_name
from fleece.delta.identity import GuestIdentity
from fleece.delta.part import is_part
from fleece.errors import SourceError
from fleece.source.nbd.text import Place, is_place
from fleece.source.point_name import PointName
from fleece.source.provider.words import (
    LIMITS,
    LONGEST_LIMIT,
    MOST_BASES,
    MOST_BITMAPS,
    MOST_DISKS,
    MOST_WARNINGS,
    PROTOCOL,
    Word,
)
from fleece.source.qemu.answers import Answer
from fleece.terminal import shown

_LARGEST = 1 << 60
"""Bytes: QEMU has no larger disk."""
_LONGEST_LINE = 500


class Said(Answer):
    """An answer of a provider or a part of one."""

    __slots__ = ()

    def bad(self, what: str) -> SourceError:
        """The error that something is wrong with this part."""
        return SourceError(
            f"the provider's answer is not valid: {shown(self._name)} {shown(what)}",
            where=self._where,
            hint="'python -m fleece.testing.provider' shows what a provider must do",
        )

    def line(self, key: str | None = None) -> str:
        """This text, or a member that must be one, for people: in one line, not too long."""
        return shown(" ".join(self.text(key).split()))[:_LONGEST_LINE] or "it does not say what"

    def few(self, key: str, most: int) -> list[Said]:
        """The elements of a member that is a list, if there is one; at most so many.

        Raises:
            SourceError: there are more, or it is no list.
        """
        at = self.maybe(key)
        found = [] if at is None else at.list()
        if at is not None and len(found) > most:
            raise at.bad(f"has {len(found)} elements, more than {most}")
        return [*found]

    def sure(self, key: str) -> bool:
        """Whether a member is there and true."""
        at = self.maybe(key)
        return at is not None and at.flag()


@dataclass(frozen=True)
class Hello:
    """What a provider is.

    Attributes:
        name, version: its own.
        bases: it can tell what was written since a point.
        freezes: it can have a guest's file systems frozen for the moment of a point.
        limits: seconds that it has for each word.
    """

    name: str
    version: str
    bases: bool
    freezes: bool
    limits: Mapping[str, float]


@dataclass(frozen=True)
class ProviderDisk:
    """A disk, as a provider shows it.

    Attributes:
        name: its own.
        size: in bytes.
        read_only: the guest cannot write it.
        bases: the points since which what was written is known.
    """

    name: str
    size: int
    read_only: bool
    bases: tuple[PointName, ...]

    def of(self, chain_id: str) -> dict[int, PointName]:
        """Its bases of a chain, by sequence."""
        return {base.sequence: base for base in self.bases if base.chain_id == chain_id}


@dataclass(frozen=True)
class Described:
    """What there is.

    Attributes:
        guest: its name; None: the provider does not know it.
        identity: of the guest; None: nothing tells it.
        disks: all of them.
    """

    guest: str | None
    identity: GuestIdentity | None
    disks: tuple[ProviderDisk, ...]


@dataclass(frozen=True)
class BegunDisk:
    """A disk of a point that was begun.

    Attributes:
        place: its export.
        size: in bytes, as the provider says.
        bitmaps: those whose union is what was written since the base that was asked for; None: no
            base was asked for, and all is read; or it is `listed`.
        listed: the provider itself tells what was written since the base (`Word.CHANGES`).
    """

    place: Place
    size: int
    bitmaps: tuple[str, ...] | None
    listed: bool = False


@dataclass(frozen=True)
class Begun:
    """A point that was begun.

    Attributes:
        disks: in the order asked for.
        frozen: the guest's file systems stood still.
        warnings: what the user should know of it.
    """

    disks: tuple[BegunDisk, ...]
    frozen: bool
    warnings: tuple[str, ...]


def hello(said: Said) -> Hello:
    """What a provider says that it is.

    Raises:
        SourceError: it is no provider, or speaks another version of the protocol.
    """
    version = said.number("protocol")
    if version != PROTOCOL:
        raise said.bad(f"is of version {version} of the protocol, and fleece speaks {PROTOCOL}")
    asked = said.maybe("limits")
    limits = dict(LIMITS)
    for word in Word if asked is not None else ():
        more = asked.maybe(word) if asked is not None else None
        if more is not None:
            limits[word] = max(limits[word], more.number(most=LONGEST_LIMIT))
    name, own = said.line("name"), said.line("version")
    return Hello(name, own, said.sure("bases"), said.sure("freezes"), limits)


def described(said: Said, bases: bool) -> Described:
    """What a provider says that there is.

    Args:
        said: by it.
        bases: its hello said that it keeps some.

    Raises:
        SourceError: that cannot be.
    """
    disks = tuple(_disk(each, bases) for each in said.few("disks", MOST_DISKS))
    names = [disk.name for disk in disks]
    if twice := [name for name in names if names.count(name) > 1]:
        raise said.bad(f"has two disks that are called {twice[0]}")
    guest = said.maybe("guest")
    if guest is None:
        return Described(None, None, disks)
    called, known = guest.maybe("name"), guest.maybe("uuid")
    name = None if called is None else _name(called)
    try:
        number = None if known is None else str(uuid.UUID(known.text()))
    except ValueError:
        raise guest.bad("has a uuid that is none") from None
    identity = None if number is None and name is None else GuestIdentity(number, name)
    return Described(name, identity, disks)


def _name(said: Said) -> str:
    name = said.text()
    if not is_name(name):
        raise said.bad("is no name: that is printable, of 1 to 1024 characters")
    return name


def _disk(said: Said, bases: bool) -> ProviderDisk:
    name = _name(said.part("name"))
    if is_part(name):
        raise said.bad("is called as a part of a machine: no disk's name begins with @")
    size = said.number("size", _LARGEST)
    if not size:
        raise said.bad("has 0 bytes: that is no disk")
    told = [PointName.parse(each.text("token")) for each in said.few("bases", MOST_BASES)]
    ours = tuple(token for token in told if token is not None and bases)
    return ProviderDisk(name, size, said.sure("read_only"), ours)


def begun(said: Said, asked: Sequence[tuple[ProviderDisk, PointName | None]]) -> Begun:
    """What a provider says of a point that it has begun.

    Args:
        said: by it.
        asked: the disks, and the base of each.

    Raises:
        SourceError: that is not what was asked for.
    """
    told = said.few("disks", MOST_DISKS)
    names = [each.text("name") for each in told]
    wanted = [disk.name for disk, _ in asked]
    if sorted(names) != sorted(wanted):
        shows = ", ".join(sorted(names)) or "no disk"
        raise said.bad(f"has {shows}, where {', '.join(sorted(wanted))} was asked for")
    by_name = dict(zip(names, told, strict=True))
    disks = tuple(_begun_disk(by_name[disk.name], disk.name, base) for disk, base in asked)
    places = [each.place.uri for each in disks]
    for uri in places:
        if places.count(uri) > 1:
            raise said.bad(f"has two disks at {uri}")
    warnings = tuple(each.line() for each in said.few("warnings", MOST_WARNINGS))
    return Begun(disks, said.sure("frozen"), warnings)


def _begun_disk(said: Said, name: str, base: PointName | None) -> BegunDisk:
    uri = said.text("uri")
    if not is_place(uri):
        raise said.part("uri").bad(f"is no NBD URI: {uri[:_LONGEST_LINE]}")
    told = said.maybe("base")
    used = None if told is None else told.text()
    if used != (None if base is None else str(base)):
        raise said.bad(f"is since {used or 'no base'}, where {base or 'no base'} was asked for")
    bitmaps = tuple(each.text() for each in said.few("bitmaps", MOST_BITMAPS))
    listed = said.sure("changes")
    if (base is None) == bool(bitmaps or listed) or (bitmaps and listed):
        raise said.bad(
            "has a base, and neither bitmaps nor changes, or both"
            if base is not None
            else "has bitmaps or changes, and no base"
        )
    return BegunDisk(Place(name, uri), said.number("size", _LARGEST), bitmaps or None, listed)


def changes(said: Said, offset: int, size: int) -> tuple[list[tuple[int, int]], int | None]:
    """What a provider says was written on a disk from an offset on.

    Args:
        said: by it.
        offset: from which it was asked, in bytes.
        size: of the disk.

    Returns:
        Ranges (start, end), and from where on there are more; None: there are none.

    Raises:
        SourceError: that cannot be.
    """
    found, at = [], offset
    for pair in said.list("extents"):
        words = pair.list()
        if len(words) != 2:
            raise pair.bad("is no offset and length")
        start, length = (word.number(most=size) for word in words)
        if start < at or not 0 < length <= size - start:
            raise pair.bad("is out of order, or not on the disk")
        at = start + length
        found.append((start, at))
    more = said.maybe("next")
    then = None if more is None else more.number(most=size)
    if then is not None and not (found and at <= then < size):
        raise said.bad("goes on where it cannot")
    return found, then
