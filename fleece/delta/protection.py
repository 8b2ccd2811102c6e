"""The KEY frame, and the sealing of all frames behind it (docs/internals/format.rst, "Keys").

A delta of a keyed chain begins with a KEY frame: it says how the key is derived. An encrypted one
holds its frames, the zstd frames too, each inside a skippable frame of its own, by AES-256-GCM.
"""

from __future__ import annotations

import enum
import secrets
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from fleece.delta.layout import ENVELOPE, SKIPPABLE_MAGIC, Tag, seal, unseal
from fleece.errors import DeltaError
from fleece.hashing import XXH3_128
from fleece.keys import ID_SIZE, LEAST_COST, MOST_COST, SALT_SIZE, Derivation, Key, KeyTerms

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

SEALED_MAGIC = 0x184D2A5E
"""The zstd skippable magic of a sealed frame."""

CIPHER = "aes-256-gcm"
"""The only cipher so far."""

_GREETING = b"fleece key v1\n\0\0"
_FIXED = struct.Struct(f"<16sHBBB3s{SALT_SIZE}s{ID_SIZE}s32s")
KEY_FRAME_SIZE = ENVELOPE.size + _FIXED.size + XXH3_128.size
_OUTER = struct.Struct("<II12s")
_TAG_SIZE = 16
_FILE_SALT_SIZE = 32


class _Flags(enum.IntFlag):
    KEYED = 1
    ENCRYPTED = 2


@dataclass(frozen=True)
class Protection:
    """What a key is used for, in all deltas of a store alike.

    Attributes:
        key: of the store.
        keyed: hashes are made with it.
        encrypted: frames are sealed with it.
    """

    key: Key
    keyed: bool
    encrypted: bool


class Frames(Protocol):
    """How frames stand in a file: as they are, or sealed."""

    overhead: int
    """Bytes that each frame takes more in the file than by itself."""

    magic: bytes
    """The first four bytes of each."""

    def is_frame(self, tag: Tag, first: bytes) -> bool:
        """Whether a stored frame of this kind may begin with these `ENVELOPE.size` bytes."""

    def seal(self, tag: Tag, frame: bytes) -> bytes:
        """A frame as it is stored."""

    def open(self, tag: Tag, stored: bytes, where: object) -> bytes:
        """A stored frame as it was.

        Raises:
            DeltaError: it was altered, or is another one.
        """


class BareFrames:
    """Frames stored as they are."""

    overhead = 0
    magic = struct.pack("<I", SKIPPABLE_MAGIC)

    def is_frame(self, tag: Tag, first: bytes) -> bool:
        """Whether it bears the magic and the tag."""
        return first[:4] == self.magic and first[8 : ENVELOPE.size] == tag

    def seal(self, tag: Tag, frame: bytes) -> bytes:
        """The frame itself."""
        return frame

    def open(self, tag: Tag, stored: bytes, where: object) -> bytes:
        """The frame itself."""
        return stored


class SealedFrames:
    """Frames encrypted and authenticated, by a key of this file alone.

    Nonces are random: 96 bits for at most 2^32 frames of a key (NIST SP 800-38D, 8.3).
    """

    overhead = _OUTER.size + _TAG_SIZE
    magic = struct.pack("<I", SEALED_MAGIC)

    def __init__(self, file_key: bytes) -> None:
        self._file_key = file_key

    @cached_property
    def _cipher(self) -> AESGCM:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        return AESGCM(self._file_key)

    def is_frame(self, tag: Tag, first: bytes) -> bool:
        """Whether it is a sealed frame at all."""
        return first[:4] == self.magic

    def seal(self, tag: Tag, frame: bytes) -> bytes:
        """The frame in a skippable frame: nonce, ciphertext, authentication tag."""
        nonce = secrets.token_bytes(12)
        outer = _OUTER.pack(SEALED_MAGIC, self.overhead - 8 + len(frame), nonce)
        return outer + self._cipher.encrypt(nonce, frame, tag.value)

    def open(self, tag: Tag, stored: bytes, where: object) -> bytes:
        """The frame, authentic and of this kind."""
        from cryptography.exceptions import InvalidTag

        if len(stored) < self.overhead:
            raise DeltaError(f"cut inside a {tag.name} frame", where=where)
        magic, length, nonce = _OUTER.unpack_from(stored)
        if magic != SEALED_MAGIC or length + 8 != len(stored):
            raise DeltaError(f"no sealed {tag.name} frame where one must be", where=where)
        try:
            return self._cipher.decrypt(nonce, stored[_OUTER.size :], tag.value)
        except InvalidTag:
            raise DeltaError(f"a sealed {tag.name} frame was altered", where=where) from None


def begin(protection: Protection | None) -> tuple[bytes, Frames]:
    """The KEY frame of a new file (nothing without protection), and how its frames are stored."""
    if protection is None:
        return b"", BareFrames()
    terms = protection.key.terms
    flags = protection.keyed * _Flags.KEYED | protection.encrypted * _Flags.ENCRYPTED
    salt = secrets.token_bytes(_FILE_SALT_SIZE) if protection.encrypted else bytes(_FILE_SALT_SIZE)
    body = _FIXED.pack(
        _GREETING, 1, flags, terms.derivation, terms.cost, b"", terms.salt, terms.id, salt
    )
    frame = seal(Tag.KEY, body, XXH3_128)
    return frame, _frames(protection, salt, frame)


def _frames(protection: Protection, salt: bytes, frame: bytes) -> Frames:
    if not protection.encrypted:
        return BareFrames()
    return SealedFrames(protection.key.of_file(salt, frame))


@dataclass(frozen=True)
class KeyFrame:
    """What a KEY frame says.

    Attributes:
        terms: how the key is derived.
        keyed, encrypted: as in `Protection`.
        file_salt: of this file's own key.
        frame: all of its bytes.
    """

    terms: KeyTerms
    keyed: bool
    encrypted: bool
    file_salt: bytes
    frame: bytes

    def protected_by(self, key: Key) -> tuple[Protection, Frames]:
        """The protection by the key of these terms, and how this file's frames are stored."""
        protection = Protection(key, self.keyed, self.encrypted)
        return protection, _frames(protection, self.file_salt, self.frame)


def is_key_frame(first: bytes) -> bool:
    """Whether the first `ENVELOPE.size` bytes of a file begin a KEY frame."""
    return BareFrames().is_frame(Tag.KEY, first)


def parse(frame: bytes, where: object) -> KeyFrame:
    """The content of a KEY frame.

    Raises:
        DeltaError: damaged, or of a version or with a flag that this program does not know.
    """
    body = unseal(frame, Tag.KEY, XXH3_128, where)
    greeting, version, flags, derivation, cost, blank, salt, identity, file_salt = _FIXED.unpack(
        body
    )
    known = flags in (_Flags.KEYED, _Flags.ENCRYPTED, _Flags.KEYED | _Flags.ENCRYPTED)
    if greeting != _GREETING or version != 1 or not known or derivation not in list(Derivation):
        raise DeltaError(
            f"is protected in a way that this version does not know (version {version}, "
            f"flags {flags:#x}, derivation {derivation})",
            where=where,
            hint="a newer fleece may read it",
        )
    encrypted = bool(flags & _Flags.ENCRYPTED)
    sane = LEAST_COST <= cost <= MOST_COST if derivation == Derivation.PASSPHRASE else cost == 0
    if not sane or any(blank) or any(file_salt) != encrypted:
        raise DeltaError("the KEY frame is not valid", where=where)
    terms = KeyTerms(Derivation(derivation), cost, salt, identity)
    return KeyFrame(terms, bool(flags & _Flags.KEYED), encrypted, file_salt, frame)
