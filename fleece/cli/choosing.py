"""Which guests a command line means."""

from __future__ import annotations

import fleece
from fleece.errors import UsageError


def guest_choice(guest: str | None, shard: str | None) -> fleece.GuestChoice:
    """What `--guest` and `--shard` say together.

    Raises:
        UsageError: the shard is none, or both are given.
    """
    chosen = shard_of(shard)
    if chosen is None:
        return guest
    if guest is not None:
        raise UsageError("--guest and --shard do not go together: one guest has no parts")
    return chosen


def shard_of(text: str | None) -> fleece.Shard | None:
    """What `--shard` says.

    Raises:
        UsageError: it is none.
    """
    return None if text is None else fleece.Shard.parse(text)
