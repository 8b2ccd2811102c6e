"""What was told to whom, kept from one run to the next."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fleece.errors import NoticeError
from fleece.fleet.notices.kinds import Kind
from fleece.fleet.notices.trouble import Matter
from fleece.folder import Folder
from fleece.private import private_folder

_MOST = 64 << 20


@dataclass(frozen=True)
class Told:
    """A trouble that somebody was told of.

    Attributes:
        kind, what: of it.
        since: it was seen first.
        last: it was told.
    """

    kind: Kind
    what: str
    since: datetime
    last: datetime


Memory = dict[str, dict[Matter, Told]]
"""For each notice by its name, what is going on that it was told of."""


def recalled(name: str) -> Memory:
    """What earlier runs of a name told; nothing, if there was none.

    Raises:
        NoticeError: it cannot be read.
    """
    try:
        with _folder() as folder:
            data = folder.read(f"{name}.json", _MOST)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise _lost(error) from error
    try:
        lists = json.loads(data).items()
        return {reader: dict(_told(*each) for each in told) for reader, told in lists}
    except (ValueError, TypeError, AttributeError) as error:
        raise NoticeError(
            "what was told before is not readable; all is told anew",
            where=_place() / f"{name}.json",
        ) from error


def keep(name: str, memory: Memory) -> None:
    """Keep it for the next run of a name.

    Raises:
        NoticeError: that cannot be done.
    """
    lists = {
        reader: [
            [each.store, each.guest, each.step, each_told.kind, each_told.what]
            + [moment.isoformat() for moment in (each_told.since, each_told.last)]
            for each, each_told in sorted(told.items())
        ]
        for reader, told in memory.items()
    }
    try:
        with _folder() as folder:
            folder.put(f"{name}.json", json.dumps(lists).encode())
    except OSError as error:
        raise _lost(error) from error


def _told(
    store: str, guest: str, step: str, kind: str, what: str, *times: str
) -> tuple[Matter, Told]:
    since, last = map(datetime.fromisoformat, times)
    return Matter(store, guest, step), Told(Kind(kind), what, since, last)


def _lost(error: OSError) -> NoticeError:
    return NoticeError(
        f"what was told cannot be kept ({error.strerror})",
        where=error.filename,
        hint="so it is told anew, and no recovery is",
    )


def _place() -> Path:
    """The folder of what this user's programs remember; systemd names its own to a service."""
    given = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if given:
        return Path(given) / "told"
    if os.geteuid() == 0:
        return Path("/var/lib/fleece/told")
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(state) / "fleece/told"


@contextlib.contextmanager
def _folder() -> Iterator[Folder]:
    place = _place()
    place.parent.mkdir(parents=True, exist_ok=True)
    with private_folder(place) as folder:
        yield folder
