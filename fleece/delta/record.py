"""The RECORD: one run of leaves of the disk, data or zero, enough to salvage it alone."""

from __future__ import annotations

import struct
import uuid
from typing import NamedTuple

from fleece.delta.layout import ENVELOPE, MAX_FRAME, MAX_RECORD, Kind, Tag, seal, unseal
from fleece.errors import DeltaError
from fleece.tree import Geometry

_FIXED = struct.Struct("<BBHI16sQQQ")


class Record(NamedTuple):
    """What a RECORD frame says. A delta may have millions.

    Attributes:
        kind: data (a zstd frame follows) or zero (none does).
        file_id: of the file that it was written into.
        sequence: 0 for the first record of the file, then one more each.
        offset: where on the disk it begins, in bytes, a multiple of the leaf size.
        length: bytes of disk; a multiple of the leaf size unless it ends at the disk's end.
        frame_length: bytes of the zstd frame, 0 for zero.
        previous: own hash of the record before, or of the header.
        frame_hash: hash of the zstd frame's bytes; zero bytes for zero.
        leaves: the hashes of its leaves, joined; empty for zero.
    """

    kind: Kind
    file_id: uuid.UUID
    sequence: int
    offset: int
    length: int
    frame_length: int
    previous: bytes
    frame_hash: bytes
    leaves: bytes


def size_of(kind: Kind, length: int, geometry: Geometry) -> int:
    """Bytes of the RECORD frame (without the zstd frame) of a run of `length` bytes of disk."""
    size = geometry.algorithm.size
    count = -(-length // geometry.leaf_size) if kind is Kind.DATA else 0
    return ENVELOPE.size + _FIXED.size + (3 + count) * size


def pack(record: Record, geometry: Geometry) -> bytes:
    """The RECORD frame."""
    count = len(record.leaves) // geometry.algorithm.size
    fixed = _FIXED.pack(
        record.kind,
        0,
        count,
        record.frame_length,
        record.file_id.bytes,
        record.sequence,
        record.offset,
        record.length,
    )
    body = b"".join((fixed, record.previous, record.frame_hash, record.leaves))
    return seal(Tag.RECORD, body, geometry.algorithm)


def parse(frame: bytes, geometry: Geometry, where: object) -> Record:
    """The record in a RECORD frame, every field within its bounds.

    Raises:
        DeltaError: damaged, or it describes something outside the disk.
    """
    body = bytes(unseal(frame, Tag.RECORD, geometry.algorithm, where))
    size = geometry.algorithm.size
    if len(body) < _FIXED.size + 2 * size:
        raise DeltaError("a record is too short", where=where)
    kind, _, count, frame_length, file_id, sequence, offset, length = _FIXED.unpack_from(body)
    if kind not in (Kind.DATA, Kind.ZERO):
        raise DeltaError("a record is neither data nor zero", where=where)
    hashes = body[_FIXED.size :]
    record = Record(
        Kind(kind),
        uuid.UUID(bytes=file_id),
        sequence,
        offset,
        length,
        frame_length,
        hashes[:size],
        hashes[size : 2 * size],
        hashes[2 * size :],
    )
    _check(record, count, geometry, where)
    return record


def _check(record: Record, count: int, geometry: Geometry, where: object) -> None:
    end = record.offset + record.length
    fits = (
        record.length > 0
        and end <= geometry.size
        and record.offset % geometry.leaf_size == 0
        and (end % geometry.leaf_size == 0 or end == geometry.size)
        and len(record.leaves) == count * geometry.algorithm.size
    )
    if record.kind is Kind.DATA:
        fits = (
            fits
            and record.length <= MAX_RECORD
            and 0 < record.frame_length <= MAX_FRAME
            and count == -(-record.length // geometry.leaf_size)
        )
    else:
        fits = fits and record.frame_length == 0 and count == 0 and not any(record.frame_hash)
    if not fits:
        raise DeltaError("a record's fields are out of bounds", where=where)
