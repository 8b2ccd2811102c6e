"""A point served over NBD: the judges are nbdinfo, nbdcopy, qemu-img and qemu-io."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import fleece
from fleece import events
from fleece.errors import FleeceError, StoreError, TargetError, UsageError
from fleece.events import Event, Problem
from fleece.nbd.connection import Connection
from tests.engine.history import Guest, deep_guest
from tests.engine.scene import INTACT, Ran, Running, Scene, flip, wait_until
from tests.rig.process import run, run_checked
from tests.unit.kit import LEAF, Change, OpenChain

DEEP = 50
SIZES = {"vda": 256 * LEAF, "vdb": 100 * LEAF + 512}


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Guest:
    """Fifty points of two disks; nobody may change it."""
    return deep_guest(tmp_path_factory.mktemp("deep") / "store", DEEP, SIZES)


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short name, for sockets."""
    with tempfile.TemporaryDirectory(prefix="rig-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def small(short: Path) -> Guest:
    """Two points of one disk, for a test to harm."""
    made = Guest(short / "store")
    made.full({"vda": 16 * LEAF})
    made.change(vda=[Change(0, 4 * LEAF, 7), Change(8 * LEAF, 9 * LEAF, 5)])
    return made


def serving(
    guest: Guest,
    point: str = "latest",
    disks: tuple[str, ...] = (),
    listener: events.Listener = events.ignore,
    cancel: fleece.CancelToken | None = None,
    **options: Any,
) -> Any:
    """Serve by the library."""
    store, how = fleece.open_store(guest.store), fleece.ServeOptions(**options)
    return fleece.serve(store, point, disks, how, listener, cancel)


@dataclass(frozen=True)
class Served:
    """A `fleece serve` that runs, and the event that it is ready."""

    command: Running
    exports: list[dict[str, Any]]

    @property
    def folder(self) -> Path:
        """The socket's own folder."""
        return Path(self.exports[0]["uri"].partition("socket=")[2]).parent

    def end(self, number: int = signal.SIGTERM) -> Ran:
        """Tell it to end."""
        self.command.signal(number)
        return self.command.wait()


@contextmanager
def command(*words: object) -> Iterator[Served]:
    """Run `fleece serve WORDS --json` until it is ready."""
    running = INTACT.command("serve", *words, "--json")
    try:
        yield Served(running, running.wait_event("serving")["exports"])
    finally:
        running.signal(signal.SIGTERM)
        running.wait()


def gone(pid: int) -> bool:
    """Whether a process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def zero_ranges(uri: str) -> list[tuple[int, int]]:
    """What nbdinfo says reads as zeros, touching ranges joined."""
    found = json.loads(run_checked("nbdinfo", "--map", "--json", uri))
    assert [item["offset"] for item in found[1:]] == [i["offset"] + i["length"] for i in found[:-1]]
    pairs = [(i["offset"], i["offset"] + i["length"]) for i in found if i["type"] & 2]
    return [*fleece.Extents.of(pairs)]


# ---- what is served --------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 20, DEEP - 1])
def test_every_disk_of_any_point_is_the_disk(guest: Guest, number: int, tmp_path: Path) -> None:
    with serving(guest, guest.points[number]) as served:
        assert [disk.disk for disk in served.disks] == ["vda", "vdb"]
        for disk in served.disks:
            image, copied = tmp_path / f"{disk.disk}.raw", tmp_path / f"{disk.disk}.copied"
            image.write_bytes(guest.disk(disk.disk, number))
            words = ("-f", "raw", "-F", "raw", disk.uri, image)
            run_checked("qemu-img", "compare", *words)
            run_checked("nbdcopy", disk.uri, copied)
            assert copied.read_bytes() == guest.disk(disk.disk, number)
        named = ("--disk", "vdb", "--against", served.disks[1].uri, "--json")
        ran = INTACT.run("verify", guest.store, served.point, *named).succeeded()
        assert ran.result["root"] == served.disks[1].root


def test_clients_see_size_names_and_that_it_is_read_only(guest: Guest) -> None:
    with serving(guest) as served:
        uri = served.disks[0].uri.replace("/vda?", "/?")
        listed = json.loads(run_checked("nbdinfo", "--list", "--json", uri))["exports"]
    assert {item["export-name"]: item["export-size"] for item in listed} == SIZES
    assert all(item["is_read_only"] and item["can_multi_conn"] for item in listed)


def test_a_single_disk_is_the_export_without_a_name_too(guest: Guest) -> None:
    with serving(guest, disks=("vdb",)) as served:
        (disk,) = served.disks
        assert disk.uri.startswith("nbd+unix:///vdb?")
        unnamed = disk.uri.replace("/vdb?", "/?")
        size = int(run_checked("nbdinfo", "--size", unnamed))
        assert size == SIZES["vdb"]
        assert run("nbdinfo", disk.uri.replace("/vdb?", "/vda?")).returncode != 0


@pytest.mark.parametrize("disk", SIZES)
def test_block_status_is_the_chains_map(guest: Guest, disk: str) -> None:
    with OpenChain([*reversed(guest.paths[disk])]) as chain:
        zeros = [*chain.map().extents(zero=True)]
    with serving(guest, disks=(disk,)) as served:
        assert zero_ranges(served.disks[0].uri) == zeros
    assert 0 < sum(end - start for start, end in zeros) < SIZES[disk]


@pytest.mark.parametrize("writable", [False, True])
def test_disks_of_any_size_and_name(short: Path, writable: bool) -> None:
    sizes = {"none": 0, "one": 1, "ödd & /strange?": 3 * LEAF + 77, "..": LEAF}
    made = Guest(short / "store")
    made.full(sizes)
    made.change(**{name: [Change(0, size, 9)] for name, size in sizes.items()})
    with serving(made, writable=writable) as served:
        for disk in served.disks:
            with Connection(disk.uri) as connection:
                assert connection.size == disk.size == sizes[disk.disk]
                assert connection.read_only is not writable
                content = connection.read(0, disk.size) if disk.size else b""
            assert content == made.disk(disk.disk)


def test_many_connections_read_at_once(guest: Guest) -> None:
    expected = guest.disk("vda")
    with serving(guest) as served:
        uri = served.disks[0].uri

        def read(number: int) -> bool:
            with Connection(uri) as connection:
                places = [
                    (number * 7919 + 104729 * turn) % (len(expected) - 9000) for turn in range(50)
                ]
                return all(connection.read(at, 9000) == expected[at : at + 9000] for at in places)

        with ThreadPoolExecutor(6) as pool:
            assert all(pool.map(read, range(6)))


def test_an_encrypted_chain_is_served_with_its_key_alone(scene: Scene, short: Path) -> None:
    """The whole chain: full, zeros, data. The key goes through a pipe and is in no argument."""
    key = short / "key"
    key.write_bytes(b"k" * 32)
    words = ("--key-file", key)
    scene.init("--encrypt", "--hash", "blake3", *words)
    scene.backup(*words).succeeded()
    for place in range(3):
        scene.writer().write(place << 20, b"%d" % place * LEAF)
        scene.writer().zero((place << 20) + (1 << 19), 1 << 16, unmap=False)
        scene.backup(*words).succeeded()
    INTACT.run("restore", scene.store, "latest", "d0", short / "raw", *words).succeeded()
    scene.same_as_live("d0", short / "raw")
    with command(scene.store, "latest", *words) as served:
        uri = served.exports[0]["uri"]
        run_checked("qemu-img", "compare", "-f", "raw", "-F", "raw", uri, short / "raw")
        run_checked("nbdcopy", uri, short / "copied")
        assert (short / "copied").read_bytes() == (short / "raw").read_bytes()
        for pid in children(served.command.pid):
            assert str(key) not in Path(f"/proc/{pid}/cmdline").read_text()
    INTACT.run("serve", scene.store, "latest").failed(2, "protected by a key")


# ---- damage ----------------------------------------------------------------------------------


def harm(guest: Guest) -> None:
    """Change the last byte of the frame of leaf 8 at the newest point."""
    with OpenChain([*reversed(guest.paths["vda"])]) as chain:
        picture = chain.map(8 * LEAF, 9 * LEAF)
        (row,) = picture.records
        found, _ = chain.deltas[0].record_at(*row.item())
        assert found.offset == 8 * LEAF
        size = chain.deltas[0].read_at(int(row["position"]), 8)
    frame = int(row["position"]) + 8 + int.from_bytes(size[4:8], "little")
    flip(guest.paths["vda"][-1], frame + int(row["frame_length"]) - 1)


def test_damage_fails_the_reads_that_meet_it_and_nothing_else(small: Guest) -> None:
    harm(small)
    heard: list[Event] = []
    with serving(small, listener=heard.append) as served:
        (disk,) = served.disks
        for _ in range(2):
            with Connection(disk.uri) as connection:
                with pytest.raises(fleece.SourceError, match="EIO"):
                    connection.read(8 * LEAF + 100, 10)
                assert connection.read(0, 4 * LEAF) == small.disk("vda")[: 4 * LEAF]
        assert run("nbdcopy", disk.uri, "null:").returncode != 0
        wait_until(lambda: served.problems == 1, "the report")
        served.check()
    (problem,) = heard
    assert isinstance(problem, Problem)
    assert problem.where == str(small.paths["vda"][-1])
    assert f"does not match its hash (disk vda, byte {8 * LEAF})" in problem.what


def test_a_listener_that_fails_does_not_stop_the_server(small: Guest) -> None:
    """Its output is gone, say; what reads meet still counts."""
    harm(small)

    def fail(event: Event) -> None:
        raise BrokenPipeError

    with serving(small, listener=fail) as served:
        uri = served.disks[0].uri
        assert run("nbdcopy", uri, "null:").returncode != 0
        wait_until(lambda: served.problems == 1, "the report")
        served.check()
        with Connection(uri) as connection:
            assert connection.read(0, 4 * LEAF) == small.disk("vda")[: 4 * LEAF]


def test_damage_that_was_met_is_said_and_decides_the_exit_code(small: Guest) -> None:
    harm(small)
    running = INTACT.command("serve", small.store, "latest", "--socket", small.store.parent / "s")
    wait_until((small.store.parent / "s").exists, "the socket")
    wait_until(
        lambda: run("nbdinfo", f"nbd+unix:///?socket={small.store.parent}/s").returncode == 0,
        "nbdkit",
    )
    assert run("nbdcopy", f"nbd+unix:///?socket={small.store.parent}/s", "null:").returncode != 0
    running.signal(signal.SIGINT)
    ran = running.wait().failed(5, "reads met 1 error while it was served")
    assert "PROBLEM" in ran.err


# ---- writable --------------------------------------------------------------------------------


def written(uri: str) -> list[bytes]:
    """Write through one connection; what that one and another one then read."""
    with Connection(uri) as one, Connection(uri) as two:
        one.write(3 * LEAF + 100, b"x" * 5000)
        one.flush()
        return [bytes(one.read(0, 16 * LEAF)), bytes(two.read(0, 16 * LEAF))]


def test_what_is_written_is_seen_by_all_and_thrown_away(small: Guest) -> None:
    files = {path: path.read_bytes() for path in small.store.rglob("*") if path.is_file()}
    expected = bytearray(small.disk("vda"))
    expected[3 * LEAF + 100 : 3 * LEAF + 5100] = b"x" * 5000
    with serving(small, writable=True) as served:
        assert written(served.disks[0].uri) == [expected, expected]
    with serving(small, writable=True) as served, Connection(served.disks[0].uri) as connection:
        assert connection.read(0, 16 * LEAF) == small.disk("vda")
    assert files == {path: path.read_bytes() for path in small.store.rglob("*") if path.is_file()}


def test_what_is_written_goes_into_the_scratch_folder(small: Guest, short: Path) -> None:
    scratch = short / "scratch"
    scratch.mkdir()
    with command(small.store, "latest", "--writable", "--scratch", scratch) as served:
        written(served.exports[0]["uri"])
        (server,) = children(served.command.pid)
        opened = [os.readlink(item) for item in Path(f"/proc/{server}/fd").iterdir()]
        assert [name for name in opened if name.startswith(f"{scratch}/")]
        assert [*scratch.iterdir()] == []


def test_writable_disks_do_not_share_what_is_written(guest: Guest, short: Path) -> None:
    with serving(guest, writable=True, socket=str(short / "s")) as served:
        places = [disk.uri.partition("socket=")[2] for disk in served.disks]
        assert places == [f"{short}/s.vda", f"{short}/s.vdb"]
        written(served.disks[0].uri)
        with Connection(served.disks[1].uri) as other:
            assert other.read(0, 16 * LEAF) == guest.disk("vdb")[: 16 * LEAF]
    assert [*short.iterdir()] == []


def test_without_writable_nothing_can_be_written(small: Guest) -> None:
    with serving(small) as served:
        words = ("-f", "raw", "-c", "write 0 4096", served.disks[0].uri)
        assert "Permission denied" in run("qemu-io", *words).stderr


# ---- the end ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_well_and_leaves_nothing(small: Guest, number: int) -> None:
    with command(small.store, "latest") as served:
        servers = children(served.command.pid)
        with Connection(served.exports[0]["uri"]) as connection:
            connection.read(0, 100)
            ran = served.end(number).succeeded()
    assert ran.result["ok"] is True
    assert len(servers) == 1
    assert gone(servers[0])
    assert not served.folder.exists()


@pytest.mark.parametrize("writable", [False, True])
def test_a_kill_takes_nbdkit_along_and_leaves_nothing(small: Guest, writable: bool) -> None:
    with command(small.store, "latest", *(["--writable"] if writable else [])) as served:
        (server,) = children(served.command.pid)
        assert served.command.kill().code == -signal.SIGKILL
        wait_until(lambda: gone(server), "nbdkit's end")
        wait_until(lambda: not served.folder.exists(), "the folder's end")


def test_it_does_not_outlive_nbdkit(small: Guest) -> None:
    with command(small.store, "latest") as served:
        (server,) = children(served.command.pid)
        os.kill(server, signal.SIGKILL)
        served.command.wait().failed(7, "nbdkit ended")
    assert not served.folder.exists()


def test_two_serve_the_same_point_at_once(small: Guest) -> None:
    with serving(small) as one, serving(small) as two:
        uris = [served.disks[0].uri for served in (one, two)]
        assert uris[0] != uris[1]
        run_checked("qemu-img", "compare", "-f", "raw", "-F", "raw", *uris)


# ---- bad input -------------------------------------------------------------------------------


@contextmanager
def temporary(folder: str) -> Iterator[None]:
    """Let this process make its temporary files in a folder that no other test uses."""
    before, tempfile.tempdir = tempfile.tempdir, folder
    try:
        yield
    finally:
        tempfile.tempdir = before


def refused(guest: Guest, failure: type[FleeceError], words: str, **options: Any) -> None:
    """Check that it fails so, soon and with nothing left."""
    with tempfile.TemporaryDirectory(prefix="rig-", dir="/tmp") as own, temporary(own):
        with pytest.raises(failure, match=words), serving(guest, **options):
            pass
        assert [item for item in Path(own).iterdir() if item.name.startswith("fleece-")] == []
    ours = [thread for thread in threading.enumerate() if thread.name == "fleece-serve"]
    assert ours == []


def test_what_is_not_in_the_store_is_refused(small: Guest) -> None:
    refused(small, StoreError, "no such point: cafe", point="cafe")
    refused(small, UsageError, "has no disk vdz", disks=("vda", "vdz"))


def test_a_chain_with_a_missing_delta_is_refused(small: Guest) -> None:
    shutil.rmtree(small.paths["vda"][0].parent)
    refused(small, StoreError, "is not in the store")


def test_what_only_the_plugin_sees_is_an_error_of_its_own_family(
    small: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store vanishes between the parent's look and the plugin's."""
    real = fleece.Catalogue.line

    def line(catalogue: fleece.Catalogue, entry: fleece.Entry) -> list[fleece.Entry]:
        found = real(catalogue, entry)
        small.paths["vda"][0].unlink()
        return found

    monkeypatch.setattr(fleece.Catalogue, "line", line)
    refused(small, StoreError, r"000001-0000000001/vda.fleece: cannot be read")


def test_a_socket_that_cannot_be_made_is_refused(small: Guest, short: Path) -> None:
    taken = short / "taken"
    taken.touch()
    refused(small, TargetError, "exists already", socket=str(taken))
    refused(small, TargetError, "the folder does not exist", socket=str(short / "no" / "s"))
    refused(small, TargetError, "exists already", socket="")
    refused(small, TargetError, "No such file", writable=True, scratch=short / "no")
    refused(small, TargetError, "longer than 107 bytes", socket=str(short / ("s" * 108)))
    assert taken.exists()


def test_a_missing_nbdkit_is_a_usage_error_with_a_hint(
    small: Guest, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(short))
    refused(small, UsageError, "nbdkit is missing; install the package nbdkit")


def test_an_nbdkit_without_its_python_plugin_is_a_usage_error(
    small: Guest, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nbdkit finds its plugins in the folder that it was built with; this one looks elsewhere."""
    fake = short / "nbdkit"
    found = shutil.which("nbdkit")
    fake.write_text(f'#!/bin/sh\nexec {found} "$(echo /no/nbdkit-python-plugin.so)"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{short}:{os.environ['PATH']}")
    refused(small, UsageError, "nbdkit lacks its Python plugin")


def test_an_nbdkit_of_another_python_is_told_apart(
    small: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = f"3.{sys.version_info.minor}"
    monkeypatch.setattr("sys.version_info", (3, 99, 0))
    refused(small, UsageError, f"^nbdkit's plugin is Python {mine}, fleece runs on Python 3.99;")


def test_packages_that_nbdkits_python_cannot_load_are_told(
    small: Guest, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This numpy is not one."""
    (short / "numpy.py").write_text("raise ImportError('made for another machine')")
    monkeypatch.syspath_prepend(str(short))
    refused(small, UsageError, r"^nbdkit's Python cannot load fleece \(made for another machine\);")


def test_scratch_goes_with_writable(small: Guest) -> None:
    INTACT.run("serve", small.store, "latest", "--scratch", "/tmp").failed(2, "--writable")


def test_nothing_of_the_store_is_on_a_command_line(small: Guest) -> None:
    with command(small.store, "latest") as served:
        (server,) = children(served.command.pid)
        words = Path(f"/proc/{server}/cmdline").read_bytes()
    assert os.fsencode(small.store) not in words


def test_it_can_be_cancelled_before_it_is_ready(small: Guest) -> None:
    cancel = fleece.CancelToken()
    cancel.cancel()
    refused(small, fleece.Interrupted, "interrupted", cancel=cancel)
