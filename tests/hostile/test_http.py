"""Clients over HTTP that talk nonsense, too much, too slowly, or nothing."""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import fleece
from fleece.engine.clients import crowd
from fleece.engine.http import server
from tests.engine.scene import MIB, wait_until
from tests.rig import images
from tests.rig.certificates import certificates
from tests.rig.http import curl


@pytest.fixture
def held(tmp_path: Path) -> Iterator[fleece.Exporting]:
    """A point of an image of 1 MiB."""
    with _exported(tmp_path, fleece.HttpDoor("127.0.0.1:0")) as made:
        yield made


@contextlib.contextmanager
def _exported(folder: Path, door: fleece.HttpDoor) -> Iterator[fleece.Exporting]:
    image = images.random_image(folder / "vda.qcow2", MIB, seed=1)
    wish = fleece.ExportOptions(http=door)
    with fleece.open_source(f"image:{image}") as source, fleece.export(source, wish) as made:
        yield made


def _url(held: fleece.Exporting) -> str:
    return held.told.disks[0].http or ""


def _connected(held: fleece.Exporting) -> socket.socket:
    place = urlsplit(_url(held))
    return socket.create_connection((place.hostname or "", place.port or 0))


def _asked(held: fleece.Exporting) -> bytes:
    return f"GET {urlsplit(_url(held)).path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


def _told(client: socket.socket) -> bytes:
    """All that a client is told until it is hung up on."""
    with client, contextlib.suppress(ConnectionError):
        return b"".join(iter(lambda: client.recv(65536), b""))
    return b""


def _served(held: fleece.Exporting) -> bool:
    return len(curl(_url(held), "-k").body) == MIB


class _Known(http.client.HTTPConnection):
    """A client that has the URL of a disk, and stays."""

    def __init__(self, url: str) -> None:
        self._place = urlsplit(url)
        super().__init__(self._place.hostname or "", self._place.port)

    def is_answered(self) -> bool:
        self.request("GET", self._place.path, headers={"Range": "bytes=0-99"})
        return len(self.getresponse().read()) == 100


def test_who_drips_keeps_nobody_out_for_longer_than_strangers_may_stay(
    held: fleece.Exporting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And whom the server knows is answered all the while."""
    known = [_Known(_url(held)) for _ in range(crowd.STRANGERS + 1)]
    assert all(client.is_answered() for client in known)
    monkeypatch.setattr(crowd, "LIMIT", 2.0)
    drips = [_connected(held) for _ in range(crowd.STRANGERS)]

    def drip() -> bool:
        for client in drips:
            with contextlib.suppress(OSError):
                client.sendall(b"GET /images/")
        return _served(held)

    drip()
    assert all(client.is_answered() for client in known)
    wait_until(drip, "a place")
    for client in drips:
        client.close()
    held.commit()
    for each in known:
        each.close()


def test_who_takes_nothing_of_what_it_asked_for_is_hung_up_on(
    held: fleece.Exporting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "IDLE", 0.5)
    before = threading.active_count()
    clients = [_connected(held) for _ in range(4)]
    for client in clients:
        client.sendall(_asked(held) * 64)
    wait_until(lambda: threading.active_count() > before, "their threads")
    wait_until(lambda: threading.active_count() == before, "the end of them")
    for client in clients:
        assert len(_told(client)) < 64 * MIB
    held.commit()


_TARGETS = (
    "/images/{}",
    "/images/",
    "//images/{}/..",
    "/images/%2e%2e/{}",
    "*",
    "/",
    "http://x/{}",
)
_LINES = (
    b"Host: x",
    b"Content-Length: 99999999999999999999",
    b"Content-Length: 3\r\nContent-Length: 4",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip, chunked\r\nContent-Length: 1",
    b"Range: bytes=0-" + b"9" * 5000,
    b"X: " + b"y" * 100000,
    b" folded: \0\xff",
    b"no colon",
    b"Expect: 100-continue",
    b"Upgrade: h2c\r\nConnection: Upgrade",
)


def _nonsense(chance: random.Random) -> bytes:
    """Something like the beginning of a client that knows no ticket."""
    method = chance.choice(
        [b"GET", b"HEAD", b"PUT", b"PATCH", b"CONNECT", b"get", b"", b"\x16\3\1"]
    )
    ticket = chance.choice(["", "x", "a" * 43, "%00", "\u00e9", "../" * 9, "t" * 9000])
    target = chance.choice(_TARGETS).format(ticket).encode("latin-1")
    version = chance.choice([b"HTTP/1.1"] * 4 + [b"HTTP/1.0", b"HTTP/2.0", b"", b"HTTP/9"])
    lines = [chance.choice(_LINES) for _ in range(chance.randrange(4))]
    head = b"\r\n".join([b" ".join([method, target, version]), *lines])
    return head + chance.choice([b"\r\n\r\n", b"\r\n\r\n", b"", b"\n\n"]) + chance.randbytes(9)


def _is_shown_nothing(said: bytes, connected: Callable[[], socket.socket]) -> bool:
    client = connected()
    with contextlib.suppress(OSError):  # it is hung up on before it has said all
        client.sendall(said)
        client.shutdown(socket.SHUT_WR)
    told = _told(client)
    return not told or told.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5"))


def test_nonsense_harms_nobody_and_is_shown_nothing(held: fleece.Exporting) -> None:
    chance = random.Random(1)
    before = threading.active_count()
    for _ in range(300):
        said = _nonsense(chance)
        assert _is_shown_nothing(said, lambda: _connected(held)), said
    wait_until(lambda: threading.active_count() == before, "the end of their threads")
    assert _served(held)
    held.commit()


def test_hundreds_of_connections_cost_so_many_threads_and_no_more(held: fleece.Exporting) -> None:
    before = threading.active_count()
    many = [_connected(held) for _ in range(300)]
    assert threading.active_count() <= before + crowd.STRANGERS
    for client in many:
        client.close()
    wait_until(lambda: _served(held), "a place")
    held.commit()


def test_what_is_no_tls_keeps_nobody_out(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    certificates(keys)
    door = fleece.HttpDoor("127.0.0.1:0", keys / "server-cert.pem", keys / "server-key.pem")
    with _exported(tmp_path, door) as held:
        said = (b"", b"\x16\3\1", b"\x16\3\1\2\0\1\0\1\xfc\3\3", b"\x16\3\1" + b"\xff" * 9000)
        staying = [_connected(held) for _ in said]
        for client, text in zip(staying, said, strict=True):
            client.sendall(text)
        assert b"HTTP" not in _told(_connected_saying(held, _asked(held)))
        assert _served(held)
        held.commit()
        for client in staying:
            assert b"HTTP" not in _told(client)


def _connected_saying(held: fleece.Exporting, said: bytes) -> socket.socket:
    client = _connected(held)
    client.sendall(said)
    return client
