"""When each delta was last read to its last byte, and what came of it: a small file beside it.

It says which file it is about, by inode, length and time of change. A delta that was replaced or
copied counts as never verified; so does one whose record is unreadable, or of the future. Whoever
can write into the store can write records too: they say what to read next, and prove nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from fleece.store.folder import store_errors, write_durably

_SUFFIX = ".verified.json"
_FORMAT = {"format": "fleece verification", "version": 1}
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


@dataclass(frozen=True)
class FileState:
    """Which file lies under a path now.

    Attributes:
        inode, length: of the file; bytes.
        modified: when its content last changed, in nanoseconds since 1970.
    """

    inode: int
    length: int
    modified: int

    @staticmethod
    def of(path: str) -> FileState:
        """Look.

        Raises:
            OSError: nothing can be seen there.
        """
        found = os.stat(path)
        return FileState(found.st_ino, found.st_size, found.st_mtime_ns)


def note(path: str, state: FileState, verification: Verification) -> None:
    """Note a verification, durably.

    Args:
        path: of the delta.
        state: of its file, from before it was read.
        verification: what came of it.

    Raises:
        StoreError: it cannot be written. (A delta that is gone by now needs no note.)
    """
    said = _FORMAT | asdict(state) | {"time": verification.time.isoformat()}
    text = json.dumps(said | {"sound": verification.sound})
    with store_errors(_record(path)), contextlib.suppress(FileNotFoundError):
        write_durably(_record(path), text + "\n")


def last(path: str, now: datetime) -> Verification | None:
    """The last verification of a delta; None: none that can be relied on.

    Args:
        path: of the delta.
        now: a record of the future is not relied on.
    """
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        with open(_record(path), encoding="utf-8") as file:
            said = json.loads(file.read(_LONGEST))
        time = datetime.fromisoformat(said["time"]).astimezone(UTC)
        known = _FORMAT | asdict(FileState.of(path))
        if known.items() <= said.items() and type(said["sound"]) is bool and time <= now:
            return Verification(time, said["sound"])
    return None


def _record(path: str) -> Path:
    return Path(path + _SUFFIX)
