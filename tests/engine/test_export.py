"""Points for programs of others: `fleece export`, read by qemu-img and libnbd's tools."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest

import fleece
from fleece.nbd.uri import socket_of
from tests.engine.scene import INTACT, KIB64, MIB, Json, MachineScene, Moment, Ran, Running
from tests.rig import images
from tests.rig.certificates import certificates
from tests.rig.disk import Disk
from tests.rig.machine import Machine
from tests.rig.process import run, run_checked


@dataclass
class Consumer:
    """A program that copies a guest's disks by what `fleece export` gives.

    Attributes:
        source: of the guest.
        scratch: the scratch folder.
        folder: for its copies.
        name: its own.
        base: the newest point that it has; None: it has none.
        talks: it keeps the standard input of who holds a point; else that has none.
    """

    source: str
    scratch: Path
    folder: Path
    name: str
    base: str | None = None
    talks: bool = True

    def begin(self, *words: object) -> tuple[Running, Json]:
        """Have a point exported; gives who holds it and what it told."""
        since = () if self.base is None else ("--since", self.base)
        start = INTACT.talk if self.talks else INTACT.command
        held = start(
            *("export", self.source, "--scratch", self.scratch, "--name", self.name, "--json"),
            *(*since, *words),
        )
        return held, held.wait_event("exported")

    def copy(self, disk: str) -> Path:
        """Where it keeps a disk."""
        return self.folder / f"{self.name}-{disk}.raw"

    def read(self, told: Json) -> None:
        """Bring the copies up to the point."""
        for disk in told["disks"]:
            copy = self.copy(disk["disk"])
            if disk["context"] is None:
                assert disk["dirty_bytes"] == disk["size"]
                run_checked("nbdcopy", disk["uri"], copy)
                continue
            found = run_checked("nbdinfo", f"--map={disk['context']}", "--json", disk["uri"])
            dirty = [(each["offset"], each["length"]) for each in json.loads(found) if each["type"]]
            assert sum(length for _, length in dirty) <= disk["dirty_bytes"]
            for offset, length in dirty:
                part = f"driver=raw,offset={offset},size={length}"
                server = f"file.server.type=unix,file.server.path={socket_of(disk['uri'])}"
                run_checked(
                    *("qemu-img", "convert", "-n", "--image-opts", "--target-image-opts"),
                    f"{part},file.driver=nbd,{server},file.export={disk['disk']}",
                    f"{part},file.driver=file,file.filename={copy}",
                )

    def take(self, *words: object) -> Json:
        """Copy a point, and commit it; gives what was told of it."""
        held, told = self.begin(*words)
        self.read(told)
        held.say("commit")
        self.ended(held.wait())
        return told

    def ended(self, ran: Ran) -> None:
        """Keep the base that a commit told."""
        assert ran.succeeded().result["committed"]
        self.base = ran.result["base"]


class Guest(MachineScene):
    """A running machine whose disks `vd-d0` (qcow2) and `vd-d1` (raw) are written."""

    def consumer(self, name: str) -> Consumer:
        """One of its own bases."""
        return Consumer(self.source, self.scratch, self.folder, name)

    @contextmanager
    def exported(self, options: fleece.ExportOptions) -> Iterator[fleece.Exporting]:
        """A point of it, by the library."""
        way = fleece.SourceOptions(scratch=self.scratch)
        with fleece.open_source(self.source, way) as source, fleece.export(source, options) as held:
            yield held

    def write(self, offset: int, node: str = "d0", fill: int | None = None) -> None:
        """Write 64 KiB that were not there before."""
        data = bytes([next(self._numbers) % 251 + 1 if fill is None else fill]) * KIB64
        self.writer(node).write(offset, data)

    def same(self, consumer: Consumer, *nodes: str) -> None:
        """Check that a consumer's copies are what the disks hold now."""
        for node in nodes or self.qemu.disks:
            self.same_as_live(node, consumer.copy(f"vd-{node}"))

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Write all over the disks meanwhile."""
        enough = threading.Event()

        def work() -> None:
            for number in itertools.count():
                if enough.is_set():
                    return
                self.write(number * 7 % 128 * KIB64)
                self.write(number * 5 % 64 * KIB64, "d1")

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            enough.set()
            thread.join()


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """One guest for all tests: each is a consumer of another name."""
    folder = tmp_path_factory.mktemp("export")
    disks = [
        Disk(images.random_image(folder / "d0.qcow2", 8 * MIB, seed=1), "d0"),
        Disk(images.random_image(folder / "d1.raw", 4 * MIB + 512, seed=2, fmt="raw"), "d1", "raw"),
    ]
    with Machine(disks) as qemu:
        qemu.control.command("cont")
        yield Guest(qemu, folder)


def running(guest: Guest) -> None:
    """Check that the guest runs, and that nothing of a point is left."""
    assert guest.status == "running"
    guest.nothing_left()


def test_a_full_and_incrementals_rebuild_disks_that_are_written_all_the_while(guest: Guest) -> None:
    mine, store = guest.consumer("rebuild"), guest.consumer("other")
    with guest.writing():
        held, told = mine.begin()
        assert (told["mode"], told["base"], told["reason"]) == ("full", None, "no base is named")
        mine.read(told)
        other = guest.folder / "convert.raw"
        for disk in told["disks"]:  # another program, another time, the same bytes
            run_checked("qemu-img", "convert", "-O", "raw", disk["uri"], other)
            images.compare(other, mine.copy(disk["disk"]), "raw", "raw")
        held.say("commit")
        mine.ended(held.wait())
        base = mine.base
        told = mine.take()
        assert (told["mode"], told["base"]) == ("incremental", base)
        assert mine.base != base
        store.take()
    told = mine.take()
    guest.same(mine)
    store.take()
    guest.same(store)
    guest.write(3 * MIB)
    told = mine.take()
    assert [disk["dirty_bytes"] for disk in told["disks"]] == [KIB64, 0]
    guest.same(mine)
    running(guest)


def test_only_a_commit_commits_and_then_the_next_point_has_all_that_was_written(
    guest: Guest,
) -> None:
    mine = guest.consumer("ends")
    told = mine.take("--disk", "vd-d0")
    base = mine.base
    for number, end in enumerate(("drop", "order", "hang-up", "signal", "time", "kill")):
        guest.write(number * MIB)
        mine.talks = end not in ("time", "order")
        held, told = mine.begin("--disk", "vd-d0", *(("--ttl", "1s") if end == "time" else ()))
        assert told["base"] == base
        match end:
            case "drop":
                held.say("neither\ndrop")
            case "order":
                word = INTACT.run("export", guest.source, "--drop", told["token"])
                assert word.succeeded().out == "dropped\n"
            case "hang-up":
                held.hang_up()
            case "signal":
                held.signal(signal.SIGTERM)
        ran = held.kill() if end == "kill" else held.wait()
        if end in ("drop", "order"):
            assert not ran.succeeded().result["committed"]
        elif end == "time":
            ran.failed(4, "as long as it may be", "--ttl")
        elif end != "kill":
            ran.failed(130)
        assert "base-" not in ran.out.replace(base or "", "")
        if end != "kill":
            running(guest)
    gone = INTACT.run("export", guest.source, "--commit", told["token"])
    gone.failed(4, "no process holds this point")
    asked = ("export", guest.source, "--since", told["token"])
    INTACT.run(*asked).failed(2, "this is no base", "a commit prints one")
    mine.talks = True
    told = mine.take("--disk", "vd-d0")
    assert told["disks"][0]["dirty_bytes"] == 6 * KIB64
    guest.same(mine, "d0")
    running(guest)


def test_a_consumer_that_lost_its_newest_copy_builds_on_an_older_one_that_is_kept(
    guest: Guest,
) -> None:
    """By the library, which knows no files and no processes of the consumer's."""
    wish = fleece.ExportOptions("older", ("vd-d0",), keep_bases=2)
    copy, bases = guest.consumer("older"), list[str]()
    for number in range(3):
        guest.write(number * MIB)
        with guest.exported(replace(wish, since=bases[-1] if bases else None)) as held:
            copy.read(asdict(held.told))
            bases.append(held.commit())
        kept = guest.folder / f"kept-{number}.raw"
        kept.write_bytes(copy.copy("vd-d0").read_bytes())
    chain = bases[0].split("-")[1]
    assert len([name for name in guest.segments() if chain in name]) == 2
    with guest.exported(replace(wish, since=bases[0])) as held:
        assert (held.told.mode, held.told.base) == ("full", None)
        assert "there is no bitmap" in held.told.reason
    copy.copy("vd-d0").write_bytes((guest.folder / "kept-1.raw").read_bytes())
    with guest.exported(replace(wish, since=bases[1])) as held:
        held.check()
        assert (held.told.mode, held.told.base) == ("incremental", bases[1])
        copy.read(asdict(held.told))
        held.commit()
    guest.same(copy, "d0")
    named = INTACT.run("bitmap", guest.source, "--drop", chain, "--json").succeeded()
    assert named.result["dropped"] == 4  # both bases, and what lies between them
    running(guest)


@dataclass
class Stranger:
    """A client of a unix socket that says only so much, and stays."""

    end: socket.socket

    def closed(self) -> bool:
        """Whether the other side has hung up, in the end."""
        with contextlib.suppress(ConnectionError):
            while self.end.recv(65536):
                pass
        return True


_FLAGS = struct.pack(">I", 3)
_STRUCTURED = b"IHAVEOPT" + struct.pack(">II", 8, 0)
_INFO = b"IHAVEOPT" + struct.pack(">III5sH", 6, 11, 5, b"vd-d0", 0)
_GO = b"IHAVEOPT" + struct.pack(">III5sH", 7, 11, 5, b"vd-d0", 0)
_READS = struct.pack(">IHHQQI", 0x25609513, 0, 0, 1, 0, MIB) * 64


def test_who_says_nothing_and_who_never_stops_reading_cannot_keep_the_point(guest: Guest) -> None:
    mine = guest.consumer("strangers")
    held, told = mine.begin()
    path = socket_of(told["disks"][0]["uri"])
    assert path is not None
    strangers = []
    for said in (
        b"",
        _FLAGS,
        _FLAGS + _STRUCTURED + _INFO,
        _FLAGS + _INFO[:20],
        _FLAGS + _GO,
        _FLAGS + _GO + _READS,
        b"GET / HTTP/1.1\r\n\r\n",
        _FLAGS + b"IHAVEOPT" + struct.pack(">II", 7, 0xFFFFFFFF),
    ):
        stranger = Stranger(socket.socket(socket.AF_UNIX))
        stranger.end.connect(path)
        stranger.end.sendall(said)
        strangers.append(stranger)
    mine.read(told)
    held.say("commit")
    mine.ended(held.wait())
    assert all(stranger.closed() for stranger in strangers)
    guest.same(mine)
    running(guest)


def test_what_else_qemu_serves_is_not_shown(guest: Guest) -> None:
    mine, other = guest.consumer("one"), guest.consumer("two")
    held, told = mine.begin("--disk", "vd-d0")
    uri = told["disks"][0]["uri"]
    listed = json.loads(run_checked("nbdinfo", "--list", "--json", uri))
    assert [each["export-name"] for each in listed["exports"]] == ["vd-d0"]
    names = [each["id"] for each in guest.qemu.control.command("query-block-exports")]
    assert len(names) == 1
    for name in (*names, "vd-d1"):
        assert run("nbdinfo", uri.replace("vd-d0", name)).returncode != 0
    assert run("nbdinfo", uri.replace("vd-d0", "")).returncode == 0  # the one export
    held.say("drop")
    held.wait().succeeded()
    assert other.base is None
    running(guest)


def test_a_holder_that_is_killed_in_the_commit_costs_at_most_a_full(guest: Guest) -> None:
    mine = guest.consumer("killed")
    mine.take("--disk", "vd-d0")
    base, copy = mine.base, mine.copy("vd-d0")
    moments = [
        Moment("before the check", "fleece.source.qemu.point", "QemuPoint.check", "before"),
        Moment("when the point is down", "fleece.source.qemu.point", "QemuPoint.close"),
        Moment("when older segments are gone", "fleece.source.qemu.point", "QemuPoint.committed"),
    ]
    modes = []
    for number, moment in enumerate(moments):
        guest.write(number * MIB)
        words = ("export", guest.source, "--scratch", guest.scratch, "--name", mine.name)
        dying = INTACT.dying(moment, *words, "--since", base, "--disk", "vd-d0", "--json")
        assert dying.wait_event("exported")["base"] == base
        dying.say("commit")
        ran = dying.wait()
        assert ran.code == -signal.SIGKILL
        assert "committed" not in ran.out
        held, told = mine.begin("--disk", "vd-d0")
        modes.append(told["mode"])
        mine.read(told)
        guest.same_as_live("d0", copy)
        held.say("drop")
        held.wait().succeeded()
    assert modes == ["incremental", "incremental", "full"]
    running(guest)


def test_a_scratch_that_fills_up_gives_the_point_up_and_not_the_guest(guest: Guest) -> None:
    def fill(source: fleece.Source, *, look: bool) -> None:
        with fleece.export(source, fleece.ExportOptions("scratch")) as held:
            for number in range(128):
                guest.write(number * KIB64)
                if look:
                    held.check()
            held.commit()

    way = fleece.SourceOptions(scratch=guest.scratch, scratch_limit=2 * MIB)
    with fleece.open_source(guest.source, way) as source:
        for look in (True, False):  # whether or not it is seen before the commit
            with pytest.raises(fleece.PointError, match="--scratch-limit"):
                fill(source, look=look)
            running(guest)


def test_a_disk_that_was_resized_is_a_full(guest: Guest) -> None:
    mine = guest.consumer("resized")
    mine.take("--disk", "vd-d0")
    guest.qemu.control.command("block_resize", {"node-name": "d0", "size": 9 * MIB})
    told = mine.take("--disk", "vd-d0")
    assert (told["mode"], told["disks"][0]["size"]) == ("full", 9 * MIB)
    assert "another size" in told["reason"]
    guest.same(mine, "d0")


def test_tcp_is_for_this_host_or_by_tls(guest: Guest, tmp_path: Path) -> None:
    for address in ("0.0.0.0:0", "[::]:0"):
        wish = fleece.ExportOptions(doors=fleece.Doors(listen=address))
        with pytest.raises(fleece.UsageError, match="without TLS"), guest.exported(wish):
            pass
    local = fleece.ExportOptions("tcp", ("vd-d0",), doors=fleece.Doors(listen="127.0.0.1:0"))
    with guest.exported(local) as held:
        (disk,) = held.told.disks
        assert disk.uri.startswith("nbd://127.0.0.1:")
        assert int(run_checked("nbdinfo", "--size", disk.uri)) == disk.size
    for folder in ("ours", "theirs"):
        certificates(tmp_path / folder)
    doors = fleece.Doors(listen="localhost:0", x509=tmp_path / "ours")
    with guest.exported(replace(local, doors=doors)) as held:
        (disk,) = held.told.disks
        port = int(disk.uri.rpartition(":")[2].partition("/")[0])
        silent, half = (socket.create_connection(("localhost", port)) for _ in range(2))
        half.sendall(_FLAGS + b"IHAVEOPT" + struct.pack(">II", 5, 0) + b"no TLS at all")
        told = {
            name: run(
                "nbdcopy", f"{disk.uri}?tls-certificates={tmp_path / name}", tmp_path / name / "d"
            )
            for name in ("ours", "theirs")
        }
        assert (told["ours"].returncode, told["theirs"].returncode) == (0, 1)
        assert run("nbdinfo", disk.uri).returncode == 1
        assert run("nbdinfo", disk.uri.replace("nbds:", "nbd:")).returncode == 1
        listed = run("nbdinfo", "--list", disk.uri.replace("nbds:", "nbd:"))
        assert "vd-d0" not in listed.stdout
        held.commit()
        for end in (silent, half):
            assert Stranger(end).closed()
    guest.same_as_live("d0", tmp_path / "ours" / "d")
    running(guest)


def test_a_key_lets_in_where_python_can(guest: Guest, tmp_path: Path) -> None:
    for name in ("right", "wrong"):
        run_checked("psktool", "-u", "web1", "-p", tmp_path / name)
    doors = fleece.Doors(listen="127.0.0.1:0", psk=tmp_path / "right")
    wish = fleece.ExportOptions("keys", ("vd-d0",), doors=doors)
    if sys.version_info < (3, 13):
        with pytest.raises(fleece.UsageError, match=r"Python 3\.13"), guest.exported(wish):
            pass
        return
    with guest.exported(wish) as held:  # type: ignore[unreachable]
        (disk,) = held.told.disks
        keyed = disk.uri.replace("//", "//web1@") + f"?tls-psk-file={tmp_path}/"
        assert run("nbdcopy", f"{keyed}right", tmp_path / "d").returncode == 0
        for refused in (f"{keyed}wrong", f"{keyed}right".replace("web1", "eve"), disk.uri):
            assert run("nbdinfo", refused).returncode != 0
        held.commit()
    guest.same_as_live("d0", tmp_path / "d")
    running(guest)


_BASE = "base-01234567-000001-0123456789abcdef-0123456789abcdef"
_NO_OPTIONS = {
    "this is no base": fleece.ExportOptions(since="x"),
    "no base of the consumer default": fleece.ExportOptions(since=_BASE),
    "a full builds on no base": fleece.ExportOptions(since=_BASE, full=True),
    "must be positive": fleece.ExportOptions(keep_bases=0),
    "no effect on a unix socket": fleece.ExportOptions(doors=fleece.Doors(x509=Path("/none"))),
    "ADDRESS:PORT": fleece.ExportOptions(doors=fleece.Doors(listen="127.0.0.1")),
    "the certificates cannot": fleece.ExportOptions(
        doors=fleece.Doors(listen="127.0.0.1:0", x509=Path("/none"))
    ),
    "two places": fleece.ExportOptions(doors=fleece.Doors("s", "127.0.0.1:0")),
    "must be printable": fleece.ExportOptions("\n"),
}
_NO_WORDS = {
    "--ttl 5m": "--ttl takes a time",
    "--commit x": "not the token",
    "--commit 01234567-000001-0123456789 --ttl 2h": "--ttl has no effect",
    "--commit 01234567-000001-0123456789 --drop x": "--drop has no effect",
}


def test_what_makes_no_sense_is_refused_before_anything_is_done(
    guest: Guest, tmp_path: Path
) -> None:
    for said, options in _NO_OPTIONS.items():
        with pytest.raises(fleece.UsageError, match=said), guest.exported(options):
            pass
    for words, said in _NO_WORDS.items():
        INTACT.run("export", guest.source, *words.split()).failed(2, said)
    taken = tmp_path / "taken"
    taken.touch()
    INTACT.run("export", guest.source, "--socket", taken).failed(7, "exists already")
    assert taken.exists()
    running(guest)


def test_another_process_must_name_the_source_as_it_was_named(guest: Guest) -> None:
    with guest.exported(fleece.ExportOptions("orders")) as held, fleece.Orders(held, "a") as orders:
        token, failed = held.told.token, list[fleece.FleeceError]()

        def tell() -> None:
            try:
                fleece.order("b", token, fleece.Order.COMMIT)
            except fleece.PointError as error:
                failed.append(error)
            fleece.order("a", token, fleece.Order.DROP)

        thread = threading.Thread(target=tell)
        thread.start()
        assert orders.obey(fleece.CancelToken()) is None
        thread.join()
        assert "point of a" in str(failed[0])
    running(guest)
