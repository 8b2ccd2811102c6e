"""How deltas in a bucket are read: many listed by few requests, long ones by blocks ahead."""

from __future__ import annotations

import random
import re
import sqlite3
import threading
from pathlib import Path

import pytest
import xxhash

import fleece
from fleece.delta.blob import Blob
from fleece.extents import Extents
from fleece.store.backend import Usage
from fleece.store.init import make
from fleece.store.marker import Marker
from fleece.store.s3 import cache
from fleece.store.s3.ahead import BLOCK
from fleece.store.s3.backend import S3Backend
from fleece.store.s3.client.bucket import Bucket
from fleece.store.store import Store
from fleece.tree import LEAF_SIZE, BlankDisk
from tests.rig.s3 import SeaweedFs
from tests.unit.kit import LEAF, header, write_delta

POINTS = 12
SHORT = 400
MIB = 1 << 20


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def bucket(seaweedfs: SeaweedFs) -> Bucket:
    """With a store of some points."""
    made = seaweedfs.bucket()
    store = make(S3Backend(made), Marker.new(fleece.StoreWishes(), None))
    for number in range(1, POINTS + 1):
        head = header(LEAF, number)
        with store.locked("web"):
            partial = store.begin("web", head.point.id, number)
            content = bytes([number]) * LEAF
            base = BlankDisk(head.geometry)
            write_delta(partial.create("vda"), head, base, content, Extents.whole(LEAF))
            partial.commit()
    return made


def _opened(bucket: Bucket) -> Store:
    """By an engine that was started just now."""
    return Store(S3Backend(Bucket(bucket.address, bucket._settings)))


def _requests(store: Store) -> dict[str, int]:
    assert isinstance(store.backend, S3Backend)
    return {f"s3:{name}": done.requests for name, done in store.usage().items()}


def _told(store: Store) -> list[tuple[str, str]]:
    found = store.catalogue()
    assert not found.damaged
    return [(point.id, point.disk("vda").root) for point in found.points]


def _base(folder: Path) -> sqlite3.Connection:
    (file,) = (folder / "fleece").iterdir()
    return sqlite3.connect(file)


def test_what_was_listed_once_is_not_read_again(bucket: Bucket, tmp_path: Path) -> None:
    """A marker and a listing are all that it costs; notes cost what there is of them."""
    cold, warm = _opened(bucket), _opened(bucket)
    told = _told(cold)
    assert len(told) == POINTS
    assert _told(warm) == told
    assert _requests(warm) == {"s3:GetObject": 1, "s3:ListBucket": 1}
    assert not fleece.status(warm.catalogue()).problems
    asked = {"s3:GetObject": 1, "s3:GetBucketVersioning": 1}
    assert _requests(warm) == {**asked, "s3:ListBucket": 2}


def test_without_a_cache_everything_works(bucket: Bucket, tmp_path: Path) -> None:
    """Also with one that is no cache, or is not this user's alone."""
    told = _told(_opened(bucket))
    (file,) = (tmp_path / "fleece").iterdir()
    file.write_bytes(random.Random(1).randbytes(9000))
    assert _told(_opened(bucket)) == told
    assert _told(_opened(bucket)) == told
    (tmp_path / "fleece").chmod(0o755)
    shared = _opened(bucket)
    assert _told(shared) == told
    assert _requests(shared)["s3:GetObject"] > POINTS


def test_a_wrong_memory_decides_nothing(bucket: Bucket, tmp_path: Path) -> None:
    """What does not open by it is read anew, and what a bit of it differs in is not believed."""
    told = _told(_opened(bucket))
    with _base(tmp_path) as base:
        change = "update piece set data = ?, hash = ? where key = ? and position = ?"
        rows = base.execute("select key, position, data from piece where key like '%/commits/%'")
        for key, position, data in rows.fetchall():
            dropped = re.sub(rb'"objects": {.*?}', b'"objects": {}', data)
            base.execute(change, (dropped, xxhash.xxh3_128_digest(data), key, position))
        rows = base.execute("select key, position, data from piece where key like '%/data/%'")
        for number, (key, position, data) in enumerate(rows.fetchall()):
            wrong = bytes([data[0] ^ 1]) + data[1:]
            known = xxhash.xxh3_128_digest(wrong if number % 2 else data)
            base.execute(change, (wrong, known, key, position))
    base.close()
    assert _told(_opened(bucket)) == told
    again = _opened(bucket)
    assert _told(again) == told
    assert _requests(again) == {"s3:GetObject": 1, "s3:ListBucket": 1}


def test_what_changed_or_went_is_seen_whatever_is_remembered(
    bucket: Bucket, tmp_path: Path
) -> None:
    told = _told(_opened(bucket))
    with _opened(bucket).locked("web"):
        pass
    damaged, gone, *_ = sorted(item.key for item in bucket.list("web/data/"))
    content = bucket.get(damaged).data
    bucket.put(damaged, content[:20] + bytes([content[20] ^ 1]) + content[21:])
    bucket.delete([gone])
    found = _opened(bucket).catalogue()
    assert len(found.damaged) == 1
    assert damaged in str(found.damaged[0].error)
    assert len(found.points) == len(told) - 2
    with _base(tmp_path) as base:
        keys = {key for (key,) in base.execute("select key from piece")}
    base.close()
    assert gone not in keys


def _of_one(seaweedfs: SeaweedFs, leaves: int) -> Bucket:
    """With a store of one delta."""
    made = seaweedfs.bucket()
    store = make(S3Backend(made), Marker.new(fleece.StoreWishes(), None))
    head = header(leaves * LEAF)
    with store.locked("web"):
        partial = store.begin("web", head.point.id, 1)
        content = random.Random(1).randbytes(head.size)
        base = BlankDisk(head.geometry)
        write_delta(partial.create("vda"), head, base, content, Extents.whole(head.size))
        partial.commit()
    return made


@pytest.fixture
def tall(seaweedfs: SeaweedFs) -> Bucket:
    """With a delta whose pages are longer than what is read to open it."""
    return _of_one(seaweedfs, 1024)


def _leaves(bucket: Bucket) -> tuple[bytes, int]:
    """The hashes of all leaves of the newest point's disk, and what it cost to read them."""
    store = _opened(bucket)
    found = store.catalogue()
    before = _requests(store)["s3:GetObject"]
    with found.chain(found.points[-1].disk("vda")) as chain:
        leaves = chain.leaf_hashes(0, chain.geometry.leaves).tobytes()
        assert len(chain.map()) > 0
    return leaves, _requests(store)["s3:GetObject"] - before


def test_pages_are_read_at_once_and_by_each_host_but_once(
    tall: Bucket, seaweedfs: SeaweedFs
) -> None:
    """Those of a short delta this host knows since it was made."""
    leaves, cost = _leaves(tall)
    assert cost == 1
    assert _leaves(tall) == (leaves, 0)
    (_, cost) = _leaves(_of_one(seaweedfs, 64))
    assert cost == 0


def test_wrong_pages_decide_nothing(tall: Bucket, tmp_path: Path) -> None:
    """Pages that do not match their delta are read anew."""
    leaves, _ = _leaves(tall)
    for right in True, False:
        with _base(tmp_path) as base:
            ((page, known),) = base.execute("select data, hash from page").fetchall()
            wrong = page[:-1] + bytes([page[-1] ^ 1])
            known = xxhash.xxh3_128_digest(wrong) if right else known
            base.execute("update page set data = ?, hash = ?", (wrong, known))
        base.close()
        assert _leaves(tall)[0] == leaves
        assert _leaves(tall) == (leaves, 0)


def test_pages_of_which_there_are_too_many_give_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_MOST", MIB)
    kept = cache.Cache("s3://somewhere")
    page = bytes(100_000)
    for number in range(40):
        kept.put_page((f"key {number}", "etag", 1), 0, page)
    (file,) = (tmp_path / "fleece").iterdir()
    assert file.stat().st_size < 2 * MIB
    there = [number for number in range(40) if kept.page((f"key {number}", "etag", 1), 0)]
    assert there == [*range(there[0], 40)]
    assert len(there) > 5


def _threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith("fleece-s3")]


def _stored(backend: S3Backend, content: bytes) -> Blob:
    """An object of a new store, open for reading."""
    backend.create(b"marker")
    batch = backend.batch("web", "aa")
    batch.create("vda.fleece").write(content)
    batch.seal()
    batch.commit("000001-aa")
    return backend.open("web/000001-aa/vda.fleece")


def test_an_object_that_is_read_in_order_is_read_ahead(seaweedfs: SeaweedFs) -> None:
    content = random.Random(3).randbytes(5 * BLOCK + 12345)
    backend = S3Backend(seaweedfs.bucket())
    blob = _stored(backend, content)
    before = backend.usage()["GetObject"].requests
    step = MIB + 999
    for position in range(0, len(content), step):
        length = min(step, len(content) - position)
        assert blob.read_at(position, length) == content[position : position + length]
        assert blob.read_at(position, 512) == content[position : position + 512]
    assert backend.usage()["GetObject"].requests - before <= 3 + 6
    assert _threads()
    blob.close()
    assert not _threads()


def test_a_delta_of_which_all_is_read_is_read_by_blocks_from_the_start(
    tall: Bucket, bucket: Bucket
) -> None:
    for place, deltas in ((tall, 1), (bucket, POINTS)):
        store = _opened(place)
        found = store.catalogue()
        before = _requests(store)["s3:GetObject"]
        assert not fleece.verify_store(found).errors
        assert _requests(store)["s3:GetObject"] - before == deltas
    assert not _threads()


def test_short_records_near_one_another_are_read_by_windows(bucket: Bucket, tmp_path: Path) -> None:
    """A restore, which looks at each of them twice, asks for few of them alone."""
    image, back = tmp_path / "image", tmp_path / "back"
    chance = random.Random(5)
    with image.open("wb") as file:
        for leaf in range(0, SHORT * 2, 2):
            file.seek(leaf * LEAF_SIZE)
            file.write(chance.randbytes(9000))
        file.truncate(SHORT * 2 * LEAF_SIZE)
    store = _opened(bucket)
    with fleece.open_source(f"image:vda={image}") as source:
        fleece.backup(source, store, fleece.BackupOptions(guest="many"))
    store = _opened(bucket)
    (point,) = store.catalogue().named("many")
    before = store.usage()["GetObject"]
    fleece.restore(store, point.id, "vda", str(back))
    after = store.usage()["GetObject"]
    stored = point.disk("vda").stored_bytes
    assert stored > SHORT * 9000
    assert after.requests - before.requests <= SHORT // 8
    assert after.received - before.received < stored + stored // 2
    assert back.read_bytes() == image.read_bytes()


def test_of_short_ranges_the_start_is_not_asked_for_again(seaweedfs: SeaweedFs) -> None:
    """Of more of them than windows are kept; what lies far from the last one is read alone."""
    content = random.Random(6).randbytes(18 * MIB)
    backend = S3Backend(seaweedfs.bucket())
    blob = _stored(backend, content)
    before = backend.usage()["GetObject"]
    for position in range(MIB // 2, len(content), 100_000):
        assert blob.read_at(position, 2000) == content[position : position + 2000]
    assert backend.usage()["GetObject"].requests - before.requests == 1 + 18
    for position in range(MIB // 2, len(content), 100_000):
        assert blob.read_at(position, 1024) == content[position : position + 1024]
    assert backend.usage()["GetObject"].requests - before.requests == 1 + 18
    before = backend.usage()["GetObject"]
    for position in range(MIB, len(content) - MIB, 200_000):
        assert blob.read_at(position, 2000) == content[position : position + 2000]
    received = backend.usage()["GetObject"].received - before.received
    assert received < len(content) // 200_000 * 2000
    blob.close()


def test_what_is_read_here_and_there_is_read_alone(seaweedfs: SeaweedFs) -> None:
    made = seaweedfs.bucket()
    content = random.Random(4).randbytes(6 * BLOCK)
    blob = _stored(S3Backend(made), content)
    before = made.traffic.usage.get("s3:GetObject", Usage()).received
    for block in (5, 0, 3, 1, 4, 2):
        position = block * BLOCK + 777
        assert blob.read_at(position, 100_000) == content[position : position + 100_000]
    assert made.traffic.usage["s3:GetObject"].received - before < 7 * 100_000
    blob.close()
    assert not _threads()


def test_the_folder_of_the_cache_is_made_private(tmp_path: Path) -> None:
    kept = cache.Cache("s3://somewhere")
    kept.put(("key", "etag", 1), ((0, b"x"),))
    kept.keep()
    assert (tmp_path / "fleece").stat().st_mode & 0o777 == 0o700
    assert cache.Cache("s3://somewhere").get(("key", "etag", 1)) == ((0, b"x"),)
    assert cache.Cache("s3://elsewhere").get(("key", "etag", 1)) is None
