"""Which guests are meant: one by its name, a shard of all, or all."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeAlias

import xxhash

from fleece.errors import UsageError

_MOST = 1_000_000


@dataclass(frozen=True)
class Shard:
    """A part of all guests: each guest is in exactly one of `count` shards, today and always.

    It is told by the guest's name alone: XXH3-64 of its UTF-8, modulo `count`. So whoever works on
    a shard needs to ask nobody, and a guest that comes or goes moves no other one.

    Attributes:
        number: which, from 1 on.
        count: how many there are.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count <= _MOST:
            raise UsageError(
                f"shard {self.number}/{self.count} is none", hint="write K/N, with K from 1 to N"
            )

    @staticmethod
    def parse(text: str) -> Shard:
        """Read `K/N`.

        Raises:
            UsageError: it is none.
        """
        found = re.fullmatch(r"([0-9]{1,7})/([0-9]{1,7})", text)
        if found is None:
            raise UsageError(f"shard {text} is none", hint="write K/N, with K from 1 to N")
        return Shard(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def has(self, guest: str) -> bool:
        """Whether a guest is in it."""
        digest = xxhash.xxh3_64_intdigest(guest.encode(errors="surrogateescape"))
        return digest % self.count == self.number - 1


GuestChoice: TypeAlias = str | Shard | None
"""A guest's name, a shard of all guests, or None: all."""


def is_meant(choice: GuestChoice, guest: str) -> bool:
    """Whether a guest is one of those."""
    if isinstance(choice, Shard):
        return choice.has(guest)
    return choice in (None, guest)
