"""Points over HTTP, of a store: the judges are curl and the client of oVirt's imageio."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import fleece
from tests.engine.history import Guest
from tests.engine.scene import INTACT, MIB, flip
from tests.rig.http import curl, imageio_download
from tests.unit.kit import LEAF, Change

_FREE = "127.0.0.1:0"
_CHANCE = random.Random(1)


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Guest:
    """Two points of two disks: data, then zeros, then data again, and changes; nothing."""
    made = Guest(tmp_path_factory.mktemp("http") / "store")
    data = _CHANCE.randbytes(2 * MIB + 5 * LEAF)
    made.holding({"vda": data + bytes(30 * LEAF) + data[:LEAF], "none": b""})
    made.change(vda=[Change(3 * LEAF, 4 * LEAF, 7)])
    return made


@pytest.fixture(scope="module")
def urls(guest: Guest) -> Iterator[dict[str, str]]:
    """Where its newest point is, by disk."""
    options = fleece.ServeOptions(http=fleece.HttpDoor(_FREE))
    with fleece.serve(fleece.open_store(guest.store), "latest", (), options) as serving:
        yield {disk.disk: disk.http or "" for disk in serving.disks}


def test_every_range_that_is_there_is_given_and_no_other(
    urls: dict[str, str], guest: Guest
) -> None:
    data = guest.disk("vda")
    size = len(data)
    whole = curl(urls["vda"])
    assert (whole.status, whole.body) == (200, data)
    assert whole.headers["accept-ranges"] == "bytes"
    head = curl(urls["vda"], "-I")
    assert (head.status, head.headers["content-length"]) == (200, str(size))
    nothing = curl(urls["none"])
    assert (nothing.status, nothing.body) == (200, b"")
    for text, start, end in (
        ("0-0", 0, 1),
        (f"{MIB - 3}-{2 * MIB + 2}", MIB - 3, 2 * MIB + 3),
        (f"0-{size - 1}", 0, size),
        (f"{size - 5}-", size - 5, size),
        ("-7", size - 7, size),
    ):
        got = curl(urls["vda"], "-r", text)
        assert (got.status, got.body) == (206, data[start:end]), text
        assert got.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
    for text in ("5-4", f"0-{size}", f"{size}-", "0-1,3-4", "-0", "-", f"-{size + 1}", "x", "٣-"):
        got = curl(urls["vda"], "-H", f"Range: bytes={text}")
        assert (got.status, got.headers["content-range"]) == (416, f"bytes */{size}"), text
    assert curl(urls["vda"], "-H", "Range: lines=0-1").status == 416


def test_extents_tell_what_is_zero_and_that_no_base_is_known(
    urls: dict[str, str], guest: Guest
) -> None:
    for query in ("", "?context=zero"):
        got = curl(f"{urls['vda']}/extents{query}")
        assert got.status == 200
        rows, size = json.loads(got.body), len(guest.disk("vda"))
        zeros = [(row["start"], row["length"]) for row in rows if row["zero"]]
        assert zeros == [(2 * MIB + 5 * LEAF, 30 * LEAF)]
        assert [row["start"] for row in rows] + [size] == [
            0,
            *(row["start"] + row["length"] for row in rows),
        ]
        assert not any(row["hole"] for row in rows)
    assert json.loads(curl(f"{urls['none']}/extents").body) == []
    assert curl(f"{urls['vda']}/extents?context=dirty").status == 404
    assert curl(f"{urls['vda']}/extents?context=other").status == 400
    told = json.loads(curl(urls["vda"], "-X", "OPTIONS").body)
    assert told == {"features": ["extents"], "max_readers": 8}


def test_nothing_is_written_and_nothing_shown_without_the_ticket(
    urls: dict[str, str], tmp_path: Path
) -> None:
    much = tmp_path / "much"
    much.write_bytes(bytes(MIB))
    for words in (["-T", much], ["-X", "PATCH", "-d", "{}"], ["-X", "DELETE"], ["-d", f"@{much}"]):
        got = curl(urls["vda"], *words)
        assert (got.status, got.headers["allow"]) == (405, "GET, HEAD, OPTIONS"), words
    root, _, ticket = urls["vda"].rpartition("/")
    changed = ("a" if ticket[0] != "a" else "b") + ticket[1:]
    for wrong in (changed, ticket[:-1], ticket + "x", "%00", "*", ".."):
        for words in ([], ["-X", "OPTIONS"]):
            got = curl(f"{root}/{wrong}", *words)
            assert (got.status, got.headers["connection"]) == (403, "close"), wrong
    base = root.rpartition("/")[0]
    for path in ("/", "/images/", "/images", "/../../etc/passwd", f"//images/{ticket}"):
        assert curl(f"{base}{path}").status == 404, path


def test_imageios_client_downloads_a_point(
    urls: dict[str, str], guest: Guest, tmp_path: Path
) -> None:
    target = tmp_path / "raw"
    imageio_download(urls["vda"], target, fmt="raw")
    assert target.read_bytes() == guest.disk("vda")


def test_a_body_that_meets_damage_is_cut_off(guest: Guest, tmp_path: Path) -> None:
    """By the verb: its exit code tells it too."""
    harmed = Guest(tmp_path / "store")
    harmed.holding({"vda": guest.disk("vda")})
    path = harmed.paths["vda"][0]
    flip(path, path.stat().st_size // 2)
    held = INTACT.command("serve", harmed.store, "latest", "--http", _FREE, "--json")
    try:
        url = held.wait_event("serving")["exports"][0]["http"]
        got = curl(url)
        assert (got.status, got.failed) == (200, 18)  # a partial file
        assert guest.disk("vda").startswith(got.body)
        at = len(got.body)
        assert curl(url, "-r", f"{at}-{at + MIB - 1}").status == 500
        assert curl(url, "-r", "0-99").body == guest.disk("vda")[:100]
    finally:
        held.signal(signal.SIGTERM)
        ended = held.wait()
    ended.failed(5, "reads met")


def test_what_makes_no_sense_is_refused(guest: Guest) -> None:
    words = ("serve", guest.store, "latest")
    for more, told in (
        (("--http", "0.0.0.0:0"), "--tls-cert"),
        (("--http", "nonsense"), "ADDRESS:PORT"),
        (("--http", _FREE, "--tls-cert", "/x"), "go together"),
        (("--http", _FREE, "--tls-cert", "/x", "--tls-key", "/x"), "cannot be used"),
        (("--tls-key", "/x"), "need --http"),
        (("--http", _FREE, "--writable"), "--writable"),
    ):
        INTACT.run(*words, *more).failed(2, told)
