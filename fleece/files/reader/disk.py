"""The disk as the library wants it: a file that is read over the wire, in blocks that are kept."""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import BinaryIO, cast

from fleece.files.wire import MOST_BLOB, Wire

_BLOCK = 64 * 1024
_KEPT = 512


class DiskReadError(OSError):
    """The other side could not read these bytes; it knows why."""


class WireDisk:
    """A read-only file object over the other side's disk.

    Args:
        wire: to ask over.
        size: of the disk in bytes.
    """

    def __init__(self, wire: Wire, size: int) -> None:
        self.size = size
        self._wire = wire
        self._place = 0
        self._blocks: OrderedDict[int, bytearray] = OrderedDict()

    def file(self) -> BinaryIO:
        """Itself, as the library's annotations call it."""
        return cast(BinaryIO, self)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As of files."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError(f"no such place in the disk: {base + offset}")
        self._place = base + offset
        return self._place

    def tell(self) -> int:
        """As of files."""
        return self._place

    def read(self, count: int = -1) -> bytes:
        """As of files: short at the end of the disk, and nowhere else."""
        end = self.size if count < 0 else min(self._place + count, self.size)
        parts = []
        while self._place < end:
            part = self._some(self._place, end)
            self._place += len(part)
            parts.append(part)
        return b"".join(parts)

    def _some(self, start: int, end: int) -> bytes | bytearray | memoryview:
        """The first bytes of a range: of a kept block, or, if the range is long, past them."""
        number, within = divmod(start, _BLOCK)
        if within == 0 and end - start >= 2 * _BLOCK:
            return self._ask(start, min(end - start, MOST_BLOB))
        if number not in self._blocks:
            low = number * _BLOCK
            self._blocks[number] = self._ask(low, min(_BLOCK, self.size - low))
            if len(self._blocks) > _KEPT:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(number)
        return memoryview(self._blocks[number])[within : within + end - start]

    def _ask(self, offset: int, length: int) -> bytearray:
        self._wire.send({"read": offset, "length": length})
        head, data = self._wire.receive()
        if not head.get("ok") or len(data) != length:
            raise DiskReadError("a part of the disk cannot be read")
        return data
