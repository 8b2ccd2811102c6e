"""What drills of a guest came to: a small note in the store's own place.

It is the guest's, and not beside a point: prune drops points, and who was drilled last must be
known longer than that. It is proven by the store's key, and hidden if that encrypts. In a store
without a key, whoever can write there can make one.
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from fleece.errors import StoreError
from fleece.store.catalogue import Access
from fleece.store.envelope import unwrap, wrap
from fleece.store.errors import Gone
from fleece.store.names import DRILLS

_FORMAT = {"format": "fleece drills", "version": 1}
_KIND = "drills"
_KEPT = 12
"""Drills that are remembered of a guest."""
MOST_SCREEN = 256 << 10
"""Bytes of a screenshot that is kept."""
_LONGEST = 1 << 20


@dataclass(frozen=True)
class Drill:
    """One drill: a point was restored, or booted, and thrown away.

    Attributes:
        time: when it began, in UTC.
        point: which.
        boot: it was booted; else it was restored.
        seconds: that it took.
        roots: of its disks, as they were proven; a booted one's are the point's.
        error: why it failed; None: it did not.
        screenshot: a PNG file of the screen in the end; None: there is none. Only of the last drill
            that has one is it kept.
    """

    time: datetime
    point: str
    boot: bool
    seconds: float
    roots: Mapping[str, str]
    error: str | None = None
    screenshot: bytes | None = None


def note_drill(access: Access, guest: str, drill: Drill) -> None:
    """Note a drill, durably; the guest's lock is held.

    Raises:
        StoreError: it cannot be written, as where nothing may be replaced.
    """
    drills = [*drills_of(access, guest), drill][-_KEPT:]
    last = max((at for at, each in enumerate(drills) if each.screenshot), default=-1)
    said = [_said(each, screen=at == last) for at, each in enumerate(drills)]
    text = json.dumps(_FORMAT | {"guest": guest, "drills": said})
    key = _key(access, guest)
    access.backend.sweep(key)
    access.backend.put(key, wrap(access.protection, _KIND, text))


def drills_of(access: Access, guest: str) -> tuple[Drill, ...]:
    """The last drills of a guest, oldest first; none, if what is noted cannot be believed."""
    with contextlib.suppress(Gone, StoreError, ValueError, TypeError, KeyError, RecursionError):
        raw = access.backend.get(_key(access, guest), _LONGEST)
        said = json.loads(unwrap(access.protection, _KIND, raw) or "{}")
        if isinstance(said, dict) and (_FORMAT | {"guest": guest}).items() <= said.items():
            return tuple(map(_parsed, said["drills"]))
    return ()


def _key(access: Access, guest: str) -> str:
    return DRILLS + access.file_name(guest)


def _said(drill: Drill, *, screen: bool) -> dict[str, object]:
    kept = drill.screenshot if screen and len(drill.screenshot or b"") <= MOST_SCREEN else None
    return {
        "time": drill.time.isoformat(),
        "point": drill.point,
        "boot": drill.boot,
        "seconds": round(drill.seconds, 3),
        "roots": {**drill.roots},
        "error": drill.error,
        "screenshot": None if kept is None else base64.b64encode(kept).decode(),
    }


def _parsed(said: Mapping[str, object]) -> Drill:
    """Raise ValueError, TypeError or KeyError unless it is one."""
    roots, error, screen = said["roots"], said["error"], said["screenshot"]
    if not isinstance(roots, dict):
        raise TypeError("the roots are none")
    return Drill(
        datetime.fromisoformat(str(said["time"])).astimezone(UTC),
        str(said["point"]),
        said["boot"] is True,
        float(str(said["seconds"])),
        {str(disk): str(root) for disk, root in roots.items()},
        None if error is None else str(error),
        None if screen is None else base64.b64decode(str(screen), validate=True),
    )
