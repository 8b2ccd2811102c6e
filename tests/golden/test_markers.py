"""Markers as they were once made: each opens its store, and its MAC is as the format says."""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path

import pytest

import fleece
from fleece.store.marker import Marker
from fleece.store.names import MARKER
from tests.golden.make import KEY_FILE, PASSPHRASE

_HERE = Path(__file__).parent / "markers"
_SECRETS = {
    "first": None,
    "plain": None,
    "shared": None,
    "blake3": None,
    "keyed": KEY_FILE,
    "sealed": KEY_FILE,
    "sealed-shared": KEY_FILE,
    "passphrase": PASSPHRASE,
}


def _store(name: str, folder: Path) -> Path:
    (folder / MARKER).write_bytes((_HERE / f"{name}.json").read_bytes())
    return folder


@pytest.mark.parametrize(("name", "secret"), _SECRETS.items(), ids=_SECRETS)
def test_a_marker_opens_its_store(name: str, secret: fleece.Secret | None, tmp_path: Path) -> None:
    raw = json.loads((_HERE / f"{name}.json").read_text())
    store = fleece.open_store(_store(name, tmp_path), secret)
    assert store.id == raw["id"]
    assert store.algorithm.name == raw.get("hash", "xxh3-128")
    assert (store.protection is not None) == ("key" in raw)
    assert store.marker.encrypted == (raw.get("encryption") is not None)
    assert f"{store.marker.mode:04o}" == raw.get("mode", "0600")


def test_every_marker_is_tried() -> None:
    assert {path.stem for path in _HERE.iterdir()} == {*_SECRETS, "unproven", "locked"}


def test_a_marker_with_a_key_and_without_a_mac_is_refused(tmp_path: Path) -> None:
    with pytest.raises(fleece.StoreError, match="lacks the MAC"):
        fleece.open_store(_store("unproven", tmp_path), KEY_FILE)


def test_a_marker_with_locks_opens_no_place_that_can_lock_nothing(tmp_path: Path) -> None:
    text = (_HERE / "locked.json").read_text()
    assert Marker.of_text(text).lock_days == 30
    with pytest.raises(fleece.StoreError, match="locked for 30 days, and here they cannot"):
        fleece.open_store(_store("locked", tmp_path), KEY_FILE)
    shorter = tmp_path / MARKER
    shorter.write_text(text.replace('"lock_days": 30', '"lock_days": 1'))
    with pytest.raises(fleece.StoreError, match="was altered"):
        fleece.open_store(tmp_path, KEY_FILE)
    old = text.replace('"version": 2', '"version": 1')
    none, wrong = (text.replace('"lock_days": 30', f'"lock_days": {n}') for n in ("null", "true"))
    for bad in (old, none, wrong, text.replace('"version": 2', '"version": 3')):
        with pytest.raises(ValueError, match=r"days of locks|version"):
            Marker.of_text(bad)


def _expand(secret: bytes, salt: bytes, purpose: bytes) -> bytes:
    """HKDF with SHA-256 (RFC 5869), one block of it."""
    extracted = hmac.digest(salt or bytes(32), secret, "sha256")
    return hmac.digest(extracted, purpose + b"\x01", "sha256")


@pytest.mark.parametrize("name", [*(name for name, secret in _SECRETS.items() if secret), "locked"])
def test_the_mac_is_what_the_page_says(name: str) -> None:
    raw = json.loads((_HERE / f"{name}.json").read_text())
    said, key = raw.pop("mac"), raw["key"]
    salt = bytes.fromhex(key["salt"])
    if key["derivation"] == "key_file":
        master = _expand(bytes(range(32)), salt, b"fleece key file")
    else:
        words = b"correct horse battery staple"
        n = 1 << key["cost"]
        master = hashlib.scrypt(words, salt=salt, n=n, r=8, p=1, maxmem=1 << 28, dklen=32)
    assert _expand(master, b"", b"fleece key id")[:16].hex() == key["id"]
    text = json.dumps(raw, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    mac = hmac.digest(_expand(master, b"", b"fleece marker"), text.encode(), "sha256")
    assert mac.hex() == said
