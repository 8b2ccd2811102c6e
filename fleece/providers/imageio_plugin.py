"""The script that nbdkit's Python plugin runs for `ovirt_imageio`: one transfer, as an export.

The interpreter is the one that nbdkit embeds: nothing but Python's own library is needed.
"""

from __future__ import annotations

import bisect
import http.client
import json
import ssl
import sys
import threading
import urllib.parse
from typing import Any

import nbdkit

API_VERSION = 2

_settings: dict[str, Any] = {}
_extents: list[dict[str, Any]] = []
_ends: list[int] = []
_own = threading.local()


def config_complete() -> None:
    """Read `url` and `cafile`, and ask what is zero, and so how large the disk is.

    From standard input: who knows the URL can read the disk, and a command line is no secret.
    """
    _settings.update(json.load(sys.stdin))
    _extents.extend(json.loads(_get("/extents?context=zero")))
    _ends.extend(each["start"] + each["length"] for each in _extents)


def thread_model() -> int:
    """A connection for each thread."""
    return int(nbdkit.THREAD_MODEL_PARALLEL)


def open(readonly: bool) -> int:
    """All clients see the same."""
    return 1


def get_size(handle: int) -> int:
    """In bytes."""
    return _ends[-1]


def can_multi_conn(handle: int) -> bool:
    """All connections see the same bytes."""
    return True


def can_extents(handle: int) -> bool:
    """Zeros are known."""
    return True


def extents(handle: int, count: int, offset: int, flags: int) -> list[tuple[int, int, int]]:
    """What is zero, for `base:allocation`."""
    zeros, end = nbdkit.EXTENT_ZERO | nbdkit.EXTENT_HOLE, offset + count
    first, found = bisect.bisect_right(_ends, offset), []
    for each in map(_extents.__getitem__, range(first, len(_extents))):
        if each["start"] >= end:
            break
        found.append((each["start"], each["length"], zeros if each["zero"] else 0))
    return found


def pread(handle: int, buffer: memoryview, offset: int, flags: int) -> None:
    """Read a range."""
    data = _get("", {"Range": f"bytes={offset}-{offset + len(buffer) - 1}"})
    if len(data) != len(buffer):
        raise OSError(f"{len(data)} bytes came where {len(buffer)} were asked for")
    buffer[:] = data


def _get(more: str, headers: dict[str, str] | None = None) -> bytes:
    """What the server has, by this thread's connection, or a new one if that was idle for long."""
    for last in (False, True):
        try:
            connection = _connection()
            connection.request("GET", f"{_url().path}{more}", headers=headers or {})
            answer = connection.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException):
            _own.connection = None
            if last:
                raise
        else:
            break
    if answer.status not in (200, 206):
        raise OSError(f"the server says {answer.status} {answer.reason}")
    return data


def _url() -> urllib.parse.SplitResult:
    return urllib.parse.urlsplit(str(_settings["url"]))


def _connection() -> http.client.HTTPConnection:
    found: http.client.HTTPConnection | None = getattr(_own, "connection", None)
    if found is None:
        url = _url()
        if url.scheme == "https":
            trust = ssl.create_default_context(cafile=_settings["cafile"])
            found = http.client.HTTPSConnection(url.netloc, timeout=60, context=trust)
        else:
            found = http.client.HTTPConnection(url.netloc, timeout=60)
        _own.connection = found
    return found
