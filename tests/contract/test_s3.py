"""What a store in a bucket promises to engines that share no lock: those of several hosts."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fleece.errors import StoreError, UsageError
from fleece.hashing import Buffer
from fleece.store.backend import Batch, Site
from fleece.store.s3.backend import S3Backend
from fleece.store.s3.client.bucket import Bucket
from fleece.store.s3.client.locks import Lock
from fleece.store.s3.client.problems import Denied
from fleece.store.s3.upload import part_size
from tests.rig.s3 import SeaweedFs

_MARKER = b"marker"
_ONE = "web/000001-aa/vda.fleece"


class Host:
    """Whose engines share a lock.

    Args:
        name: eight hexadecimal digits.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def opened(self, bucket: Bucket) -> S3Backend:
        """The store, listed by an engine of this host; what it is asked next, it knows by that."""
        backend = S3Backend(bucket)
        backend.writer = self._name
        backend.listing()
        return backend


ONE, OTHER = Host("11111111"), Host("22222222")


@pytest.fixture
def bucket(seaweedfs: SeaweedFs) -> Bucket:
    """With a store in it."""
    made = seaweedfs.bucket()
    S3Backend(made).create(_MARKER)
    return made


def _begun(backend: S3Backend, name: str = "aa", data: bytes = b"content") -> Batch:
    batch = backend.batch("web", name)
    batch.create("vda.fleece").write(data)
    batch.seal()
    return batch


def _point(backend: S3Backend, name: str = "000001-aa", data: bytes = b"content") -> None:
    _begun(backend, name.partition("-")[2], data).commit(name)


def _data(bucket: Bucket) -> list[str]:
    return [item.key for item in bucket.list("web/data/")]


def _read(bucket: Bucket, key: str = _ONE) -> bytes:
    blob = S3Backend(bucket).open(key)
    return blob.read_at(0, blob.length)


def test_of_two_hosts_points_one_is_seen_and_the_other_says_who_was_first(bucket: Bucket) -> None:
    here, there = ONE.opened(bucket), OTHER.opened(bucket)
    first, second = _begun(here), _begun(there, "bb", b"second")
    first.commit("000001-aa")
    with pytest.raises(StoreError, match=r"changed point 000001-aa first \(process \d+ on "):
        second.commit("000001-bb")
    second.discard()
    assert S3Backend(bucket).listing().deltas == [_ONE]
    assert len(_data(bucket)) == 1
    assert _read(bucket) == b"content"


def _another_point(backend: S3Backend) -> None:
    _point(backend, "000002-bb")


def _a_pin(backend: S3Backend) -> None:
    backend.put("web/000001-aa/note.pin.json", b"x")


@pytest.mark.parametrize("change", [_another_point, _a_pin])
def test_a_point_is_not_dropped_by_an_old_listing(
    change: Callable[[S3Backend], None], bucket: Bucket
) -> None:
    """A backup may build on it by now, or a pin keep it."""
    _point(ONE.opened(bucket))
    pruner = OTHER.opened(bucket)
    change(ONE.opened(bucket))
    with pytest.raises(StoreError, match="first"):
        pruner.drop("web/000001-aa")
    assert _ONE in S3Backend(bucket).listing().deltas
    assert _read(bucket) == b"content"


def test_nothing_builds_on_what_another_host_dropped_meanwhile(bucket: Bucket) -> None:
    _point(ONE.opened(bucket))
    here = ONE.opened(bucket)
    OTHER.opened(bucket).drop("web/000001-aa")
    assert here.left("web") == []
    with pytest.raises(StoreError, match="changed point 000001-aa first"):
        _point(here, "000002-bb")


def test_what_another_host_is_writing_stays_until_it_is_too_late(bucket: Bucket) -> None:
    here, there = ONE.opened(bucket), OTHER.opened(bucket)
    living = _begun(there, "bb", b"theirs")
    assert here.left("web") == []
    assert here.tidy(["web/000001-bb"]) == []
    living.commit("000001-bb")
    here, there = ONE.opened(bucket), OTHER.opened(bucket)
    _begun(there, "cc")
    _point(here, "000002-dd")
    here.listing()
    (left,) = here.left("web")
    left.discard()
    assert len(S3Backend(bucket).listing().deltas) == len(_data(bucket)) == 2


def test_what_was_taken_for_dead_can_never_be_seen(bucket: Bucket) -> None:
    """Two hosts may bear one name: so what is to be removed is fenced off first."""
    here, twin = ONE.opened(bucket), ONE.opened(bucket)
    living = _begun(twin, "bb", b"theirs")
    here.listing()
    (left,) = here.left("web")
    left.discard()
    with pytest.raises(StoreError, match="first"):
        living.commit("000001-bb")
    _point(here)
    assert S3Backend(bucket).listing().deltas == [_ONE]


def test_parts_that_a_killed_engine_left_are_given_up(bucket: Bucket) -> None:
    ONE.opened(bucket).batch("web", "aa").create("vda.fleece").write(bytes(9 << 20))
    assert len([*bucket.uploads("web/")]) == 1
    here = ONE.opened(bucket)
    (left,) = here.left("web")
    left.discard()
    assert [*bucket.uploads("web/")] == []
    assert here.left("web") == []


class _Unsure(Bucket):
    """A connection that is lost just after a change was made: the server has it."""

    lost = True

    def put(self, key: str, data: Buffer, *, new: bool = False, lock: Lock | None = None) -> str:
        etag = super().put(key, data, new=new, lock=lock)
        if "/commits/" in key and self.lost:
            self.__class__.lost = False
            raise StoreError("the connection was lost", where=key)
        return etag


class _Repeating(Bucket):
    """One that is made twice, as by a client whose first answer was lost."""

    def put(self, key: str, data: Buffer, *, new: bool = False, lock: Lock | None = None) -> str:
        if "/commits/" in key:
            super().put(key, data, new=new, lock=lock)
        return super().put(key, data, new=new, lock=lock)


class _Deaf(Bucket):
    """A server that ignores preconditions."""

    def put(self, key: str, data: Buffer, *, new: bool = False, lock: Lock | None = None) -> str:
        return super().put(key, data, lock=lock)


class _NoDeleting(Bucket):
    """A key that may not delete."""

    def delete(self, keys: object) -> None:
        raise Denied("may not do it", where=self.where)


def _as(kind: type[Bucket], bucket: Bucket) -> Bucket:
    return kind(bucket.address, bucket._settings)


def test_a_point_of_which_nobody_knows_whether_it_is_seen_is_not_removed(bucket: Bucket) -> None:
    batch = _begun(ONE.opened(_as(_Unsure, bucket)))
    with pytest.raises(StoreError, match="lost"):
        batch.commit("000001-aa")
    batch.discard()
    assert _read(bucket) == b"content"
    assert ONE.opened(bucket).left("web") == []


def test_a_change_whose_answer_was_lost_is_known_by_what_is_in_it(bucket: Bucket) -> None:
    _point(ONE.opened(_as(_Repeating, bucket)))
    assert _read(bucket) == b"content"


def test_a_server_that_ignores_preconditions_is_refused(bucket: Bucket) -> None:
    deaf = S3Backend(_as(_Deaf, bucket))
    with pytest.raises(StoreError, match="If-None-Match"), deaf.lock("web", "web"):
        pass
    assert [item.key for item in bucket.list()] == ["fleece-store.json"]
    assert bucket.get("fleece-store.json").data == _MARKER


def test_it_is_used_for_a_single_writer_alone(seaweedfs: SeaweedFs) -> None:
    plain = seaweedfs.bucket()
    deaf = _as(_Deaf, plain)
    with pytest.raises(StoreError, match="--single-writer"):
        S3Backend(deaf).create(_MARKER)
    assert [*plain.list()] == []
    S3Backend(deaf).create(_MARKER, Site(single_writer=True))
    here = ONE.opened(deaf)
    with here.lock("web", "web"):
        _point(here)
    assert _read(plain) == b"content"


def test_a_lost_change_does_not_lose_its_point(bucket: Bucket) -> None:
    """Its deltas are there, and say themselves what they are."""
    here = ONE.opened(bucket)
    _point(here)
    _point(here, "000002-bb", b"later")
    bucket.delete(["web/commits/0000000001.json"])
    deltas = here.listing().deltas
    assert here.left("web") == []
    assert sorted(_read(bucket, key) for key in deltas) == [b"content", b"later"]
    _point(here, "000003-cc", b"last")
    assert len(ONE.opened(bucket).listing().deltas) == 3


def test_what_cannot_be_deleted_fails_nothing_but_the_deleting(bucket: Bucket) -> None:
    here = ONE.opened(_as(_NoDeleting, bucket))
    _point(here)
    replacement = here.replace(_ONE)
    replacement.sink.write(b"merged")
    replacement.seal()
    replacement.place(_ONE)
    assert _read(bucket) == b"merged"
    with pytest.raises(StoreError, match="may not"):
        here.drop("web/000001-aa")
    assert S3Backend(bucket).listing().deltas == []
    assert len(ONE.opened(bucket).tidy(["web/000001-aa"])) == 2
    assert _data(bucket) == []


def test_a_place_that_is_not_empty_is_refused(seaweedfs: SeaweedFs) -> None:
    """And so is a mode, which objects have not."""
    made = seaweedfs.bucket()
    made.put("something", b"x")
    with pytest.raises(StoreError, match="something is there"):
        S3Backend(made).create(_MARKER)
    with pytest.raises(UsageError, match="mode"):
        S3Backend(made).sharing(0o640).create(_MARKER)
    assert [item.key for item in made.list()] == ["something"]


def test_a_bucket_that_is_not_there_is_an_error_until_it_shall_be_made(
    seaweedfs: SeaweedFs,
) -> None:
    client = seaweedfs.client("not-there-yet")
    with pytest.raises(StoreError):
        S3Backend(client).create(_MARKER)
    with pytest.raises(StoreError):
        S3Backend(client).check()
    with pytest.raises(StoreError):
        S3Backend(client).listing()
    S3Backend(client).create(_MARKER, Site(make_bucket=True))
    S3Backend(client).check()


def test_parts_are_as_large_as_the_object_needs() -> None:
    assert part_size(1, 1) == part_size(1, None) == 8 << 20
    whole = 2 << 40
    assert part_size(1, whole) == part_size(9000, whole)
    assert part_size(1, whole) * 9000 >= whole
    assert sum(part_size(number, None) for number in range(1, 10001)) >= 5 << 40
