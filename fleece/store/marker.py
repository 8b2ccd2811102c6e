"""The marker that makes a folder a store: its id, its hash, and what it is protected by.

That of a store with a key proves itself by a MAC (docs/internals/format.rst, "The marker of a
store"): with the key given, no byte of a guest goes into a store whose marker was altered.
"""

from __future__ import annotations

import enum
import hmac
import json
import uuid
from dataclasses import dataclass, field
from typing import NoReturn

from fleece.delta.protection import CIPHER, Protection
from fleece.errors import StoreError, UsageError
from fleece.folder import PRIVATE_FILE
from fleece.hashing import BLAKE3, XXH3_128, HashAlgorithm, by_name, keyed_blake3
from fleece.keys import (
    ID_SIZE,
    LEAST_COST,
    MOST_COST,
    SALT_SIZE,
    Derivation,
    Key,
    KeyTerms,
    Secret,
    need_key,
)
from fleece.store.backend import Site

_FORMAT = "fleece store"
_VERSION = 1
_LOCKING = 2
"""Version of a marker that names days of locks: a reader that knows none must not write there."""
_MOST_DAYS = 36_500
_KEYED = "blake3-keyed"
_MAC_SIZE = 32
_MODES = (PRIVATE_FILE, 0o640, 0o660, 0o644, 0o664)
"""Permissions that files of a store can have: nobody but its owner and its group ever writes."""


class HashChoice(enum.StrEnum):
    """The hash of a store's deltas. With a key, BLAKE3 is used in its keyed mode."""

    XXH3_128 = "xxh3-128"
    BLAKE3 = "blake3"


@dataclass(frozen=True)
class StoreWishes:
    """How a new store shall be made.

    Attributes:
        hash: None: xxh3-128.
        encrypt: its deltas are encrypted; needs a secret.
        mode: permissions of its files: the owner reads and writes; group and others may read, the
            group may write. Its folders can be entered by whoever may read. A folder's mode
            (0750) stands for that of its files (0640).
        site: how its place shall be made.
    """

    hash: HashChoice | None = None
    encrypt: bool = False
    mode: int = PRIVATE_FILE
    site: Site = field(default_factory=Site)


@dataclass(frozen=True)
class Marker:
    """What a store's marker says.

    Attributes:
        id: of the store.
        hash: the algorithm's name in the deltas' headers.
        encrypted: deltas are encrypted.
        terms: of the store's key; None: it has none.
        mode: permissions of the store's files.
        lock_days: for which points are kept from everybody; None: they are not.
        said: all that it says but the MAC, in the form that the MAC is made of; empty: it was not
            read from a store.
        mac: proves it; None: it has none.
    """

    id: str
    hash: str
    encrypted: bool
    terms: KeyTerms | None
    mode: int = PRIVATE_FILE
    lock_days: int | None = None
    said: bytes = field(default=b"", repr=False, compare=False)
    mac: bytes | None = field(default=None, repr=False, compare=False)

    @property
    def folder_mode(self) -> int:
        """Permissions of the store's folders."""
        return _folder_mode(self.mode)

    @staticmethod
    def new(wishes: StoreWishes, secret: Secret | None) -> Marker:
        """The marker of a new store.

        Raises:
            UsageError: the wishes and the secret do not fit together.
        """
        days = _days_of(wishes.site)
        name, mode = (wishes.hash or HashChoice.XXH3_128).value, _file_mode(wishes.mode)
        if secret is None:
            if wishes.encrypt:
                raise UsageError("encryption needs a key", hint="--key-file or --passphrase-file")
            return Marker(uuid.uuid4().hex, name, False, None, mode, days)
        if name == BLAKE3.name:
            name = _KEYED
        elif not wishes.encrypt:
            raise UsageError(
                f"a key has no effect: {name} takes none", hint="--encrypt, or --hash blake3"
            )
        return Marker(uuid.uuid4().hex, name, wishes.encrypt, secret.new_key().terms, mode, days)

    @staticmethod
    def like(algorithm: str, protection: Protection | None, wishes: StoreWishes) -> Marker:
        """The marker of a new store that deltas of this hash and protection can live in.

        Raises:
            UsageError: the mode is none that files of a store can have, or so are the days.
        """
        mode, days = _file_mode(wishes.mode), _days_of(wishes.site)
        encrypted = protection is not None and protection.encrypted
        terms = None if protection is None else protection.key.terms
        return Marker(uuid.uuid4().hex, algorithm, encrypted, terms, mode, days)

    def protection(self, secret: Secret | None, where: str) -> Protection | None:
        """What the store's deltas are protected by.

        Raises:
            WrongKey: the store has a key and the secret is not its, or none was given.
            UsageError: the store has no key.
            StoreError: the marker does not prove that it was made with the key.
        """
        if self.terms is None:
            if secret is not None:
                raise UsageError(
                    "a key was given, but this store has none: nothing in it is protected",
                    where=where,
                    hint="a key is chosen when a store is made, by 'fleece init'",
                )
            return None
        if secret is None:
            raise need_key(where)
        key = secret.key(self.terms, where)
        if self.mac is None or not hmac.compare_digest(self.mac, _mac(key, self.said)):
            raise StoreError(
                "the store's marker does not prove that it was made with this key: it was altered"
                if self.mac is not None
                else "the store's marker lacks the MAC that proves it: it was altered",
                where=where,
                hint="put back a copy of it that you trust (docs/troubleshooting.rst)",
            )
        return Protection(key, self.hash == _KEYED, self.encrypted)

    def algorithm(self, protection: Protection | None) -> HashAlgorithm:
        """The hash of the store's deltas."""
        if protection is not None and protection.keyed:
            return keyed_blake3(protection.key.of_hashes)
        return by_name(self.hash) or XXH3_128

    def to_text(self, secret: Secret | None) -> str:
        """The marker's JSON.

        Raises:
            WrongKey: the secret is not the one that the store's key is made of.
        """
        raw: dict[str, object] = {
            "format": _FORMAT,
            "version": _VERSION if self.lock_days is None else _LOCKING,
            "id": self.id,
            "hash": self.hash,
            "encryption": CIPHER if self.encrypted else None,
        }
        if self.mode != PRIVATE_FILE:
            raw["mode"] = _mode_text(self.mode)
        if self.lock_days is not None:
            raw["lock_days"] = self.lock_days
        if self.terms is not None:
            raw["key"] = {
                "derivation": self.terms.derivation.name.lower(),
                "cost": self.terms.cost,
                "salt": self.terms.salt.hex(),
                "id": self.terms.id.hex(),
            }
            if secret is None:
                raise need_key(self.id)
            raw["mac"] = _mac(secret.key(self.terms, self.id), _canonical(raw)).hex()
        return json.dumps(raw) + "\n"

    @staticmethod
    def of_text(text: str) -> Marker:
        """The marker in a JSON text; one without hash and key is of the first stores.

        Raises:
            ValueError: it is none of this version.
        """
        raw = json.loads(
            text, object_pairs_hook=_object, parse_float=_no_number, parse_constant=_no_number
        )
        if not isinstance(raw, dict) or not _is_version(raw):
            raise ValueError(f"not a marker of a store of version {_VERSION} or {_LOCKING}")
        name, cipher = raw.get("hash", XXH3_128.name), raw.get("encryption")
        terms = None if raw.get("key") is None else _terms(raw["key"])
        known = name in (XXH3_128.name, BLAKE3.name) or (name == _KEYED and terms is not None)
        identity = _hex(raw.get("id"), ID_SIZE).hex()
        if not known or cipher not in (None, CIPHER) or (cipher is not None and terms is None):
            raise ValueError("a hash or a cipher that this version does not know")
        modes = {_mode_text(known): known for known in _MODES}
        text = raw.get("mode", _mode_text(PRIVATE_FILE))
        if not isinstance(text, str) or text not in modes:
            raise ValueError("a mode that files of a store cannot have")
        mac = None if raw.get("mac") is None else _hex(raw["mac"], _MAC_SIZE)
        if terms is None and "mac" in raw:
            raise ValueError("a MAC, but no key")
        days = raw.get("lock_days")
        if (days is None) is not (raw["version"] == _VERSION) or not _are_days(days):
            raise ValueError("its days of locks are not valid")
        said = _canonical(raw)
        return Marker(identity, name, cipher is not None, terms, modes[text], days, said, mac)


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object, each of whose names is there once: else readers could differ over it."""
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name is there twice")
    return made


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a whole number")


def _is_version(raw: dict[str, object]) -> bool:
    version = raw.get("version")  # True is equal to 1
    return raw.get("format") == _FORMAT and type(version) is int and version in (_VERSION, _LOCKING)


def _are_days(days: object) -> bool:
    """Whether it is a number of days for which points can be locked, or none."""
    return days is None or (type(days) is int and 1 <= days <= _MOST_DAYS)


def _days_of(site: Site) -> int | None:
    if not _are_days(site.lock_days):
        raise UsageError(f"points cannot be locked for {site.lock_days} days (1 to {_MOST_DAYS})")
    return site.lock_days


def _canonical(raw: dict[str, object]) -> bytes:
    """What the MAC is made of: everything but itself."""
    said = {name: value for name, value in raw.items() if name != "mac"}
    return json.dumps(said, sort_keys=True, separators=(",", ":")).encode("ascii")


def _mac(key: Key, said: bytes) -> bytes:
    return hmac.digest(key.of_marker, said, "sha256")


def _hex(text: object, size: int) -> bytes:
    """Bytes that are written as lower-case hexadecimal digits."""
    made = bytes.fromhex(text) if isinstance(text, str) else b""
    if len(made) != size or made.hex() != text:
        raise ValueError(f"not {size} bytes in hexadecimal digits")
    return made


def _file_mode(mode: int) -> int:
    files = next((known for known in _MODES if mode in (known, _folder_mode(known))), None)
    if files is None:
        raise UsageError(
            f"files of a store cannot have the mode {mode:04o}",
            hint=f"one of {', '.join(_mode_text(known) for known in _MODES)}",
        )
    return files


def _folder_mode(files: int) -> int:
    return files | (files & 0o444) >> 2


def _mode_text(mode: int) -> str:
    return f"{mode:04o}"


def _terms(raw: object) -> KeyTerms:
    if not isinstance(raw, dict):
        raise ValueError("its key is not valid")
    try:
        derivation = Derivation[str(raw["derivation"]).upper()]
        cost = raw["cost"]
        salt, identity = _hex(raw["salt"], SALT_SIZE), _hex(raw["id"], ID_SIZE)
    except KeyError as error:
        raise ValueError(f"its key is not valid ({error})") from error
    costs = range(LEAST_COST, MOST_COST + 1) if derivation is Derivation.PASSPHRASE else (0,)
    if type(cost) is not int or cost not in costs:
        raise ValueError(f"its key is not valid (cost {cost})")
    return KeyTerms(derivation, cost, salt, identity)
