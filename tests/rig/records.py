"""The records that the guest's writer leaves (guest/rigwriter.c), and what must hold of them.

Pure functions on bytes. The writer writes record 1, 2, 3, ... each durable before the next; so
what any one point in time holds is an exact prefix 1..N, and nothing of a later record.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ORDER_SIZE = 512
SLOT_SIZE = 4096
CHURN_KEPT = 64
MAGIC = b"RIGREC01"

# magic, seq, disk, slot, number of slots, time in ns, length, CRC-32
_HEADER = struct.Struct("<8sQIIQQII")
_CRC_BYTES = 4
_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Record:
    """A valid record's header.

    Attributes:
        seq: its number; the first is 1.
        disk: the index of the disk that it was written to.
        slot: the slot, or the block within its file.
    """

    seq: int
    disk: int
    slot: int


@dataclass(frozen=True)
class Finding:
    """What one kind of record on one disk shows.

    Attributes:
        last: the last record of the prefix that is there; 0 if there is none.
        problems: what contradicts a point in time, in words.
    """

    last: int
    problems: tuple[str, ...] = ()


def mix(x: int) -> int:
    """The writer's hash of 64 bits (splitmix64)."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def parse_record(block: bytes) -> Record | None:
    """The record that fills `block`; None if there is no whole and valid one."""
    if len(block) < _HEADER.size:
        return None
    magic, seq, disk, slot, _, _, length, crc = _HEADER.unpack_from(block)
    if magic != MAGIC or length != len(block):
        return None
    head = block[: _HEADER.size - _CRC_BYTES] + bytes(_CRC_BYTES)
    if zlib.crc32(block[_HEADER.size :], zlib.crc32(head)) != crc:
        return None
    return Record(seq, disk, slot)


def check_order(data: bytes, disk: int) -> Finding:
    """Judge order.log: records 1, 2, 3, ...; only the very last may be incomplete.

    Args:
        data: the file.
        disk: the index of the disk that it was read from.
    """
    blocks = _blocks(data, ORDER_SIZE)
    last = 0
    for block in blocks:
        record = parse_record(block)
        if record is None or record.seq != last + 1 or record.disk != disk:
            break
        last += 1
    if len(blocks) > last + 1:
        problem = f"order.log: of {len(blocks)} records only {last} are valid and in order"
        return Finding(last, (problem,))
    return Finding(last)


def check_slots(data: bytes, disk: int) -> Finding:
    """Judge slots.bin: each slot holds the last record of 1..N that belongs there, none a later.

    Args:
        data: the file.
        disk: the index of the disk that it was read from.
    """
    held: list[int] = []
    problems: list[str] = []
    for slot, block in enumerate(_blocks(data, SLOT_SIZE)):
        record = parse_record(block)
        held.append(record.seq if record else 0)
        if record is None and any(block):
            problems.append(f"slots.bin: slot {slot} is torn")
        elif record is not None and (record.disk, record.slot) != (disk, slot):
            problems.append(f"slots.bin: slot {slot} holds {record}")
    last = max(held, default=0)
    expected = [0] * len(held)
    for seq in range(1, last + 1):
        expected[mix(seq) % len(held)] = seq
    problems += [
        f"slots.bin: slot {slot} holds record {have}, not {want} (prefix 1..{last})"
        for slot, (have, want) in enumerate(zip(held, expected, strict=True))
        if have != want
    ]
    return Finding(last, tuple(problems))


def check_churn(files: Mapping[str, bytes], disk: int) -> Finding:
    """Judge the directory churn: the last 64 files without a gap, each whole.

    Args:
        files: the directory's files, by name.
        disk: the index of the disk that they were read from.
    """
    found = {int(name[2:]): data for name, data in files.items() if re.fullmatch(r"f_\d+", name)}
    seqs = sorted(found)
    if not seqs:
        return Finding(0)
    first, last = seqs[0], seqs[-1]
    problems = [
        f"churn: f_{seq} is not what was written"
        for seq in seqs
        if not _churn_file_valid(found[seq], seq, disk)
    ]
    # A new file appears by rename before the one 64 older goes: there may be one too many.
    oldest = max(1, last - CHURN_KEPT + 1)
    if seqs != list(range(first, last + 1)) or first not in (oldest, max(1, oldest - 1)):
        problems.append(f"churn: {len(seqs)} files from {first} to {last}, expected {oldest} on")
    return Finding(last, tuple(problems))


def _churn_file_valid(data: bytes, seq: int, disk: int) -> bool:
    count = 1 + mix(seq ^ 77) % 8
    records = [parse_record(block) for block in _blocks(data, SLOT_SIZE)]
    return records == [Record(seq, disk, i) for i in range(count)]


def _blocks(data: bytes, size: int) -> Sequence[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]
