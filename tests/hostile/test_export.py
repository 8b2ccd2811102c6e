"""Clients of an exported point that talk nonsense, too much, or nothing."""

from __future__ import annotations

import random
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import fleece
from fleece.engine.clients.crowd import STRANGERS
from fleece.nbd.uri import socket_of
from tests.engine.scene import MIB, wait_until
from tests.rig import images
from tests.rig.process import run, run_checked

_GO = b"IHAVEOPT" + struct.pack(">III3sH", 7, 9, 3, b"vda", 0)
_AGREED = struct.pack(">QIII", 0x3E889045565A9, 7, 1, 0)
_READ = struct.pack(">IHHQQI", 0x25609513, 0, 0, 1, 0, MIB)


@pytest.fixture
def held(tmp_path: Path) -> Iterator[fleece.Exporting]:
    """A point of an image of 1 MiB."""
    image = images.random_image(tmp_path / "vda.qcow2", MIB, seed=1)
    with fleece.open_source(f"image:{image}") as source, fleece.export(source) as made:
        yield made


def _connected(held: fleece.Exporting) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(socket_of(held.told.disks[0].uri) or "")
    return client


def _told(client: socket.socket) -> bytes:
    """All that a client is told until it is hung up on, or has said all that it will."""
    with client:
        client.shutdown(socket.SHUT_WR)
        try:
            return b"".join(iter(lambda: client.recv(65536), b""))
        except ConnectionError:
            return b""


def test_who_only_takes_up_places_keeps_nobody_out_for_longer_than_it_stays(
    held: fleece.Exporting,
) -> None:
    crowd = [_connected(held) for _ in range(STRANGERS)]
    for client in crowd:
        assert client.recv(8) == b"NBDMAGIC"
    assert _told(_connected(held)) == b""
    uri = held.told.disks[0].uri
    assert run("nbdinfo", uri).returncode != 0
    held.check()
    for client in crowd:
        client.close()
    wait_until(lambda: run("nbdinfo", uri).returncode == 0, "a place")
    held.commit()


def _nonsense(chance: random.Random) -> bytes:
    """Something like the beginning of a client."""
    said = struct.pack(">I", chance.choice([3, 3, 3, 1, 0, 7, 1 << 31]))
    for _ in range(chance.randrange(6)):
        name = chance.choice([b"vda", b"", b"vdb", b"\xff\0", b"x" * 5000])
        length = chance.choice([len(name), len(name), 0, 1 << 31, 0xFFFFFFFF])
        more = chance.choice([b"\0\0", b"\0\1\0\1", b"\0\0\0\1\0\0\0\x0fbase:allocation", b""])
        data = chance.choice([struct.pack(">I", length) + name + more, b"", chance.randbytes(9)])
        size = chance.choice([len(data), len(data), len(data), 1, 70000, 0xFFFFFFFF])
        magic = chance.choice([b"IHAVEOPT"] * 9 + [b"IHAVENOT"])
        said += magic + struct.pack(">II", chance.randrange(13), size) + data
    return said + chance.randbytes(chance.randrange(64))


def test_nonsense_harms_nobody(held: fleece.Exporting, tmp_path: Path) -> None:
    chance = random.Random(1)
    before = threading.active_count()
    for _ in range(300):
        client = _connected(held)
        client.sendall(_nonsense(chance))
        _told(client)
    wait_until(lambda: threading.active_count() == before, "the end of their threads")
    run_checked("nbdcopy", held.told.disks[0].uri, tmp_path / "copy")
    images.compare(tmp_path / "vda.qcow2", tmp_path / "copy", "qcow2", "raw")
    held.commit()


def test_who_asks_in_the_old_way_is_answered_and_may_leave_before(
    held: fleece.Exporting, tmp_path: Path
) -> None:
    """QEMU 7.2 crashes when it is left so by who talks to it."""
    asked = b"IHAVEOPT" + struct.pack(">II3s", 1, 3, b"vda")
    for flags in (1, 3) * 50:
        with _connected(held) as client:
            client.sendall(struct.pack(">I", flags) + asked)
    shown = images.to_raw(tmp_path / "vda.qcow2", tmp_path / "raw").read_bytes()
    for flags, zeroes in ((1, bytes(124)), (3, b"")):
        with _connected(held) as client, client.makefile("rb") as told:
            client.sendall(struct.pack(">I", flags) + asked + _READ)
            told.read(18)
            size, _ = struct.unpack(">QH", told.read(10))
            assert (size, told.read(len(zeroes))) == (MIB, zeroes)
            assert told.read(16) == struct.pack(">IIQ", 0x67446698, 0, 1)
            assert told.read(MIB) == shown
    held.commit()


def test_what_is_agreed_on_late_holds_for_a_server_that_was_asked_before(
    held: fleece.Exporting,
) -> None:
    info = _GO[:11] + b"\6" + _GO[12:]
    structured = b"IHAVEOPT" + struct.pack(">II", 8, 0)
    with _connected(held) as client:
        client.sendall(struct.pack(">I", 3) + info + structured + _GO + _READ)
        told = b""
        while struct.pack(">I", 0x668E33EF) not in told:  # a structured reply (proto.md)
            more = client.recv(65536)
            assert more
            told += more
            assert struct.pack(">I", 0x67446698) not in told
    held.commit()


def test_clients_that_ask_and_leave_do_not_fill_up_what_a_server_says_of_them(
    held: fleece.Exporting, tmp_path: Path
) -> None:
    """It has a line of each; a pipe that nobody reads takes 64 KiB."""
    for _ in range(800):
        with _connected(held) as client:
            client.sendall(struct.pack(">I", 3) + _GO)
            while not client.recv(65536).endswith(_AGREED):
                pass
            client.sendall(_READ * 8)
    run_checked("nbdcopy", held.told.disks[0].uri, tmp_path / "copy")
    images.compare(tmp_path / "vda.qcow2", tmp_path / "copy", "qcow2", "raw")
    held.commit()
