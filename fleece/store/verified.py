"""When each delta was last read to its last byte, and what came of it: a small file beside it.

It says which file it is about, by inode, length and time of change. A delta that was replaced or
copied counts as never verified; so does one whose record is unreadable, or of the future. With a
key, nobody without it makes a record. In a store without one, whoever can write there can: records
say what to read next, and prove nothing.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from fleece.folder import Folder
from fleece.store.catalogue import Access
from fleece.store.envelope import unwrap, wrap
from fleece.store.errors import store_errors
from fleece.store.names import VERIFIED
from fleece.store.root import Root

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
    def of(root: Root, path: str) -> FileState:
        """Look at a file of a store.

        Raises:
            OSError: nothing can be seen there.
        """
        with root.holding(path) as (folder, name):
            return FileState.within(folder, name)

    @staticmethod
    def within(folder: Folder, name: str) -> FileState:
        """Look at a file of an open folder.

        Raises:
            OSError: nothing can be seen there.
        """
        found = folder.stat(name)
        return FileState(found.st_ino, found.st_size, found.st_mtime_ns)


def note(access: Access, path: str, state: FileState, verification: Verification) -> None:
    """Note a verification, durably.

    Args:
        access: of the store.
        path: of the delta.
        state: of its file, from before it was read.
        verification: what came of it.

    Raises:
        StoreError: it cannot be written. (A delta that is gone by now needs no note.)
    """
    said = _FORMAT | asdict(state) | {"time": verification.time.isoformat()}
    text = json.dumps(said | {"sound": verification.sound})
    raw = wrap(access.protection, _KIND, text)
    with (
        store_errors(path),
        contextlib.suppress(FileNotFoundError),
        access.root.holding(path) as (folder, name),
    ):
        folder.put(name + VERIFIED, raw, access.root.mode)


def last(access: Access, path: str, now: datetime) -> Verification | None:
    """The last verification of a delta; None: none that can be relied on.

    Args:
        access: of the store.
        path: of the delta.
        now: a record of the future is not relied on.
    """
    with (
        contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError),
        access.root.holding(path) as (folder, name),
    ):
        raw = folder.read(name + VERIFIED, _LONGEST)
        said = json.loads(unwrap(access.protection, _KIND, raw) or "null")
        time = datetime.fromisoformat(said["time"]).astimezone(UTC)
        known = _FORMAT | asdict(FileState.within(folder, name))
        if known.items() <= said.items() and type(said["sound"]) is bool and time <= now:
            return Verification(time, said["sound"])
    return None
