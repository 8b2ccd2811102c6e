"""What lies beside the deltas: without the key nobody makes it, and nobody learns names by it."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import fleece
from fleece.extents import Extents
from fleece.keys import Secret
from fleece.store import verified
from fleece.store.catalogue import Access
from fleece.store.envelope import OVERHEAD, unwrap, wrap
from fleece.store.names import DISTRUST
from fleece.tree import BlankDisk
from tests.golden.make import KEY_FILE
from tests.unit.kit import LEAF, header, write_delta

KEYED = fleece.StoreWishes(fleece.HashChoice.BLAKE3)
SEALED = fleece.StoreWishes(encrypt=True)
KINDS = pytest.mark.parametrize("wishes", [KEYED, SEALED], ids=["keyed", "sealed"])

GUEST, DISK, CHAIN = "payroll", "ledger", "c0ffee12"
POINT, LEFT = "feedc0de01", "feedc0de02"
REASON = f"of {DISK}, {GUEST}'s, 65536 bytes differ since point {POINT}"


def _write(store: fleece.Store, point: str, sequence: int, *, whole: bool) -> None:
    disk = os.urandom(2 * LEAF)
    head = header(len(disk), sequence, guest=GUEST, disk=DISK)
    ref = replace(head.point, id=point)
    head = replace(head, chain=CHAIN, point=ref, algorithm=store.algorithm)
    partial = store.begin(GUEST, point, sequence)
    sink = partial.create(DISK)
    dirty = Extents.whole(len(disk))
    write_delta(sink, head, BlankDisk(head.geometry), disk, dirty, protection=store.protection)
    if whole:
        partial.commit()
    else:
        sink.sync()


def _store(folder: Path, wishes: fleece.StoreWishes) -> fleece.Store:
    """With everything in it that there can be."""
    store = fleece.init(folder, KEY_FILE, wishes)
    with store.locked(GUEST):
        _write(store, POINT, 1, whole=True)
        _write(store, LEFT, 2, whole=False)
        store.distrust(CHAIN, DISK, REASON)
    fleece.set_pin(store, POINT)
    fleece.verify_store(store.catalogue(), record=True)
    return store


def test_what_an_encrypted_store_holds_names_no_guest_no_disk_and_no_point(tmp_path: Path) -> None:
    store = _store(tmp_path / "store", SEALED)
    found = [path for path in Path(store.where).rglob("*") if path.is_file()]
    kinds = {path.name.rpartition(".")[2] if "." in path.name[1:] else "" for path in found}
    assert {"json", "fleece", ""} <= kinds
    assert len(found) == 7  # marker, lock, two deltas, a pin, a verification, an audit's note
    shown = "\n".join(str(path.relative_to(store.where)) for path in Path(store.where).rglob("*"))
    told = shown.encode() + b"".join(path.read_bytes() for path in found)
    for word in (GUEST, DISK, POINT, LEFT, CHAIN, store.chain_id(GUEST), "differ"):
        assert word.encode() not in told, word


@KINDS
def test_all_of_it_is_found_again(wishes: fleece.StoreWishes, tmp_path: Path) -> None:
    path = Path(_store(tmp_path / "store", wishes).where)
    store = fleece.open_store(path, KEY_FILE)
    assert store.distrusted(CHAIN, DISK) == REASON
    assert store.distrusted(CHAIN, "another") is None
    assert store.distrusted("c0ffee13", DISK) is None
    (point,) = store.catalogue().points
    assert fleece.status(store.catalogue()).guests[0].unverified == 0
    assert not store.catalogue().foreign
    with store.locked(GUEST):
        (left,) = store.unfinished(GUEST)
        assert left.ref.id == LEFT
        store.resume(left).discard()
        assert store.unfinished(GUEST) == []
        store.trust(CHAIN, DISK)
    assert store.distrusted(CHAIN, DISK) is None
    (planned,) = fleece.prune(store, fleece.KeepRules(last=1)).points
    assert "pinned" in planned.reasons
    assert fleece.set_pin(store, point.id, pinned=False)
    assert not [*path.rglob("*.pin.json")]


def _record(store: fleece.Store) -> tuple[str, Path]:
    (entry,) = store.catalogue().entries
    return entry.key, Path(f"{entry.where}.verified.json")


@KINDS
def test_a_verification_that_was_made_without_the_key_is_none(
    wishes: fleece.StoreWishes, tmp_path: Path
) -> None:
    store = _store(tmp_path / "store", wishes)
    path, record = _record(store)
    genuine, now = record.read_bytes(), datetime.now(UTC)
    assert verified.last(store.access, path, now) is not None
    state = store.backend.stamp(path)
    later = verified.Verification(now - timedelta(seconds=1), sound=True)
    forger = Access(store.backend)
    for secret in (None, Secret.of_passphrase("x")):
        if secret is not None:
            other = fleece.init(tmp_path / "other", secret, wishes)
            forger = Access(store.backend, secret, other.protection)
        verified.note(forger, path, state, later)
        assert verified.last(store.access, path, now) is None
    for at in range(len(genuine)):
        record.write_bytes(genuine[:at] + bytes([genuine[at] ^ 1]) + genuine[at + 1 :])
        assert verified.last(store.access, path, now) is None
    for cut in range(len(genuine)):
        record.write_bytes(genuine[:cut])
        assert verified.last(store.access, path, now) is None
    record.write_bytes(genuine)
    assert verified.last(store.access, path, now) is not None


@KINDS
def test_a_note_of_one_kind_is_none_of_another(wishes: fleece.StoreWishes, tmp_path: Path) -> None:
    store = _store(tmp_path / "store", wishes)
    path, record = _record(store)
    (note,) = Path(store.where).glob(f"{DISTRUST}*")
    record.write_bytes(note.read_bytes())
    assert verified.last(store.access, path, datetime.now(UTC)) is None
    (pin,) = Path(store.where).rglob("*.pin.json")
    record.write_bytes(pin.read_bytes())
    assert verified.last(store.access, path, datetime.now(UTC)) is None


@KINDS
def test_a_note_of_a_failed_audit_that_is_altered_still_counts(
    wishes: fleece.StoreWishes, tmp_path: Path
) -> None:
    """But its words, which may be made for the reader's terminal, are not shown."""
    store = _store(tmp_path / "store", wishes)
    (note,) = Path(store.where).glob(f"{DISTRUST}*")
    for text in (b"", b"all is well\n", b"\x1b[2J", note.read_bytes()[:-1], os.urandom(4000)):
        note.write_bytes(text)
        assert store.distrusted(CHAIN, DISK) == "an audit failed"


@KINDS
def test_a_note_takes_no_more_than_it_may(wishes: fleece.StoreWishes, tmp_path: Path) -> None:
    store = fleece.init(tmp_path / "store", KEY_FILE, wishes)
    for text in ("", "x" * 10_000, "ö" * 3000):
        raw = wrap(store.protection, "kind", text)
        assert len(raw) <= len(text.encode()) + OVERHEAD
        assert unwrap(store.protection, "kind", raw) == text
        with store.locked(GUEST):
            store.distrust(CHAIN, DISK, text)
        assert text.startswith(found := store.distrusted(CHAIN, DISK) or "") or not text
        assert found


def test_without_a_key_notes_are_plain(tmp_path: Path) -> None:
    store = fleece.init(tmp_path / "store")
    with store.locked(GUEST):
        store.distrust(CHAIN, DISK, REASON)
    assert (Path(store.where) / f"{DISTRUST}{CHAIN}-{DISK}").read_text() == f"{REASON}\n"
    assert json.loads(wrap(None, "kind", '{"a": 1}')) == {"a": 1}
