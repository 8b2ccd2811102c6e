"""What is said between a fleece and the one that serves it a source of another host.

Each request and each answer is a line of JSON (docs/internals/source-protocol.rst). Both sides are
of one project, and neither trusts the other: what is heard is taken apart by type.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import types
import typing
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from fleece.delta.identity import GuestIdentity
from fleece.delta.part import PartKind
from fleece.errors import FleeceError, SourceError, UsageError, family_of
from fleece.source.base import Removed, Since
from fleece.source.qemu.answers import Answer
from fleece.terminal import shown

PROTOCOL = 1
LONGEST = 1 << 20
"""Bytes of the longest line."""
PIECE = 32 * 1024
"""Bytes of a part of the machine that one answer has."""
ENDING = ("close", "commit", "end")
"""What is asked although the run is interrupted."""
LIMITS: Mapping[str, float] = defaultdict(lambda: 600.0)
"""Seconds for an answer: those of libvirt have shorter limits there, and ssh sees a cut line."""
SILENCE = 60.0
"""Seconds without a word or a byte read after which the other side counts as gone."""

T = TypeVar("T")


class Heard(Answer):
    """What the other side said, or a part of it."""

    __slots__ = ()

    @staticmethod
    def of(answer: Answer) -> Heard:
        """The same, as this."""
        return Heard(answer._value, answer._name, answer._where)

    def bad(self, what: str) -> SourceError:
        """The error that something is wrong with this part."""
        return SourceError(
            f"the other fleece is not understood: {shown(self._name)} {shown(what)}",
            where=self._where,
            hint="fleece must be of the same version on both hosts",
        )

    @property
    def there(self) -> bool:
        """It is no null."""
        return self._value is not None

    def member(self, name: str) -> Heard:
        """A member of this object, which may be a null."""
        found = self.members().get(name)
        if found is None:
            raise self.bad(f"has no {name}")
        return found

    def members(self) -> dict[str, Heard]:
        """The members of this object."""
        found: dict[str, object] = self._typed(dict, "an object")
        return {
            name: Heard(value, self._within(name), self._where) for name, value in found.items()
        }

    def as_a(self, kind: type[T]) -> T:
        """This, as a value of a type: a plain one, a data class, or a sequence of such.

        Raises:
            SourceError: it is none.
        """
        return typing.cast(T, _typed(kind, self))

    def list_of(self, kind: type[T]) -> tuple[T, ...]:
        """The elements of this list, as values of a type."""
        return tuple(each.as_a(kind) for each in self.list())


def _typed(kind: Any, said: Heard) -> object:
    """What was said, as a value of a type; what may be None is looked at by who has it."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        kinds = [each for each in inner if each is not types.NoneType]
        return _typed(kinds[0], said) if len(kinds) == 1 else said.simple()
    if origin in (tuple, collections.abc.Sequence):
        return tuple(_typed(inner[0], each) for each in said.list())
    if origin is collections.abc.Mapping:
        return {name: _typed(inner[1], each) for name, each in said.members().items()}
    if dataclasses.is_dataclass(kind):
        return _object(kind, said)
    if issubclass(kind, enum.Enum):
        try:
            return kind(said.text())
        except ValueError:
            raise said.bad("is a word that is not known") from None
    plain = {str: said.text, bool: said.flag, int: said.number}
    return plain[kind]()


def _object(kind: Any, said: Heard) -> object:
    values = {}
    for name, inner in typing.get_type_hints(kind).items():
        at = said.maybe(name)
        if at is None and types.NoneType not in typing.get_args(inner):
            raise said.bad(f"has no {name}")
        values[name] = None if at is None else _typed(inner, at)
    return kind(**values)


def plain(value: object) -> object:
    """A value as JSON has it: of a data class, a sequence of such, or plain already."""
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value


@dataclass(frozen=True)
class Failure:
    """An error: its family by its exit code, and what it says."""

    code: int
    what: str
    where: str | None
    hint: str | None
    busy: bool

    @staticmethod
    def of(error: FleeceError) -> Failure:
        """As it is told to the other side."""
        return Failure(int(error.code), error.what, error.where, error.hint, error.busy)

    def error(self, host: str) -> FleeceError:
        """As it is raised here. Who is interrupted there is not interrupted here."""
        kind = family_of(self.code)
        kind = kind if issubclass(kind, SourceError | UsageError) or self.code == 4 else SourceError
        where = None if self.where is None else f"{shown(self.where)} on {host}"
        hint = None if self.hint is None else shown(self.hint)
        return kind(shown(self.what), where=where, hint=hint, busy=self.busy)


@dataclass(frozen=True)
class Greeting:
    """What the source tells of itself when it is opened."""

    protocol: int
    guest: str
    identity: GuestIdentity | None
    producer: Mapping[str, str]


@dataclass(frozen=True)
class FarDisk:
    """A disk of the guest (`fleece.source.base.Disk`)."""

    name: str
    size: int
    read_only: bool


@dataclass(frozen=True)
class Known:
    """Whether it is known what was written since a point: `since`, or the reason why not."""

    since: Since | None
    reason: str


@dataclass(frozen=True)
class Taken:
    """What interrupted runs left and was taken down, what is doubtful there, and what failed."""

    removed: Sequence[Removed]
    doubts: Sequence[str]
    failure: Failure | None


@dataclass(frozen=True)
class FarWanted:
    """A disk of a point to take, by its name."""

    disk: str
    since: Since | None


@dataclass(frozen=True)
class FarRequest:
    """A point to take (`fleece.source.base.Request`), by the names of its disks."""

    chain_id: str
    sequence: int
    point: str
    wanted: Sequence[FarWanted]
    rotate: bool


@dataclass(frozen=True)
class FarExport:
    """A disk of a point (`fleece.source.base.Export`).

    Attributes:
        socket: the number of the socket that it is read by.
        name: of the export.
    """

    disk: str
    socket: int
    name: str
    size: int
    dirty_context: str | None
    granularity: int | None
    unit: int | None
    also_dirty: Sequence[str]
    partial: bool


@dataclass(frozen=True)
class FarPart:
    """A part of the machine, whose bytes are asked for piece by piece."""

    kind: PartKind
    size: int


@dataclass(frozen=True)
class FarMachine:
    """What is told of the machine (`fleece.source.base.Machine`)."""

    parts: Sequence[FarPart]
    missing: Sequence[str]
    later: Sequence[PartKind]


@dataclass(frozen=True)
class Living:
    """A point that was taken.

    Attributes:
        sockets: paths there of what its exports are read by.
        machine: None: its source tells none.
    """

    exports: Sequence[FarExport]
    sockets: Sequence[str]
    granularity: int
    frozen: bool
    stuck: str | None
    warnings: Sequence[str]
    machine: FarMachine | None
