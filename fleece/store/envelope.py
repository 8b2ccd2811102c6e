"""What notes in a store are written as: proven by its key if it has one, hidden if it is encrypted.

A note beside the deltas is no delta, and does not prove itself. Whoever can write into the store
can take a note away, or put one back that was there before; with a key, nobody else makes one.
"""

from __future__ import annotations

import hmac
import secrets

from fleece.delta.protection import Protection

OVERHEAD = 66
"""Bytes that a note takes more in its file than by itself, at most."""

_NONCE_SIZE = 12
_TAIL = 65
"""Bytes of a MAC in hexadecimal digits and its line end."""


def wrap(protection: Protection | None, kind: str, text: str) -> bytes:
    """A note as it is written.

    Args:
        protection: of the store.
        kind: of the note, so that one of another kind is not taken for it.
        text: the note, without a line end.
    """
    line = text.encode() + b"\n"
    if protection is None:
        return line
    key = protection.key.of_notes
    if not protection.encrypted:
        return line + _mac(key, kind, line)
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nonce = secrets.token_bytes(_NONCE_SIZE)
    return nonce + AESGCM(key).encrypt(nonce, line, kind.encode())


def unwrap(protection: Protection | None, kind: str, raw: bytes) -> str | None:
    """A note as it was; None: it was altered, or not made with the store's key."""
    if protection is None:
        return raw.decode(errors="replace").removesuffix("\n")
    key = protection.key.of_notes
    if not protection.encrypted:
        line, said = raw[:-_TAIL], raw[-_TAIL:]
        known = hmac.compare_digest(said, _mac(key, kind, line))
        return line.decode(errors="replace").removesuffix("\n") if known else None
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        line = AESGCM(key).decrypt(raw[:_NONCE_SIZE], raw[_NONCE_SIZE:], kind.encode())
    except (InvalidTag, ValueError):  # the latter of one that is too short
        return None
    return line.decode(errors="replace").removesuffix("\n")


def _mac(key: bytes, kind: str, line: bytes) -> bytes:
    return hmac.digest(key, kind.encode() + b"\0" + line, "sha256").hex().encode() + b"\n"
