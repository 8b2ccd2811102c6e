"""Make the hashes of a mangled delta fit again, so that what they guard is reached."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import zstandard

from fleece.delta import footer, header
from fleece.delta.layout import ENVELOPE, MAX_RECORD, SKIPPABLE_MAGIC, Kind, Tag, directory_row
from fleece.errors import DeltaError
from fleece.hashing import XXH3_128
from fleece.tree import leaf_hashes

_MAGIC = struct.pack("<I", SKIPPABLE_MAGIC)
_SIZE = XXH3_128.size
_RECORD = struct.Struct("<BBHI16sQQQ")
_LEAST = {Tag.RECORD: 48 + 2 * _SIZE, Tag.HEADER: 32, Tag.FOOTER: 64 + 5 * _SIZE}


@dataclass
class _State:
    """What later frames must repeat of earlier ones."""

    header: header.Header | None
    first: bytes
    last: bytes
    directory: bytes
    pages: dict[int, bytes]


def repaired(data: bytes, wanted: Sequence[Tag] = tuple(Tag)) -> bytes:
    """The same frames, those of the tags wanted with the hashes and links that they should have."""
    raw = bytearray(data)
    state = _State(None, b"", b"", b"", {})
    position = 0
    while 0 <= position <= len(raw) - ENVELOPE.size:
        magic, rest, letters = ENVELOPE.unpack_from(raw, position)
        end = position + rest + 8
        tags = [tag for tag in Tag if tag.value == letters]
        least = ENVELOPE.size + _SIZE + (_LEAST.get(tags[0], 0) if tags else 0)
        if magic != SKIPPABLE_MAGIC or not tags or end > len(raw) or end - position < least:
            position = raw.find(_MAGIC, position + 1)
            continue
        if tags[0] in wanted:
            _repair(raw, position, end, tags[0], state)
        position = end
    return bytes(raw)


def _repair(raw: bytearray, position: int, end: int, tag: Tag, state: _State) -> None:
    body = position + ENVELOPE.size
    if tag is Tag.HEADER:
        struct.pack_into("<I", raw, body + 28, end - _SIZE - body - 32)
    elif tag is Tag.RECORD:
        _record(raw, body, end, state)
    elif tag is Tag.DIRECTORY:
        _directory(raw, body, end, state)
    elif tag is Tag.FOOTER:
        _footer(raw, body, state)
    own = XXH3_128.digest(raw[position : end - _SIZE])
    raw[end - _SIZE : end] = own
    state.pages[position] = own
    if tag is Tag.HEADER:
        state.first = state.last = own
        try:
            state.header = header.parse(bytes(raw[position:end]), "fuzz")
        except DeltaError:
            state.header = None
    elif tag is Tag.RECORD:
        state.last = own
    elif tag is Tag.DIRECTORY:
        state.directory = own


def _record(raw: bytearray, body: int, end: int, state: _State) -> None:
    kind, _, count, length, *_ = _RECORD.unpack_from(raw, body)
    links = body + _RECORD.size
    if len(state.last) == _SIZE:
        raw[links : links + _SIZE] = state.last
    if state.header is not None:
        raw[body + 8 : body + 24] = state.header.file_id.bytes
    frame = bytes(raw[end : end + length])
    if kind == Kind.DATA:
        raw[links + _SIZE : links + 2 * _SIZE] = XXH3_128.digest(frame)
    leaves = links + 2 * _SIZE
    if state.header is not None and end - _SIZE - leaves == count * _SIZE:
        made = leaf_hashes(_unpacked(frame), state.header.geometry)
        if len(made) == count * _SIZE:
            raw[leaves : leaves + len(made)] = made


def _unpacked(frame: bytes) -> bytes:
    try:
        if zstandard.get_frame_parameters(frame).content_size > MAX_RECORD:
            return b""
        return zstandard.ZstdDecompressor().decompress(frame, max_output_size=MAX_RECORD)
    except zstandard.ZstdError:
        return b""


def _directory(raw: bytearray, body: int, end: int, state: _State) -> None:
    row = directory_row(XXH3_128)
    count = (end - _SIZE - body) // row.itemsize
    rows = np.frombuffer(raw, row, count, body)["position"].tolist()
    for number, position in enumerate(rows):
        if position in state.pages:
            at = body + (number + 1) * row.itemsize - _SIZE
            raw[at : at + _SIZE] = state.pages[position]


def _footer(raw: bytearray, body: int, state: _State) -> None:
    if state.header is None or len(raw) < body + footer.size_of(XXH3_128) - ENVELOPE.size:
        return
    raw[body : body + 16] = state.header.file_id.bytes
    at = body + 64
    for link in (state.first, state.last, state.directory):
        if len(link) == _SIZE:
            raw[at : at + _SIZE] = link
        at += _SIZE
    top = bytes(raw[at : at + _SIZE])
    if any(top):
        raw[at + _SIZE : at + 2 * _SIZE] = state.header.geometry.root(top)
