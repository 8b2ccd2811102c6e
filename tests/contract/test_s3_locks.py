"""Points that nobody can take back: a store in a bucket with versions and object lock."""

from __future__ import annotations

import io
import itertools
import re
import shlex
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import fleece
from fleece.errors import StoreError, UsageError
from fleece.store.s3.backend import S3Backend
from fleece.store.s3.change import Change
from fleece.store.s3.client.answers import Version
from fleece.store.s3.client.bucket import Bucket
from fleece.store.s3.client.caller import Call
from fleece.store.s3.client.clock import Clock
from fleece.store.s3.client.locks import Lock, Versioning
from fleece.store.s3.client.problems import Denied
from fleece.store.store import Store
from tests.rig.s3 import SeaweedFs
from tests.unit.copies import Site

DAYS = 30
LAST = fleece.KeepRules(last=1)


@pytest.fixture(autouse=True)
def _environment(tmp_path: Path, seaweedfs: SeaweedFs, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in seaweedfs.environment.items():
        monkeypatch.setenv(name, text)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def _address(bucket: Bucket) -> str:
    return f"s3://{bucket.address.bucket}/vms"


def _made(bucket: Bucket, days: int | None = DAYS) -> Store:
    return fleece.init(
        _address(bucket), wishes=fleece.StoreWishes(site=fleece.Site(lock_days=days))
    )


@pytest.fixture
def bucket(seaweedfs: SeaweedFs) -> Bucket:
    """With object lock; it locks nothing by itself."""
    return seaweedfs.bucket(locked=True)


def _opened(bucket: Bucket) -> Store:
    return fleece.open_store(_address(bucket))


def _key(bucket: Bucket, point: str) -> str:
    """Of the object of a point's one delta, in the bucket."""
    store = _opened(bucket)
    (entry,) = store.catalogue().find(point).deltas.values()
    return entry.where.removeprefix(f"s3://{bucket.address.bucket}/")


def _until(bucket: Bucket, point: str) -> datetime:
    lock = bucket.lock(_key(bucket, point))
    assert lock is not None
    return lock.until


def _versions(bucket: Bucket, part: str = "/data/") -> list[Version]:
    return [each for each in bucket.versions() if part in each.key]


def _problems(bucket: Bucket) -> str:
    return "\n".join(fleece.status(_opened(bucket).catalogue()).problems)


def test_a_point_is_locked_and_what_it_builds_on_as_long(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And each older one is asked for once in a while, not for each point that builds on it."""
    began = datetime.now(UTC)
    monkeypatch.setattr(Clock, "now", lambda _: began)
    store = _made(bucket)
    assert _opened(bucket).marker.lock_days == DAYS
    here, points = Site(store), []
    counts = []
    for day in (0, 1, 2, 17):
        monkeypatch.setattr(Clock, "now", lambda _, day=day: began + timedelta(day))
        points.append(here.back_up())
        retained = store.usage().get("PutObjectRetention")
        counts.append(0 if retained is None else retained.requests)
    locks = [_until(bucket, point) - began for point in points]
    assert [round(lock / timedelta(1)) for lock in locks] == [17 + 45, 2 + 45, 17 + 45, 17 + 30]
    # Each point's own, its parent's, and at first and after half of the days all others'.
    assert [after - before for before, after in itertools.pairwise(counts)] == [3, 2, 4]
    assert bucket.lock("vms/fleece-store.json") is not None
    for change in range(1, 5):
        lock = bucket.lock(f"vms/web/commits/{change:010d}.json")
        assert lock is not None
        assert lock.until >= began + timedelta(DAYS, -1)
    assert _problems(bucket) == ""


def test_what_an_older_host_locked_is_extended_from_another(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which remembers nothing: it asks the server, and makes no lock shorter."""
    _made(bucket)
    here = Site(_opened(bucket))
    first = here.back_up()
    later = datetime.now(UTC).replace(microsecond=0) + timedelta(DAYS * 10)
    bucket.set_lock(_key(bucket, first), Lock(later))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    here.store = _opened(bucket)
    second = here.back_up()
    assert _until(bucket, first) == later
    assert _until(bucket, second) < later


def test_no_store_locks_its_points_where_nothing_can_be_locked(
    seaweedfs: SeaweedFs, tmp_path: Path
) -> None:
    plain = seaweedfs.bucket()
    with pytest.raises(StoreError, match=r"no object lock.*--create-bucket"):
        _made(plain)
    assert [*plain.list()] == []
    wishes = fleece.StoreWishes(site=fleece.Site(lock_days=DAYS))
    with pytest.raises(UsageError, match="folder"):
        fleece.init(tmp_path / "store", wishes=wishes)
    assert not (tmp_path / "store").exists()
    for days in (0, -1, 40_000):
        with pytest.raises(UsageError, match=f"locked for {days} days"):
            _made(plain, days)


def test_a_bucket_is_made_with_object_lock_where_points_shall_be_locked(
    seaweedfs: SeaweedFs,
) -> None:
    client = seaweedfs.client("made-to-be-locked")
    site = fleece.Site(make_bucket=True, lock_days=1)
    fleece.init(_address(client), wishes=fleece.StoreWishes(site=site))
    assert client.locking() is not None


def test_prune_keeps_what_is_locked_and_says_until_when(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one goes when its lock has ended, with all its versions."""
    store = _made(bucket, None)
    here = Site(store)
    first, _ = here.back_up(), here.back_up()
    until = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=4)
    bucket.set_lock(_key(bucket, first), Lock(until))
    fleece.verify_store(store.catalogue(), record=True)
    fleece.verify_store(store.catalogue(), record=True)
    with monkeypatch.context() as patch:
        patch.setattr(Clock, "now", lambda _: until - timedelta(seconds=1))
        told = fleece.prune(_opened(bucket), LAST, merging=True)
    assert told.removed == 0
    assert told.points[0].reasons == (f"locked until {until:%Y-%m-%dT%H:%M:%SZ}",)
    while (done := fleece.prune(_opened(bucket), LAST, merging=True)).removed == 0:
        assert done.points[0].reasons == told.points[0].reasons
    assert done.kept == 1
    assert len(_versions(bucket)) == 1
    assert not any(each.deleted for each in bucket.versions())
    here.store = _opened(bucket)
    assert _problems(bucket) == ""


def test_what_was_only_hidden_goes_with_the_next_prune(bucket: Bucket) -> None:
    """As what a run removes that may not list versions; but nothing that a point needs."""
    here = Site(_made(bucket, None))
    first, second = here.back_up(), here.back_up()
    bucket.put("vms/web/data/aa.0000000000.11111111.0000000000000000/vda.fleece", b"left")
    bucket.delete(["vms/web/data/aa.0000000000.11111111.0000000000000000/vda.fleece"])
    bucket.delete([_key(bucket, first)])
    store = _opened(bucket)
    with pytest.raises(StoreError):
        fleece.prune(store, LAST)
    store.backend.tidy(["web/000001-aa"])
    (mark,) = [each for each in _versions(bucket) if each.deleted and "/aa." not in each.key]
    bucket.delete_versions([(mark.key, mark.version)])
    fleece.prune(_opened(bucket), LAST)
    assert {each.key for each in _versions(bucket)} == {
        _key(bucket, first),
        _key(bucket, second),
    }


def test_nothing_hidden_goes_while_a_change_is_hidden(bucket: Bucket) -> None:
    """It may be the one that says what the point is of: `status` tells of it first."""
    here = Site(_made(bucket, None))
    here.back_up()
    second = here.back_up()
    key = _key(bucket, second)
    bucket.delete([key, "vms/web/commits/0000000002.json"])
    here.store = _opened(bucket)
    here.back_up()
    fleece.prune(_opened(bucket), LAST)
    assert key in {each.key for each in _versions(bucket) if not each.deleted}


def test_a_locked_point_is_not_merged(bucket: Bucket) -> None:
    here = Site(_made(bucket))
    here.back_up()
    second = here.back_up()
    before = _versions(bucket)
    with pytest.raises(StoreError, match=f"{second} is locked until .*cannot be replaced"):
        fleece.merge(_opened(bucket), second)
    told = fleece.prune(_opened(bucket), LAST, merging=True)
    assert told.removed == 0
    assert [str(reason)[:6] for point in told.points for reason in point.reasons[:1]] == [
        "locked",
        "last",
    ]
    assert _versions(bucket) == before


def test_a_pin_is_a_legal_hold_on_all_that_the_point_needs(bucket: Bucket) -> None:
    """Until no pin needs it; whoever takes a pin away does not end it."""
    here = Site(_made(bucket, None))
    points = [here.back_up() for _ in range(3)]
    for point in points[:2]:
        fleece.set_pin(_opened(bucket), point)

    def held() -> list[bool]:
        return [bucket.held(_key(bucket, point)) for point in points]

    assert held() == [True, True, False]
    fleece.set_pin(_opened(bucket), points[1], pinned=False)
    assert held() == [True, False, False]
    with pytest.raises(StoreError, match="cannot be deleted"):
        bucket.delete_versions(
            (each.key, each.version) for each in _versions(bucket, _key(bucket, points[0]))
        )
    (pin,) = [item.key for item in bucket.list() if item.key.endswith(".pin.json")]
    bucket.delete([pin])
    told = fleece.prune(_opened(bucket), LAST, dry_run=True, merging=True)
    assert told.points[0].reasons == ("under a legal hold",)
    fleece.set_pin(_opened(bucket), points[0], pinned=False)
    assert held() == [False, False, False]


def test_what_arrives_from_another_store_is_locked(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Site(fleece.init(tmp_path / "store"))
    _made(bucket)
    began, points = datetime.now(UTC), []
    for day in range(2):
        monkeypatch.setattr(Clock, "now", lambda _, day=day: began + timedelta(day))
        points.append(source.back_up())
        fleece.copy(source.store, _opened(bucket))
    locks = [_until(bucket, point) - began for point in points]
    assert [round(lock / timedelta(1)) for lock in locks] == [1 + 45, 1 + 30]


def test_what_is_imported_is_locked_and_what_it_builds_on(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Site(fleece.init(tmp_path / "store"))
    points = [source.back_up() for _ in range(2)]
    _made(bucket)
    began = datetime.now(UTC)
    for day, point in enumerate(points):
        monkeypatch.setattr(Clock, "now", lambda _, day=day: began + timedelta(day))
        (entry,) = source.store.catalogue().find(point).deltas.values()
        stream = io.BytesIO(Path(entry.where).read_bytes())
        fleece.import_delta(_opened(bucket), stream.read)
    locks = [_until(bucket, point) - began for point in points]
    assert [round(lock / timedelta(1)) for lock in locks] == [1 + 45, 1 + 30]


def _hidden_delta(bucket: Bucket, points: list[str]) -> str:
    bucket.delete([_key(bucket, points[0])])
    return rf"point 000001-{points[0]} was hidden by a deletion; remove the mark"


def _hidden_change(bucket: Bucket, points: list[str]) -> str:
    bucket.delete(["vms/web/commits/0000000002.json"])
    return r"commits/0000000002.json: the change was hidden by a deletion"


def _overwritten(bucket: Bucket, points: list[str]) -> str:
    key = _key(bucket, points[0])
    for content in b"something else", b"something else again":
        bucket.put(key, content)
    return r"vda.fleece: was overwritten; .*\(version \w+\): its first version is still there"


def _dropped(bucket: Bucket, points: list[str]) -> str:
    """As a thief would who may write objects and knows fleece."""
    bucket.put(
        "vms/web/commits/0000000003.json", Change(f"000002-{points[1]}", by="a thief").to_bytes()
    )
    return rf"0000000003.json: a thief dropped .* of point 000002-{points[1]}, which is locked"


def _undo(bucket: Bucket) -> None:
    """What the howto says: remove each version that `status` names, until it names none."""
    text = (Path(__file__).parents[2] / "docs" / "howto" / "s3.rst").read_text()
    words = shlex.split(text[text.index("sed -nE") :].partition("|\n")[0])
    while problems := _problems(bucket):
        done = subprocess.run(words, input=problems, capture_output=True, text=True, check=True)
        named = [line.split() for line in done.stdout.splitlines()]
        assert named, problems
        bucket.delete_versions((key, version) for _, key, version in named)


@pytest.mark.parametrize("harm", [_hidden_delta, _hidden_change, _overwritten, _dropped])
def test_status_tells_what_somebody_hid_and_how_it_is_undone(
    harm: Callable[[Bucket, list[str]], str], bucket: Bucket
) -> None:
    here = Site(_made(bucket))
    points = [here.back_up(), here.back_up()]
    assert _problems(bucket) == ""
    said = harm(bucket, points)
    assert re.search(said, _problems(bucket)), _problems(bucket)
    _undo(bucket)
    here.store = _opened(bucket)
    points.append(here.back_up())
    assert here.judge(_opened(bucket)) == points


def test_a_marker_that_somebody_hid_is_not_called_no_store(bucket: Bucket) -> None:
    Site(_made(bucket)).back_up()
    bucket.delete(["vms/fleece-store.json"])
    with pytest.raises(StoreError, match="was hidden by a deletion; remove the mark") as hidden:
        _opened(bucket)
    (mark,) = (each for each in _versions(bucket, "fleece-store.json") if each.deleted)
    assert f"(version {mark.version})" in str(hidden.value)
    bucket.delete_versions([(mark.key, mark.version)])
    assert _problems(bucket) == ""


def test_status_tells_that_a_points_object_is_gone_from_any_bucket(seaweedfs: SeaweedFs) -> None:
    plain = seaweedfs.bucket()
    here = Site(_made(plain, None))
    _, second = here.back_up(), here.back_up()
    store = _opened(plain)
    fleece.status(store.catalogue())
    assert store.usage()["ListBucket"].requests == 1
    plain.delete([_key(plain, second)])
    assert f"point 000002-{second} is gone" in _problems(plain)


def test_a_bucket_may_lock_all_by_itself(bucket: Bucket) -> None:
    """What cannot be removed stays or is hidden, and fails nothing; prune says until when."""
    rule = "<DefaultRetention><Mode>COMPLIANCE</Mode><Days>1</Days></DefaultRetention>"
    said = f"<ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule>{rule}</Rule>"
    body = f"<ObjectLockConfiguration>{said}</ObjectLockConfiguration>".encode()
    right = "s3:PutBucketObjectLockConfiguration"
    bucket.call(Call(right, "PUT", None, {"object-lock": ""}, {}, body, checked=True))
    here = Site(_made(bucket, None))
    first = here.back_up()
    left = "vms/web/data/aa.0000000000.11111111.0000000000000000/vda.fleece"
    bucket.put(left, b"left")
    here.back_up()
    store = _opened(bucket)
    with store.locked("web"):
        store.catalogue()
        assert store.remove_partial("web") == []
    fleece.set_pin(_opened(bucket), first)
    fleece.set_pin(_opened(bucket), first, pinned=False)
    assert fleece.verify_store(_opened(bucket).catalogue(), record=True).errors == ()
    told = fleece.prune(_opened(bucket), LAST, merging=True)
    assert [point.reasons[0][:12] for point in told.points] == ["locked until", "last"]
    assert _problems(bucket) == ""
    assert bucket.get(left).data == b"left"


def test_what_another_engine_drops_between_two_requests_is_no_harm(bucket: Bucket) -> None:
    """What a listing lacks must be missing in a second one, too."""
    here = Site(_made(bucket))
    key = _key(bucket, here.back_up())
    store = _opened(bucket)
    catalogue = store.catalogue()
    assert isinstance(store.backend, S3Backend)
    del store.backend._ledger.items[key.removeprefix("vms/")]
    assert fleece.status(catalogue).problems == ()


def test_who_may_not_see_versions_is_told_that_nobody_looked(
    seaweedfs: SeaweedFs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No silence is taken for a good sign."""
    locked = seaweedfs.bucket(locked=True)
    Site(_made(locked)).back_up()
    monkeypatch.setattr(Bucket, "versioning", _denied)
    assert "nobody can see here whether a point was hidden" in _problems(locked)


def _denied(_: Bucket) -> Versioning:
    raise Denied("may not do it")
