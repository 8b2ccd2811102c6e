"""What things in a store are called, and so what in it is fleece's and what somebody else's.

Of finished deltas names say nothing but that they are some: a regular file that ends in `.fleece`
and is not hidden. (What macOS lays beside it, `._disk.fleece`, is.) All else has names of its own.
"""

from __future__ import annotations

import hashlib
import re
from urllib.parse import quote

from fleece.folder import Found, Kind

MARKER = "fleece-store.json"
NEW_MARKER = f".{MARKER}."
SPOOL = ".import-"
DISTRUST = "audit-failed-"
DRILLS = "drills-"

LOCK = ".lock"
PARTIAL = ".partial-"
COPIED = "copy-"
"""A batch of a copy is called so, and its point: no backup tries to resume it."""
DROPPED = ".dropped-"
KEPT = "foreign-"
"""Of a folder that fleece removed, what is not its own stays in one that is called so."""

SUFFIX = ".fleece"
MERGING = ".merging"
VERIFIED = ".verified.json"
PIN = ".pin.json"
TAGS = ".tags.json"

_LONGEST_NAME = 200
STEM = 50
"""Characters of a name, whatever bytes it is made of, that fit into a longer one."""
_UNFINISHED = re.compile(r"\..+\.new-[0-9a-f]{16}")
"""What `fleece.folder.Folder.put` writes before it has its name."""
_MERGING = re.compile(r"\..+\.merging(-[0-9a-f]{16})?")

_DROPPED_FILES = re.compile(
    r"\._.*|\.DS_Store|\.apdisk|\.directory|Thumbs\.db|desktop\.ini|\.nfs[0-9a-f]+"
    r"|\.fuse_hidden[0-9a-f]+|\.smbdelete.*",
    re.IGNORECASE,
)
_DROPPED_FOLDERS = re.compile(r"@eaDir|\.@__thumb|\.AppleDouble", re.IGNORECASE)
_ROOMS = re.compile(
    r"lost\+found|\.snapshots?|~snapshot|\.zfs|#recycle|@Recycle|#snapshot|@Recently-Snapshot"
    r"|\$RECYCLE\.BIN|System Volume Information|\.Trash(es|-[0-9]+)?|\.fseventsd"
    r"|\.Spotlight-V100|\.TemporaryItems|\.DocumentRevisions-V100",
    re.IGNORECASE,
)


def safe_name(name: str) -> str:
    """A file name for any name: reversible as far as it is short, never hidden, never a path."""
    text = quote(name, safe=" +=,@()")
    if text.startswith("."):
        text = "%2E" + text[1:]
    if len(text) > _LONGEST_NAME:
        text = text[: _LONGEST_NAME - 17] + "-" + hashlib.sha256(name.encode()).hexdigest()[:16]
    return text


def final_name(point: str, sequence: int) -> str:
    """What the folder of a finished point is called, for people."""
    return f"{sequence:06d}-{point}"


def is_hidden(name: str) -> bool:
    """Whether it is none of what a listing shows."""
    return name.startswith(".")


def is_delta(found: Found) -> bool:
    """Whether it counts as a delta, if be it a damaged one."""
    named = found.name.endswith(SUFFIX) and not is_hidden(found.name)
    return named and found.kind is Kind.FILE


def of_store(found: Found) -> bool:
    """Whether a file in the store's own folder is fleece's."""
    name = found.name
    named = name == MARKER or name.startswith((DISTRUST, DRILLS, SPOOL, NEW_MARKER))
    return found.kind is Kind.FILE and (named or name.startswith((f".{DISTRUST}", f".{DRILLS}")))


def of_guest(found: Found) -> bool:
    """Whether a lock, or a folder that is no finished point, is fleece's."""
    if found.kind is Kind.FOLDER:
        return found.name.startswith((PARTIAL, DROPPED))
    return found.kind is Kind.FILE and found.name.startswith(LOCK)


def of_point(found: Found) -> bool:
    """Whether a file in the folder of a point, in whatever state, has a name that fleece gives."""
    if found.kind is Kind.FOLDER:
        return False
    if is_hidden(found.name):
        return is_unfinished(found)
    return found.name.endswith((SUFFIX, f"{SUFFIX}{VERIFIED}", PIN, TAGS))


def is_unfinished(found: Found) -> bool:
    """Whether a file beside a delta is one that a killed run did not finish."""
    named = _MERGING.fullmatch(found.name) or _UNFINISHED.fullmatch(found.name)
    return found.kind is not Kind.FOLDER and named is not None


def is_mark(name: str) -> bool:
    """Whether something beside deltas is a pin or tags, by its key or its name."""
    return name.endswith((PIN, TAGS)) and not is_hidden(name.rpartition("/")[2])


def is_dropping(found: Found) -> bool:
    """Whether systems lay such beside what others own: it is worth nothing without that."""
    if found.kind is Kind.FOLDER:
        return _DROPPED_FOLDERS.fullmatch(found.name) is not None
    return _DROPPED_FILES.fullmatch(found.name) is not None


def is_furniture(found: Found) -> bool:
    """Whether a file system or a NAS has it in a folder that nobody has put anything into."""
    return is_dropping(found) or (
        found.kind is Kind.FOLDER and _ROOMS.fullmatch(found.name) is not None
    )
