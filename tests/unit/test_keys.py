"""Keys: what is protected shows nothing, no change of it passes, a wrong key is one clear error."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
import traceback
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import xxhash
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from fleece import events
from fleece.cancel import CancelToken
from fleece.cli.secret import secret_of
from fleece.delta.chain import Chain
from fleece.delta.layout import Kind
from fleece.delta.writer import DeltaWriter
from fleece.engine.check.verify import check_delta
from fleece.engine.restore.partial import restore_partial
from fleece.engine.restore.salvage import salvage
from fleece.engine.work.pool import Counter
from fleece.errors import DeltaError, FleeceError, StoreError, UsageError, WrongKey, bug
from fleece.extents import Extents
from fleece.fileblob import named_file
from fleece.keys import Derivation, Secret
from fleece.store.init import init
from fleece.store.loose import open_delta
from fleece.store.marker import HashChoice, StoreWishes
from fleece.store.names import MARKER
from fleece.store.open import open_store
from fleece.store.store import Store
from fleece.tree import BlankDisk
from tests.unit.kit import LEAF, header, read_back, write_delta

SECRET = Secret(Derivation.KEY_FILE, bytes(range(32)))
OTHER = Secret(Derivation.KEY_FILE, bytes(32))
PHRASE = Secret.of_passphrase("correct horse battery staple")

KEYED = StoreWishes(HashChoice.BLAKE3)
ENCRYPTED = StoreWishes(encrypt=True)
BOTH = StoreWishes(HashChoice.BLAKE3, encrypt=True)
EVERY = pytest.mark.parametrize("wishes", [KEYED, ENCRYPTED, BOTH], ids=["keyed", "sealed", "both"])

GUEST = "secret-guest"
DISK = bytes(LEAF) + b"top secret\n" * 400 + bytes(5000)
DIRT = Extents.of([(0, LEAF)])
CHANGED = b"changed\n".ljust(LEAF, b"!") + DISK[LEAF:]


def _filled(folder: Path, wishes: StoreWishes, secret: Secret | None = SECRET) -> Store:
    """A store with a full and an incremental of one disk."""
    store = init(folder, secret, wishes)
    with store.locked(GUEST):
        _add(store, 1, DISK, Extents.whole(len(DISK)))
        _add(store, 2, CHANGED, DIRT)
    return store


def _add(store: Store, sequence: int, disk: bytes, dirty: Extents) -> None:
    catalogue = store.catalogue()
    newest = catalogue.points[-1].disks["vda"] if catalogue.points else None
    parent = None if newest is None else newest.as_parent()
    head = header(len(disk), sequence, parent, guest=GUEST)
    head = dataclasses.replace(head, algorithm=store.algorithm)
    partial = store.begin(GUEST, head.point.id, sequence)
    sink = partial.create("vda")
    if newest is None:
        base = BlankDisk(head.geometry)
        write_delta(sink, head, base, disk, dirty, protection=store.protection)
    else:
        with catalogue.chain(newest) as chain:
            write_delta(sink, head, chain, disk, dirty, protection=store.protection)
    partial.commit()


def _counter() -> Counter:
    return Counter(events.ignore, events.Phase.VERIFY, "test", 0)


def _paths(store: Store) -> list[Path]:
    """The deltas, oldest first."""
    return [Path(point.disks["vda"].where) for point in store.catalogue().points]


@EVERY
def test_a_protected_chain_gives_back_what_was_put_in(wishes: StoreWishes, tmp_path: Path) -> None:
    store = _filled(tmp_path / "store", wishes)
    again = open_store(Path(store.where), SECRET).catalogue()
    for point, content in zip(again.points, (DISK, CHANGED), strict=True):
        with again.chain(point.disks["vda"]) as chain:
            assert read_back(chain) == content
            for at, delta in enumerate(chain.deltas):
                older = Chain(chain.deltas[at + 1 :]) if chain.deltas[at + 1 :] else None
                check_delta(delta, older, _counter(), CancelToken())


@EVERY
def test_zstd_walks_a_protected_delta(wishes: StoreWishes, tmp_path: Path) -> None:
    for path in _paths(_filled(tmp_path / "store", wishes)):
        subprocess.run(["zstd", "-tq", path], check=True)


def test_nothing_of_an_encrypted_store_can_be_read_without_the_key(tmp_path: Path) -> None:
    store = _filled(tmp_path / "store", ENCRYPTED)
    for path in Path(store.where).rglob("*"):
        for word in ("secret", "web", "vda"):
            assert word not in str(path.relative_to(Path(store.where)))
        if path.suffix == ".fleece":
            raw = path.read_bytes()
            for text in (b"secret", b"vda", b"FREC", b"FHDR", b"\x28\xb5\x2f\xfd", b"parent"):
                assert text not in raw


def test_two_encrypted_files_of_the_same_disk_share_no_frame(tmp_path: Path) -> None:
    """Each file has a key of its own, and each frame a nonce."""
    made = [_paths(_filled(tmp_path / name, ENCRYPTED))[0].read_bytes() for name in "ab"]
    pieces = {made[0][at : at + 16] for at in range(200, len(made[0]), 16)}
    assert not [piece for piece in pieces if piece in made[1]]


@EVERY
def test_every_byte_of_a_protected_delta_counts(wishes: StoreWishes, tmp_path: Path) -> None:
    store = _filled(tmp_path / "store", wishes)
    full, child = _paths(store)
    with store.access.read(named_file(full)) as older:
        for mask in (0xFF, 0x01):
            _every_flip_is_noticed(store, child, Chain([older]), mask)


def _every_flip_is_noticed(store: Store, path: Path, older: Chain, mask: int) -> None:
    raw = path.read_bytes()
    harmed = path.with_name("harmed")
    for at in range(len(raw)):
        harmed.write_bytes(raw[:at] + bytes([raw[at] ^ mask]) + raw[at + 1 :])
        with pytest.raises(DeltaError), store.access.read(named_file(harmed)) as delta:
            check_delta(delta, older, _counter(), CancelToken())
    harmed.unlink()


def test_a_cut_encrypted_delta_is_incomplete(tmp_path: Path) -> None:
    store = _filled(tmp_path / "store", ENCRYPTED)
    full, _ = _paths(store)
    raw = full.read_bytes()
    for length in range(len(raw)):
        full.write_bytes(raw[:length])
        with pytest.raises(DeltaError):
            store.access.read(named_file(full))


def test_who_has_not_the_key_cannot_make_a_keyed_delta_that_is_believed(tmp_path: Path) -> None:
    """A forger knows all of the format, and every hash but the keyed one."""
    store = _filled(tmp_path / "store", KEYED)
    forged = _filled(tmp_path / "forged", StoreWishes(HashChoice.BLAKE3), secret=None)
    target = _paths(store)[1]
    target.write_bytes(_paths(forged)[1].read_bytes())
    (damaged,) = store.catalogue().damaged
    assert "not protected as its store is" in str(damaged)
    key_frame = _paths(store)[0].read_bytes()[:116]
    target.write_bytes(key_frame + target.read_bytes())
    (damaged,) = store.catalogue().damaged
    assert "not keyed, though its KEY frame says so" in str(damaged)


def test_frames_of_one_encrypted_file_cannot_be_put_into_another(tmp_path: Path) -> None:
    store = _filled(tmp_path / "store", ENCRYPTED)
    full, child = _paths(store)
    taken = full.read_bytes()
    child.write_bytes(child.read_bytes()[:116] + taken[116:])
    with pytest.raises(DeltaError, match="was altered"):
        store.access.read(named_file(child))


@EVERY
def test_a_wrong_key_is_one_clear_error(wishes: StoreWishes, tmp_path: Path) -> None:
    store = _filled(tmp_path / "store", wishes)
    path = _paths(store)[0]
    for secret, words in ((OTHER, "not the key"), (PHRASE, "not the key"), (None, "by a key")):
        with pytest.raises(WrongKey, match=words):
            open_store(Path(store.where), secret)
        with pytest.raises(WrongKey, match=words):
            open_delta(path, secret)


def test_a_key_for_a_store_that_has_none_is_refused(tmp_path: Path) -> None:
    """Else who swaps the marker would have a keyed store written and read without its key."""
    _filled(tmp_path / "store", StoreWishes(), secret=None)
    with pytest.raises(UsageError, match="this store has none"):
        open_store(tmp_path / "store", SECRET)


def test_a_plain_delta_in_a_protected_store_is_not_believed(tmp_path: Path) -> None:
    plain = _filled(tmp_path / "plain", StoreWishes(), secret=None)
    store = _filled(tmp_path / "store", ENCRYPTED)
    target = _paths(store)[1]
    target.write_bytes(_paths(plain)[1].read_bytes())
    assert len(store.catalogue().points) == 1
    (damaged,) = store.catalogue().damaged
    assert "not protected as its store is" in str(damaged)


def test_a_protected_delta_in_a_plain_store_is_damage_and_not_the_end(tmp_path: Path) -> None:
    plain = _filled(tmp_path / "plain", StoreWishes(), secret=None)
    target = _paths(plain)[1]
    target.write_bytes(_paths(_filled(tmp_path / "store", ENCRYPTED))[1].read_bytes())
    assert len(plain.catalogue().points) == 1
    assert "a key that is not its store" in str(plain.catalogue().damaged[0])


@pytest.mark.parametrize(
    ("wishes", "secret", "message"),
    [
        (ENCRYPTED, None, "encryption needs a key"),
        (StoreWishes(), SECRET, "a key has no effect"),
        (StoreWishes(HashChoice.XXH3_128), SECRET, "a key has no effect"),
    ],
)
def test_a_new_store_with_half_a_protection_is_not_made(
    wishes: StoreWishes, secret: Secret | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        init(tmp_path / "store", secret, wishes)
    assert list(tmp_path.iterdir()) == []


@EVERY
def test_a_store_that_is_like_another_has_its_key_but_an_id_of_its_own(
    wishes: StoreWishes, tmp_path: Path
) -> None:
    store = _filled(tmp_path / "store", wishes)
    for name, like in (("store's", Path(store.where)), ("delta's", _paths(store)[0])):
        made = init(tmp_path / name, SECRET, like=like)
        assert (made.protection, made.algorithm) == (store.protection, store.algorithm)
        assert made.id != store.id
        with pytest.raises(WrongKey, match="not the key"):
            init(tmp_path / "other", OTHER, like=like)
        with pytest.raises(UsageError, match="like another"):
            init(tmp_path / "other", SECRET, wishes, like=like)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("content", [b"", b"x" * 31, b"x" * (1 << 20) + b"x"])
def test_a_key_file_must_hold_a_secret(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(UsageError, match="a secret of"):
        Secret.of_key_file(tmp_path / "key")


def test_a_passphrase_file_is_its_first_line(tmp_path: Path) -> None:
    (tmp_path / "phrase").write_bytes(b"correct horse battery staple\r\nnot this\n")
    key = PHRASE.new_key()
    assert Secret.of_passphrase_file(tmp_path / "phrase").key(key.terms, "").master == key.master


@pytest.mark.parametrize("content", [b"p\xe4ss", "p\u00e4ss".encode(), b"\xff\xfe", b" blank "])
def test_a_passphrase_is_the_same_in_a_file_as_in_the_environment(
    content: bytes, tmp_path: Path
) -> None:
    (tmp_path / "phrase").write_bytes(content)
    key = Secret.of_passphrase_file(tmp_path / "phrase").new_key()
    given = {"FLEECE_PASSPHRASE": os.fsdecode(content)}
    for found in (secret_of(None, None, given, CancelToken()), Secret.of_passphrase(content)):
        assert found is not None
        assert found.key(key.terms, "").master == key.master


def test_what_cannot_be_a_passphrase_is_not_shown() -> None:
    """The error that is the cause shows all of the text in its repr, and it must not be there."""
    text = "sesame\ud800"
    with pytest.raises(UsageError, match="a passphrase has a character") as caught:
        Secret.of_passphrase(text)
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert "UnicodeEncodeError" not in shown
    with pytest.raises(UnicodeEncodeError) as other:
        text.encode()
    assert "sesame" in repr(other.value)
    assert "sesame" not in str(bug(other.value))


def test_a_secret_may_come_through_a_pipe(tmp_path: Path) -> None:
    """A named one, slowly; and one as of bash's <(pass show x), whose writer is gone already."""
    phrase, fifo = Secret.of_passphrase("open sesame"), tmp_path / "fifo"
    terms = phrase.new_key().terms
    os.mkfifo(fifo)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(Secret.of_passphrase_file, fifo)
        with fifo.open("wb", buffering=0) as file:
            file.write(b"open ")
            time.sleep(0.3)
            file.write(b"sesame\n")
        assert found.result().key(terms, "").terms == terms
    reading, writing = os.pipe()
    os.write(writing, b"open sesame\nand more")
    os.close(writing)
    found_there = Secret.of_passphrase_file(f"/dev/fd/{reading}")
    os.close(reading)
    assert found_there.key(terms, "").terms == terms


def test_no_key_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        Secret.of_key_file(tmp_path / "none")


@pytest.mark.parametrize(
    "harm",
    [
        {"key": {"derivation": "key_file", "cost": 0, "salt": "00", "id": "00" * 16}},
        {"key": {"derivation": "oracle", "cost": 0, "salt": "00" * 16, "id": "00" * 16}},
        {"key": {"derivation": "passphrase", "cost": 40, "salt": "00" * 16, "id": "00" * 16}},
        {"key": {"derivation": "key_file", "cost": None, "salt": "00" * 16, "id": "00" * 16}},
        {"key": []},
        {"key": None},
        {"encryption": "rot13"},
        {"hash": "md5"},
        {"hash": ["blake3"]},
    ],
    ids=str,
)
def test_a_marker_that_makes_no_sense_is_no_store(harm: dict[str, object], tmp_path: Path) -> None:
    store = init(tmp_path / "store", SECRET, BOTH)
    marker = Path(store.where) / MARKER
    marker.write_text(json.dumps(json.loads(marker.read_text()) | harm))
    with pytest.raises(StoreError, match="marker cannot be read"):
        open_store(Path(store.where), SECRET)


@pytest.mark.parametrize(
    ("at", "value"), [(28, 2), (30, 0), (30, 4), (31, 0), (31, 9), (32, 40), (33, 1)]
)
def test_a_key_frame_of_another_kind_is_refused_before_any_key(
    at: int, value: int, tmp_path: Path
) -> None:
    """Its own hash is made right again: it is no accident but another version, or hostile."""
    path = _paths(_filled(tmp_path / "store", ENCRYPTED))[0]
    raw = bytearray(path.read_bytes())
    raw[at] = value
    raw[100:116] = xxhash.xxh3_128_digest(raw[:100])
    path.write_bytes(raw)
    with pytest.raises(FleeceError, match=r"does not know|is not valid") as caught:
        open_delta(path, None)
    assert isinstance(caught.value, DeltaError)


def test_an_encrypted_frame_opens_as_the_format_page_says(tmp_path: Path) -> None:
    """By the page alone, with nothing of the engine's: a passphrase, scrypt, HKDF, AES-GCM."""
    store = init(tmp_path / "store", PHRASE, BOTH)
    with store.locked(GUEST):
        _add(store, 1, DISK, Extents.whole(len(DISK)))
    path = _paths(store)[0]
    raw = path.read_bytes()
    assert raw[8:12] == b"FKEY"
    key_frame, rest = raw[:116], raw[116:]
    cost, salt, file_salt = raw[32], raw[36:52], raw[68:100]
    master = Scrypt(salt, 32, 1 << cost, 8, 1).derive(b"correct horse battery staple")
    info = b"fleece frames" + key_frame
    cipher = AESGCM(HKDF(SHA256(), 32, file_salt, info).derive(master))
    length = int.from_bytes(rest[4:8], "little")
    plain = cipher.decrypt(rest[8:20], rest[20 : 8 + length], b"FHDR")
    assert plain[8:12] == b"FHDR"
    assert json.loads(plain[44:-32])["guest"] == GUEST
    hashes = HKDF(SHA256(), 32, None, b"fleece hashes").derive(master)
    assert plain[-32:] == blake3(plain[:-32], key=hashes).digest()


def test_the_disks_of_a_full_delta_are_all_data_or_zeros(tmp_path: Path) -> None:
    with open_delta(_paths(_filled(tmp_path / "store", BOTH))[0], SECRET) as delta:
        assert delta.extents(Kind.ZERO).total + delta.extents(Kind.DATA).total == len(DISK)


@EVERY
def test_a_damaged_protected_delta_is_salvaged_with_its_key_alone(
    wishes: StoreWishes, tmp_path: Path
) -> None:
    """After damage the next record is found again, though nothing in the clear marks it."""
    store = init(tmp_path / "store", SECRET, wishes)
    disk = b"".join(bytes([n + 1]) * LEAF for n in range(12))
    with store.locked(GUEST):
        _add(store, 1, disk, Extents.whole(len(disk)))
    (path,) = _paths(store)
    with store.access.read(named_file(path)) as delta:
        row = delta.rows()[2].tolist()
    harmed = bytearray(path.read_bytes())
    harmed[row[2] + 40] ^= 1
    path.write_bytes(harmed)
    saved = salvage(str(path), str(tmp_path / "saved"), secret=SECRET)
    assert [(lost.offset, lost.length) for lost in saved.lost] == [(row[0], row[1])]
    with pytest.raises(WrongKey):
        salvage(str(path), str(tmp_path / "no"), secret=OTHER)
    target = tmp_path / "raw"
    result = restore_partial(store, f"{1:010x}", "vda", str(target))
    assert result.lost == saved.lost
    expected = disk[: row[0]] + bytes(row[1]) + disk[row[0] + row[1] :]
    assert target.read_bytes() == expected
    if wishes.encrypt:
        assert b"secret" not in (tmp_path / "saved").read_bytes()


@EVERY
def test_a_protected_delta_that_was_cut_is_gone_on_with(
    wishes: StoreWishes, tmp_path: Path
) -> None:
    """By the key of its own file: the frames before the cut and those behind it open alike."""
    store = init(tmp_path / "store", SECRET, wishes)
    disk = b"".join(bytes([n + 1]) * LEAF for n in range(9)) + bytes(LEAF)
    whole = Extents.whole(len(disk))
    with store.locked(GUEST):
        _add(store, 1, disk, whole)
    (path,) = _paths(store)
    with store.access.read(named_file(path)) as delta:
        root, start = delta.footer.root, delta.records_start
        places = sorted(delta.rows()["position"].tolist())
    raw = path.read_bytes()
    for cut in (start, places[1] + 1, places[2], places[3], len(raw) - 1):
        path.write_bytes(raw[:cut])
        with store.access.partial(named_file(path)) as left:
            proven = left.proven()
        with path.open("r+b") as file:
            file.truncate(proven.end)
            file.seek(proven.end)
            base = BlankDisk(proven.head.geometry)
            protection = store.protection
            write_delta(file, proven.head, base, disk, whole, 0, 3, protection, proven)
        with store.access.read(named_file(path)) as delta:
            check_delta(delta, None, _counter(), CancelToken())
            assert delta.footer.root == root
            assert read_back(Chain([delta])) == disk


@pytest.mark.parametrize("theirs", [None, SECRET], ids=["from plain", "from sealed"])
@pytest.mark.parametrize("mine", [None, SECRET], ids=["to plain", "to sealed"])
def test_records_are_copied_into_another_delta_without_recompression(
    theirs: Secret | None, mine: Secret | None, tmp_path: Path
) -> None:
    """Also from under one key to under another, or none: what is sealed is the frame itself."""
    kinds = {None: StoreWishes(), SECRET: ENCRYPTED}
    source = _filled(tmp_path / "source", kinds[theirs], theirs)
    target = init(tmp_path / "target", mine, kinds[mine])
    copy = tmp_path / "copy"
    with source.access.read(named_file(_paths(source)[0])) as delta, copy.open("wb") as sink:
        head = dataclasses.replace(delta.header, file_id=uuid.UUID(int=77))
        writer = DeltaWriter(sink, head, BlankDisk(head.geometry), target.protection)
        frames = []
        for row in delta.rows().tolist():
            found, frame = delta.record_at(*row)
            if found.kind is Kind.ZERO:
                writer.zero(found.offset, found.length)
            else:
                writer.data(found.offset, found.length, found.leaves, frame)
                frames.append(frame)
        assert writer.finish().root == delta.footer.root
    with target.access.read(named_file(copy)) as made:
        check_delta(made, None, _counter(), CancelToken())
        kept = [made.record_at(*row) for row in made.rows().tolist()]
        assert [frame for found, frame in kept if found.kind is Kind.DATA] == frames
        assert read_back(Chain([made])) == DISK


def test_with_a_secret_all_that_keys_need_is_loaded() -> None:
    """In the middle of a run, files may have run out."""
    code = """
import sys
from fleece.delta.layout import Tag
from fleece.delta.protection import SealedFrames
from fleece.errors import DeltaError
from fleece.hashing import BLAKE3, keyed_blake3
from fleece.keys import Secret
from fleece.store import envelope
secret = Secret.of_passphrase("x")
loaded = set(sys.modules)
key = secret.new_key()
frames = SealedFrames(bytes(32))
stored = bytearray(frames.seal(Tag.DATA, b"x"))
stored[-1] ^= 1
try:
    frames.open(Tag.DATA, bytes(stored), "here")
except DeltaError:
    BLAKE3.digest(b""), keyed_blake3(bytes(32)).digest(b"")
    print(sorted(set(sys.modules) - loaded))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
