"""The HEADER: a delta describes itself, in JSON that a person can read with `head`."""

from __future__ import annotations

import enum
import json
import re
import struct
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from fleece.delta.identity import GuestIdentity
from fleece.delta.layout import ENVELOPE, MAX_HEADER, MAX_SIZE, SKIPPABLE_MAGIC, Tag, seal, unseal
from fleece.delta.part import PartKind, is_part
from fleece.errors import DeltaError, UsageError
from fleece.hashing import XXH3_128, HashAlgorithm, by_code
from fleece.jsontext import loads
from fleece.tree import FAN_OUT, LEAF_SIZE, Geometry

VERSION = 1
"""The format version that this module writes and reads."""

SALVAGED = 1
"""The incompatible feature of a salvaged file: what was left of a damaged delta."""

PART = 2
"""The incompatible feature of a delta of a part of the machine, which is no disk."""

_GREETING = b"fleece delta v1\n"
_FIXED = struct.Struct("<16sHBBIII")
_IDENTIFIER = re.compile(r"[0-9a-f]{8,40}")
_COMPRESSION = "zstd"


class Mode(enum.StrEnum):
    """How the dirty set of a delta was found."""

    FULL = "full"
    INCREMENTAL = "incremental"
    DIFFERENTIAL = "differential"
    RESCAN = "rescan"


@dataclass(frozen=True)
class PointRef:
    """Which point in time a delta belongs to.

    Attributes:
        id: the point's name, lower-case hexadecimal.
        sequence: grows by at least one from each point of a chain to the next.
        time: when it was taken by the engine's clock, RFC 3339, UTC. For people; within a chain
            it orders nothing.
    """

    id: str
    sequence: int
    time: str


@dataclass(frozen=True)
class ParentRef:
    """The state that a delta builds on: not a file, but a disk at a point, proven by its root."""

    point: str
    root: str
    size: int


@dataclass(frozen=True)
class Salvaged:
    """What a salvaged file knows of the whole delta that it was saved from.

    Attributes:
        root: of the disk at the point, hexadecimal; None: nothing was left that said it.
        top: the hash of the disk's top node, hexadecimal; None as `root`.
    """

    root: str | None
    top: str | None


@dataclass(frozen=True)
class Header:
    """The self-description of one delta.

    Attributes:
        file_id: binds the records to their file; names nothing outside it.
        chain: the line of points of one guest in one store.
        guest: the guest's name.
        disk: the disk's name within the guest; of a part, that one's.
        size: the disk's size at the point, in bytes.
        point: the point in time.
        parent: what it builds on; None: it covers the whole disk.
        mode: how its dirty set was found.
        disks: the names of all disks of the point; of a disk's delta, its own is among them.
        gone: names of disks that the guest had at the point before, and no longer has.
        identity: of the guest, as its QEMU told it; None: it told none.
        level: the zstd level.
        granularity: of the dirty bitmap that was read, in bytes; None: no bitmap was, or its source
            does not tell.
        producer: the versions of the programs that made it.
        leaf_size, fan_out, algorithm: the tree's shape (`fleece.tree.Geometry`).
        salvaged: None: an ordinary delta. Else it is no delta, only what was left of one.
        part: what of the machine it holds; None: a disk.
        parts: the names of all parts of the point; of a part's delta, its own is among them.
        tags: that the backup was told to give the point; for people.
    """

    file_id: uuid.UUID
    chain: str
    guest: str
    disk: str
    size: int
    point: PointRef
    parent: ParentRef | None
    mode: Mode
    disks: tuple[str, ...]
    level: int
    granularity: int | None
    producer: Mapping[str, str]
    leaf_size: int = LEAF_SIZE
    fan_out: int = FAN_OUT
    algorithm: HashAlgorithm = XXH3_128
    salvaged: Salvaged | None = None
    gone: tuple[str, ...] = ()
    identity: GuestIdentity | None = None
    part: PartKind | None = None
    parts: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()

    @property
    def what(self) -> str:
        """What it is of, for messages."""
        return f"disk {self.disk}" if self.part is None else f"part {self.disk}"

    @property
    def covers_from(self) -> int:
        """The delta holds all of the disk from here on, in bytes: the parent does not say it.

        With a parent of another size that is from the last leaf on that both disks have, which the
        end of one of them cuts or may cut.
        """
        if self.parent is None:
            return 0
        if self.parent.size == self.size:
            return self.size
        both = min(self.parent.size, self.size)
        return max(0, both - 1) // self.leaf_size * self.leaf_size

    @property
    def geometry(self) -> Geometry:
        """The shape of the disk's hash tree at this point."""
        return Geometry(self.size, self.leaf_size, self.fan_out, self.algorithm)


def pack(header: Header) -> bytes:
    """The HEADER frame.

    Raises:
        UsageError: no reader would take it: a name, an id or a number is not what it must be.
    """
    raw = _to_json(header)
    text = json.dumps(raw, indent=1, ensure_ascii=False).encode() + b"\n"
    features = _features(header)
    fixed = _FIXED.pack(_GREETING, VERSION, header.algorithm.code, 0, features, 0, len(text))
    frame = seal(Tag.HEADER, fixed + text, header.algorithm)
    try:
        _from_json(raw, header.algorithm)
        if len(frame) > MAX_HEADER:
            raise ValueError(f"it is {len(frame)} bytes long, more than {MAX_HEADER}")
    except ValueError as error:
        raise UsageError(f"the header is not valid ({error})", where=header.disk) from error
    return frame


def _features(header: Header) -> int:
    """The incompatible features that a header announces."""
    return (0 if header.salvaged is None else SALVAGED) | (0 if header.part is None else PART)


def frame_length(first: bytes, where: object) -> int:
    """The length in bytes of the HEADER frame that starts with the `ENVELOPE.size` bytes `first`.

    Raises:
        DeltaError: this is no delta.
    """
    if len(first) >= ENVELOPE.size:
        magic, length, tag = ENVELOPE.unpack_from(first)
        if magic == SKIPPABLE_MAGIC and tag == Tag.HEADER and length + 8 <= MAX_HEADER:
            return int(length) + 8
    raise DeltaError("not a fleece delta", where=where, hint="it does not start with a header")


def parse(frame: bytes, where: object, hash_key: bytes | None = None) -> Header:
    """The header in a HEADER frame.

    Args:
        frame: all of it.
        where: the file, for messages.
        hash_key: of keyed hashes; None: the file has no KEY frame that says so.

    Raises:
        DeltaError: damaged, or of a version or with a feature that this program does not know.
    """
    if len(frame) < ENVELOPE.size + _FIXED.size:
        raise DeltaError("the header is cut", where=where)
    greeting, version, code, _, incompatible, _, length = _FIXED.unpack_from(frame, ENVELOPE.size)
    algorithm = by_code(code, hash_key)
    if algorithm is not None:
        unseal(frame, Tag.HEADER, algorithm, where)
    if greeting != _GREETING or version != VERSION:
        raise DeltaError(
            f"delta format version {version} is not known",
            where=where,
            hint="a newer fleece may read it",
        )
    if incompatible & ~(SALVAGED | PART) or algorithm is None:
        raise DeltaError(
            f"needs features that this version lacks (flags {incompatible:#x}, hash {code})",
            where=where,
            hint="a newer fleece may read it",
        )
    if algorithm.keyed != (hash_key is not None):
        raise DeltaError("its hashes are not keyed, though its KEY frame says so", where=where)
    text = frame[ENVELOPE.size + _FIXED.size : -algorithm.size]
    if len(text) != length:
        raise DeltaError("the header's text has the wrong length", where=where)
    try:
        header = _from_json(loads(text), algorithm)
        if _features(header) != incompatible:
            raise ValueError("it does not say clearly whether it is salvaged, or a part")
        return header
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DeltaError(f"the header is not valid ({error})", where=where) from error


def _to_json(header: Header) -> dict[str, object]:
    parent = header.parent
    kept = header.salvaged
    added: dict[str, object] = {}
    if kept is not None:
        added["salvaged"] = {"root": kept.root, "top": kept.top}
    if header.gone:
        added["gone"] = list(header.gone)
    if header.identity is not None:
        told = {"uuid": header.identity.uuid, "name": header.identity.name}
        added["identity"] = {key: value for key, value in told.items() if value is not None}
    if header.part is not None:
        added["part"] = header.part.value
    if header.parts:
        added["parts"] = list(header.parts)
    if header.tags:
        added["tags"] = list(header.tags)
    return {
        "format": "fleece delta",
        "file": str(header.file_id),
        "chain": header.chain,
        "guest": header.guest,
        "disk": header.disk,
        "size": header.size,
        "point": {
            "id": header.point.id,
            "sequence": header.point.sequence,
            "time": header.point.time,
        },
        "parent": parent and {"point": parent.point, "root": parent.root, "size": parent.size},
        "mode": header.mode.value,
        "disks": list(header.disks),
        "leaf_size": header.leaf_size,
        "fan_out": header.fan_out,
        "hash": header.algorithm.name,
        "compression": {"name": _COMPRESSION, "level": header.level},
        "granularity": header.granularity,
        "producer": dict(header.producer),
        **added,
    }


def _from_json(raw: object, algorithm: HashAlgorithm) -> Header:
    top = _mapping(raw)
    point, compression = _mapping(top["point"]), _mapping(top["compression"])
    if top["hash"] != algorithm.name or compression["name"] != _COMPRESSION:
        raise ValueError("hash or compression is not the one that is announced")
    granularity = top["granularity"]
    header = Header(
        file_id=uuid.UUID(_text(top["file"])),
        chain=_identifier(top["chain"]),
        guest=_text(top["guest"]),
        disk=_text(top["disk"]),
        size=_number(top["size"], 0, MAX_SIZE),
        point=PointRef(
            _identifier(point["id"]), _number(point["sequence"], 0, 1 << 62), _text(point["time"])
        ),
        parent=_parent(top["parent"], algorithm),
        mode=Mode(_text(top["mode"])),
        disks=_names(top["disks"]),
        level=_number(compression["level"], -(1 << 17), 22),
        granularity=None if granularity is None else _number(granularity, 512, 1 << 31),
        producer={_text(key): _text(value) for key, value in _mapping(top["producer"]).items()},
        leaf_size=_number(top["leaf_size"], 4096, 1 << 20),
        fan_out=_number(top["fan_out"], 2, 256),
        algorithm=algorithm,
        salvaged=_salvaged(top.get("salvaged"), algorithm),
        gone=_names(top["gone"]) if "gone" in top else (),
        identity=_identity(top["identity"]) if "identity" in top else None,
        part=PartKind(_text(top["part"])) if "part" in top else None,
        parts=_names(top["parts"]) if "parts" in top else (),
        tags=_names(top["tags"]) if "tags" in top else (),
    )
    _check_names(header)
    if (header.parent is None) != (header.mode == Mode.FULL):
        how = "without" if header.parent is None else "with"
        raise ValueError(f"mode '{header.mode}' {how} a parent")
    if header.leaf_size & (header.leaf_size - 1) or header.fan_out & (header.fan_out - 1):
        raise ValueError("leaf size and fan-out must be powers of two")
    return header


def _check_names(header: Header) -> None:
    """Raise `ValueError` unless disks and parts are told apart."""
    if any(map(is_part, header.disks)) or not all(map(is_part, header.parts)):
        raise ValueError("a disk has the name of a part, or a part that of a disk")
    if header.part is None and header.disk not in header.disks:
        raise ValueError("its disk is not in its list of disks")
    if header.part is not None and header.disk != header.part.own_name:
        raise ValueError("its name is not that of its kind")
    if header.part is not None and header.disk not in header.parts:
        raise ValueError("its part is not in its list of parts")


def _parent(raw: object, algorithm: HashAlgorithm) -> ParentRef | None:
    if raw is None:
        return None
    fields = _mapping(raw)
    return ParentRef(
        _identifier(fields["point"]),
        _hash(fields["root"], algorithm),
        _number(fields["size"], 0, MAX_SIZE),
    )


def _salvaged(raw: object, algorithm: HashAlgorithm) -> Salvaged | None:
    if raw is None:
        return None
    fields = _mapping(raw)
    root, top = fields["root"], fields["top"]
    if (root is None) != (top is None):
        raise ValueError("a root without its top node, or the reverse")
    return Salvaged(
        None if root is None else _hash(root, algorithm),
        None if top is None else _hash(top, algorithm),
    )


def _identity(raw: object) -> GuestIdentity:
    fields = _mapping(raw)
    told = {key: _text(fields[key]) if key in fields else None for key in ("uuid", "name")}
    if told["uuid"] is not None and str(uuid.UUID(told["uuid"])) != told["uuid"]:
        raise ValueError("the guest's UUID is not written as one")
    if told["uuid"] is None and told["name"] is None:
        raise ValueError("the guest's identity is empty")
    return GuestIdentity(**told)


def _hash(raw: object, algorithm: HashAlgorithm) -> str:
    text = _text(raw)
    if len(bytes.fromhex(text)) != algorithm.size:
        raise ValueError("a hash has the wrong length")
    return text


def _mapping(raw: object) -> dict[str, object]:
    if not isinstance(raw, dict):
        raise ValueError("an object is missing")
    return raw


def is_name(text: str) -> bool:
    """Whether a header can hold this as a name of a guest or a disk."""
    return 0 < len(text) <= 1024 and text.isprintable()


def _text(raw: object) -> str:
    if not isinstance(raw, str) or not is_name(raw):
        raise ValueError("a text is missing, too long or not printable")
    return raw


def _identifier(raw: object) -> str:
    if not isinstance(raw, str) or not _IDENTIFIER.fullmatch(raw):
        raise ValueError("an id is not 8 to 40 lower-case hexadecimal digits")
    return raw


def _names(raw: object) -> tuple[str, ...]:
    if not isinstance(raw, list) or not 0 < len(raw) <= 4096:
        raise ValueError("a list of names is missing or too long")
    return tuple(_text(name) for name in raw)


def _number(raw: object, low: int, high: int) -> int:
    if not isinstance(raw, int) or isinstance(raw, bool) or not low <= raw <= high:
        raise ValueError("a number is missing or out of its range")
    return raw
