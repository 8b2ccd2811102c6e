"""When each delta was last read to its last byte, and what came of it: a small file beside it.

It says which object it is about, by the stamp that the storage gives (`Backend.stamp`). A delta
that was replaced or copied counts as never verified; so does one whose record is unreadable, or of
the future. With a key, nobody without it makes a record. In a store without one, whoever can write
there can: records say what to read next, and prove nothing.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime

from fleece.errors import StoreError
from fleece.store.catalogue import Access
from fleece.store.envelope import unwrap, wrap
from fleece.store.errors import Gone
from fleece.store.names import VERIFIED

_FORMAT = {"format": "fleece verification", "version": 1}
_KIND = "verification"
_LONGEST = 4096


@dataclass(frozen=True)
class Verification:
    """One reading of a delta, every byte and every hash.

    Attributes:
        time: when it began, in UTC.
        sound: nothing was wrong.
    """

    time: datetime
    sound: bool


def note(access: Access, key: str, stamp: str, verification: Verification) -> None:
    """Note a verification, durably.

    Args:
        access: of the store.
        key: of the delta.
        stamp: of it, from before it was read (`Backend.stamp`).
        verification: what came of it.

    Raises:
        StoreError: it cannot be written. (A delta that is gone by now needs no note.)
    """
    said = _FORMAT | {"stamp": stamp, "time": verification.time.isoformat()}
    text = json.dumps(said | {"sound": verification.sound})
    with contextlib.suppress(Gone):
        access.backend.put(key + VERIFIED, wrap(access.protection, _KIND, text))


def last(access: Access, key: str, now: datetime) -> Verification | None:
    """The last verification of a delta; None: none that can be relied on.

    Args:
        access: of the store.
        key: of the delta.
        now: a record of the future is not relied on.
    """
    with contextlib.suppress(StoreError, ValueError, TypeError, KeyError, RecursionError):
        raw = access.backend.get(key + VERIFIED, _LONGEST)
        said = json.loads(unwrap(access.protection, _KIND, raw) or "null")
        time = datetime.fromisoformat(said["time"]).astimezone(UTC)
        known = _FORMAT | {"stamp": access.backend.stamp(key)}
        if known.items() <= said.items() and type(said["sound"]) is bool and time <= now:
            return Verification(time, said["sound"])
    return None
