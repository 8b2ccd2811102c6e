#!/usr/bin/python3
"""Restore a chain of deltas to a raw image by docs/internals/format.rst alone, without fleece.

usage: tools/read_delta.py RAW DELTA...     (the deltas of one disk's chain, in any order)

Checks every record, and the root that all leaves give. Tree, index and directory are not needed.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Iterator
from typing import BinaryIO

import xxhash
import zstandard

HASHES = {1: ("xxh3-128", 16, xxhash.xxh3_128_digest)}
MIB = 1 << 20


class Damaged(Exception):
    """A file, and what is wrong with it."""


TROUBLE = (Damaged, OSError, TypeError, ValueError, struct.error, zstandard.ZstdError)


class Delta:
    """A delta whose header and footer fit; `records` walks and checks the rest."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.file: BinaryIO = open(path, "rb")
        start = self.file.read(40)
        self.need(start[8:28] == b"FHDRfleece delta v1\n" and len(start) == 40, "is no delta")
        version, code, _, incompatible = struct.unpack_from("<HBBI", start, 28)
        self.need(
            version == 1 and code in HASHES and incompatible in (0, 2), "needs another reader"
        )
        self.name, self.width, self.hash = HASHES[code]
        self.file.seek(0)
        body, self.own = self.frame(b"FHDR", MIB)
        try:
            self.head = json.loads(body[32:])
            self.size, self.leaf = int(self.head["size"]), int(self.head["leaf_size"])
            self.fan, self.parent = int(self.head["fan_out"]), self.head["parent"]
            self.id = bytes.fromhex(self.head["file"].replace("-", ""))
            self.point = (self.head["chain"], self.head["guest"], self.head["disk"])
            self.state = {"point": self.head["point"]["id"], "size": self.size}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise Damaged(f"{path}: its header is not valid ({error})") from error
        sane = 0 <= self.size <= 1 << 60 and self.leaf in (1 << bits for bits in range(12, 21))
        sane = sane and ("part" in self.head) == (incompatible == 2)
        sane = sane and self.fan in (1 << bits for bits in range(1, 9))
        self.need(sane and self.head["hash"] == self.name, "its header contradicts itself")
        self.start, length = self.file.tell(), 76 + 6 * self.width
        self.file.seek(max(self.start, os.fstat(self.file.fileno()).st_size - length))
        self.end, _ = self.frame(b"FEND", length)
        *_, header, self.last, _, top, self.root = self.hashes(self.end[64:])
        self.need((self.end[:16], header) == (self.id, self.own), "its footer is another file's")
        self.need(self.root == self.root_over(top), "its root does not follow from its top")
        self.state["root"] = self.root.hex()

    def need(self, held: bool, what: str) -> None:
        """Give this file up unless something holds."""
        if not held:
            raise Damaged(f"{self.path}: {what}")

    def hashes(self, joined: bytes) -> list[bytes]:
        """Hashes that stand side by side."""
        return [joined[at : at + self.width] for at in range(0, len(joined), self.width)]

    def frame(self, tag: bytes, most: int) -> tuple[bytes, bytes]:
        """Body and own hash of the frame at the file's place, which is of `most` bytes at most."""
        at, start = self.file.tell(), self.file.read(12)
        length = int.from_bytes(start[4:8], "little") + 8
        right = start[:4] + start[8:] == b"\x5f\x2a\x4d\x18" + tag and length <= most
        self.need(right, f"there is no {tag.decode()} at byte {at}")
        frame = start + self.file.read(length - 12)
        held, own = frame[: -self.width], frame[-self.width :]
        self.need(len(frame) == length and self.hash(held) == own, f"damaged at byte {at}")
        return held[12:], own

    def records(self) -> Iterator[tuple[int, int, list[bytes], bytes]]:
        """(offset, length, leaf hashes, data) of each record; a zero record has no data."""
        before, total = self.own, 0
        self.file.seek(self.start)
        for sequence in range(int.from_bytes(self.end[32:40], "little")):
            body, own = self.frame(b"FREC", 1 << 16)
            kind, _, count, packed, *place, offset, length = struct.unpack_from("<BBHI16sQQQ", body)
            previous, digest, *leaves = self.hashes(body[48:])
            in_place = (*place, previous) == (self.id, sequence, before)
            whole = offset + length == self.size or length % self.leaf == 0
            whole = whole and 0 < length <= self.size - offset and offset % self.leaf == 0
            self.need(in_place and whole, f"record {sequence} is not in its place")
            data = b""
            if kind == 1:
                self.need(max(length, packed - 8192) <= MIB, f"record {sequence} is too long")
                frame = self.file.read(packed)
                right = self.hash(frame) == digest and zstandard.frame_content_size(frame) == length
                self.need(right, f"the data of record {sequence} is damaged")
                data = zstandard.ZstdDecompressor().decompress(frame)
            parts = (data[at : at + self.leaf] for at in range(0, len(data), self.leaf))
            right = leaves == [self.hash(part.ljust(self.leaf, b"\0")) for part in parts]
            right = right and count == len(leaves) and (kind == 1 or (kind == 2 and not packed))
            self.need(right, f"record {sequence} is not valid")
            before = own
            total += length
            yield offset, length, leaves, data
        self.need(before == self.last, "its records are not those that its footer names")
        self.need(
            self.parent is not None or total == self.size, "a full that lacks some of its disk"
        )

    def root_over(self, top: bytes) -> bytes:
        """The root over a top node."""
        shape = struct.pack("<IIQ", self.leaf, self.fan, self.size)
        return self.hash(b"fleece-root" + self.name.encode().ljust(16, b"\0") + shape + top)

    def root_of(self, nodes: dict[int, bytes]) -> bytes:
        """The root of a disk, from the hashes of its leaves that are not zeros."""
        level, zero, width = 0, self.hash(bytes(self.leaf)), -(-self.size // self.leaf)
        while width > 1:
            level, width = level + 1, -(-width // self.fan)
            tag, old, blank = b"fleece-node" + bytes([level]), nodes, zero
            span, zero, nodes = range(self.fan), self.hash(tag + blank * self.fan), {}
            for n in {number // self.fan for number in old}:
                nodes[n] = self.hash(tag + b"".join(old.get(n * self.fan + i, blank) for i in span))
        return self.root_over(nodes.get(0, zero))


def restore(raw: BinaryIO, paths: list[str]) -> str:
    """Write the disk as the newest delta has it; gives its root."""
    leaves: dict[int, bytes] = {}
    waiting, done, state = [Delta(path) for path in paths], None, None
    while waiting:
        fit = [d for d in waiting if d.parent == state and (not done or d.point == done.point)]
        waiting[0].need(len(fit) == 1, f"{len(fit)} of these files go on from {state}")
        waiting.remove(done := fit[0])
        state = done.state
        raw.truncate(done.size)
        leaves = {n: leaves[n] for n in leaves if n * done.leaf < done.size}
        for offset, length, hashes, data in done.records():
            first, end = offset // done.leaf, -(-(offset + length) // done.leaf)
            for n in [] if data else [n for n in leaves if first <= n < end]:
                del leaves[n]
                blank = bytes(min(done.leaf, done.size - n * done.leaf))
                os.pwrite(raw.fileno(), blank, n * done.leaf)
            os.pwrite(raw.fileno(), data, offset)
            leaves |= zip(range(first, end), hashes, strict=False)
    if done is None:
        raise Damaged("no delta is named")
    done.need(done.root_of(leaves) == done.root, "what was written has another root")
    return done.root.hex()


def main(raw: str, *paths: str) -> None:
    """Make the image `raw`, or leave nothing behind."""
    with open(raw, "xb", buffering=0) as file:
        try:
            print(restore(file, list(paths)))
        except BaseException:
            os.unlink(raw)
            raise


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except TROUBLE as error:
        sys.exit(f"read_delta: {error}")
