"""Images at rest: full, incremental, rescan; on and off by turns; guests that are on."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import fleece
from fleece.events import Event, PointTaken
from fleece.nbd.server import served_image
from fleece.source.image.hold import HeldImages
from fleece.source.image.inventory import ImageDisk
from fleece.source.image.text import parse
from tests.engine.scene import (
    GUEST,
    INTACT,
    KIB64,
    MIB,
    Json,
    MachineScene,
    Moment,
    Ran,
    Scene,
    wait_until,
)
from tests.rig import images
from tests.rig.daemon import StorageDaemon
from tests.rig.disk import Disk
from tests.rig.machine import Machine
from tests.rig.process import run, run_checked


@dataclass
class Still:
    """Images of a guest that is off, a store, and the engine as its users run it."""

    folder: Path
    scratch: Path
    disks: tuple[Disk, ...]
    numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def source(self) -> str:
        """As the command line takes it."""
        return "image:" + ",".join(f"{d.node}={d.fmt}:{d.path}" for d in self.disks)

    @property
    def store(self) -> Path:
        """A store, made if it is not there yet."""
        return self.place("store")

    def place(self, name: str) -> Path:
        """A store of this name, likewise."""
        path = self.folder / name
        if not path.exists():
            fleece.init(path)
        return path

    def disk(self, name: str = "d0") -> Disk:
        """A disk by its name."""
        return next(disk for disk in self.disks if disk.node == name)

    def words(self, *words: object, store: Path | None = None) -> tuple[object, ...]:
        """The words of a backup."""
        guest = () if "--guest" in words else ("--guest", GUEST)
        options = (*guest, "--scratch", self.scratch, "--json")
        return ("backup", self.source, store or self.store, *options, *words)

    def backup(self, *words: object, store: Path | None = None) -> Ran:
        """Back up by the command line."""
        return INTACT.run(*self.words(*words, store=store))

    def take(self, store: Path | None = None) -> fleece.BackupResult:
        """Back up by the library, in this process."""
        options = fleece.SourceOptions(self.scratch)
        with fleece.open_source(self.source, options) as source:
            place = fleece.open_store(store or self.store)
            return fleece.backup(source, place, fleece.BackupOptions(guest=GUEST))

    def write(self, offset: int, length: int = KIB64, name: str = "d0", pattern: int = 7) -> None:
        """Write as qemu-io does."""
        disk = self.disk(name)
        words = f"write -P {pattern} {offset} {length}"
        run_checked("qemu-io", "-f", disk.fmt, "-c", words, disk.path)

    def bitmaps(self, name: str = "d0") -> list[Json]:
        """What qemu-img says of the bitmaps in an image."""
        words = ("-U", "-f", "qcow2", "--output=json")
        info = json.loads(run_checked("qemu-img", "info", *words, self.disk(name).path))
        found: list[Json] = info["format-specific"]["data"].get("bitmaps", [])
        return found

    def names(self, name: str = "d0") -> list[str]:
        """The names of the bitmaps in an image."""
        return [str(bitmap["name"]) for bitmap in self.bitmaps(name)]

    def check_exact(self, store: Path | None = None) -> None:
        """Check that the newest point is what the images hold, by qemu-img."""
        for disk in self.disks:
            target = self.restored(disk.node, store)
            images.compare(disk.path, target, disk.fmt, "raw")
            target.unlink()

    def restored(self, name: str = "d0", store: Path | None = None) -> Path:
        """A disk of the newest point, restored to a raw file."""
        opened = fleece.open_store(store or self.store)
        target = self.folder / f"restored-{next(self.numbers)}"
        fleece.restore(opened, opened.catalogue().points[-1].id, name, str(target))
        return target

    def nothing_left(self) -> None:
        """Check that no work folder, partial point or server is left."""
        assert [*self.scratch.iterdir()] == []
        assert [*self.folder.rglob("*.partial*")] == []
        for disk in self.disks:
            run_checked("qemu-io", "-f", disk.fmt, "-c", "read 0 512", disk.path)


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A scratch folder of a short name."""
    with tempfile.TemporaryDirectory(prefix="rig-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def still(tmp_path: Path, scratch: Path) -> Iterator[Still]:
    """One qcow2 image `d0` of 4 MiB."""
    image = images.random_image(tmp_path / "d0.qcow2", 4 * MIB, seed=1)
    made = Still(tmp_path, scratch, (Disk(image, "d0"),))
    yield made
    made.nothing_left()


@pytest.fixture
def mixed(tmp_path: Path, scratch: Path) -> Iterator[Still]:
    """qcow2 `d0`, raw `d1` with a last part of a leaf, and qcow2 of version 2 `d2`."""
    first = images.random_image(tmp_path / "d0.qcow2", 2 * MIB, seed=1)
    second = images.random_image(tmp_path / "d1.img", MIB + 512, seed=2, fmt="raw")
    third = images.random_image(tmp_path / "d2.qcow2", MIB, seed=3)
    run_checked("qemu-img", "amend", "-f", "qcow2", "-o", "compat=0.10", third)
    made = Still(
        tmp_path, scratch, (Disk(first, "d0"), Disk(second, "d1", "raw"), Disk(third, "d2"))
    )
    yield made
    made.nothing_left()


def _modes(ran: Ran) -> dict[str, str]:
    return {disk["disk"]: disk["mode"] for disk in ran.succeeded().result["disks"]}


def test_a_full_and_incrementals_of_one_image(still: Still) -> None:
    """As the first line of the manual has it: no name, no format, only the image."""
    source = f"image:{still.disk().path}"
    first = INTACT.run("backup", source, still.store, "--scratch", still.scratch, "--json")
    assert _modes(first) == {"d0": "full"}
    assert first.result["guest"] == "d0"
    for turn in range(3):
        still.write((turn + 5) * KIB64, 3 * 512, pattern=turn + 1)
        ran = INTACT.run("backup", source, still.store, "--scratch", still.scratch, "--json")
        assert _modes(ran) == {"d0": "incremental"}
        assert ran.result["disks"][0]["read_bytes"] == KIB64
        still.check_exact()
        (name,) = still.names()
        assert ran.result["point"] in name
    assert _modes(still.backup("--guest", "d0")) == {"d0": "incremental"}
    assert _modes(still.backup("--guest", "d0", "--mode", "differential")) == {"d0": "differential"}
    still.check_exact()


def test_what_keeps_no_bitmaps_is_read_as_a_whole(mixed: Still) -> None:
    assert set(_modes(mixed.backup()).values()) == {"full"}
    for disk in mixed.disks:
        mixed.write(KIB64, 512, disk.node)
    second = mixed.backup()
    assert _modes(second) == {"d0": "incremental", "d1": "rescan", "d2": "rescan"}
    assert {disk["dirty_bytes"] for disk in second.result["disks"]} == {KIB64}
    mixed.check_exact()
    assert len(mixed.names("d0")) == 1
    assert mixed.names("d2") == []
    wish = mixed.backup("--mode", "incremental").failed(4, "d1", "no bitmap")
    assert wish.out


def test_on_and_off_by_turns_are_one_chain(still: Still) -> None:
    """Twenty changes; writes before and after each point, on and off."""
    draw, disk = random.Random(5), still.disk()
    modes: list[str] = []
    for turn in range(21):
        if turn % 2:
            with StorageDaemon([disk]) as qemu:
                scene = Scene(qemu, still.folder)
                scene.store = still.store
                _write_somewhere(scene, draw)
                modes.append(scene.take().disks[0].mode)
                scene.check_exact()
                _write_somewhere(scene, draw)
                scene.nothing_left()
        else:
            still.write(draw.randrange(60) * KIB64 + 512, 512, pattern=draw.randrange(256))
            modes.append(_modes(still.backup())["d0"])
            still.check_exact()
            still.write(draw.randrange(60) * KIB64, 3 * KIB64, pattern=draw.randrange(256))
    assert modes == ["full", *["incremental"] * 20]
    assert len(still.names()) == 1
    assert fleece.verify_store(fleece.open_store(still.store).catalogue()).errors == ()


def _write_somewhere(scene: Scene, draw: random.Random) -> None:
    writer = scene.writer()
    writer.write(draw.randrange(60) * KIB64, draw.randbytes(1024))
    writer.zero(draw.randrange(60) * KIB64, KIB64, draw.random() < 0.5)
    writer.flush()


# ---- who else uses the images ----


def test_a_guest_that_is_on_is_refused(mixed: Still) -> None:
    """Whatever the format; nothing is changed, and the doctor says so too."""
    before = mixed.names("d0")
    for disk in mixed.disks:
        with StorageDaemon([disk]):
            with pytest.raises(fleece.SourceError, match=r"in use \(qemu-storage-da") as error:
                mixed.take()
            assert error.value.where == str(disk.path)
            if disk.node != "d1":
                continue
            mixed.backup().failed(3, "in use", "through its QEMU")
            told = INTACT.run("doctor", mixed.source, "--json").succeeded()
            assert "guest" in told.result["missing"]
            (images_row,) = told.named("images")
            assert "in use" in images_row["refusal"]
            assert [row["pull"] for row in told.named("disk")].count(False) == 1
            INTACT.run("bitmap", mixed.source, "--json").failed(3, "in use")
    assert mixed.names("d0") == before == []


def test_no_guest_starts_during_a_backup(mixed: Still) -> None:
    """Not on the images, and not on what they are backed by; a reader may come."""
    base = images.random_image(mixed.folder / "base.img", MIB, seed=4, fmt="raw")
    over = images.make_overlay(mixed.folder / "over.qcow2", base, "raw")
    mixed.disks = (*mixed.disks, Disk(over, "d3"))
    running = INTACT.slow("fleece.nbd.connection", "Connection.read", 1, *mixed.words())
    running.wait_event("point")
    for disk in (*mixed.disks, Disk(base, "base", "raw")):
        write = ("qemu-io", "-f", disk.fmt, "-c", "write 0 512", disk.path)
        assert 'Failed to get "write" lock' in run(*write).stderr, disk
        run_checked("qemu-io", "-r", "-f", disk.fmt, "-c", "read 0 512", disk.path)
    _modes(running.wait())
    mixed.check_exact()


def test_who_heeds_no_locks_is_noticed(mixed: Still) -> None:
    """The point is not what it should be then, and nothing is stored."""
    running = INTACT.slow("fleece.nbd.connection", "Connection.read", 1, *mixed.words())
    running.wait_event("point")
    with mixed.disk("d1").path.open("r+b") as file:
        file.write(b"behind everybody's back")
    running.wait().failed(4, "disk d1 was written to while it was read")
    assert mixed.names("d0") == []
    assert fleece.open_store(mixed.store).catalogue().points == ()


def test_a_server_that_dies_ends_the_backup(still: Still) -> None:
    running = INTACT.slow("fleece.nbd.connection", "Connection.read", 1, *still.words())
    running.wait_event("point")
    (socket,) = still.scratch.glob("*/qemu/0.sock")
    (server,) = _processes_of(f"--socket={socket}")
    os.kill(server, signal.SIGKILL)
    running.wait().failed(4, "has ended")
    assert still.names() == []


def test_what_is_written_before_the_images_are_held_is_in_the_point(
    still: Still, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the new bitmap began, and before anybody is kept from the image."""
    _modes(still.backup())
    serve = HeldImages.serve

    def late(self: HeldImages, disk: ImageDisk, bitmaps: Sequence[str] = ()) -> str:
        if len(still.names()) == 2:
            still.write(20 * KIB64, 512, pattern=99)
        return serve(self, disk, bitmaps)

    monkeypatch.setattr(HeldImages, "serve", late)
    still.write(9 * KIB64, 512, pattern=98)
    assert still.take().disks[0].mode == "incremental"
    monkeypatch.undo()
    still.check_exact()
    _modes(still.backup())
    still.check_exact()


def _processes_of(word: str) -> list[int]:
    """The processes that have this on their command line."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if word.encode() in place.read_bytes() and place.parent.name != str(os.getpid()):
                found.append(int(place.parent.name))
    return found


# ---- bitmaps ----


def test_bitmaps_that_a_crash_spoiled_lead_to_a_rescan(still: Still) -> None:
    """They are removed with its commit, and another's, spoiled as well, is left alone."""
    run_checked("qemu-img", "bitmap", "--add", still.disk().path, "theirs")
    _modes(still.backup())
    with StorageDaemon([still.disk()]) as qemu:
        Scene(qemu, still.folder).writer().write(5 * KIB64, b"x" * 512)
        Scene(qemu, still.folder).writer().flush()
        qemu.kill()
    assert all("in-use" in bitmap["flags"] for bitmap in still.bitmaps())
    ran = still.backup()
    assert _modes(ran) == {"d0": "rescan"}
    assert "inconsistent" in ran.named("plan")[0]["reason"]
    still.check_exact()
    theirs, own = sorted(still.bitmaps(), key=lambda bitmap: str(bitmap["name"]), reverse=True)
    assert theirs["name"] == "theirs"
    assert ran.result["point"] in own["name"]
    assert own["flags"] == ["auto"]
    still.write(0)
    assert _modes(still.backup()) == {"d0": "incremental"}
    still.check_exact()


def test_what_a_failed_backup_of_the_running_guest_left_counts(still: Still) -> None:
    """Two bitmaps then tell together what changed: the first one was ended in the middle."""
    _modes(still.backup())
    with StorageDaemon([still.disk()]) as qemu:
        scene = Scene(qemu, still.folder)
        scene.store = still.store
        scene.writer().write(3 * KIB64, b"before the failed one...." * 40)
        _fail(scene)
        scene.writer().write(9 * KIB64, b"after the failed one....." * 40)
        scene.writer().flush()
    assert [bitmap["flags"] for bitmap in still.bitmaps()] == [[], ["auto"]]
    ran = still.backup()
    assert _modes(ran) == {"d0": "incremental"}
    assert ran.result["disks"][0]["dirty_bytes"] == 2 * KIB64
    still.check_exact()
    assert len(still.names()) == 1


def _fail(scene: Scene) -> None:
    """Take a point of the running guest, and give it up."""
    cancel = fleece.CancelToken()

    def stop(event: Event) -> None:
        if isinstance(event, PointTaken):
            cancel.cancel()

    with pytest.raises(fleece.Interrupted, match="the point was taken down again"):
        scene.take(listener=stop, cancel=cancel)
    scene.nothing_left()


def test_two_stores_of_one_image_do_not_know_each_other(still: Still) -> None:
    other = still.place("other")
    run_checked("qemu-img", "bitmap", "--add", "--disable", still.disk().path, "theirs")
    for turn in range(4):
        store = (still.store, other)[turn % 2]
        assert still.take(store).mode == ("full" if turn < 2 else "incremental")
        still.check_exact(store)
        still.write((turn + 3) * KIB64, pattern=turn)
    assert len(still.names()) == 3
    listed = INTACT.run("bitmap", still.source, still.store, other, "--guest", GUEST, "--json")
    rows = listed.succeeded().named("segment")
    assert [row["stores"] for row in rows] in (
        [[str(still.store)], [str(other)]],
        [[str(other)], [str(still.store)]],
    )
    assert sorted(row["count"] for row in rows) == [KIB64, 2 * KIB64]
    chain = rows[0]["chain"]
    dropped = INTACT.run("bitmap", still.source, "--drop", chain, "--json").succeeded()
    assert dropped.result["dropped"] == 1
    assert len(still.names()) == 2
    assert "theirs" in still.names()


def test_an_audit_of_images(still: Still) -> None:
    """It changes nothing; what was written behind the bitmaps' back is found."""
    _modes(still.backup())
    still.write(5 * KIB64)
    words = ("audit", still.source, still.store, "--guest", GUEST, "--scratch", still.scratch)
    before = still.bitmaps()
    INTACT.run(*words, "--json").succeeded()
    assert still.bitmaps() == before
    overlay = still.disk().path.read_bytes()
    place = overlay.index(fleece_data := _data_of(still, 40 * KIB64))
    assert len(fleece_data) == 512
    with still.disk().path.open("r+b") as file:
        file.seek(place)
        file.write(b"not by QEMU")
    INTACT.run(*words, "--json").failed(6)
    assert _modes(still.backup()) == {"d0": "rescan"}
    still.check_exact()


def _data_of(still: Still, start: int) -> bytes:
    """The first sector from here on that holds data."""
    raw = images.to_raw(still.disk().path, still.folder / "shown").read_bytes()
    pieces = (raw[at : at + 512] for at in range(start, len(raw), 512))
    return next(piece for piece in pieces if any(piece))


# ---- killed at each step ----

STEPS = (
    Moment("work folder made", "fleece.source.image.point", "HeldImages.__init__"),
    Moment("before a bitmap", "fleece.source.image.point", "begin_bitmap", "before"),
    Moment("after the first bitmap", "fleece.source.image.point", "begin_bitmap"),
    Moment("after the last bitmap", "fleece.source.image.point", "begin_bitmap", nth=2),
    Moment("one image served", "fleece.source.image.hold", "HeldImages.serve", nth=3),
    Moment("all images served", "fleece.source.image.hold", "HeldImages.serve", nth=4),
    Moment("copied", "fleece.delta.writer", "DeltaWriter.finish", "before"),
    Moment("one finished", "fleece.delta.writer", "DeltaWriter.finish"),
    Moment("before the commit", "fleece.store.partial_point", "PartialPoint.commit", "before"),
    Moment("committed", "fleece.store.partial_point", "PartialPoint.commit"),
    Moment("one old bitmap removed", "fleece.source.image.point", "remove_bitmap"),
    Moment("before the work folder goes", "fleece.source.image.workplace", "remove", "before"),
)

WHOLE = ("copied", "one finished", "before the commit")
BETWEEN = ("nothing", "a write", "a guest")


@pytest.fixture
def twins(tmp_path: Path, scratch: Path) -> Iterator[Still]:
    """Two qcow2 images with a full point."""
    disks = [
        Disk(images.random_image(tmp_path / f"d{n}.qcow2", MIB, seed=n), f"d{n}") for n in (0, 1)
    ]
    made = Still(tmp_path, scratch, tuple(disks))
    made.take()
    yield made
    made.nothing_left()


def test_a_run_that_is_killed_costs_nothing(twins: Still) -> None:
    """At each step; whatever is done before the next, that is incremental and exact.

    Only what was whole in the store can be resumed, and only if nobody wrote since.
    """
    resumed = []
    turns = [(step, BETWEEN[number % 3]) for number, step in enumerate(STEPS)]
    turns += [(step, each) for step in STEPS if step.name in WHOLE for each in BETWEEN]
    for number, (step, between) in enumerate(dict.fromkeys(turns)):
        twins.write(number % 16 * KIB64, 512, pattern=number + 1)
        twins.write(number % 16 * KIB64 + 1024, 512, "d1", pattern=number + 1)
        _die(twins, step)
        if between == "a write":
            twins.write(5 * KIB64, 512, "d1", pattern=number + 50)
        elif between == "a guest":
            with StorageDaemon(twins.disks) as qemu:
                Scene(qemu, twins.folder).writer("d1").write(7 * KIB64, bytes([number + 1]) * 512)
        result = twins.take()
        assert result.mode == "incremental", step
        if result.resumed:
            resumed.append((step.name, between))
        twins.check_exact()
        assert [len(twins.names(disk.node)) for disk in twins.disks] == [1, 1], step
        twins.nothing_left()
    assert sorted(resumed) == sorted((name, "nothing") for name in WHOLE)


def _die(still: Still, step: Moment) -> None:
    """Back up in a child process, and be killed by SIGKILL at a step."""
    child = os.fork()
    if child == 0:
        try:
            _kill_at(step)
            still.take()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, step
    wait_until(lambda: not _processes_of(str(still.scratch)), "the servers' end")


def _kill_at(step: Moment) -> None:
    owner = importlib.import_module(step.module)
    *path, last = step.function.split(".")
    for part in path:
        owner = getattr(owner, part)
    wrapped, calls = getattr(owner, last), itertools.count(1)

    def wrapper(*arguments: object, **named: object) -> object:
        if step.when == "before" and next(calls) == step.nth:
            os.kill(os.getpid(), signal.SIGKILL)
        result = wrapped(*arguments, **named)
        if step.when == "after" and next(calls) == step.nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, last, wrapper)


def test_an_interrupted_point_is_not_resumed_once_somebody_wrote(twins: Still) -> None:
    _die(twins, STEPS[6])
    twins.write(0, 512, "d1")
    ran = twins.backup()
    assert _modes(ran) == {"d0": "incremental", "d1": "incremental"}
    (told,) = ran.named("warning")
    assert "disk d1 was written to since" in told["what"]
    twins.check_exact()


def test_a_signal_does_not_end_qemu_img_half_way(
    still: Still, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All bitmaps in an image are lost when a program that writes to it is ended so."""
    _modes(still.backup())
    tools = still.folder / "tools"
    tools.mkdir()
    slow = tools / "qemu-img"
    real = run_checked("which", "qemu-img").strip()
    slow.write_text(
        f"#!{sys.executable}\nimport os, sys, time\nfrom pathlib import Path\n"
        "if '--add' in sys.argv:\n"
        f"    Path('{still.folder}/begun').touch()\n    time.sleep(1)\n"
        f"os.execv('{real}', ['qemu-img', *sys.argv[1:]])\n"
    )
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    command = [sys.executable, "-m", "fleece", *map(str, still.words())]
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE) as running:
        wait_until((still.folder / "begun").exists, "qemu-img")
        os.killpg(running.pid, signal.SIGTERM)
        assert running.wait() == 130, running.communicate()
    monkeypatch.undo()
    assert [bitmap["flags"] for bitmap in still.bitmaps()] == [["auto"]]
    assert _modes(still.backup()) == {"d0": "incremental"}


# ---- what an image is ----


def test_a_backing_chain_is_read_as_the_guest_sees_it(still: Still) -> None:
    """A snapshot that was made meanwhile leaves no bitmap on top: all is read, and compared."""
    _modes(still.backup())
    base = still.disk().path
    over = images.make_overlay(still.folder / "over.qcow2", base, "qcow2")
    still.disks = (Disk(over, "d0"),)
    still.write(3 * KIB64)
    ran = still.backup()
    assert _modes(ran) == {"d0": "rescan"}
    assert ran.result["disks"][0]["dirty_bytes"] == KIB64
    still.check_exact()
    still.write(4 * KIB64, 512)
    assert _modes(still.backup()) == {"d0": "incremental"}
    still.check_exact()
    run_checked("qemu-img", "commit", "-q", "-f", "qcow2", over)
    still.disks = (Disk(base, "d0"),)
    assert _modes(still.backup()) == {"d0": "incremental"}  # the base's bitmap was told
    still.check_exact()


def test_a_backing_file_of_no_named_format_is_refused(still: Still) -> None:
    base = images.random_image(still.folder / "base.img", MIB, seed=4, fmt="raw")
    over = images.make_overlay(still.folder / "over.qcow2", base, "raw")
    with over.open("r+b") as file:
        whole = file.read()
        file.seek(whole.index(struct.pack(">I", 0xE2792ACA)))  # docs/interop/qcow2.txt
        file.write(struct.pack(">I", 0x12345678))
    still.disks = (Disk(over, "d0"),)
    still.backup().failed(3, "of which format its backing file is", "qemu-img rebase")


@pytest.mark.parametrize("name", ["disk.img", "disk"])
def test_what_a_guest_wrote_into_a_raw_disk_is_not_believed(still: Still, name: str) -> None:
    """A header of qcow2 there would have another file of the host read."""
    secret = images.random_image(still.folder / "secret", MIB, seed=9, fmt="raw")
    made = images.make_overlay(still.folder / name, secret, "raw")
    with made.open("r+b") as file:
        file.truncate(2 * MIB)
    source = f"image:d0={made}"
    words = (still.store, "--guest", GUEST, "--scratch", still.scratch)
    refused = INTACT.run("backup", source, *words, "--json").failed(3, "looks like qcow2")
    assert f"image:raw:{made}" in refused.result["error"]
    still.disks = (Disk(made, "d0", "raw"),)
    _modes(still.backup())
    still.check_exact()
    restored = still.folder / "restored"
    fleece.restore(fleece.open_store(still.store), "latest", "d0", str(restored))
    assert restored.read_bytes() == made.read_bytes()


def test_the_words_that_name_images() -> None:
    found = parse("a.qcow2,vdb=raw:/dev/vg/b,/x/with,,comma=1.img,./n=m.img,vdc=./raw:x")
    assert [(image.name, image.path, image.format) for image in found] == [
        ("a", "a.qcow2", None),
        ("vdb", "/dev/vg/b", fleece.ImageFormat.RAW),
        ("with,comma=1", "/x/with,comma=1.img", None),
        ("n=m", "./n=m.img", None),
        ("vdc", "./raw:x", None),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a.qcow2,b/a.img", "two disks are called a"),
        ("a.qcow2,", "has no path"),
        ("vda=", "has no path"),
        ("raw:", "has no path"),
        ("=x.img", "must be printable"),
    ],
)
def test_words_that_name_no_images_are_refused(text: str, said: str) -> None:
    with pytest.raises(fleece.UsageError, match=said):
        parse(text)


def test_images_that_cannot_be_read_are_one_clear_error(still: Still) -> None:
    store = still.store
    fifo = still.folder / "pipe"
    os.mkfifo(fifo)
    text = still.folder / "text.qcow2"
    text.write_text("no image")
    same = still.folder / "same.qcow2"
    same.symlink_to(still.disk().path)
    for source, *said in (
        (f"image:{still.folder}/none.qcow2", "No such file"),
        (f"image:{still.folder}", "neither a file nor a block device"),
        (f"image:{fifo}", "neither a file nor a block device"),
        (f"image:{text}", "cannot be opened as qcow2"),
        (f"image:{still.disk().path},{same}", "is disk d0 and disk same"),
    ):
        INTACT.run("backup", source, store, "--scratch", still.scratch, "--json").failed(3, *said)


def test_what_has_no_effect_on_images_is_refused(still: Still) -> None:
    for option, *value in (
        ("--scratch-limit", "1G"),
        ("--fleecing", "filter"),
        ("--guest-agent", "/run/agent"),
        ("--transport", "push"),
    ):
        still.backup(option, *value).failed(2, option)
    assert still.names() == []


# ---- whose the images are ----


def test_the_guest_of_a_chain_stays_what_it_is(still: Still) -> None:
    """Images do not tell a UUID: a guest that has one goes on, and another is still refused."""
    name = Disk(still.disk().path, "vd-d0")
    still.disks = (name,)
    for uuid, modes in (("1" * 8, ("full", "incremental")), ("1" * 8, ("incremental",) * 2)):
        words = ["-uuid", f"{uuid}-1111-4111-8111-111111111111", "-name", "web1"]
        with Machine([Disk(name.path, "d0")], extra=words) as machine:
            scene = MachineScene(machine, still.folder)
            scene.store = still.store
            assert scene.take().disks[0].mode == modes[0]
        still.write(2 * KIB64, 512, "vd-d0", pattern=len(modes[0]))
        ran = still.backup()
        assert _modes(ran) == {"vd-d0": modes[1]}
        still.check_exact()
        listed = INTACT.run("list", still.store, "--json").named("point")
        assert {row["identity"]["uuid"] for row in listed} == {words[1]}
    still.backup("--adopt").failed(2, "nothing to adopt")
    with Machine([Disk(name.path, "d0")], extra=["-uuid", "2" + words[1][1:]]) as machine:
        scene = MachineScene(machine, still.folder)
        scene.store = still.store
        with pytest.raises(fleece.PointError, match="another guest"):
            scene.take()


def test_the_library_takes_images_of_a_guest_that_it_is_told(still: Still) -> None:
    """What another source uses for a guest that is off: no text of a command line."""
    one = fleece.GuestIdentity("11111111-1111-4111-8111-111111111111", None)
    two = fleece.GuestIdentity("21111111-1111-4111-8111-111111111111", None)
    wanted = [fleece.Image("vda", str(still.disk().path), fleece.ImageFormat.QCOW2)]
    place = fleece.open_store(still.store)
    with fleece.ImageSource(wanted, "web1", one, scratch=still.scratch) as source:
        assert fleece.backup(source, place).guest == "web1"
    other = fleece.ImageSource(wanted, "web1", two, scratch=still.scratch)
    with other, pytest.raises(fleece.PointError, match="another guest"):
        fleece.backup(other, place)


def test_a_block_device_is_held_too(still: Still) -> None:
    """As root, by a loop device."""
    if os.geteuid() != 0:
        pytest.skip("only root has loop devices")
    raw = images.random_image(still.folder / "disk.img", MIB, seed=8, fmt="raw")
    done = run("losetup", "--find", "--show", raw)
    if done.returncode != 0:
        pytest.skip(f"no loop device here: {done.stderr}")
    device = Path(done.stdout.strip())
    try:
        still.disks = (Disk(device, "vdb", "raw"),)
        running = INTACT.slow("fleece.nbd.connection", "Connection.read", 1, *still.words())
        running.wait_event("point")
        write = run("qemu-io", "-f", "raw", "-c", "write 0 512", device)
        assert 'Failed to get "write" lock' in write.stderr
        _modes(running.wait())
        still.check_exact()
        with served_image(str(device), "raw", writable=True, failure=fleece.SourceError):
            still.backup().failed(3, "in use", "qemu-nbd")
    finally:
        run_checked("losetup", "--detach", device)
        still.disks = ()


def test_an_encrypted_image_is_refused(still: Still) -> None:
    made = still.folder / "locked.qcow2"
    secret = ("--object", "secret,id=s,data=abc")
    options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
    run_checked("qemu-img", "create", "-q", "-f", "qcow2", *secret, "-o", options, made, "1M")
    still.disks = (Disk(made, "d0"),)
    with pytest.raises(fleece.SourceError, match="is encrypted"):
        still.take()
    still.disks = ()


def test_an_image_whose_data_is_in_another_file(still: Still) -> None:
    """Bitmaps are in the one, the data in the other: both are held."""
    made = still.folder / "meta.qcow2"
    data = still.folder / "data.raw"
    words = (f"data_file={data},data_file_raw=on", str(made), "2M")
    run_checked("qemu-img", "create", "-q", "-f", "qcow2", "-o", *words)
    still.disks = (Disk(made, "d0"),)
    still.write(KIB64, 5 * KIB64)
    _modes(still.backup())
    still.write(3 * KIB64, 512, pattern=9)
    running = INTACT.slow("fleece.nbd.connection", "Connection.read", 1, *still.words())
    running.wait_event("point")
    for fmt, path in (("qcow2", made), ("raw", data)):
        write = run("qemu-io", "-f", fmt, "-c", "write 0 512", path)
        assert 'Failed to get "write" lock' in write.stderr, path
    assert _modes(running.wait()) == {"d0": "incremental"}
    still.check_exact()


def test_two_backups_at_once(mixed: Still, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one cannot begin a bitmap in what the first one reads, and harms nothing."""
    other = mixed.place("other")
    running = INTACT.slow("fleece.nbd.connection", "Connection.read", 1, *mixed.words())
    running.wait_event("point")
    monkeypatch.setattr("fleece.source.image.tool._PATIENCE", 0)
    with pytest.raises(fleece.SourceError, match="is in use by a program that reads it"):
        mixed.take(other)
    _modes(running.wait())
    mixed.check_exact()
    assert mixed.take(other).mode == "full"
    assert len(mixed.names()) == 2


def test_a_streamed_point_is_built_on_once_it_is_imported(still: Still) -> None:
    _modes(still.backup())
    still.write(0, pattern=3)
    streamed = still.folder / "streamed"
    words = [sys.executable, "-m", "fleece", *map(str, still.words("--output", "-"))]
    with streamed.open("wb") as output:
        subprocess.run(words, stdout=output, stderr=subprocess.PIPE, check=True)
    assert len(still.names()) == 2
    with streamed.open("rb") as data:
        assert fleece.import_delta(fleece.open_store(still.store), data.read)
    still.check_exact()
    still.write(20 * KIB64, pattern=3)
    (done,) = still.take().disks
    assert (done.mode, done.read_bytes) == ("incremental", KIB64)
    still.check_exact()
    assert len(still.names()) == 1


def test_clean_removes_what_a_killed_run_left(twins: Still) -> None:
    """And no bitmap: a store needs it."""
    _die(twins, STEPS[5])
    kept = twins.names()
    ran = INTACT.run("clean", twins.source, "--scratch", twins.scratch, "--json").succeeded()
    assert [row["kind"] for row in ran.named("removed")] == ["work folder"]
    assert twins.names() == kept
    assert len(kept) == 2


def test_an_image_that_may_only_be_read(still: Still) -> None:
    """There is a warning, and the next backup reads all; nothing is refused."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    folder = still.folder / "read-only"
    folder.mkdir()
    (folder / "d0.qcow2").touch()
    _modes(still.backup())
    image = still.disk().path
    still.write(0)
    run_checked("mount", "--bind", image, folder / "d0.qcow2")
    try:
        run_checked("mount", "-o", "remount,bind,ro", folder / "d0.qcow2")
        still.disks = (Disk(folder / "d0.qcow2", "d0"),)
        for _ in range(2):  # the older bitmap still tells what changed since the older point
            ran = still.backup()
            assert _modes(ran) == {"d0": "incremental"}
            assert "may not write" in ran.named("warning")[0]["what"]
            images.compare(image, still.restored(), "qcow2", "raw")
    finally:
        run_checked("umount", folder / "d0.qcow2")
        still.disks = ()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_of_a_run_is_an_interruption(
    mixed: Still, number: signal.Signals
) -> None:
    """As a terminal and systemd send it: to the servers as well."""
    command = [sys.executable, "-m", "fleece", *map(str, mixed.words("--rate", "64K"))]
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        while b'"point"' not in running.stdout.readline():
            pass
        os.killpg(running.pid, number)
        said = running.stdout.read()
        assert running.wait() == 130, said
    assert b"taken down" in said
    assert mixed.names() == []


def test_images_that_were_exchanged_are_read_as_a_whole(twins: Still) -> None:
    """Each has bitmaps of this chain and this point, but of the other disk."""
    first, second = twins.disks
    twins.write(0, 512)
    twins.disks = (Disk(second.path, first.node), Disk(first.path, second.node))
    ran = twins.backup()
    assert _modes(ran) == {"d0": "rescan", "d1": "rescan"}
    assert "exchanged" in ran.named("plan")[0]["reason"]
    twins.check_exact()
    twins.write(0, 512, pattern=3)
    assert twins.take().mode == "incremental"
    twins.check_exact()


@pytest.mark.parametrize("then", ["off", "on"])
def test_what_is_left_when_all_of_a_run_is_killed(still: Still, then: str) -> None:
    """The servers too, whose sockets stay: the next run on images cleans up."""
    _modes(still.backup())
    still.write(0)
    command = [sys.executable, "-m", "fleece", *map(str, still.words("--mode", "full"))]
    command += ["--rate", "64K"]
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        while b'"point"' not in running.stdout.readline():
            pass
        os.killpg(running.pid, signal.SIGKILL)
    assert [path.name for path in still.scratch.glob("*/qemu/*")] == ["0.sock"]
    wait_until(lambda: not _processes_of(str(still.scratch)), "the server's end")
    if then == "on":
        with StorageDaemon([still.disk()]) as qemu:
            scene = Scene(qemu, still.folder)
            scene.store, scene.scratch = still.store, still.scratch
            assert scene.take().mode == "incremental"
    assert still.take().mode == "incremental"
    still.check_exact()
    assert len(still.names()) == 1
