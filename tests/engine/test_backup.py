"""Backups of real QEMU disks: every mode, every shape of disk, exact each time."""

from __future__ import annotations

import json
import os
import random
import stat
from pathlib import Path

import pytest

import fleece
from fleece.events import Event
from fleece.folder import Folder
from fleece.source.place import default_scratch, opened_scratch
from tests.engine.scene import GUEST, KIB64, MIB, Scene, daemon, fragmented_disk, reasons
from tests.rig import images
from tests.rig.disk import Disk
from tests.rig.machine import Machine
from tests.rig.process import run, run_checked


def test_full_incremental_and_differential_are_exact(scene: Scene) -> None:
    writer = scene.writer()
    full = scene.take("full")
    writer.write(MIB, os.urandom(300_000))
    first = scene.take("incremental")
    scene.check_exact()
    writer.write(5 * MIB, os.urandom(KIB64))
    differential = scene.take("differential")
    scene.check_exact()
    writer.write(6 * MIB + 100, os.urandom(5000))
    last = scene.take("incremental")
    scene.check_exact()

    assert [part.mode for part in (full, first, differential, last)] == [
        "full",
        "incremental",
        "differential",
        "incremental",
    ]
    assert [part.disks[0].dirty_bytes for part in (full, first, differential, last)] == [
        8 * MIB,
        5 * KIB64,
        6 * KIB64,
        KIB64,
    ]
    catalogue = fleece.open_store(scene.store).catalogue()
    line = catalogue.line(catalogue.find(last.point).disk("d0"))
    assert [entry.header.point.id for entry in line] == [
        last.point,
        differential.point,
        full.point,
    ]
    scene.nothing_left()
    scene.only_newest_segment()
    scene.verify()


def test_auto_says_why(scene: Scene) -> None:
    heard: list[Event] = []
    first = scene.take(listener=heard.append)
    assert reasons(heard) == {"d0": ("full", "the store has no point of this disk yet")}
    heard.clear()
    scene.take(listener=heard.append)
    assert reasons(heard) == {"d0": ("incremental", f"changed since point {first.point}")}
    heard.clear()
    scene.take("differential", listener=heard.append)
    text = f"changed since the full of point {first.point}"
    assert reasons(heard) == {"d0": ("differential", text)}
    heard.clear()
    scene.take("full", listener=heard.append)
    assert reasons(heard) == {"d0": ("full", "asked for")}


def test_an_older_point_is_what_the_disk_was_then(scene: Scene) -> None:
    writer = scene.writer()
    points: list[tuple[str, Path]] = []
    for number in range(4):
        writer.write(number * MIB + 7, os.urandom(100_000))
        writer.flush()
        then = images.to_raw(_shared(scene, "d0"), scene.folder / f"then-{number}", "raw")
        points.append((scene.take().point, then))
    for point, then in points:
        images.compare(scene.restore(point=point), then, "raw", "raw")


def _shared(scene: Scene, node: str) -> Path:
    """A raw copy of a disk of the running QEMU."""
    disk = scene.qemu.disks[node]
    copy = scene.folder / f"{node}.copy"
    run_checked("qemu-img", "convert", "-U", "-f", disk.fmt, "-O", "raw", disk.path, copy)
    return copy


def test_two_disks_make_one_point(pair: Scene) -> None:
    full = pair.take()
    assert {disk.disk: disk.size for disk in full.disks} == {"d0": 8 * MIB, "d1": 4 * MIB + 512}
    pair.check_exact()
    pair.writer("d0").write(0, os.urandom(KIB64))
    pair.writer("d1").write(4 * MIB, os.urandom(512))
    second = pair.take()
    assert second.mode == "incremental"
    assert [disk.dirty_bytes for disk in second.disks] == [KIB64, 512]
    pair.check_exact()
    assert pair.points() == 2
    pair.only_newest_segment()
    pair.nothing_left()


@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
@pytest.mark.parametrize(
    "size", [512, 4096, KIB64 - 512, KIB64, KIB64 + 512, MIB + 1536, 5 * MIB - 512]
)
def test_odd_sizes_lose_nothing(fmt: str, size: int, tmp_path: Path) -> None:
    image = images.random_image(tmp_path / "disk", size, seed=size, fmt=fmt, fill=1.0)
    with daemon(tmp_path, Disk(image, "d0", fmt)) as scene:
        scene.take()
        scene.check_exact()
        scene.writer().write(size - 512, os.urandom(512))
        scene.take("incremental")
        scene.check_exact()
        scene.writer().zero(0, 512, unmap=False)
        scene.take("incremental")
        scene.check_exact()
        root = scene.take("incremental").disks[0].root
        scene.nothing_left()
        scene.qemu.quit()
        target = tmp_path / "target.qcow2"
        store = fleece.open_store(scene.store)
        qcow2 = fleece.ImageFormat.QCOW2
        assert (
            fleece.restore(
                store,
                "latest",
                "d0",
                str(target),
                options=fleece.RestoreOptions(target_format=qcow2),
            ).root
            == root
        )
        images.check(target)
        images.compare(target, image, "qcow2", fmt)


def test_small_writes_are_all_there(scene: Scene) -> None:
    writer, source = scene.writer(), random.Random(1)
    scene.take()
    for _ in range(3):
        for _ in range(60):
            writer.write(source.randrange(8 * MIB // 4096) * 4096, source.randbytes(4096))
        scene.take("incremental")
        scene.check_exact()


def test_nothing_written_makes_an_empty_delta(scene: Scene) -> None:
    first = scene.take()
    second = scene.take()
    (disk,) = second.disks
    assert (disk.dirty_bytes, disk.read_bytes) == (0, 0)
    assert disk.root == first.disks[0].root
    assert disk.stored_bytes < 4096
    scene.check_exact()
    scene.verify()


@pytest.mark.parametrize("length", [4096, KIB64, 3 * MIB])
@pytest.mark.parametrize("way", ["zeros", "write zeroes", "write zeroes and unmap", "discard"])
def test_what_was_zeroed_never_comes_back(way: str, length: int, tmp_path: Path) -> None:
    size = 4 * MIB + 512
    image = images.random_image(tmp_path / "d0", size, seed=1, fill=1.0)
    with daemon(tmp_path, Disk(image, "d0")) as scene:
        scene.take()
        offset = 4096 if length == 4096 else KIB64
        match way:
            case "zeros":
                scene.writer().write(offset, bytes(length))
            case "write zeroes":
                scene.writer().zero(offset, length, unmap=False)
            case "write zeroes and unmap":
                scene.writer().zero(offset, length, unmap=True)
            case "discard":
                scene.writer().discard(offset, length)
        scene.take("incremental")
        scene.check_exact()
        if way != "discard" or length >= KIB64:
            restored = scene.restore().read_bytes()
            assert not any(restored[offset : offset + length])


def test_a_disk_that_became_all_zeros_is_all_zeros(scene: Scene) -> None:
    scene.take()
    scene.writer().zero(0, 8 * MIB, unmap=True)
    result = scene.take("incremental")
    scene.check_exact()
    assert not any(scene.restore().read_bytes())
    blank = images.make_disk(scene.folder / "blank", 8 * MIB, "raw")
    with fleece.open_image(str(blank), "raw") as disk:
        assert fleece.disk_root(disk).hex() == result.disks[0].root


def test_a_fragmented_disk_loses_nothing_behind_a_cut_reply(tmp_path: Path) -> None:
    model = bytearray(fragmented_disk(tmp_path / "d0", 72 * MIB))
    with daemon(tmp_path, Disk(tmp_path / "d0", "d0")) as scene:
        scene.take()
        new = os.urandom(2 * MIB)
        scene.writer().write(69 * MIB, new)
        model[69 * MIB : 71 * MIB] = new
        scene.writer().zero(66 * MIB, MIB, unmap=True)
        model[66 * MIB : 67 * MIB] = bytes(MIB)
        assert scene.take("incremental").disks[0].dirty_bytes == 3 * MIB
        (tmp_path / "model").write_bytes(model)
        images.compare(scene.restore(), tmp_path / "model", "raw", "raw")


def test_alternating_dirty_bits_around_4_gib_are_all_there(tmp_path: Path) -> None:
    """More than one block status request can ask for, and each range on its own."""
    image = images.make_disk(tmp_path / "d0", (8 << 30) + 512)
    offsets = [(4 << 30) - 64 * MIB + number * 2 * KIB64 for number in range(1024)]
    offsets += [8 << 30]
    with daemon(tmp_path, Disk(image, "d0")) as scene:
        scene.take()
        for number, offset in enumerate(offsets):
            scene.writer().write(offset, number.to_bytes(4, "big") * 128)
        result = scene.take("incremental")
        assert result.disks[0].dirty_bytes == 1024 * KIB64 + 512
        scene.check_exact()


def test_a_clean_restart_keeps_the_chain_exact(pair: Scene) -> None:
    """Bitmaps in qcow2 survive; a raw disk has none that could, and says so."""
    pair.take()
    pair.writer("d0").write(MIB, os.urandom(KIB64))
    pair.qemu.restart()
    assert len(pair.segments("d0")) == 1
    assert pair.segments("d1") == []
    pair.writer("d0").write(3 * MIB, os.urandom(KIB64))
    pair.writer("d1").write(MIB, os.urandom(KIB64))
    heard: list[Event] = []
    result = pair.take(listener=heard.append)
    assert result.mode == "mixed"
    assert reasons(heard)["d0"][0] == "incremental"
    mode, reason = reasons(heard)["d1"]
    assert (mode, reason.split(" of ")[0]) == ("rescan", "there is no bitmap")
    assert [disk.dirty_bytes for disk in result.disks] == [2 * KIB64, KIB64]
    assert result.disks[1].read_bytes > 3 * MIB  # all but its holes
    pair.check_exact()
    pair.only_newest_segment()


def test_failed_backups_in_a_row_lose_nothing(pair: Scene) -> None:
    pair.take()
    cancel = fleece.CancelToken()

    def stop(event: Event) -> None:
        if event.name == "point":
            cancel.cancel()

    for number in range(3):
        pair.writer("d0").write(number * MIB, os.urandom(1000))
        pair.writer("d1").write(number * MIB, os.urandom(1000))
        with pytest.raises(fleece.Interrupted):
            pair.take(listener=stop, cancel=cancel)
        cancel = fleece.CancelToken()
        pair.nothing_left()
        assert len(pair.segments("d0")) == number + 2
    assert pair.points() == 1
    pair.qemu.restart()
    result = pair.take("incremental", disks=["d0"])
    assert result.disks[0].dirty_bytes == 3 * KIB64
    pair.check_exact("d0")
    assert len(pair.segments("d0")) == 1


def test_a_failed_first_backup_leaves_no_bitmap(pair: Scene) -> None:
    cancel = fleece.CancelToken()

    def stop(event: Event) -> None:
        if event.name == "point":
            cancel.cancel()

    with pytest.raises(fleece.Interrupted):
        pair.take(listener=stop, cancel=cancel)
    assert pair.segments("d0") == pair.segments("d1") == []
    pair.nothing_left()


def test_two_stores_are_two_chains(scene: Scene) -> None:
    other = scene.folder / "other"
    for number in range(3):
        scene.writer().write(number * MIB, os.urandom(1000))
        first = scene.take()
        scene.writer().write((4 + number) * MIB, os.urandom(1000))
        second = scene.take(store=other)
        assert first.mode == second.mode == ("full" if number == 0 else "incremental")
        scene.check_exact(store=other)
        assert len(scene.segments()) == 2
    scene.take()
    scene.check_exact()
    scene.nothing_left()


def test_a_disk_that_comes_later_is_full_and_the_other_incremental(tmp_path: Path) -> None:
    first = images.random_image(tmp_path / "d0.qcow2", 4 * MIB, seed=1)
    second = images.random_image(tmp_path / "d1.qcow2", 4 * MIB, seed=2)
    with daemon(tmp_path, Disk(first, "d0")) as scene:
        scene.take()
    with daemon(tmp_path, Disk(first, "d0"), Disk(second, "d1")) as scene:
        scene.writer("d0").write(MIB, os.urandom(KIB64))
        result = scene.take()
        assert [disk.mode for disk in result.disks] == ["incremental", "full"]
        scene.check_exact()
        assert scene.take("incremental", disks=["d1"]).disks[0].disk == "d1"
        assert scene.take("incremental").mode == "incremental"
        scene.check_exact()


def test_a_machine_is_backed_up_by_its_device_names(tmp_path: Path) -> None:
    disks = [
        Disk(images.random_image(tmp_path / f"d{n}.{fmt}", 4 * MIB, seed=n, fmt=fmt), f"d{n}", fmt)
        for n, fmt in enumerate(["qcow2", "raw"])
    ]
    with Machine(disks, extra=["-name", "a guest/with: odd name"]) as qemu:
        scene = Scene(qemu, tmp_path)
        ran = scene.engine.run(
            "backup", scene.source, scene.place(), "--scratch", scene.scratch, "--json"
        )
        result = ran.succeeded().result
        assert result["guest"] == "a guest/with: odd name"
        assert [disk["disk"] for disk in result["disks"]] == ["vd-d0", "vd-d1"]
        scene.writer("d0").discard(0, 2 * MIB)
        scene.writer("d1").zero(MIB, MIB, unmap=True)
        ran = scene.engine.run(
            "backup", scene.source, scene.place(), "--scratch", scene.scratch, "--json"
        )
        assert ran.succeeded().result["mode"] == "incremental"
        for node in qemu.disks:
            scene.same_as_live(node, scene.restore(f"vd-{node}"))
        scene.nothing_left()


def test_writes_during_the_point_are_in_the_next_one(scene: Scene) -> None:
    """Overwritten, zeroed and discarded while the point is read: it shows none of it."""
    scene.take()
    scene.writer().write(MIB, os.urandom(MIB))
    scene.writer().flush()
    then = _shared(scene, "d0")

    def disturb(event: Event) -> None:
        if event.name == "point":
            scene.writer().write(MIB + 1000, os.urandom(200_000))
            scene.writer().zero(3 * MIB, MIB, unmap=True)
            scene.writer().discard(5 * MIB, MIB)

    point = scene.take(listener=disturb).point
    images.compare(scene.restore(point=point), then, "raw", "raw")
    scene.take("incremental")
    scene.check_exact()
    scene.nothing_left()


def test_other_readers_see_the_point_in_the_export(scene: Scene) -> None:
    """nbdinfo and nbdcopy read the same export as the engine, and find the same."""
    scene.take()
    scene.writer().write(2 * MIB, os.urandom(3 * KIB64))
    scene.writer().zero(6 * MIB, MIB, unmap=True)
    scene.writer().flush()
    then = _shared(scene, "d0")
    judged: list[Path] = []

    with fleece.QemuSource(str(scene.qemu.qmp_socket), scene.scratch) as source:
        catalogue = fleece.open_store(scene.store).catalogue()
        newest = catalogue.find("latest", GUEST)
        (disk,) = source.inventory().disks
        wanted = [fleece.Wanted(disk, fleece.Since(tuple(scene.segments())))]
        with source.take(
            fleece.Request(newest.chain, newest.sequence + 1, "0123456789", wanted)
        ) as point:
            (export,) = point.exports
            ours = list(fleece.dirty_extents(export))
            scene.writer().write(0, os.urandom(KIB64))
            run_checked("nbdcopy", export.uri, scene.folder / "nbdcopy")
            judged.append(scene.folder / "nbdcopy")
            mapped = run_checked("nbdinfo", f"--map={export.dirty_context}", "--json", export.uri)
            info = json.loads(run_checked("nbdinfo", "--json", export.uri))
            point.check()
    images.compare(judged[0], then, "raw", "raw")
    theirs = [(e["offset"], e["length"]) for e in json.loads(mapped) if e["type"] == 1]
    assert theirs == [(2 * MIB, 3 * KIB64), (6 * MIB, MIB)]
    assert ours == [
        (2 * MIB, 2 * MIB + 3 * KIB64, False),
        (6 * MIB, 7 * MIB, True),
    ]
    assert info["exports"][0]["is_read_only"]
    scene.nothing_left()
    scene.take("incremental")
    scene.check_exact()


def test_the_default_scratch_folder_is_left_as_it_was(scene: Scene) -> None:
    """Nobody but its user can make anything in it, and QEMU's user can pass through it."""
    place = default_scratch()
    before = sorted(place.iterdir()) if place.exists() else []
    words = ("--guest", GUEST, "--json")
    read = "fleece.nbd.connection", "Connection.read", 500
    running = scene.slow(*read, "backup", scene.source, scene.place(), *words)
    point = running.wait_event("point")["point"]
    used = place.glob(f"fleece-*-{point}")
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (place, *used)]
    owners = {path.stat().st_uid for path in (place, *place.glob("*"))}
    running.wait().succeeded()
    assert sorted(place.iterdir()) == before
    assert modes == [0o711 if os.geteuid() == 0 else 0o700, 0o700]
    assert owners == {os.geteuid()}


@pytest.mark.parametrize("what", ["a link", "writable"])
def test_a_default_scratch_folder_that_others_control_is_refused(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below a folder of the test's: nobody may put one in the place of the host's own."""
    plain = Folder.open
    monkeypatch.setattr(Folder, "open", staticmethod(lambda _: plain(tmp_path)))
    name = "fleece" if os.geteuid() == 0 else f"fleece-{os.geteuid()}"
    opened_scratch(default_scratch()).close()
    opened_scratch(default_scratch()).close()
    made = tmp_path / name
    if what == "a link":
        made.rename(tmp_path / "elsewhere")
        made.symlink_to(tmp_path / "elsewhere")
    else:
        made.chmod(0o777)
    with pytest.raises((fleece.SourceError, OSError), match=r"others may write|not followed"):
        opened_scratch(default_scratch())


def test_compressed_and_encrypted_looking_data_both_come_back(tmp_path: Path) -> None:
    size = 6 * MIB
    raw = tmp_path / "d0.raw"
    raw.write_bytes(b"".join((b"text " * (MIB // 5 + 1))[:MIB] + os.urandom(MIB) for _ in range(3)))
    assert raw.stat().st_size == size
    with daemon(tmp_path, Disk(raw, "d0", "raw")) as scene:
        result = scene.take()
        assert result.disks[0].stored_bytes < 3.2 * MIB
        scene.check_exact()
        scene.verify()
        assert run("zstd", "-t", result.disks[0].delta).returncode == 0


@pytest.mark.parametrize("level", [1, 3])
def test_the_frames_are_as_small_as_zstd_makes_the_same_blocks(level: int, tmp_path: Path) -> None:
    """Within 3 %, at the same level, in blocks of 1 MiB."""
    chance = random.Random(3)
    words = [chance.randbytes(chance.randint(2, 9)).hex() for _ in range(2000)]
    text = " ".join(chance.choices(words, k=400_000)).encode()[: 4 * MIB]
    assert len(text) == 4 * MIB
    (tmp_path / "d0.raw").write_bytes(text)
    theirs = 0
    for at in range(0, len(text), MIB):
        (tmp_path / "block").write_bytes(text[at : at + MIB])
        run_checked("zstd", "-q", f"-{level}", "-f", tmp_path / "block", "-o", tmp_path / "packed")
        theirs += (tmp_path / "packed").stat().st_size
    with daemon(tmp_path, Disk(tmp_path / "d0.raw", "d0", "raw")) as scene:
        scene.backup("--level", level).succeeded()
        (entry,) = fleece.open_store(scene.store).catalogue().entries
        with fleece.open_delta(entry.where) as delta:
            assert delta.footer.frame_bytes <= theirs * 1.03
