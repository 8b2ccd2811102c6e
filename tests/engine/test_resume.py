"""An engine is killed, its point lives on in QEMU: the next run resumes it, or tells why."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import fleece
from fleece.events import Event, Warned
from tests.engine.scene import (
    INTACT,
    KIB64,
    MIB,
    Engine,
    Json,
    Moment,
    Mutation,
    Scene,
    daemon,
    flip,
    small_tmpfs,
)
from tests.rig import images
from tests.rig.disk import Disk
from tests.rig.process import run_checked

NODES = ("d0", "d1")
SIZE = 8 * MIB
DIRTY = 6 * MIB
"""What is written on each disk between the first point and the second."""


@dataclass(frozen=True)
class Frozen:
    """The disks at the moment of the second point.

    Attributes:
        copies: raw images, by node, made by qemu-img.
        roots: as an undisturbed backup into another store gives them.
    """

    copies: dict[str, Path]
    roots: dict[str, str]


@contextmanager
def dirty_pair(
    folder: Path, engine: Engine = INTACT, scratch: Path | None = None, dirty: int = DIRTY
) -> Iterator[tuple[Scene, Frozen]]:
    """Two disks with a first point and dirt, and the truth about the next point."""
    size = dirty + SIZE - DIRTY
    disks = (
        Disk(images.random_image(folder / "d0.qcow2", size, seed=1), "d0"),
        Disk(images.random_image(folder / "d1.raw", size + 512, seed=2, fmt="raw"), "d1", "raw"),
    )
    with daemon(folder, *disks, engine=engine) as scene:
        scene.scratch = scratch or scene.scratch
        scene.take()
        for node in NODES:
            scene.writer(node).write(0, os.urandom(dirty))
            scene.writer(node).zero(2 * MIB, 3 * KIB64, unmap=False)
            scene.writer(node).write(size - 700, os.urandom(700))
        yield scene, _freeze(scene)


def _freeze(scene: Scene) -> Frozen:
    """Copy the disks, and back them up elsewhere; nothing is written until the next point."""
    copies = {}
    for node, disk in scene.qemu.disks.items():
        scene.writer(node).flush()
        copies[node] = scene.folder / f"frozen-{node}"
        run_checked(
            "qemu-img", "convert", "-U", "-f", disk.fmt, "-O", "raw", disk.path, copies[node]
        )
    ours = {node: scene.segments(node) for node in NODES}
    result = scene.take(store=scene.folder / "other")
    for node in NODES:
        for name in set(scene.segments(node)) - set(ours[node]):
            _remove_bitmap(scene, node, name)
    return Frozen(copies, {disk.disk: disk.root for disk in result.disks})


def _remove_bitmap(scene: Scene, node: str, name: str) -> None:
    scene.qemu.control.command("block-dirty-bitmap-remove", {"node": node, "name": name})


def disturb(scene: Scene) -> None:
    """The guest goes on writing: over what was dirty, and over what was not."""
    for node in NODES:
        scene.writer(node).write(MIB - 1000, os.urandom(2 * MIB))
        scene.writer(node).zero(5 * MIB, MIB, unmap=True)
        scene.writer(node).write(7 * MIB, os.urandom(KIB64))


def killed(scene: Scene, *words: object, records: int = 8) -> str:
    """Kill a backup in mid-copy, after so many records; gives the point's id."""
    moment = Moment("copying", "fleece.delta.writer", "DeltaWriter.data", "after", records)
    return killed_at(scene, moment, *words)


def killed_at(scene: Scene, moment: Moment, *words: object) -> str:
    """Kill a backup at a moment after the point was taken; the guest writes on."""
    ran = scene.killed_backup(moment, *words)
    disturb(scene)
    started = ran.named("point") + ran.named("resumed")
    return str(started[0]["point"])


def same_as_frozen(scene: Scene, frozen: Frozen, result: Json) -> None:
    """The committed point is what the disks were, by qemu-img, by root, and by every hash."""
    for disk in result["disks"]:
        assert disk["root"] == frozen.roots[disk["disk"]]
    for node in NODES:
        restored = scene.restore(node, result["point"])
        images.compare(restored, frozen.copies[node], "raw", "raw")
        restored.unlink()


def is_resumed(scene: Scene, frozen: Frozen, point: str, *words: object) -> Json:
    """The next backup commits the same point, exactly, and leaves nothing."""
    ran = scene.backup(*words).succeeded()
    assert ran.result["resumed"] is True
    assert ran.result["point"] == point
    assert [event["point"] for event in ran.named("resumed")] == [point]
    assert ran.named("point") == []
    for disk in ran.result["disks"]:
        most = disk["size"] if disk["mode"] == "rescan" else disk["dirty_bytes"]
        assert disk["read_bytes"] + disk["resumed_bytes"] <= most
    scene.nothing_left()
    scene.only_newest_segment()
    same_as_frozen(scene, frozen, ran.result)
    return ran.result


def starts_new(scene: Scene, point: str, reason: str) -> None:
    """The next backup gives that point up, says why, and is incremental and exact."""
    heard: list[Event] = []
    result = scene.take(listener=heard.append)
    assert (result.resumed, result.mode) == (False, "incremental")
    assert result.point != point
    told = [event.what for event in heard if isinstance(event, Warned) and point in event.what]
    assert reason in "".join(told) if reason else not told
    for note in scene.scratch.glob("*/note"):
        note.unlink()
        note.parent.rmdir()
    scene.check_exact()
    scene.nothing_left()
    scene.only_newest_segment()


def next_is_exact(scene: Scene) -> None:
    """What the guest wrote after the point is in the one after it."""
    result = scene.take("incremental")
    assert not result.resumed
    scene.check_exact()
    scene.nothing_left()
    scene.verify()


# ---- it goes on ---------------------------------------------------------------------------------


def resumed_in_mid_copy(engine: Engine, folder: Path) -> None:
    """The scenario that the faults below are put into."""
    with dirty_pair(folder, engine) as (scene, frozen):
        point = killed(scene)
        for path in _partials(scene):  # a write that was not finished, far beyond the end
            os.truncate(path, path.stat().st_size + 16 * MIB)
        result = is_resumed(scene, frozen, point)
        kept = sum(disk["resumed_bytes"] for disk in result["disks"])
        read = sum(disk["read_bytes"] for disk in result["disks"])
        # Eight records were in the file, each of a MiB but for the zeros among the dirt and, by
        # chance, the short last one of each disk.
        assert kept >= 5 * MIB
        assert read <= 2 * (DIRTY + KIB64) - kept
        next_is_exact(scene)


def test_a_killed_copy_goes_on_from_its_durable_records(tmp_path: Path) -> None:
    resumed_in_mid_copy(INTACT, tmp_path)


MOMENTS = (
    Moment("no record yet", "fleece.engine.backup.fill_by_pull", "copy_all", "before"),
    Moment("all is copied", "fleece.engine.backup.fill_by_pull", "copy_all"),
    Moment("one delta is finished", "fleece.delta.writer", "DeltaWriter.finish"),
    Moment("both are finished", "fleece.delta.writer", "DeltaWriter.finish", "after", 2),
    Moment("about to rename", "fleece.folder", "os.rename", "before"),
)


def test_a_point_is_resumed_from_any_moment_of_its_writing(tmp_path: Path) -> None:
    with dirty_pair(tmp_path) as (scene, frozen):
        for moment in MOMENTS:
            point = killed_at(scene, moment)
            result = is_resumed(scene, frozen, point)
            if moment is not MOMENTS[0]:
                found = [disk["dirty_bytes"] - disk["resumed_bytes"] for disk in result["disks"]]
                assert max(found) <= MIB + 4 * KIB64, "only zeros are found again"
            frozen = _freeze(scene)
        next_is_exact(scene)


@pytest.mark.parametrize("mode", ["full", "differential", "rescan"])
def test_any_mode_is_resumed(mode: str, tmp_path: Path) -> None:
    with dirty_pair(tmp_path) as (scene, frozen):
        point = killed(scene, "--mode", mode)
        result = is_resumed(scene, frozen, point)
        assert result["mode"] == mode
        next_is_exact(scene)


def test_a_first_backup_is_resumed(tmp_path: Path) -> None:
    with dirty_pair(tmp_path) as (scene, frozen):
        scene.store = tmp_path / "third"
        point = killed(scene)
        result = scene.backup().succeeded().result
        assert (result["resumed"], result["point"], result["mode"]) == (True, point, "full")
        scene.nothing_left()
        same_as_frozen(scene, frozen, result)
        next_is_exact(scene)


def test_killed_again_and_again_it_still_ends(tmp_path: Path) -> None:
    """Each engine writes a little more, and each time it is killed."""
    # So much that four engines do not end by themselves, even if each of the workers still
    # appends what it has read.
    with dirty_pair(tmp_path, dirty=24 * MIB) as (scene, frozen):
        moment = Moment("copying", "fleece.delta.writer", "DeltaWriter.data", "after", 3)
        first = scene.killed_backup(moment)
        done = [0]
        for _ in range(3):
            (resumed,) = scene.killed_backup(moment).named("resumed")
            done.append(resumed["done"])
        assert done == sorted(set(done)), "every engine added to what was durable"
        disturb(scene)
        (started,) = first.named("point")
        result = is_resumed(scene, frozen, started["point"])
        assert sum(disk["resumed_bytes"] for disk in result["disks"]) > done[-1]
        next_is_exact(scene)


def test_another_scratch_folder_does_not_matter(tmp_path: Path) -> None:
    """The point says itself where its scratch is."""
    with dirty_pair(tmp_path) as (scene, frozen):
        point = killed(scene)
        elsewhere = scene.qemu.folder / "elsewhere"
        elsewhere.mkdir()
        is_resumed(scene, frozen, point, "--scratch", elsewhere)


def test_what_is_not_fleeces_in_the_partial_folder_does_not_matter(tmp_path: Path) -> None:
    """A NAS looks at each file, NFS keeps what somebody has open."""
    with dirty_pair(tmp_path) as (scene, frozen):
        point = killed(scene)
        (folder,) = scene.store.glob("*/.partial-*")
        (folder / "@eaDir" / "d0.fleece").mkdir(parents=True)
        (folder / "._d0.fleece").write_bytes(b"\0\5\x16\7")
        (folder / ".nfs0000000000000001").write_bytes(b"")
        (folder / "linked.fleece").symlink_to("/etc/passwd")
        is_resumed(scene, frozen, point)
        said = scene.engine.run("status", scene.store, "--json").succeeded()
        names = {Path(line["path"]).name for line in said.named("foreign")}
        assert names == {"@eaDir", "._d0.fleece", ".nfs0000000000000001", "linked.fleece"}
        next_is_exact(scene)


def _partials(scene: Scene) -> list[Path]:
    return sorted(scene.store.glob("*/.partial-*/*.fleece"))


def _torn(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1000)


def _garbage(path: Path) -> None:
    with path.open("ab") as file:
        file.write(os.urandom(100_000))


def _flipped(path: Path) -> None:
    flip(path, path.stat().st_size // 2)


def _zeros(path: Path) -> None:
    """What a file system may show of a write that a power cut interrupted."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size - 20_000)
        file.write(bytes(20_000))


def _spliced(path: Path) -> None:
    """The records of another file, whole but for their place."""
    with path.open("r+b") as file, _partner(path).open("rb") as other:
        file.seek(0, os.SEEK_END)
        file.write(other.read())


def _partner(path: Path) -> Path:
    (other,) = (found for found in path.parent.iterdir() if found != path)
    return other


def test_only_what_is_proven_of_the_file_is_kept(tmp_path: Path) -> None:
    with dirty_pair(tmp_path) as (scene, frozen):
        for harm in (_torn, _garbage, _flipped, _zeros, _spliced):
            point = killed(scene, records=2)
            harm(_partials(scene)[0])
            is_resumed(scene, frozen, point)
            scene.writer("d0").write(0, os.urandom(DIRTY))
            frozen = _freeze(scene)
        next_is_exact(scene)


# ---- it starts again ----------------------------------------------------------------------------


def _query(scene: Scene, what: str, key: str, letter: str) -> str:
    """The first of the engine's names of one kind in QEMU."""
    names = [item[key] for item in scene.qemu.control.command(what)]
    return str(sorted(n for n in names if n.startswith("fleece-") and n[-2] == letter)[0])


def _job_ended(scene: Scene) -> None:
    job = _query(scene, "query-jobs", "id", "j")
    scene.qemu.control.command("block-job-cancel", {"device": job, "force": True})
    scene.qemu.control.wait_event("JOB_STATUS_CHANGE", id=job, status="concluded")


def _export_gone(scene: Scene) -> None:
    export = _query(scene, "query-block-exports", "id", "e")
    scene.qemu.control.command("block-export-del", {"id": export, "mode": "hard"})
    scene.qemu.control.wait_event("BLOCK_EXPORT_DELETED", id=export)


def _export_of_something_else(scene: Scene) -> None:
    """The same name, on another disk."""
    export = _query(scene, "query-block-exports", "id", "e")
    _export_gone(scene)
    node = f"{export[:-2]}s1"
    arguments = {"id": export, "type": "nbd", "node-name": node, "name": export}
    scene.qemu.control.command("block-export-add", arguments)


def _segment_gone(scene: Scene) -> None:
    _remove_bitmap(scene, "d1", max(scene.segments("d1")))


def _segment_stopped(scene: Scene) -> None:
    name = max(scene.segments("d0"))
    scene.qemu.control.command("block-dirty-bitmap-disable", {"node": "d0", "name": name})


def _one_more_node(scene: Scene) -> None:
    """Somebody meddles under the point's own names."""
    job = _query(scene, "query-jobs", "id", "j")
    node = {"driver": "null-co", "node-name": f"{job[:-2]}s7", "size": SIZE}
    scene.qemu.control.command("blockdev-add", node)


def _foreign_file(scene: Scene) -> None:
    (lock,) = scene.scratch.glob("*/lock")
    lock.with_name("note").write_text("of somebody else")


def _of_another_qemu(scene: Scene) -> None:
    (lock,) = scene.scratch.glob("*/lock")
    lock.write_text("1")


def _header_cut(scene: Scene) -> None:
    os.truncate(_partials(scene)[1], 100)


def _file_gone(scene: Scene) -> None:
    _partials(scene)[0].unlink()


def _parent_damaged(scene: Scene) -> None:
    (delta,) = scene.store.glob("*/000001-*/d0.fleece")
    os.truncate(delta, 1000)


HARMS = (
    (_job_ended, "job has failed"),
    (_export_gone, "exports"),
    (_export_of_something_else, "exports"),
    (_one_more_node, "nodes"),
    (_foreign_file, "work folder"),
    (_of_another_qemu, "work folder"),
    (_header_cut, ""),
    (_file_gone, ""),
)


def test_a_point_that_is_not_whole_is_given_up(tmp_path: Path) -> None:
    with dirty_pair(tmp_path) as (scene, _):
        for harm, reason in HARMS:
            point = killed(scene, records=2)
            harm(scene)
            starts_new(scene, point, reason)
            disturb(scene)


@pytest.mark.parametrize(
    ("harm", "reason", "mode"),
    [
        (_segment_gone, "no bitmap has recorded", "mixed"),
        (_segment_stopped, "no bitmap has recorded", "mixed"),
        (_parent_damaged, "no incremental backup is possible", "full"),
    ],
)
def test_a_point_that_cannot_be_built_on_is_given_up(
    harm: Callable[[Scene], None], reason: str, mode: str, tmp_path: Path
) -> None:
    with dirty_pair(tmp_path) as (scene, _):
        point = killed(scene)
        harm(scene)
        ran = scene.backup().succeeded()
        assert (ran.result["resumed"], ran.result["mode"]) == (False, mode)
        assert any(point in e["what"] and reason in e["what"] for e in ran.named("warning"))
        scene.check_exact()
        scene.nothing_left()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--no-resume",), ""),
        (("--mode", "differential"), "differential is asked for"),
        (("--disk", "d0", "--disk", "d1"), None),
        (("--disk", "d1"), "other disks"),
        (("--tag", "a"), "other tags"),
        (("--transport", "push"), "a backup with push always takes"),
    ],
)
def test_only_what_is_asked_for_is_resumed(
    words: tuple[str, ...], reason: str | None, tmp_path: Path
) -> None:
    with dirty_pair(tmp_path) as (scene, frozen):
        point = killed(scene)
        if reason is None:
            is_resumed(scene, frozen, point, *words)
            return
        ran = scene.backup(*words).succeeded()
        assert ran.result["resumed"] is False
        assert reason in "".join(event["what"] for event in ran.named("warning"))
        scene.nothing_left()
        scene.take("incremental")
        scene.check_exact()


def test_after_clean_there_is_nothing_to_go_on_with(tmp_path: Path) -> None:
    with dirty_pair(tmp_path) as (scene, _):
        point = killed(scene)
        scene.engine.run("clean", scene.source, "--scratch", scene.scratch).succeeded()
        starts_new(scene, point, "nothing of it is in QEMU")


def test_after_a_restart_of_qemu_there_is_nothing_to_go_on_with(tmp_path: Path) -> None:
    with dirty_pair(tmp_path) as (scene, _):
        point = killed(scene)
        scene.qemu.restart()
        ran = scene.backup().succeeded()
        assert ran.result["resumed"] is False
        assert ran.result["point"] != point
        modes = {disk["disk"]: disk["mode"] for disk in ran.result["disks"]}
        assert modes == {"d0": "incremental", "d1": "rescan"}, "raw files keep no bitmaps"
        scene.check_exact()
        scene.nothing_left()


def test_a_scratch_with_no_room_left_is_not_resumed(tmp_path: Path) -> None:
    """Nobody watched it while no engine lived: the guest comes first."""
    with small_tmpfs(24) as small, dirty_pair(tmp_path, scratch=small) as (scene, _):
        point = killed(scene)
        (small / "filler").write_bytes(bytes(8 * MIB))
        ran = scene.backup("--scratch", scene.qemu.folder / "scratch").succeeded()
        assert ran.result["resumed"] is False
        assert ran.result["point"] != point
        (warning,) = ran.named("warning")
        assert "the scratch has only" in warning["what"]
        scene.check_exact()
        (small / "filler").unlink()
        scene.nothing_left()


def test_a_signal_while_it_goes_on_takes_everything_down(tmp_path: Path) -> None:
    with dirty_pair(tmp_path) as (scene, _):
        killed(scene)
        running = scene.slow_backup()
        running.wait_event("resumed")
        running.signal(15)
        running.wait().failed(130)
        scene.nothing_left()
        result = scene.take("incremental")
        assert not result.resumed
        scene.check_exact()


# ---- faults that are noticed --------------------------------------------------------------------

FAULTS = (
    Mutation(
        "what is durable is read again",
        (
            (
                "engine/backup/fill_by_pull.py",
                "dirty = opened.dirty.subtract(done)",
                "dirty = opened.dirty",
            ),
        ),
    ),
    Mutation(
        "the adopted leaves are not in the tree",
        (
            (
                "delta/writer.py",
                "self._rows, self._leaves = proven.rows, proven.leaves",
                "self._rows = proven.rows",
            ),
        ),
    ),
    Mutation(
        "the file is not cut",
        (("store/folder/sink.py", "raw.truncate(keep)", "pass"),),
    ),
    Mutation(
        "a point is taken without asking what is left",
        (("engine/backup/resume.py", "for left in _candidates(task):", "for left in ():"),),
    ),
)


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_it_is_seen_if_it_goes_on_wrongly(fault: Mutation, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        resumed_in_mid_copy(fault.engine(tmp_path), tmp_path)


def test_live_data_is_not_taken_for_the_point_if_the_job_is_gone(tmp_path: Path) -> None:
    """Without the check of the jobs the export, now live data, would be stored as the point."""
    fault = Mutation(
        "jobs are not asked",
        (
            ("source/qemu/adopt.py", '_same("jobs",', '(lambda *_: None)("jobs",'),
            ("source/qemu/adopt.py", "        point.check()\n", ""),
            ("source/qemu/adopt.py", "if any(job.text(", "if False and any(job.text("),
            ("source/qemu/adopt.py", '_same("nodes",', '(lambda *_: None)("nodes",'),
            ("source/qemu/adopt.py", '_same("filters",', '(lambda *_: None)("filters",'),
        ),
    )
    with dirty_pair(tmp_path, fault.engine(tmp_path)) as (scene, _):
        killed(scene)
        _job_ended(scene)
        # The check at the end of the copy still stands: the run fails, and nothing is stored.
        scene.backup().failed(4, "the point was lost")
        assert scene.points() == 1
        scene.nothing_left()
        assert fleece.open_store(scene.store).catalogue().damaged == ()
