"""What a user can do about QEMU's refusals, by QEMU's own words."""

from __future__ import annotations

import re

_NEWER = (
    "this QEMU cannot do that: 'fleece doctor' shows what it can; 6.0 is the oldest that will do"
)

_ADVICE: tuple[tuple[str, str], ...] = (
    (
        r"Failed to get (shared )?\"[a-z ]+\" lock",
        "another process has the file open: end that QEMU, qemu-img or qemu-nbd ('lsof' or "
        "'fuser' name it)",
    ),
    (
        r"is currently in use by another operation",
        "another backup, job or NBD export uses that bitmap: wait until it has ended",
    ),
    (
        r"NBD server already running",
        "another program has started QEMU's NBD server: wait for it, or end it by "
        "'nbd-server-stop'",
    ),
    (r"NBD server not running", "somebody has stopped QEMU's NBD server: run the command again"),
    (
        r"is busy|is in use|Need a root block node|Permission conflict on node|op blocked",
        "something else is at work on the disk (a job, a snapshot, a resize): wait until it has "
        "ended; 'query-block-jobs' shows jobs",
    ),
    (
        r"Too many open files",
        "QEMU may open no more files: raise its limit ('prlimit --nofile', LimitNOFILE= of its "
        "service)",
    ),
    (
        r"Permission denied|Operation not permitted",
        "QEMU's user, or its AppArmor or SELinux profile, may not use that file: choose another "
        "folder with --scratch, or allow it",
    ),
    (
        r"No space left on device|Disk quota exceeded",
        "make room there, or choose another --scratch",
    ),
    (r"Cannot allocate memory", "QEMU has no memory left for it: allow it more"),
    (r"The command \S+ has not been found|Unknown driver|Invalid parameter", _NEWER),
    (r"Parameter '[^']*' is unexpected|does not accept value", _NEWER),
)


def advice(reason: str) -> str | None:
    """What to do about a refusal; None: QEMU's words must do.

    Args:
        reason: QEMU's text.
    """
    return next((hint for pattern, hint in _ADVICE if re.search(pattern, reason)), None)
