"""The reference of a scattered incremental: list the dirty context, read what is dirty, no more.

Run as a program: `python -m tools.benchmark.scattered URI CONTEXT`. One listing, 16 requests in
flight; then a plain pread of each dirty extent over 4 connections, a thread each. It needs libnbd
alone, so its start costs little.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Iterator

import nbd

CONNECTIONS = 4
_STEP = (1 << 32) - (1 << 16)
_AHEAD = 16

Range = tuple[int, int]
"""Offset and length, in bytes."""


def dirty(uri: str, context: str) -> list[Range]:
    """The ranges that a context calls dirty, in order of the disk."""
    handle = nbd.NBD()
    handle.add_meta_context(context)
    handle.connect_uri(uri)
    size = handle.get_size()
    found: list[Range] = []
    asked = iter(range(0, size, _STEP))
    flying = 0

    def take(name: str, offset: int, entries: list[int], error: object) -> int:
        for length, flags in zip(entries[::2], entries[1::2], strict=True):
            if flags & 1:
                found.append((offset, length))
            offset += length
        return 0

    def send(count: int) -> int:
        starts = list(itertools.islice(asked, count))
        for start in starts:
            handle.aio_block_status(min(_STEP, size - start), start, take)
        return len(starts)

    flying = send(_AHEAD)
    while flying:
        cookie = handle.aio_peek_command_completed()
        if cookie:
            handle.aio_command_completed(cookie)
            flying += send(1) - 1
        else:
            handle.poll(-1)
    handle.shutdown()
    return sorted(found)


def read(uri: str, ranges: Iterator[Range]) -> None:
    """Read ranges until the shared iterator has no more."""
    handle = nbd.NBD()
    handle.set_pread_initialize(False)
    handle.connect_uri(uri)
    for offset, length in ranges:
        handle.pread(length, offset)
    handle.shutdown()


def main() -> None:
    """Do both."""
    uri, context = sys.argv[1:]
    ranges = iter(dirty(uri, context))
    threads = [threading.Thread(target=read, args=(uri, ranges)) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
