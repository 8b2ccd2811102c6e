"""The FOOTER: the last bytes of a finished delta. Without it the file is partial, never valid."""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass

from fleece.delta.layout import ENVELOPE, MAX_DIRECTORY, Tag, seal, unseal
from fleece.errors import DeltaError
from fleece.hashing import HashAlgorithm

_FIXED = struct.Struct("<16sQQQQQQ")


@dataclass(frozen=True)
class Footer:
    """What a FOOTER frame says.

    Attributes:
        file_id: as in the header.
        directory_position, directory_length: where the DIRECTORY frame stands, in bytes.
        records: number of records, and so of index rows.
        data_bytes: bytes of disk in data records.
        zero_bytes: bytes of disk in zero records.
        frame_bytes: bytes of all zstd frames.
        header_hash, last_record, directory_hash: own hashes of these frames.
        top: the hash of the disk's top node.
        root: the hash that names the whole disk at this point.
    """

    file_id: uuid.UUID
    directory_position: int
    directory_length: int
    records: int
    data_bytes: int
    zero_bytes: int
    frame_bytes: int
    header_hash: bytes
    last_record: bytes
    directory_hash: bytes
    top: bytes
    root: bytes


def size_of(algorithm: HashAlgorithm) -> int:
    """Bytes of the FOOTER frame."""
    return ENVELOPE.size + _FIXED.size + 6 * algorithm.size


def pack(footer: Footer, algorithm: HashAlgorithm) -> bytes:
    """The FOOTER frame."""
    fixed = _FIXED.pack(
        footer.file_id.bytes,
        footer.directory_position,
        footer.directory_length,
        footer.records,
        footer.data_bytes,
        footer.zero_bytes,
        footer.frame_bytes,
    )
    hashes = (
        footer.header_hash,
        footer.last_record,
        footer.directory_hash,
        footer.top,
        footer.root,
    )
    return seal(Tag.FOOTER, fixed + b"".join(hashes), algorithm)


def parse(frame: bytes, algorithm: HashAlgorithm, where: object) -> Footer:
    """The footer in a FOOTER frame.

    Raises:
        DeltaError: damaged.
    """
    body = unseal(frame, Tag.FOOTER, algorithm, where)
    size = algorithm.size
    if len(frame) != size_of(algorithm):
        raise DeltaError("the footer has the wrong length", where=where)
    file_id, *numbers = _FIXED.unpack_from(body)
    hashes = [
        bytes(body[at : at + size]) for at in range(_FIXED.size, _FIXED.size + 5 * size, size)
    ]
    footer = Footer(uuid.UUID(bytes=file_id), *numbers, *hashes)
    if footer.directory_length > MAX_DIRECTORY:
        raise DeltaError("the directory is larger than any can be", where=where)
    return footer
