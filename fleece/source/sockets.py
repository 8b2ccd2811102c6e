"""Who is connected to a unix socket that somebody else listens on."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

_LISTENING = 1 << 16
"""`__SO_ACCEPTCON` in the flags of proc_net(5), `/proc/net/unix`."""
_ROW = re.compile(
    rb"^[0-9a-f]+: [0-9A-F]{8} [0-9A-F]{8} ([0-9A-F]{8}) [0-9A-F]{4} [0-9A-F]{2} +[0-9]+ ?",
    re.MULTILINE,
)
"""What is before the path in a row of it. A path may hold any byte, ends of lines among them."""


def connections(process: int | str, path: Path) -> int:
    """How many connections a unix socket has, with those that are not accepted yet.

    0 if this user may not know (proc_net(5), `/proc/net/unix`, of the network namespace of QEMU).
    """
    try:
        said = Path(f"/proc/{process}/net/unix").read_bytes()
    except OSError:
        return 0
    # QEMU may know the folder by another path; its name is the point's alone.
    ours = os.fsencode("/" + "/".join(path.parts[-3:]))
    flags = [int(row, 16) for row, name in _unix_sockets(said) if name.endswith(ours)]
    return sum(not flag & _LISTENING for flag in flags)


def _unix_sockets(said: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Flags, in hexadecimal digits, and path of each row of `/proc/net/unix`."""
    rows = [*_ROW.finditer(said)]
    ends = [*(row.start() for row in rows[1:]), len(said)]
    for row, end in zip(rows, ends, strict=False):
        yield row[1], said[row.end() : end].removesuffix(b"\n")
