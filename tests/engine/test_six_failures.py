"""Six ways in which backups of QEMU disks have been silently wrong, and that none is one here.

Each is a scenario on real QEMU, which ends in a check. It must pass with the engine as it is, and
it must fail with a copy of the engine that has a fault put in: a check that cannot fail is none.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import fleece
from tests.engine.scene import (
    INTACT,
    KIB64,
    MIB,
    Engine,
    Moment,
    Mutation,
    Scene,
    daemon,
    flip,
    fragmented_disk,
)
from tests.rig import images
from tests.rig.disk import Disk
from tests.rig.process import run_checked

Scenario = Callable[[Engine, Path], None]


class Wrong(AssertionError):
    """The scenario's check failed: what was restored, or listed, is not what must be."""


def _check(true: bool, what: str) -> None:
    """The check of a scenario; everything else in it must work with a faulty engine too."""
    if not true:
        raise Wrong(what)


def _exact(scene: Scene, *nodes: str) -> None:
    """The check that the newest point, restored by the command line, is what the disks hold."""
    for node in nodes or scene.qemu.disks:
        target = scene.folder / f"target-{node}"
        scene.engine.run("restore", scene.store, "latest", node, target, "--force").succeeded()
        try:
            scene.same_as_live(node, target)
        except AssertionError as error:
            raise Wrong(str(error)) from error


# ---- 1: zeros -----------------------------------------------------------------------------------


def zeros_over_data(engine: Engine, folder: Path) -> None:
    """The guest zeroes and discards what the full holds: short and long, in each way."""
    image = images.random_image(folder / "d0", 16 * MIB, seed=1, fill=1.0)
    with daemon(folder, Disk(image, "d0"), engine=engine) as scene:
        scene.backup().succeeded()
        scene.writer().zero(0, KIB64, unmap=False)
        scene.writer().zero(MIB, 3 * MIB, unmap=True)
        scene.writer().discard(5 * MIB, KIB64)
        scene.writer().discard(6 * MIB, 3 * MIB)
        scene.writer().write(10 * MIB, bytes(KIB64))
        assert scene.backup().succeeded().result["mode"] == "incremental"
        _exact(scene)


# ---- 2: killed engines --------------------------------------------------------------------------

MOMENTS = (
    Moment(
        "the first scratch is made",
        "fleece.source.qemu.hold_by_jobs",
        "ClassicFleecing._add_scratch",
    ),
    Moment("the point is taken", "fleece.source.qemu.monitor", "Monitor.transaction"),
    Moment("the server runs", "fleece.source.qemu.server", "_start"),
    Moment("one disk is exported", "fleece.source.qemu.point", "QemuPoint._export"),
    Moment("it is copying", "fleece.nbd.connection", "Connection.read"),
    Moment("all is copied", "fleece.engine.backup.fill_by_pull", "copy_all"),
    Moment("one delta is finished", "fleece.delta.writer", "DeltaWriter.finish"),
    Moment("about to commit", "fleece.store.partial_point", "PartialPoint.commit", "before"),
    Moment("about to rename", "fleece.folder", "os.rename", "before"),
    Moment("renamed", "fleece.folder", "os.rename"),
    Moment("committed", "fleece.store.partial_point", "PartialPoint.commit"),
    Moment("about to end the jobs", "fleece.source.qemu.teardown", "_end_jobs", "before"),
    Moment("about to remove the nodes", "fleece.source.qemu.teardown", "_remove_nodes", "before"),
    Moment("about to drop segments", "fleece.source.qemu.point", "QemuPoint.committed", "before"),
    Moment("one segment is dropped", "fleece.source.qemu.point", "QemuPoint._drop", "after", 1),
)


def _moment(name: str) -> Moment:
    (found,) = (moment for moment in MOMENTS if moment.name == name)
    return found


COMMITS = MOMENTS.index(_moment("renamed"))


def _two_disks(folder: Path) -> tuple[Disk, Disk]:
    return (
        Disk(images.random_image(folder / "d0.qcow2", 6 * MIB, seed=1), "d0"),
        Disk(images.random_image(folder / "d1.raw", 3 * MIB + 512, 2, fmt="raw"), "d1", "raw"),
    )


def _touch_disks(scene: Scene, number: int) -> None:
    """Write to a place of its own for each number, so that no later write heals a loss."""
    for node in scene.qemu.disks:
        scene.writer(node).write(number * KIB64, os.urandom(5000))


def killed_while_it_copies(engine: Engine, folder: Path) -> None:
    """The engine dies before its point is safe: the next one must have what it would have had."""
    moment = _moment("it is copying")
    with daemon(folder, *_two_disks(folder), engine=engine) as scene:
        scene.backup().succeeded()
        _touch_disks(scene, 1)
        scene.killed_backup(moment, "--mode", "full")
        _touch_disks(scene, 2)
        ran = scene.backup("--no-resume").succeeded()
        _check(ran.result["mode"] == "incremental", "the chain was lost")
        _exact(scene)


def killed_once_committed(engine: Engine, folder: Path) -> None:
    """The engine dies with its point in the store: the point counts, and is built upon."""
    with daemon(folder, *_two_disks(folder), engine=engine) as scene:
        scene.backup().succeeded()
        _touch_disks(scene, 1)
        scene.killed_backup(_moment("committed"))
        _touch_disks(scene, 2)
        ran = scene.backup().succeeded()
        _check(ran.result["mode"] == "incremental", "the chain was lost")
        _check(scene.points() == 3, "the committed point does not count")
        _exact(scene)
        scene.nothing_left()
        _check(all(len(scene.segments(node)) == 1 for node in ("d0", "d1")), "segments pile up")


# ---- 3: uneven block status replies -------------------------------------------------------------

# Prints what `fleece.nbd.status.flagged` finds with two contexts on one connection.
_STATUS = """
import json, sys
from fleece.nbd.connection import BASE_ALLOCATION, STATE_DIRTY, STATE_ZERO, Connection
from fleece.nbd.status import flagged
uri, dirty = sys.argv[1:]
with Connection(uri, (BASE_ALLOCATION, dirty)) as connection:
    masks = {BASE_ALLOCATION: STATE_ZERO, dirty: STATE_DIRTY}
    found = flagged(connection, 0, connection.size, masks)
print(json.dumps({name: [*extents] for name, extents in found.items()}))
"""


def uneven_replies(engine: Engine, folder: Path) -> None:
    """One context's reply is cut at 131072 extents, the other's covers the whole disk."""
    size = 80 * MIB
    fragmented_disk(folder / "d0", size)
    with daemon(folder, Disk(folder / "d0", "d0"), engine=engine) as scene:
        bitmap = {"node": "d0", "name": "written", "granularity": KIB64}
        scene.qemu.control.command("block-dirty-bitmap-add", bitmap)
        scene.writer().write(78 * MIB, os.urandom(MIB))
        with fleece.QemuSource(str(scene.qemu.qmp_socket), scene.scratch) as source:
            wanted = [fleece.Wanted(source.inventory().disks[0], fleece.Since(("written",)))]
            with source.take(fleece.Request("01234567", 1, "0123456789", wanted)) as point:
                (export,) = point.exports
                assert export.dirty_context is not None
                assert _reply_sizes(export.uri, export.dirty_context, size) == {
                    "base:allocation": 64 * MIB,
                    export.dirty_context: size,
                }
                ran = engine.script(_STATUS, export.uri, export.dirty_context).wait().succeeded()
                zeros = _nbdinfo(export.uri, "base:allocation", 2)
                dirty = _nbdinfo(export.uri, export.dirty_context, 1)
    found = json.loads(ran.out)
    _check(_joined(found[export.dirty_context]) == dirty, "dirty ranges are lost")
    _check(_joined(found["base:allocation"]) == zeros, "zero ranges are lost")
    assert dirty == [(78 * MIB, 79 * MIB)]
    assert len(zeros) > 65536


def _reply_sizes(uri: str, dirty: str, size: int) -> dict[str, int]:
    """How much of the disk one reply of QEMU covers, by context, as libnbd itself gives it."""
    import nbd

    handle = nbd.NBD()
    covered: dict[str, int] = {}

    def take(context: str, offset: int, entries: list[int], error: object) -> int:
        covered[context] = sum(entries[::2])
        return 0

    handle.add_meta_context("base:allocation")
    handle.add_meta_context(dirty)
    handle.connect_uri(uri)
    handle.block_status(size, 0, take)
    handle.shutdown()
    return covered


def _nbdinfo(uri: str, context: str, mask: int) -> list[tuple[int, int]]:
    mapped = json.loads(run_checked("nbdinfo", f"--map={context}", "--json", uri))
    flagged = [e for e in mapped if e["type"] & mask]
    return _joined([[e["offset"], e["offset"] + e["length"]] for e in flagged])


def _joined(ranges: list[list[int]]) -> list[tuple[int, int]]:
    """Ranges that touch made one."""
    joined: list[tuple[int, int]] = []
    for start, end in ranges:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


def dirty_beyond_the_first_reply(engine: Engine, folder: Path) -> None:
    """What the guest writes lies beyond what the first request can ask for."""
    image = images.make_disk(folder / "d0", 6 << 30)
    with daemon(folder, Disk(image, "d0"), engine=engine) as scene:
        scene.backup().succeeded()
        for number in range(32):
            scene.writer().write((5 << 30) + number * 2 * KIB64, os.urandom(KIB64))
        scene.backup().succeeded()
        _exact(scene)


# ---- 4: corrupt data ----------------------------------------------------------------------------


def corrupt_compressed_data(engine: Engine, folder: Path) -> None:
    """One flipped byte in the middle of the compressed data of the full."""
    image = images.random_image(folder / "d0", 4 * MIB, seed=1, fill=1.0)
    with daemon(folder, Disk(image, "d0"), engine=engine) as scene:
        full = scene.backup().succeeded().result["disks"][0]
        scene.writer().write(0, os.urandom(KIB64))
        scene.backup().succeeded()
        flip(Path(full["delta"]), full["stored_bytes"] // 2)
        target = folder / "target"
        ran = engine.run("restore", scene.store, "latest", "d0", target)
        _check(ran.code != 0, "a corrupt delta was restored and called good")
        _check(not target.exists(), "a corrupt image is there under its name")
        ran.failed(ran.code)
        verified = engine.run("verify", scene.store)
        _check(verified.code != 0, "a corrupt delta was verified and called good")


# ---- 5: names and times -------------------------------------------------------------------------


def touched_and_renamed_files(engine: Engine, folder: Path) -> None:
    """Times and names of a store's files say the opposite of the truth."""
    image = images.random_image(folder / "d0", 4 * MIB, seed=1)
    with daemon(folder, Disk(image, "d0"), engine=engine) as scene:
        truth = []
        for number in range(3):
            scene.writer().write(number * KIB64, os.urandom(1000))
            truth.append(scene.backup().succeeded().result["point"])
        _shuffle(scene.store / "g")
        listed = engine.run("list", scene.store, "--json").succeeded().named("point")
        _check([line["point"] for line in listed] == truth, "the order is that of times or names")
        _exact(scene)
        scene.writer().write(8 * KIB64, os.urandom(1000))
        result = scene.backup().succeeded().result
        _check(result["mode"] == "incremental", "the chain was lost")
        newest = engine.run("info", result["disks"][0]["delta"], "--json").succeeded().result
        _check(newest["parent"]["point"] == truth[-1], "it builds on an old point")
        _exact(scene)


def _shuffle(folder: Path) -> None:
    """Rename points and files against their order, and make the oldest the newest by time."""
    points = sorted(folder.iterdir())
    points = [path for path in points if not path.name.startswith(".")]
    for number, point in enumerate(points):
        (delta,) = point.iterdir()
        os.utime(delta, (time.time() - number * 3600,) * 2)
        renamed = delta.rename(point / f"{'cba'[number]}.fleece")
        moved = point.rename(folder / f"{'zyx'[number]}-point")
        os.utime(moved, (time.time() - number * 3600,) * 2)
        assert (moved / renamed.name).exists()


# ---- 6: one transaction -------------------------------------------------------------------------


def concurrent_writer(engine: Engine, folder: Path) -> None:
    """Blocks are written one after the other, each on both disks, while points are taken."""
    disks = [Disk(images.make_disk(folder / f"d{n}", 256 * MIB), f"d{n}") for n in range(2)]
    with daemon(folder, *disks, engine=engine) as scene:
        scene.backup().succeeded()
        writer = _SequenceWriter(scene)
        points = []
        try:
            for _ in range(2):
                before = writer.written
                points.append((scene.backup().succeeded().result["point"], before))
        finally:
            writer.stop()
        points.append((scene.backup().succeeded().result["point"], writer.written))
        for point, least in points:
            _check_prefixes(scene, point, least)
        _exact(scene)


class _SequenceWriter:
    """Writes block 1, 2, 3, ..., each on `d0` and then on `d1`, in a thread."""

    def __init__(self, scene: Scene) -> None:
        self._writers = [scene.writer("d0"), scene.writer("d1")]
        self._stop = threading.Event()
        self._error: OSError | None = None
        self.written = 0
        self._thread = threading.Thread(target=self._write)
        self._thread.start()

    def _write(self) -> None:
        try:
            while not self._stop.is_set() and self.written < 4095:
                number = self.written + 1
                for writer in self._writers:
                    writer.write(number * KIB64, number.to_bytes(8, "big") * 512)
                self.written = number
                time.sleep(0.005)
        except OSError as error:
            self._error = error

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            raise self._error


def _check_prefixes(scene: Scene, point: str, least: int) -> None:
    """A point holds blocks 1..n of the first disk and 1..n or 1..n-1 of the second."""
    held = []
    for node in ("d0", "d1"):
        target = scene.restore(node, point)
        numbers = []
        with target.open("rb") as file:
            for number in range(4096):
                file.seek(number * KIB64)
                numbers.append(int.from_bytes(file.read(8), "big"))
        target.unlink()
        last = max(numbers)
        _check(numbers == [n if n <= last else 0 for n in range(4096)], f"{node}: blocks are lost")
        held.append(last)
    _check(held[0] - held[1] in (0, 1), f"the disks are of different times: {held}")
    _check(held[1] >= least, "blocks written before the point are not in it")


# ---- the engine as it is, and the faults --------------------------------------------------------

_NO_FRAME_HASH = (
    "delta/reader.py",
    "if found.kind is Kind.DATA and self._geometry.algorithm.digest(frame) != found.frame_hash:",
    "if False:",
)
_NO_LEAF_HASH = (
    "delta/reader.py",
    "if leaf_hashes(data, self._geometry) != found.leaves:",
    "if False:",
)
_NO_ZSTD_CHECKSUM = ("delta/writer.py", "write_checksum=True", "write_checksum=False")
_NO_PROOF = ("engine/restore/image.py", "if found != entry.root:", "if False:")
_ALL_CHECKS = (_NO_FRAME_HASH, _NO_LEAF_HASH, _NO_ZSTD_CHECKSUM, _NO_PROOF)

_TRANSACTION = (
    "source/qemu/monitor.py",
    'self.execute("transaction", {"actions": actions}, limit)',
)

SCENARIOS: tuple[Scenario, ...] = (
    zeros_over_data,
    killed_while_it_copies,
    killed_once_committed,
    uneven_replies,
    dirty_beyond_the_first_reply,
    corrupt_compressed_data,
    touched_and_renamed_files,
    concurrent_writer,
)
FAULTS: tuple[tuple[Scenario, Mutation], ...] = (
    (
        zeros_over_data,
        Mutation(
            "known zeros are not stored",
            (("engine/backup/pull.py", "job.writer.zero(start, end - start)", "pass"),),
        ),
    ),
    (
        zeros_over_data,
        Mutation(
            "read zeros are not stored",
            (("delta/writer.py", "self._writer.zero(run.offset, run.length)", "pass"),),
        ),
    ),
    (
        killed_while_it_copies,
        Mutation(
            "segments go before the data is safe",
            (
                (
                    "engine/backup/run.py",
                    "results = store_point(",
                    "taken.living.committed()\n            results = store_point(",
                ),
            ),
        ),
    ),
    (
        killed_while_it_copies,
        Mutation(
            "only the newest segment is asked",
            (
                (
                    "source/segments.py",
                    "name for number in line)",
                    "name for number in line[-1:])",
                ),
            ),
        ),
    ),
    (
        killed_once_committed,
        Mutation(
            "only one old segment is dropped",
            (("source/qemu/point.py", "if sequence < below]", "if sequence == below - 1]"),),
        ),
    ),
    (
        uneven_replies,
        Mutation(
            "it advances by the longest reply",
            (("nbd/status.py", "offset := min(places", "offset := max(places"),),
        ),
    ),
    (
        uneven_replies,
        Mutation(
            "a short reply is taken for all that was asked",
            (("nbd/status.py", "return max(start, reach)", "return end"),),
        ),
    ),
    (
        dirty_beyond_the_first_reply,
        Mutation(
            "one request is taken for all",
            (("nbd/status.py", "split(MAX_STATUS)", "clip(0, MAX_STATUS).split(MAX_STATUS)"),),
        ),
    ),
    (corrupt_compressed_data, Mutation("nothing is checked", _ALL_CHECKS)),
    (
        touched_and_renamed_files,
        Mutation(
            "order by time",
            (
                (
                    "store/catalogue.py",
                    "oldest_first(mine, _head)",
                    "sorted(mine, key=lambda p: __import__('os').stat("
                    "next(iter(p.disks.values())).where).st_mtime)",
                ),
            ),
        ),
    ),
    (
        touched_and_renamed_files,
        Mutation(
            "order by name",
            (
                (
                    "store/catalogue.py",
                    "oldest_first(mine, _head)",
                    "sorted(mine, key=lambda p: next(iter(p.disks.values())).where)",
                ),
            ),
        ),
    ),
    (
        concurrent_writer,
        Mutation(
            "the bitmap starts after the snapshot",
            (
                (
                    *_TRANSACTION,
                    "import time\n"
                    "        jobs = [a for a in actions if a['type'] == 'blockdev-backup']\n"
                    "        self.execute('transaction', {'actions': jobs})\n"
                    "        time.sleep(1)\n"
                    "        rest = [a for a in actions if a not in jobs]\n"
                    "        self.execute('transaction', {'actions': rest})",
                ),
            ),
        ),
    ),
    (
        concurrent_writer,
        Mutation(
            "each disk has a transaction of its own",
            (
                (
                    *_TRANSACTION,
                    "import time\n"
                    "        batch: list[dict[str, object]] = []\n"
                    "        for action in actions:\n"
                    "            batch.append(action)\n"
                    "            if action['type'] == 'blockdev-backup':\n"
                    "                self.execute('transaction', {'actions': batch})\n"
                    "                time.sleep(1)\n"
                    "                batch = []\n"
                    "        if batch:\n"
                    "            self.execute('transaction', {'actions': batch})",
                ),
            ),
        ),
    ),
)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_it_does_not_happen(scenario: Scenario, tmp_path: Path) -> None:
    scenario(INTACT, tmp_path)


@pytest.mark.parametrize(
    ("scenario", "fault"),
    FAULTS,
    ids=[f"{scenario.__name__}: {fault}" for scenario, fault in FAULTS],
)
def test_it_is_seen_if_it_happens(scenario: Scenario, fault: Mutation, tmp_path: Path) -> None:
    with pytest.raises(Wrong):
        scenario(fault.engine(tmp_path), tmp_path)


@pytest.mark.parametrize("kept", range(4), ids=["frame hash", "leaf hash", "zstd", "root"])
def test_each_layer_alone_finds_corrupt_data_on_restore(kept: int, tmp_path: Path) -> None:
    edits = tuple(edit for number, edit in enumerate(_ALL_CHECKS) if number != kept)
    engine = Mutation(f"layer {kept} alone", edits).engine(tmp_path)
    image = images.random_image(tmp_path / "d0", 4 * MIB, seed=1, fill=1.0)
    with daemon(tmp_path, Disk(image, "d0"), engine=engine) as scene:
        full = scene.backup().succeeded().result["disks"][0]
    flip(Path(full["delta"]), full["stored_bytes"] // 2)
    engine.run("restore", tmp_path / "store", "latest", "d0", tmp_path / "target").failed(
        6 if kept == 3 else 5
    )
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("moment", MOMENTS, ids=str)
def test_killed_at_any_moment_the_next_new_point_is_incremental_and_exact(
    moment: Moment, tmp_path: Path
) -> None:
    with daemon(tmp_path, *_two_disks(tmp_path)) as scene:
        scene.take()
        _touch_disks(scene, 1)
        scene.killed_backup(moment)
        assert scene.points() == (1 if MOMENTS.index(moment) < COMMITS else 2)
        _touch_disks(scene, 2)
        scene.take("incremental", resume=False)
        scene.check_exact()
        scene.nothing_left()
        scene.only_newest_segment()
        scene.verify()


@pytest.mark.parametrize(
    "moment",
    [_moment(name) for name in ("the point is taken", "it is copying", "about to commit")],
    ids=str,
)
def test_killed_in_the_first_backup_the_next_new_one_is_full_and_exact(
    moment: Moment, tmp_path: Path
) -> None:
    with daemon(tmp_path, *_two_disks(tmp_path)) as scene:
        scene.killed_backup(moment)
        assert scene.points() == 0
        _touch_disks(scene, 2)
        assert scene.take(resume=False).mode == "full"
        scene.check_exact()
        scene.nothing_left()
        scene.only_newest_segment()


def test_killed_again_and_again_nothing_is_lost(tmp_path: Path) -> None:
    """Four engines die in a row, with a clean restart of QEMU between: nothing was committed."""
    names = ("the point is taken", "it is copying", "all is copied", "about to commit")
    with daemon(tmp_path, _two_disks(tmp_path)[0]) as scene:
        scene.take()
        for number, name in enumerate(names):
            _touch_disks(scene, number)
            scene.killed_backup(_moment(name), "--no-resume")
            if number == 1:
                scene.qemu.restart()
        _touch_disks(scene, 20)
        scene.take("incremental", resume=False)
        scene.check_exact()
        scene.nothing_left()
        scene.only_newest_segment()


def test_a_copied_file_in_the_store_changes_nothing(scene: Scene) -> None:
    scene.take()
    first = Path(scene.take().disks[0].delta)
    scene.writer().write(0, os.urandom(1000))
    last = scene.take().point
    shutil.copytree(first.parent, first.parent.with_name("999999-copy"))
    assert fleece.open_store(scene.store).catalogue().find("latest").id == last
    scene.check_exact()
    scene.take("incremental")
    scene.check_exact()
