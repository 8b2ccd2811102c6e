"""What names a point of a consumer: it is found again by it, without a store.

A consumer is whoever is given points: a chain of its own in the source, whose id follows from its
name. Only the consumer knows which points it has, so it names the one to build on.

A point has two names. Its token is told at the beginning, to commit or drop it by. Its base is told
by the commit alone, and the token does not give it away: the point's id in the source is a hash of
what the base holds. So nothing can build on a point that was not committed, and where it was
committed is written nowhere.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from fleece.delta.header import is_name
from fleece.errors import UsageError
from fleece.source.base import Disk

_BASE = re.compile(r"base-([0-9a-f]{8})-([0-9]{6,15})-([0-9a-f]{16})((?:-[0-9a-f]{16})+)")
_TOKEN = re.compile(r"[0-9a-f]{8}-[0-9]{6,15}-[0-9a-f]{10}")


def chain_of(consumer: str) -> str:
    """The id of a consumer's chain.

    Raises:
        UsageError: nobody can have this name.
    """
    if not is_name(consumer):
        raise UsageError("a consumer's name must be printable, of 1 to 1024 characters")
    return _digits(f"fleece export\0{consumer}", 8)


def check_token(text: str) -> str:
    """A token, as it was told.

    Raises:
        UsageError: it is none.
    """
    if _TOKEN.fullmatch(text) is None:
        raise UsageError("this is not the token of a point that is exported", where=text)
    return text


def _digits(text: str, count: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:count]


@dataclass(frozen=True)
class Base:
    """A point that can be built on once it is committed.

    Attributes:
        chain_id: the consumer's.
        sequence: of the point in it.
        secret: what the point's id follows from.
        shapes: what stands for the name and the size of each of its disks. No bitmap tells that a
            disk was resized, and there is no store to look its old size up in.
    """

    chain_id: str
    sequence: int
    secret: str
    shapes: frozenset[str]

    @staticmethod
    def new(chain_id: str, sequence: int, disks: Iterable[Disk]) -> Base:
        """Of a new point of these disks."""
        return Base(chain_id, sequence, secrets.token_hex(8), frozenset(map(_shape, disks)))

    @staticmethod
    def parse(text: str) -> Base:
        """From text.

        Raises:
            UsageError: it is none.
        """
        found = _BASE.fullmatch(text)
        if found is None:
            raise UsageError(
                "this is no base of an export", where=text, hint="a commit prints one: base-..."
            )
        return Base(found[1], int(found[2]), found[3], frozenset(found[4][1:].split("-")))

    @property
    def point(self) -> str:
        """The point's id in the source."""
        return _digits(self.secret, 10)

    @property
    def token(self) -> str:
        """What the point is committed or dropped by."""
        return f"{self.chain_id}-{self.sequence:06d}-{self.point}"

    def has(self, disk: Disk) -> bool:
        """Whether the point has the disk, of the size that it has now."""
        return _shape(disk) in self.shapes

    def __str__(self) -> str:
        shapes = "-".join(sorted(self.shapes))
        return f"base-{self.chain_id}-{self.sequence:06d}-{self.secret}-{shapes}"


def _shape(disk: Disk) -> str:
    return _digits(f"{disk.size} {disk.name}", 16)
