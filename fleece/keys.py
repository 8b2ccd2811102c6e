"""Secrets, and the keys that are derived from them (docs/internals/format.rst, "Keys").

A secret is what the user keeps: a key file or a passphrase. A key belongs to one store; what it is
derived by (its terms) is no secret and stands in the store's marker and in every delta.
"""

from __future__ import annotations

import contextlib
import enum
import importlib
import os
import secrets
import select
from dataclasses import dataclass, field
from functools import cached_property

from fleece.cancel import CancelToken
from fleece.errors import UsageError, WrongKey

KEY_SIZE = 32
"""Bytes of every key."""

SALT_SIZE = 16
ID_SIZE = 16

LEAST_COST, DEFAULT_COST, MOST_COST = 14, 16, 18
"""Bounds of scrypt's cost, the logarithm of N: 2^cost KiB of memory. 16 takes 64 MiB."""

_LONGEST_SECRET = 1 << 20

PipedSecret = tuple[int, str, list[tuple[int, str, str]]]
"""A secret as JSON takes it: derivation, content, keys that are derived already."""


class Derivation(enum.IntEnum):
    """How a key is made of a secret."""

    KEY_FILE = 1
    PASSPHRASE = 2


@dataclass(frozen=True)
class KeyTerms:
    """What a key is derived by, all of it public.

    Attributes:
        derivation: from a key file or a passphrase.
        cost: of scrypt for a passphrase; 0 for a key file.
        salt: `SALT_SIZE` random bytes, one for each store.
        id: tells whether a secret is the right one; says nothing else about it.
    """

    derivation: Derivation
    cost: int
    salt: bytes
    id: bytes


@dataclass(frozen=True)
class Key:
    """The key of one store; every use has a key of its own, derived from it.

    Attributes:
        terms: how to derive it again.
        master: never used itself.
    """

    terms: KeyTerms
    master: bytes = field(repr=False, compare=False)

    @cached_property
    def of_hashes(self) -> bytes:
        """The key of keyed hashes."""
        return _expand(self.master, b"", b"fleece hashes")

    @cached_property
    def of_names(self) -> bytes:
        """The key that hides names in the store's folder."""
        return _expand(self.master, b"", b"fleece names")

    @cached_property
    def of_marker(self) -> bytes:
        """The key that proves the store's marker."""
        return _expand(self.master, b"", b"fleece marker")

    @cached_property
    def of_notes(self) -> bytes:
        """The key that proves or hides what is noted beside the deltas."""
        return _expand(self.master, b"", b"fleece notes")

    def of_file(self, salt: bytes, described: bytes) -> bytes:
        """The key that encrypts the frames of one file.

        Args:
            salt: random, of this file alone.
            described: the file's KEY frame, so that none of it can be altered.
        """
        return _expand(self.master, salt, b"fleece frames" + described)


_CIPHERS = (
    "blake3",
    "cryptography.exceptions",
    "cryptography.hazmat.primitives.ciphers.aead",
    "cryptography.hazmat.primitives.hashes",
    "cryptography.hazmat.primitives.kdf.hkdf",
    "cryptography.hazmat.primitives.kdf.scrypt",
)


class Secret:
    """A key file's content or a passphrase.

    Args:
        derivation: which of the two.
        content: its bytes.

    Raises:
        UsageError: it is too short to be a secret, or too long to be meant.
    """

    def __init__(self, derivation: Derivation, content: bytes) -> None:
        least = KEY_SIZE if derivation is Derivation.KEY_FILE else 1
        if not least <= len(content) <= _LONGEST_SECRET:
            raise UsageError(
                f"a secret of {len(content)} bytes: at least {least} are needed, and not over 1 MiB"
            )
        _load_ciphers()
        self.derivation = derivation
        self._content = content
        self._masters: dict[tuple[int, bytes], bytes] = {}

    @classmethod
    def of_key_file(cls, path: str | os.PathLike[str], cancel: CancelToken | None = None) -> Secret:
        """The content of a key file, at least 32 bytes: `head -c 32 /dev/urandom` makes one.

        Args:
            path: of a file, or of a pipe, which is waited for.
            cancel: ends the waiting.
        """
        return cls._read(Derivation.KEY_FILE, path, cancel)

    @classmethod
    def of_passphrase_file(
        cls, path: str | os.PathLike[str], cancel: CancelToken | None = None
    ) -> Secret:
        """The passphrase that is a file's first line.

        Args:
            path: of a file, or of a pipe, which is waited for and read to its end.
            cancel: ends the waiting.
        """
        return cls._read(Derivation.PASSPHRASE, path, cancel)

    @classmethod
    def of_passphrase(cls, text: str | bytes) -> Secret:
        """A passphrase: its bytes, or a text, which stands for those of UTF-8.

        Raises:
            UsageError: it has no bytes.
        """
        try:
            content = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            # The error holds the whole text, and would be shown with what follows from it.
            raise UsageError("a passphrase has a character that UTF-8 does not have") from None
        return cls(Derivation.PASSPHRASE, content)

    @classmethod
    def _read(
        cls, derivation: Derivation, path: str | os.PathLike[str], cancel: CancelToken | None
    ) -> Secret:
        try:
            content = _content(path, cancel or CancelToken())
        except OSError as error:
            raise UsageError(f"cannot be read ({error.strerror})", where=path) from error
        if derivation is Derivation.PASSPHRASE:
            content = content.partition(b"\n")[0].removesuffix(b"\r")
        try:
            return cls(derivation, content)
        except UsageError as error:
            raise UsageError(error.what, where=path) from error

    def to_pipe(self) -> PipedSecret:
        """All of it, in the clear: for a process of one's own, through a pipe and nothing else.

        The keys that were derived already go along: to stretch a passphrase takes its time.
        """
        known = [(cost, salt.hex(), key.hex()) for (cost, salt), key in self._masters.items()]
        return self.derivation.value, self._content.hex(), known

    @classmethod
    def of_pipe(cls, derivation: int, content: str, known: list[tuple[int, str, str]]) -> Secret:
        """What `to_pipe` gave."""
        made = cls(Derivation(derivation), bytes.fromhex(content))
        made._masters = {
            (cost, bytes.fromhex(salt)): bytes.fromhex(key) for cost, salt, key in known
        }
        return made

    def new_key(self) -> Key:
        """A key for a new store, under a salt of its own."""
        cost = DEFAULT_COST if self.derivation is Derivation.PASSPHRASE else 0
        salt = secrets.token_bytes(SALT_SIZE)
        master = self._master(cost, salt)
        return Key(KeyTerms(self.derivation, cost, salt, _identity(master)), master)

    def key(self, terms: KeyTerms, where: object) -> Key:
        """The key of these terms.

        Raises:
            WrongKey: this secret is not the one that they were made with.
        """
        master = b""
        if terms.derivation is self.derivation:
            master = self._master(terms.cost, terms.salt)
        if not master or not secrets.compare_digest(_identity(master), terms.id):
            kinds = {Derivation.KEY_FILE: "a key file", Derivation.PASSPHRASE: "a passphrase"}
            raise WrongKey(
                "this is not the key that it was made with",
                where=where,
                hint=f"it was made with {kinds[terms.derivation]}",
            )
        return Key(terms, master)

    def _master(self, cost: int, salt: bytes) -> bytes:
        if (cost, salt) not in self._masters:
            if self.derivation is Derivation.KEY_FILE:
                master = _expand(self._content, salt, b"fleece key file")
            else:
                from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

                stretch = Scrypt(salt=salt, length=KEY_SIZE, n=1 << cost, r=8, p=1)
                master = stretch.derive(self._content)
            self._masters[cost, salt] = master
        return self._masters[cost, salt]


def _content(path: str | os.PathLike[str], cancel: CancelToken) -> bytes:
    """What a file or pipe holds, and no more of it than shows that it is too long."""
    # A pipe that nobody has opened for writing would hold up the opening itself.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        content = bytearray()
        while (room := _LONGEST_SECRET + 1 - len(content)) > 0:
            cancel.wait(descriptor, select.POLLIN)
            with contextlib.suppress(BlockingIOError):
                part = os.read(descriptor, room)
                if not part:
                    break
                content += part
        return bytes(content)
    finally:
        os.close(descriptor)


def _load_ciphers() -> None:
    """Load all that keys need later on: once something is underway, files may have run out."""
    for name in _CIPHERS:
        importlib.import_module(name)


def _identity(master: bytes) -> bytes:
    return _expand(master, b"", b"fleece key id")[:ID_SIZE]


def _expand(secret: bytes, salt: bytes, purpose: bytes) -> bytes:
    """HKDF with SHA-256 (RFC 5869)."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(SHA256(), KEY_SIZE, salt or None, purpose).derive(secret)


def need_key(where: object) -> WrongKey:
    """The error for what cannot be read without a key."""
    return WrongKey(
        "is protected by a key", where=where, hint="give it with --key-file or --passphrase-file"
    )
