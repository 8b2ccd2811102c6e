"""The calls of the client for S3 on a real server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta

import pytest

from fleece.errors import StoreError
from fleece.store.errors import Gone
from fleece.store.s3.client.answers import Part
from fleece.store.s3.client.bucket import Bucket
from fleece.store.s3.client.locks import Lock, Locking, Mode, Versioning
from fleece.store.s3.client.problems import Changed, Denied, NoBucket, NoUpload, Taken
from fleece.store.s3.client.uploads import LEAST_PART
from tests.rig.process import find_tool
from tests.rig.s3 import ACCESS, READER, READER_SECRET, SECRET, Keys, SeaweedFs

_NAMES = ["plain", "with space", "a+b", "50%", "é", "a&b<c>", "~x-y_z.w", "deep/er/name", "=?#"]


@pytest.fixture(scope="module")
def bucket(seaweedfs: SeaweedFs) -> Bucket:
    return seaweedfs.bucket()


def _curl(server: SeaweedFs, *words: str) -> bytes:
    """What another client says, which makes its own signatures."""
    command = [find_tool("curl"), "-sS", "--fail-with-body", "--user", f"{ACCESS}:{SECRET}"]
    command += ["--aws-sigv4", "aws:amz:us-east-1:s3", *words]
    return subprocess.run(command, capture_output=True, check=True).stdout


@pytest.mark.parametrize("name", _NAMES)
def test_what_is_put_is_got_listed_and_gone_when_it_is_deleted(bucket: Bucket, name: str) -> None:
    key = f"each/{name}"
    etag = bucket.put(key, b"content")
    got = bucket.get(key)
    assert (got.data, got.etag, got.total) == (b"content", etag, 7)
    assert [(each.key, each.length, each.etag) for each in bucket.list("each/")] == [(key, 7, etag)]
    head = bucket.head(key)
    assert (head.length, head.etag) == (7, etag)
    assert abs(head.modified - datetime.now(UTC)) < timedelta(hours=1)
    bucket.delete([key, "each/never"])
    assert list(bucket.list("each/")) == []
    for call in (bucket.get, bucket.head):
        with pytest.raises(Gone, match="is not there"):
            call(key)


def test_another_client_reads_what_was_written(seaweedfs: SeaweedFs, bucket: Bucket) -> None:
    data = os.urandom(LEAST_PART)
    upload = bucket.begin("judge/parts")
    parts = [Part(i + 1, bucket.part(upload, i + 1, data[i:]), 0) for i in range(2)]
    bucket.complete(upload, parts)
    base = f"http://127.0.0.1:{seaweedfs.port}/{bucket.address.bucket}"
    assert _curl(seaweedfs, f"{base}/judge/parts") == data + data[1:]
    bucket.put("judge/small", b"whole")
    assert _curl(seaweedfs, f"{base}/judge/small") == b"whole"


def test_a_range_is_what_the_object_has_of_it(bucket: Bucket) -> None:
    bucket.put("ranges", b"0123456789")
    assert bucket.get("ranges", 2, 3).data == b"234"
    assert bucket.get("ranges", 8, 30).data == b"89"
    assert bucket.get("ranges", 4).data == b"456789"
    past = bucket.get("ranges", 10, 3)
    assert (past.data, past.total) == (b"", 10)
    etag = bucket.head("ranges").etag
    assert bucket.get("ranges", 0, 1, etag).total == 10
    bucket.put("ranges", b"another one")
    with pytest.raises(Changed, match="was replaced meanwhile"):
        bucket.get("ranges", 0, 1, etag)


def test_one_of_many_makes_a_new_object(bucket: Bucket) -> None:
    won: list[int] = []
    unsure: list[bool] = []

    def create(number: int) -> None:
        try:
            bucket.put("race", str(number).encode(), new=True)
        except Taken as error:
            unsure.append(error.unsure)
        else:
            won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert unsure == [False] * 15
    assert [str(number).encode() for number in won] == [bucket.get("race").data]


def test_an_upload_is_seen_when_it_is_complete_and_not_before(bucket: Bucket) -> None:
    data = [os.urandom(LEAST_PART), b"the end"]
    upload = bucket.begin("uploads/one")
    other = bucket.begin("uploads/other")
    etags = [bucket.part(upload, number, data[number - 1]) for number in (2, 1)]
    assert {each.key for each in bucket.uploads("uploads/")} == {"uploads/one", "uploads/other"}
    parts = bucket.parts(upload)
    assert [(part.number, part.length) for part in parts] == [(1, LEAST_PART), (2, 7)]
    assert [part.etag for part in parts] == etags[::-1]
    with pytest.raises(Gone):
        bucket.head("uploads/one")
    assert list(bucket.list("uploads/")) == []
    etag = bucket.complete(upload, parts, new=True)
    got = bucket.get("uploads/one")
    assert (got.data, got.etag) == (b"".join(data), etag)
    bucket.abort(other)
    bucket.abort(other)
    assert list(bucket.uploads("uploads/")) == []
    with pytest.raises(NoUpload):
        bucket.parts(other)


def test_a_listing_goes_on_behind_its_first_page(bucket: Bucket) -> None:
    names = [f"many/{number:04d}/x" for number in range(1001)]
    threads = [
        threading.Thread(target=lambda mine: [bucket.put(name, b"") for name in mine], args=(part,))
        for part in (names[0::4], names[1::4], names[2::4], names[3::4])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each.key for each in bucket.list("many/")] == names
    assert list(bucket.folders("many/"))[1000] == "many/1000/"
    assert [each.key for each in bucket.list("many/", after=names[998])] == names[999:]
    bucket.delete(names)
    assert list(bucket.list("many/")) == []


def test_a_locked_version_stays(seaweedfs: SeaweedFs) -> None:
    bucket = seaweedfs.bucket(locked=True)
    assert bucket.versioning() is Versioning.ENABLED
    assert bucket.locking() == Locking(None, 0)
    until = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    bucket.put("kept", b"1", lock=Lock(until))
    assert bucket.lock("kept") == Lock(until, Mode.COMPLIANCE)
    later = Lock(until + timedelta(hours=1))
    bucket.set_lock("kept", later)
    assert bucket.lock("kept") == later
    bucket.delete(["kept"])
    mark, kept = bucket.versions("kept")
    assert (mark.deleted, mark.latest, kept.deleted, kept.latest) == (True, True, False, False)
    with pytest.raises(StoreError, match="cannot be deleted"):
        bucket.delete_versions([("kept", kept.version)])
    bucket.delete_versions([("kept", mark.version)])
    assert bucket.get("kept").data == b"1"


def test_a_legal_hold_comes_and_goes(seaweedfs: SeaweedFs, bucket: Bucket) -> None:
    locked = seaweedfs.bucket(locked=True)
    locked.put("held", b"1")
    assert locked.lock("held") is None
    for on in (False, True, False):
        locked.hold("held", on=on)
        assert locked.held("held") is on
    bucket.put("free", b"1")
    assert bucket.versioning() is Versioning.OFF
    assert bucket.locking() is None
    assert bucket.lock("free") is None
    assert not bucket.held("free")


def test_a_bucket_is_made_once_and_missed_by_its_name(seaweedfs: SeaweedFs) -> None:
    missing = seaweedfs.client("no-such-bucket")
    hint = "fleece init --create-bucket makes it"
    # No put: this server makes the bucket then, if an administrator asks.
    calls = (missing.check, lambda: list(missing.list()), lambda: missing.get("k"))
    for call in (*calls, lambda: missing.head("k")):
        with pytest.raises(NoBucket, match=f"^s3://no-such-bucket.*no such bucket.*{hint}"):
            call()
    made = seaweedfs.bucket()
    made.create()
    made.check()


def test_who_may_not_is_told_which_right_is_missing(seaweedfs: SeaweedFs, bucket: Bucket) -> None:
    bucket.put("secret", b"1")
    name = bucket.address.bucket
    reader = seaweedfs.client(name, Keys(READER, READER_SECRET))
    assert reader.get("secret").data == b"1"
    with pytest.raises(Denied, match=rf"^s3://{name}/k: access denied .*right s3:PutObject"):
        reader.put("k", b"")
    stranger = seaweedfs.client(name, Keys("nobody"))
    with pytest.raises(Denied, match=r"does not know the access key; check AWS_ACCESS_KEY_ID"):
        stranger.check()
    liar = seaweedfs.client(name, Keys(ACCESS, "a wrong secret"))
    with pytest.raises(Denied, match="the signature is wrong") as refused:
        liar.head("secret")
    assert "a wrong secret" not in str(refused.value)


def _ends(bucket: Bucket) -> set[object]:
    """Our ends of the connections that are kept."""
    return {wire._socket.getsockname() for wire in bucket._pool._idle}


def test_a_forked_child_has_connections_of_its_own(bucket: Bucket) -> None:
    bucket.put("forked", b"1")
    before = _ends(bucket)
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        good = bucket.get("forked").data == b"1" and not _ends(bucket) & before
        os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert bucket.get("forked").data == b"1"
    assert _ends(bucket) == before


_SERVED_BY_NAMES = """
from fleece.store.s3.client.address import address_of
from fleece.store.s3.client.bucket import Bucket
print(Bucket(address_of("s3://{bucket}")).get("named").data.decode())
"""


def test_the_environment_says_where_and_who(seaweedfs: SeaweedFs, bucket: Bucket) -> None:
    bucket.put("named", b"by the environment")
    done = subprocess.run(
        [sys.executable, "-c", _SERVED_BY_NAMES.format(bucket=bucket.address.bucket)],
        env=os.environ | seaweedfs.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("by the environment\n", "")
