"""Living points over HTTP: `fleece export --http`, read by the client of oVirt's imageio."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

import fleece
from fleece import events
from tests.engine.scene import INTACT, KIB64, MIB, MachineScene
from tests.rig import images
from tests.rig.certificates import certificates
from tests.rig.disk import Disk
from tests.rig.http import curl, imageio_download
from tests.rig.machine import Machine
from tests.rig.process import run_checked

_WISH = fleece.ExportOptions(http=fleece.HttpDoor("127.0.0.1:0"))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Of a guest that is off, 4 MiB."""
    return images.random_image(tmp_path / "vda.qcow2", 4 * MIB, seed=1)


@contextmanager
def exported(
    image: Path,
    options: fleece.ExportOptions = _WISH,
    listener: events.Listener = events.ignore,
) -> Iterator[tuple[fleece.Exporting, str]]:
    """A point of it, and the URL of its disk."""
    with (
        fleece.open_source(f"image:{image}") as source,
        fleece.export(source, options, listener) as held,
    ):
        yield held, held.told.disks[0].http or ""


def test_imageios_client_takes_a_full_and_what_changed(image: Path, tmp_path: Path) -> None:
    full, changed = tmp_path / "full.qcow2", tmp_path / "changed.qcow2"
    with exported(image) as (held, url):
        assert curl(f"{url}/extents?context=dirty").status == 404
        imageio_download(url, full)
        base = held.commit()
        assert curl(url).failed == 7  # nobody listens any more
    images.compare(image, full, "qcow2", "qcow2")
    writes = f"write -P 5 {MIB} 64k", f"write -z {2 * MIB} 128k"
    run_checked("qemu-io", "-f", "qcow2", "-c", writes[0], "-c", writes[1], image)
    with exported(image, replace(_WISH, since=base)) as (held, url):
        rows = json.loads(curl(f"{url}/extents?context=dirty").body)
        assert [
            (each["start"], each["length"], each["zero"]) for each in rows if each["dirty"]
        ] == [
            (MIB, KIB64, False),
            (2 * MIB, 2 * KIB64, True),
        ]
        assert sum(each["length"] for each in rows) == 4 * MIB
        below = {"backing_file": str(full), "backing_format": "qcow2"}
        imageio_download(url, changed, incremental=True, **below)
        held.commit()
    images.compare(image, changed, "qcow2", "qcow2")


def test_beyond_this_host_it_is_https(image: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    certificates(keys)
    trust = keys / "ca-cert.pem"
    locked = ["--tls-cert", keys / "server-cert.pem", "--tls-key", keys / "server-key.pem"]
    held = INTACT.talk(
        *("export", f"image:{image}", "--json", "--http", "localhost:0"), *map(str, locked)
    )
    url = held.wait_event("exported")["disks"][0]["http"]
    assert url.startswith("https://localhost:")
    imageio_download(url, tmp_path / "copy", fmt="raw", cafile=str(trust))
    images.compare(image, tmp_path / "copy", "qcow2", "raw")
    assert curl(url).failed == 60  # an authority that it does not know
    assert curl(url.replace("https:", "http:"), "--cacert", trust).status == 0
    held.say("commit")
    assert held.wait().succeeded().result["committed"]


def test_a_source_that_died_is_told_to_both_sides_and_nothing_is_committed(image: Path) -> None:
    heard, statuses = list[events.Event](), list[int]()

    def consume() -> None:
        with exported(image, _WISH, heard.append) as (held, url):
            statuses.append(curl(url, "-r", "0-9").status)
            me = os.getpid()
            for child in Path(f"/proc/{me}/task/{me}/children").read_text().split():
                if Path(f"/proc/{child}/comm").read_text() == "qemu-nbd\n":
                    os.kill(int(child), signal.SIGKILL)
            statuses.extend(curl(url + path).status for path in ("", "/extents"))
            held.commit()
            statuses.append(0)

    with pytest.raises(fleece.FleeceError):
        consume()
    assert statuses == [206, 500, 500]
    assert any(isinstance(event, events.Problem) for event in heard)


def test_who_takes_nothing_keeps_no_point(tmp_path: Path) -> None:
    """Of a running guest: at the commit QEMU has no client left, and none of HTTP."""
    disks = [Disk(images.random_image(tmp_path / "d0.qcow2", 64 * MIB, seed=1), "d0")]
    with Machine(disks) as qemu:
        qemu.control.command("cont")
        scene = MachineScene(qemu, tmp_path)
        words = ("export", scene.source, "--scratch", scene.scratch, "--json")
        held = INTACT.talk(*words, "--http", "127.0.0.1:0")
        url = held.wait_event("exported")["disks"][0]["http"]
        place, _, path = url.removeprefix("http://").partition("/")
        host, _, port = place.partition(":")
        asked = f"GET /{path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        clients = [socket.create_connection((host, int(port))) for _ in range(4)]
        for client, said in zip(clients, (asked, asked * 3, asked[:20], b""), strict=True):
            client.sendall(said)
        assert clients[0].recv(9) == b"HTTP/1.1 "
        held.say("commit")
        held.wait().succeeded()
        assert all(_told(client) < 64 * MIB for client in clients)
        assert scene.status == "running"
        scene.nothing_left()


def _told(client: socket.socket) -> int:
    """How many bytes come until the other side has hung up."""
    count = 0
    with client, contextlib.suppress(ConnectionError):
        while data := client.recv(MIB):
            count += len(data)
    return count
