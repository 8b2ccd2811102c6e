"""Exports that somebody else serves: by qemu-nbd, by nbdkit, by qemu-storage-daemon."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import subprocess
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import fleece
from fleece.events import Event, Listener, PointTaken, ignore
from fleece.nbd.uri import socket_of, unix_uri
from fleece.source.nbd import held
from tests.engine.scene import (
    GUEST,
    INTACT,
    KIB64,
    MIB,
    ROOT,
    Moment,
    Ran,
    died,
    wait_until,
)
from tests.rig import images
from tests.rig.certificates import certificates
from tests.rig.process import LIMIT, find_tool, run, run_checked


@contextmanager
def serving(uri: str, *words: object) -> Iterator[str]:
    """A server, until the context ends; gives the URI by which it answers."""
    command = [find_tool(str(words[0])), *map(str, words[1:])]
    with subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command]) as server:
        try:
            wait_until(lambda: run("nbdinfo", "--size", uri).returncode == 0, "the server")
            yield uri
        finally:
            server.kill()
            if path := socket_of(uri):
                Path(path).unlink(missing_ok=True)


@dataclass
class Owner:
    """Who has an image, begins bitmaps in it and serves it; and a store.

    Attributes:
        folder: for the image and the store.
        place: of sockets; its path is short.
    """

    folder: Path
    place: Path
    numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def image(self) -> Path:
        """The disk."""
        return self.folder / "disk.qcow2"

    @property
    def store(self) -> Path:
        """The store, made if it is not there yet."""
        path = self.folder / "store"
        if not path.exists():
            fleece.init(path)
        return path

    @property
    def uri(self) -> str:
        """Of the export."""
        return unix_uri(str(self.place / "nbd.sock"))

    def bitmap(self, name: str) -> None:
        """Begin one."""
        run_checked("qemu-img", "bitmap", "--add", self.image, name)

    def bitmaps(self) -> list[str]:
        """The names of those in the image."""
        info = json.loads(run_checked("qemu-img", "info", "--output=json", self.image))
        return [bitmap["name"] for bitmap in info["format-specific"]["data"].get("bitmaps", [])]

    def write(self, offset: int, length: int = KIB64) -> None:
        """Write something new."""
        words = f"write -P {next(self.numbers) + 33} {offset} {length}"
        run_checked("qemu-io", "-f", "qcow2", "-c", words, self.image)

    def serving(self, *bitmaps: str, image: Path | None = None) -> AbstractContextManager[str]:
        """Serve it, or another image in its place."""
        words = itertools.chain(*(("-B", name) for name in bitmaps))
        socket = self.place / "nbd.sock"
        return serving(
            self.uri, "qemu-nbd", "-r", "-t", "-e", "0", "-k", socket, *words, image or self.image
        )

    def backup(self, *words: object, source: str | None = None) -> Ran:
        """Back it up by the command line."""
        guest = () if "--guest" in words else ("--guest", GUEST)
        return INTACT.run("backup", source or self.uri, self.store, *guest, "--json", *words)

    def take(self, listener: Listener = ignore) -> fleece.BackupResult:
        """Back it up by the library."""
        with fleece.open_source(self.uri) as source:
            wish = fleece.BackupOptions(guest=GUEST)
            return fleece.backup(source, fleece.open_store(self.store), wish, listener)

    def check_exact(self, ran: Ran) -> str:
        """Check that a backup's point is what the image holds; gives the point."""
        point = str(ran.result["point"])
        target = self.folder / f"restored-{point}"
        fleece.restore(fleece.open_store(self.store), point, "disk", str(target))
        images.compare(self.image, target, "qcow2", "raw")
        return point


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder of a short name."""
    with tempfile.TemporaryDirectory(prefix="rig-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def owner(tmp_path: Path, place: Path) -> Owner:
    """Of an image of 2 MiB."""
    made = Owner(tmp_path, place)
    images.random_image(made.image, 2 * MIB, seed=1)
    return made


def modes(ran: Ran) -> dict[str, str]:
    """How each disk was read."""
    return {disk["disk"]: disk["mode"] for disk in ran.succeeded().result["disks"]}


def why(ran: Ran) -> str:
    """Why the one disk was read so."""
    (planned,) = ran.named("plan")
    return str(planned["reason"])


def test_without_a_bitmap_only_what_differs_is_stored(owner: Owner) -> None:
    with owner.serving():
        first = owner.backup()
        assert modes(first) == {"disk": "full"}
        assert first.named("warning") == []
        owner.check_exact(first)
    owner.write(3 * KIB64)
    with owner.serving():
        second = owner.backup()
        assert modes(second) == {"disk": "rescan"}
        assert "--bitmap" in why(second)
        assert second.result["disks"][0]["dirty_bytes"] == KIB64
        owner.check_exact(second)
        assert modes(owner.backup("--mode", "full")) == {"disk": "full"}
        owner.backup("--mode", "incremental").failed(4, "no bitmap")


def test_a_bitmap_is_believed_for_the_point_that_it_began_by(owner: Owner) -> None:
    owner.bitmap("b")
    with owner.serving():
        token = owner.check_exact(owner.backup())
    proof = "--bitmap", "b", "--since", token
    for turn in range(2):  # the second time the store has a newer point, which is not built on
        owner.write((turn + 5) * KIB64, 512)
        with owner.serving("b"):
            ran = owner.backup(*proof)
            assert modes(ran) == {"disk": "incremental"}
            assert why(ran) == f"changed since point {token}"
            assert ran.result["disks"][0]["read_bytes"] == (turn + 1) * KIB64
            owner.check_exact(ran)
    with owner.serving("b"):
        differing = owner.backup(*proof, "--mode", "differential", "--audit", "1")
        assert modes(differing) == {"disk": "differential"}
        assert differing.result["disks"][0]["audited_bytes"] == 2 * MIB - 2 * KIB64
        audit = INTACT.run("audit", owner.uri, owner.store, "--guest", GUEST, *proof, "--json")
        assert audit.succeeded().result["disks"][0]["against"] == token


def test_a_bitmap_of_a_point_that_the_store_lacks_is_not_believed(owner: Owner) -> None:
    owner.bitmap("b")
    with owner.serving("b"):
        newest = owner.check_exact(owner.backup())
    owner.write(0)
    proof = "--bitmap", "b", "--since", "0123456789"
    with owner.serving("b"):
        owner.backup(*proof, "--mode", "incremental").failed(4, newest, "0123456789")
        ran = owner.backup(*proof)
        assert modes(ran) == {"disk": "rescan"}
        owner.check_exact(ran)
        proof = "--bitmap", "b", "--since", newest
        other = owner.backup(*proof, "--guest", "other")
        assert modes(other) == {"disk": "full"}


def test_what_several_bitmaps_tell_is_all_read(owner: Owner) -> None:
    owner.bitmap("a")
    with owner.serving():
        token = owner.check_exact(owner.backup())
    owner.write(KIB64)
    owner.bitmap("b")
    run_checked("qemu-img", "bitmap", "--disable", owner.image, "a")
    owner.write(4 * KIB64)
    with owner.serving("a", "b"):
        ran = owner.backup("--bitmap", "a", "--bitmap", "disk=b", "--since", token)
        assert modes(ran) == {"disk": "incremental"}
        assert ran.result["disks"][0]["read_bytes"] == 2 * KIB64
        owner.check_exact(ran)
        lacking = owner.backup("--bitmap", "c", "--since", ran.result["point"])
        assert modes(lacking) == {"disk": "rescan"}
        said, _, there = why(lacking).partition(": it has ")
        assert said == "the export has no bitmap c"
        assert sorted(there.split(", ")) == ["a", "b"]  # each QEMU has its own order


def test_a_disk_of_another_size_is_compared_as_a_whole(owner: Owner) -> None:
    owner.bitmap("b")
    with owner.serving():
        token = owner.check_exact(owner.backup())
    run_checked("qemu-img", "resize", "-q", owner.image, str(3 * MIB))
    with owner.serving("b"):
        ran = owner.backup("--bitmap", "b", "--since", token)
        assert modes(ran) == {"disk": "rescan"}
        assert "size changed" in why(ran)
        owner.check_exact(ran)


def test_a_bitmap_that_began_too_late_is_found_by_an_audit(owner: Owner) -> None:
    with owner.serving():
        token = owner.check_exact(owner.backup())
    owner.write(7 * KIB64)
    owner.bitmap("late")
    with owner.serving("late"):
        proof = "--bitmap", "late", "--since", token
        owner.backup(*proof, "--audit", "1").failed(6, "disk")
        healed = owner.backup(*proof)
        assert modes(healed) == {"disk": "rescan"}
        owner.check_exact(healed)


def _points(owner: Owner) -> int:
    return len(fleece.open_store(owner.store).catalogue().points)


def test_another_server_in_the_middle_is_no_point(owner: Owner) -> None:
    """It has the same size, and the new connections know no difference."""
    other = images.random_image(owner.folder / "other.qcow2", 2 * MIB, seed=2)
    with contextlib.ExitStack() as stack, contextlib.ExitStack() as served:
        served.enter_context(owner.serving())

        def exchange(event: Event) -> None:
            if isinstance(event, PointTaken):
                served.close()
                stack.enter_context(owner.serving(image=other))

        with pytest.raises(fleece.PointError, match="has ended, or hung up"):
            owner.take(exchange)
        assert _points(owner) == 0
        owner.take()


def test_an_export_that_dies_in_the_middle_is_no_point(owner: Owner) -> None:
    with contextlib.ExitStack() as served:
        served.enter_context(owner.serving())

        def end(event: Event) -> None:
            if isinstance(event, PointTaken):
                served.close()

        with pytest.raises(fleece.PointError, match="has ended, or hung up"):
            owner.take(end)
    assert _points(owner) == 0
    owner.backup().failed(3, "cannot be reached")


def test_a_lost_server_is_noticed_while_it_is_read(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "_EVERY", 0.0)
    with contextlib.ExitStack() as served, fleece.open_source(owner.uri) as source:
        served.enter_context(owner.serving())
        wanted = [fleece.Wanted(disk, None) for disk in source.inventory().disks]
        with source.take(fleece.Request("c0ffee00", 1, "0123456789", wanted)) as point:
            point.watch()
            served.close()
            with pytest.raises(fleece.PointError, match="has ended, or hung up"):
                point.watch()


def test_a_size_that_changes_meanwhile_is_told(tmp_path: Path, place: Path) -> None:
    size = tmp_path / "size"
    size.write_text(str(MIB))
    uri, zeros = unix_uri(str(place / "nbd.sock")), "pread=head -c $3 /dev/zero"
    words = ["-f", "-r", "-U", place / "nbd.sock", "eval", f"get_size=cat {size}", zeros]
    store = fleece.init(tmp_path / "store")
    with serving(uri, "nbdkit", *words), fleece.open_source(uri) as source:

        def grow(event: Event) -> None:
            if isinstance(event, PointTaken):
                size.write_text(str(2 * MIB))

        with pytest.raises(fleece.PointError, match="was resized"):
            fleece.backup(source, store, fleece.BackupOptions(guest=GUEST), grow)
        assert not store.catalogue().points
        wanted = [fleece.Wanted(disk, None) for disk in source.inventory().disks]
        with source.take(fleece.Request("c0ffee00", 1, "0123456789", wanted)) as point:
            point.check()
            size.write_text(str(3 * MIB))
            with pytest.raises(fleece.PointError, match="was resized from"):
                point.check()


def test_several_exports_are_one_point(tmp_path: Path, place: Path) -> None:
    """Of qemu-storage-daemon, which names the bitmaps of each disk as it likes."""
    disks = {"vda": 1, "vdb": 2}
    words: list[str] = ["qemu-storage-daemon"]
    words += ["--nbd-server", f"addr.type=unix,addr.path={place}/nbd.sock"]
    for name, seed in disks.items():
        image = images.random_image(tmp_path / f"{name}.qcow2", seed * MIB, seed=seed)
        run_checked("qemu-img", "bitmap", "--add", image, f"backup-{name}")
        file = {"driver": "file", "filename": str(image)}
        node = {"driver": "qcow2", "node-name": name, "read-only": True, "file": file}
        words += ["--blockdev", json.dumps(node)]
        export = f"type=nbd,id={name},node-name={name},name={name},bitmaps.0=backup-{name}"
        words += ["--export", export]
    uris = {name: unix_uri(str(place / "nbd.sock"), name) for name in disks}
    fleece.init(tmp_path / "store")
    backup = ["backup", uris["vda"], tmp_path / "store", "--guest", GUEST, "--json"]
    both = [*backup, "--disk", f"data={uris['vdb']}"]
    with serving(uris["vdb"], *words):
        first = INTACT.run(*both)
        assert modes(first) == {"vda": "full", "data": "full"}
        bitmaps = ["--bitmap", "vda=backup-vda", "--bitmap", "data=backup-vdb"]
        since = ["--since", first.result["point"]]
        assert modes(INTACT.run(*both, *bitmaps, *since)) == {
            "vda": "incremental",
            "data": "incremental",
        }
        assert modes(INTACT.run(*both, *bitmaps[:2], *since)) == {
            "vda": "incremental",
            "data": "rescan",
        }
        alone = INTACT.run(*backup, "--disk", f"data={uris['vda']}")
        assert modes(alone) == {"data": "rescan"}
        INTACT.run(*both, "--disk", f"vda={uris['vdb']}").failed(2, "two disks are called")


def test_a_server_that_ends_with_its_last_client_is_kept(owner: Owner) -> None:
    """As a session of Incus is, and qemu-nbd without --persistent."""
    words = ["nbdkit", "-f", "-r", "-U", owner.place / "nbd.sock", "--filter=exitlast"]
    raw = images.to_raw(owner.image, owner.folder / "disk.raw")
    with subprocess.Popen([*map(str, words), "file", str(raw)]) as server:
        wait_until((owner.place / "nbd.sock").exists, "nbdkit")
        owner.check_exact(owner.backup())
        server.wait(LIMIT)


def test_what_an_interrupted_backup_left_is_removed(owner: Owner) -> None:
    """And its point is not resumed: it may be another one by now."""
    with owner.serving():
        moment = Moment("the last check", "fleece.source.nbd.held", "HeldPoint.check", nth=2)
        words = ["backup", owner.uri, owner.store, "--guest", GUEST, "--json"]
        died(INTACT, moment, words, may_end=False)
        ran = owner.backup()
        assert modes(ran) == {"disk": "full"}
        assert ran.result["resumed"] is False
        (warning,) = ran.named("warning")
        assert "this kind of source resumes none" in warning["what"]
        owner.check_exact(ran)
        assert [*owner.store.rglob("*.partial*")] == []


def test_the_script_of_the_manual_takes_a_full_and_incrementals(owner: Owner) -> None:
    page = (ROOT / "docs" / "howto" / "nbd.rst").read_text()
    block = page.partition("    #!/bin/bash\n")[2].partition("\n\n")[0]
    script = owner.folder / "nbd-backup"
    script.write_text("#!/bin/bash\n" + textwrap.dedent(block))
    words: list[str | Path] = ["bash", script, owner.image, owner.store, GUEST]
    for turn, mode in enumerate(["full", "incremental", "incremental"]):
        run_checked(*words)
        newest = fleece.open_store(owner.store).catalogue().points[-1]
        assert newest.disks["disk"].header.mode == mode
        target = owner.folder / f"turn-{turn}"
        fleece.restore(fleece.open_store(owner.store), "latest", "disk", str(target))
        images.compare(owner.image, target, "qcow2", "raw")
        owner.write((turn + 9) * KIB64)
    kept = owner.bitmaps()
    assert run(*words[:3], owner.folder / "no store", GUEST).returncode == 5
    assert owner.bitmaps() == kept
    assert len(kept) == 1


_REFUSED = {
    "clean": "nothing is ever left",
    "bitmap": "keeps no bitmaps",
    "backup STORE": "name the guest with --guest",
    "backup STORE --guest g --freeze": "--freeze has no effect on nbd+unix:",
    "backup STORE --guest g --transport push": "cannot push",
    "backup STORE --guest g --no-resume": "is ever resumed",
    "backup STORE --guest g --adopt": "nothing to adopt",
    "backup STORE --guest g --audit 1": "no bitmap says it",
    "backup STORE --guest g --bitmap b --mode full": "all is read",
}


def test_what_makes_no_sense_of_an_export_is_refused(owner: Owner) -> None:
    with owner.serving():
        for words, said in _REFUSED.items():
            verb, *rest = words.replace("STORE", str(owner.store)).split()
            INTACT.run(verb, owner.uri, *rest).failed(2, said)
    assert _points(owner) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bitmap": ("b",)}, "--since"),
        ({"since": "0123456789"}, "--bitmap"),
        ({"bitmap": ("b",), "since": "01234"}, "10 of 0-9a-f"),
        ({"places": (("disk", "nbd://other/"),)}, "two disks are called disk"),
        ({"places": (("a", "nbd://other/"), ("b", "nbd://other/"))}, "the same export"),
        ({"places": (("a", "http://other/"),)}, "no NBD URI"),
        ({"places": (("@nvram", "nbd://other/"),)}, "a disk's name"),
        ({"places": (("a", "nbd+unix:///a"),)}, "name a socket"),
    ],
)
def test_names_that_cannot_be_are_refused_before_anybody_is_asked(
    options: dict[str, Any], said: str
) -> None:
    with pytest.raises(fleece.UsageError, match=said):
        fleece.open_source("nbd://nobody.invalid", fleece.SourceOptions(**options))


@pytest.mark.parametrize("text", ["nbd:vda", "nbd://[x/", "nbds://h/?socket=/s", "nbd+unix:///"])
def test_a_uri_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(fleece.UsageError):
        fleece.open_source(text)


def test_options_of_exports_have_no_effect_elsewhere() -> None:
    for given in ({"places": (("a", "nbd://h"),)}, {"bitmap": ("b",)}, {"since": "0123456789"}):
        with pytest.raises(fleece.UsageError, match=r"--(disk NAME=URI|bitmap|since) has no"):
            fleece.open_source("image:/none.raw", fleece.SourceOptions(**given))


def test_doctor_tells_what_the_server_says(owner: Owner) -> None:
    owner.bitmap("b")
    owner.write(KIB64)
    with owner.serving("b"):
        told = INTACT.run("doctor", owner.uri, "--json").succeeded()
        (found,) = told.named("nbd")
        assert found["refusal"] is None
        assert found["guest"] is None
        assert found["state"] == "served read-only"
        assert {row["name"] for row in told.named("ability") if row["present"]} == {
            "structured_replies",
            "zeros",
            "bitmaps",
        }
        (disk,) = told.named("disk")
        assert (disk["size"], disk["read_only"], disk["pull"]) == (2 * MIB, True, True)
        assert disk["contexts"] == "base:allocation, qemu:dirty-bitmap:b"
        (bitmap,) = told.named("bitmap")
        assert (bitmap["name"], bitmap["count"], bitmap["granularity"]) == ("b", KIB64, None)
        assert "bitmap b: served, 64.0 KiB dirty\n" in INTACT.run("doctor", owner.uri).out


def test_a_server_that_tells_little_and_lets_clients_write_is_read(owner: Owner) -> None:
    """It has no structured replies, so it can tell neither zeros nor bitmaps."""
    raw = images.to_raw(owner.image, owner.folder / "disk.raw")
    words = ["-f", "--no-sr", "-U", owner.place / "nbd.sock", "file", raw]
    with serving(owner.uri, "nbdkit", *words):
        told = INTACT.run("doctor", owner.uri, "--json").succeeded()
        assert not [row for row in told.named("ability") if row["present"]]
        assert told.named("nbd")[0]["state"] == "served writable"
        first = owner.backup()
        (warning,) = first.named("warning")
        assert "lets clients write" in warning["what"]
        owner.check_exact(first)
        ran = owner.backup("--bitmap", "b", "--since", first.result["point"])
        assert why(ran) == "the export has no bitmap b: it has none at all"


def test_an_empty_export_is_no_disk(owner: Owner) -> None:
    words = ["-f", "-U", owner.place / "nbd.sock", "memory", "0"]
    with serving(owner.uri, "nbdkit", *words):
        owner.backup().failed(3, "0 bytes")


def test_an_export_is_read_over_tls_by_a_key(owner: Owner) -> None:
    for name in ("right", "wrong"):
        run_checked("psktool", "-u", "web1", "-p", owner.place / name)
    plain, place = owner.uri, owner.place / "nbd.sock"
    safe = f"nbds+unix://web1@/?socket={place}&tls-psk-file={owner.place}/"
    raw = images.to_raw(owner.image, owner.folder / "disk.raw")
    words = ["-f", "-r", "-U", place, "--tls=require", f"--tls-psk={owner.place}/right"]
    with serving(f"{safe}right", "nbdkit", *words, "file", raw):
        owner.check_exact(owner.backup("--disk", f"disk={safe}right", source=f"{safe}right"))
        owner.backup(source=f"{safe}wrong").failed(3)
        owner.backup(source=plain).failed(3, "TLS")
    with serving(plain, "nbdkit", "-f", "-r", "-U", place, "file", raw):
        owner.backup(source=f"{safe}right").failed(3, "TLS")


def test_an_export_is_read_over_tls_by_certificates(owner: Owner) -> None:
    pki = owner.folder / "pki"
    strangers = owner.folder / "strangers"
    for folder in (pki, strangers):
        certificates(folder)
    raw = images.to_raw(owner.image, owner.folder / "disk.raw")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    words: list[object] = [
        "-f",
        "-r",
        "-i",
        "localhost",
        "-p",
        port,
        "--tls=require",
        "--tls-verify-peer",
    ]
    words += [f"--tls-certificates={pki}", "file", raw]
    uri = f"nbds://localhost:{port}/?tls-certificates="
    with serving(f"{uri}{pki}", "nbdkit", *words):
        owner.check_exact(owner.backup(source=f"{uri}{pki}"))
        owner.backup(source=f"{uri}{strangers}").failed(3)
        other = f"nbds://127.0.0.1:{port}/?tls-certificates={pki}"
        owner.backup(source=other).failed(3)
