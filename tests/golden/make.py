"""Make the golden files of format version 1. Run once; later versions must read what it made.

    python -m tests.golden.make FOLDER

Each file is one `Case`: a disk, what of it is in the delta, and what the delta builds on.
`full.fleece` is the one that docs/internals/format.rst shows byte by byte.
"""

from __future__ import annotations

import contextlib
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import zstandard

from fleece.delta.chain import Chain
from fleece.delta.header import Header, Mode, ParentRef, PointRef
from fleece.delta.identity import GuestIdentity
from fleece.delta.part import PartKind
from fleece.delta.protection import Protection
from fleece.delta.reader import DeltaReader
from fleece.delta.writer import DeltaWriter
from fleece.hashing import BLAKE3, XXH3_128, HashAlgorithm, keyed_blake3
from fleece.keys import Derivation, Key, KeyTerms, Secret
from fleece.store.loose import open_delta
from fleece.tree import LEAF_SIZE, BlankDisk, leaf_hashes

PATTERN_A = b"The quick brown fox jumps over the lazy dog.\n"
PATTERN_B = b"Pack my box with five dozen liquor jugs.\n"


def text(pattern: bytes, length: int) -> bytes:
    """A pattern repeated to a length."""
    return (pattern * (length // len(pattern) + 1))[:length]


FULL_DISK = text(PATTERN_A, LEAF_SIZE) + bytes(LEAF_SIZE) + text(PATTERN_B, 512)
CHILD_DISK = bytes(LEAF_SIZE) + text(PATTERN_B, LEAF_SIZE) + FULL_DISK[2 * LEAF_SIZE :]
THIRD_DISK = CHILD_DISK[: 2 * LEAF_SIZE] + text(PATTERN_A, 512)
LONE_DISK = text(PATTERN_A, 777)

KEY_FILE = Secret(Derivation.KEY_FILE, bytes(range(32)))
PASSPHRASE = Secret.of_passphrase("correct horse battery staple")
_SALT = bytes(range(16, 32))


def _key(secret: Secret, cost: int, identity: str) -> Key:
    terms = KeyTerms(secret.derivation, cost, _SALT, bytes.fromhex(identity))
    return secret.key(terms, "golden")


def file_key() -> Key:
    """The golden key of a key file. Its id is written down, so the derivation cannot drift."""
    return _key(KEY_FILE, 0, "8969d66ece2ac3dba7cf3705ebdaa5ff")


def phrase_key() -> Key:
    """The golden key of a passphrase."""
    return _key(PASSPHRASE, 14, "6cad8fd79a5211816195659c4b77f426")


@dataclass(frozen=True)
class Case:
    """One golden file.

    Attributes:
        name: of the file, without its ending.
        disk: the whole disk at the point.
        data: offset and length of each data record.
        zeros: offset and length of zeros.
        parent: name of the case that it builds on.
        secret: what opens it.
        purposes: keyed, encrypted.
        algorithm: if it is not keyed.
        identity: of the guest.
        part: what of the machine it is; None: a disk.
        parts: of the point.
    """

    name: str
    disk: bytes = field(repr=False)
    data: Mapping[int, int]
    zeros: tuple[int, int] | None = None
    parent: str | None = None
    secret: Secret | None = None
    purposes: tuple[bool, bool] = (False, False)
    algorithm: HashAlgorithm = XXH3_128
    identity: GuestIdentity | None = None
    part: PartKind | None = None
    parts: tuple[PartKind, ...] = ()

    @property
    def protection(self) -> Protection | None:
        """By the golden key of its secret."""
        if self.secret is None:
            return None
        key = file_key() if self.secret is KEY_FILE else phrase_key()
        return Protection(key, *self.purposes)

    def header(self, number: int, parent: DeltaReader | None) -> Header:
        """The header; the same case has the same header each time."""
        protection = self.protection
        keyed = protection is not None and protection.keyed
        algorithm = keyed_blake3(protection.key.of_hashes) if protection and keyed else None
        return Header(
            file_id=uuid.UUID(int=number),
            chain="c0ffee00",
            guest="golden",
            disk="vda" if self.part is None else self.part.own_name,
            size=len(self.disk),
            point=PointRef(f"{number:010x}", number, "2026-11-23T00:00:00Z"),
            parent=None if parent is None else _reference(parent),
            mode=Mode.FULL if parent is None else Mode.INCREMENTAL,
            disks=("vda",),
            level=1,
            granularity=None if parent is None else LEAF_SIZE,
            producer={"fleece": "0.1.0"},
            algorithm=algorithm or self.algorithm,
            identity=self.identity,
            part=self.part,
            parts=tuple(part.own_name for part in self.parts),
        )


def _reference(parent: DeltaReader) -> ParentRef:
    head = parent.header
    return ParentRef(head.point.id, parent.footer.root.hex(), head.size)


_WHOLE = {0: LEAF_SIZE, 2 * LEAF_SIZE: 512}
_HOLE = (LEAF_SIZE, LEAF_SIZE)
_CHANGED = {LEAF_SIZE: LEAF_SIZE}
_GONE = (0, LEAF_SIZE)
_PARTS = (PartKind.LIBVIRT_XML, PartKind.NVRAM)

CASES = (
    # The disk has 2 leaves and a tail of 512 bytes; the second leaf is zeros.
    Case("full", FULL_DISK, _WHOLE, _HOLE),
    # The first leaf becomes zeros, the second data.
    Case("child", CHILD_DISK, _CHANGED, _GONE, parent="full"),
    # The tail changes.
    Case("third", THIRD_DISK, {2 * LEAF_SIZE: 512}, parent="child"),
    # Nothing changes.
    Case("empty", THIRD_DISK, {}, parent="third"),
    # A disk of a part of one leaf: its leaf is the top of the tree.
    Case("lone", LONE_DISK, {0: 777}),
    # No byte at all, and nothing but zeros.
    Case("nothing", b"", {}),
    Case("zeros", bytes(1 << 24), {}, (0, 1 << 24)),
    Case(
        "blake3-keyed-sealed",
        FULL_DISK,
        _WHOLE,
        _HOLE,
        secret=KEY_FILE,
        purposes=(True, True),
    ),
    Case("blake3", FULL_DISK, _WHOLE, _HOLE, algorithm=BLAKE3),
    Case("blake3-child", CHILD_DISK, _CHANGED, _GONE, parent="blake3", algorithm=BLAKE3),
    Case("blake3-keyed", FULL_DISK, _WHOLE, _HOLE, secret=KEY_FILE, purposes=(True, False)),
    Case("sealed", FULL_DISK, _WHOLE, _HOLE, secret=PASSPHRASE, purposes=(False, True)),
    Case(
        "sealed-child",
        CHILD_DISK,
        _CHANGED,
        _GONE,
        parent="sealed",
        secret=PASSPHRASE,
        purposes=(False, True),
    ),
    # The guest's identity: its name, then its UUID as well.
    Case("named", FULL_DISK, _WHOLE, _HOLE, identity=GuestIdentity(None, "golden-guest")),
    Case(
        "identified",
        CHILD_DISK,
        _CHANGED,
        _GONE,
        parent="named",
        identity=GuestIdentity("f1eece00-0000-4000-8000-000000000001", "golden-guest"),
    ),
    # A disk of a point with parts of the machine, and its parts; then one that changed.
    Case("with-parts", FULL_DISK, _WHOLE, _HOLE, parts=_PARTS),
    Case("definition", LONE_DISK, {0: 777}, part=PartKind.LIBVIRT_XML, parts=_PARTS),
    Case("variables", FULL_DISK, _WHOLE, _HOLE, part=PartKind.NVRAM, parts=_PARTS),
    Case(
        "variables-child",
        CHILD_DISK,
        _CHANGED,
        _GONE,
        parent="variables",
        part=PartKind.NVRAM,
        parts=_PARTS,
    ),
)


def line(name: str) -> list[Case]:
    """A case and all that it builds on, newest first."""
    (case,) = (known for known in CASES if known.name == name)
    return [case] + ([] if case.parent is None else line(case.parent))


def opened(folder: Path, name: str, stack: contextlib.ExitStack) -> Chain:
    """The chain of a case's file and those that it builds on."""
    return Chain(
        [
            stack.enter_context(open_delta(folder / f"{case.name}.fleece", case.secret))
            for case in line(name)
        ]
    )


def main(folder: Path) -> None:
    """Write the golden files."""
    compressor = zstandard.ZstdCompressor(level=1, write_checksum=True, write_content_size=True)
    for number, case in enumerate(CASES, 1):
        with contextlib.ExitStack() as stack:
            base = None if case.parent is None else opened(folder, case.parent, stack)
            head = case.header(number, None if base is None else base.deltas[0])
            file = stack.enter_context(open(folder / f"{case.name}.fleece", "wb"))
            blank = BlankDisk(head.geometry)
            writer = DeltaWriter(file, head, base or blank, case.protection)
            for offset, length in case.data.items():
                run = case.disk[offset : offset + length]
                hashes = leaf_hashes(run, head.geometry)
                writer.data(offset, length, hashes, compressor.compress(run))
            if case.zeros is not None:
                writer.zero(*case.zeros)
            writer.finish()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
