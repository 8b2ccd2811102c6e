"""Merging: one delta in the place of a run, the same disk, only the cuts compressed again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fleece
from tests.engine.scene import _DIE, GUEST, INTACT, KIB64, MIB, ROOT, Moment, Mutation, Scene
from tests.rig.process import run

TOOL = ROOT / "tools" / "read_delta.py"


def catalogue(scene: Scene) -> fleece.Catalogue:
    return fleece.open_store(scene.store).catalogue()


def history(scene: Scene, count: int) -> dict[str, dict[str, bytes]]:
    """A full and later points, each writing over a part of the one before; what each holds."""
    known: dict[str, dict[str, bytes]] = {}
    for number in range(count):
        for node in scene.qemu.disks if number else ():
            scene.writer(node).write(number * KIB64 * 3, os.urandom(MIB))
            scene.writer(node).zero(2 * MIB + number * 2 * KIB64, 5 * KIB64, unmap=True)
            scene.writer(node).write(2 * MIB + number * 2 * KIB64 + 9, b"in the zeros")
        point = scene.take().point
        known[point] = {}
        for node in scene.qemu.disks:
            raw = scene.restore(node, point)
            known[point][node] = raw.read_bytes()
            raw.unlink()
    return known


def same(scene: Scene, known: dict[str, dict[str, bytes]]) -> None:
    """Each point is what it was, all of the store is sound, and no other reader disagrees."""
    scene.verify()
    found = catalogue(scene)
    assert [point.id for point in found.of_guest(GUEST)] == [*known]
    for point, disks in known.items():
        for node, content in disks.items():
            raw = scene.restore(node, point)
            assert raw.read_bytes() == content, f"point {point} of {node} is not what it was"
            raw.unlink()
            line = found.line(found.find(point).disk(node))
            read_alone(scene.folder / "alone", [entry.where for entry in line], content)


def read_alone(target: Path, paths: list[str], content: bytes) -> None:
    """Read a chain by the independent reader."""
    words = [sys.executable, "-I", str(TOOL), str(target), *paths]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert target.read_bytes() == content
    target.unlink()


def test_any_run_is_merged_and_every_point_stays_what_it_was(pair: Scene) -> None:
    known = history(pair, 5)
    ids = [*known]
    roots = {e.header.point.id + e.header.disk: e.root for e in catalogue(pair).entries}
    for point, first, depth in ((ids[3], ids[2], 3), (ids[4], None, 1), (ids[1], ids[0], 1)):
        words = ("merge", pair.store, point, "--json", *(("--from", first) if first else ()))
        ran = INTACT.run(*words).succeeded()
        assert {event["disk"] for event in ran.named("merged")} == {"d0", "d1"}
        assert all(disk["frames"] > 0 for disk in ran.result["disks"])
        found = catalogue(pair)
        for entry in found.find(point).disks.values():
            assert len(found.line(entry)) == depth
            assert entry.header.mode == ("full" if entry.header.parent is None else "incremental")
    same(pair, known)
    assert roots == {e.header.point.id + e.header.disk: e.root for e in catalogue(pair).entries}
    pair.writer("d0").write(0, os.urandom(100))
    assert pair.take("incremental").disks[0].dirty_bytes == KIB64
    pair.check_exact()


def test_frames_are_copied_and_only_what_is_hidden_in_part_is_cut(scene: Scene) -> None:
    images_frames = {}
    scene.writer().write(0, os.urandom(8 * MIB))
    scene.take()
    scene.writer().write(KIB64, os.urandom(KIB64))
    scene.take()
    for entry in catalogue(scene).entries:
        with fleece.open_delta(entry.where) as delta:
            for row in delta.rows().tolist():
                found, frame = delta.record_at(*row)
                images_frames[found.offset, found.length] = frame
    (disk,) = fleece.merge(fleece.open_store(scene.store), "latest").disks
    assert (disk.deltas, disk.frames, disk.cut) == (2, 8, 1)
    (entry,) = catalogue(scene).find("latest").disks.values()
    with fleece.open_delta(entry.where) as delta:
        rows = delta.rows().tolist()
        same_frames = [
            delta.record_at(*row)[1] == images_frames.get((row[0], row[1])) for row in rows
        ]
    assert (len(rows), sum(same_frames)) == (10, 8)
    scene.check_exact()


def test_a_synthetic_full_needs_nothing_else(scene: Scene) -> None:
    known = history(scene, 3)
    last = [*known][-1]
    fleece.merge(fleece.open_store(scene.store), last)
    (entry,) = catalogue(scene).find(last).disks.values()
    alone = scene.folder / "alone.fleece"
    alone.write_bytes(Path(entry.where).read_bytes())
    read_alone(scene.folder / "raw", [str(alone)], known[last]["d0"])
    assert run("zstd", "-t", alone).returncode == 0


def test_merging_twice_changes_nothing(scene: Scene) -> None:
    history(scene, 2)
    store = fleece.open_store(scene.store)
    fleece.merge(store, "latest")
    (entry,) = catalogue(scene).find("latest").disks.values()
    before = Path(entry.where).read_bytes()
    assert fleece.merge(store, "latest").disks[0].deltas == 1
    assert Path(entry.where).read_bytes() == before


def test_a_run_that_was_merged_already_can_be_merged_again(pair: Scene) -> None:
    """So that one who was killed before it could say so just repeats it."""
    points = [*history(pair, 4)]
    words = ("merge", pair.store, points[2], "--from", points[1])
    INTACT.run(*words).succeeded()
    again = INTACT.run(*words, "--json").succeeded()
    assert [disk["deltas"] for disk in again.result["disks"]] == [1, 1]
    INTACT.run("merge", pair.store, points[3], "--from", points[1]).failed(2, "does not build on")


def test_a_point_is_not_merged_from_itself(scene: Scene) -> None:
    known = history(scene, 2)
    _, last = known
    INTACT.run("merge", scene.store, last, "--from", "latest").failed(2, "nothing would change")
    same(scene, known)


def test_a_point_that_is_not_on_the_line_is_refused(scene: Scene) -> None:
    known = history(scene, 2)
    first, last = known
    INTACT.run("merge", scene.store, first, "--from", last).failed(2, "does not build on")
    same(scene, known)


def test_a_damaged_frame_is_not_merged_in(scene: Scene) -> None:
    known = history(scene, 2)
    entry = catalogue(scene).find(next(iter(known))).disk("d0")
    with fleece.open_delta(entry.where) as delta:
        row = delta.rows()[-1]  # of the disk's end, which no later point wrote
        place = int(row["position"]) + 500
    path = Path(entry.where)
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)
    newest = Path(catalogue(scene).find("latest").disk("d0").where)
    before = newest.read_bytes()
    INTACT.run("merge", scene.store, "latest").failed(5, entry.where)
    assert newest.read_bytes() == before
    assert sorted(item.name for item in newest.parent.iterdir()) == [newest.name]


MUTATIONS = (
    Mutation(
        "older data wins",
        (("engine/upkeep/merge.py", "overlay(self._run, ", "overlay(self._run[::-1], "),),
    ),
    Mutation(
        "hidden leaves are not cut",
        (
            (
                "engine/upkeep/merge.py",
                "data[low:high]",
                "data[: high - low]",
            ),
        ),
    ),
    Mutation(
        "zeros are lost",
        (("engine/upkeep/merge.py", "self._writer.zero(start, end - start)", "pass"),),
    ),
)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_fault_in_merging_is_noticed(mutation: Mutation, scene: Scene) -> None:
    scene.writer().write(0, os.urandom(4 * MIB))
    known = history(scene, 3)
    ran = mutation.engine(scene.folder).run("merge", scene.store, "latest")
    if ran.code == 0:
        with pytest.raises((AssertionError, fleece.FleeceError)):
            same(scene, known)
    else:
        assert ran.code in (1, 5)
        same(scene, known)


MOMENTS = (
    Moment("about to copy", "fleece.engine.upkeep.merge", "overlay", "before"),
    Moment("a frame is copied", "fleece.delta.writer", "DeltaWriter.data"),
    Moment("written", "fleece.delta.writer", "DeltaWriter.finish"),
    Moment("about to rename", "fleece.folder", "os.rename", "before"),
    Moment("renamed", "fleece.folder", "os.rename"),
    Moment("the second disk is written", "fleece.delta.writer", "DeltaWriter.finish"),
)


def test_a_killed_merge_leaves_every_point_and_the_next_one_ends_it(pair: Scene) -> None:
    known = history(pair, 3)
    for moment in MOMENTS:
        place = moment.module, moment.function, moment.when, moment.nth
        ran = INTACT.script(_DIE, *place, "merge", pair.store, "latest").wait()
        assert ran.code == -9, f"{moment}: {ran}"
        pair.verify()
        assert [point.id for point in catalogue(pair).of_guest(GUEST)] == [*known]
    INTACT.run("merge", pair.store, "latest").succeeded()
    same(pair, known)
    assert {e.header.parent for e in catalogue(pair).find("latest").disks.values()} == {None}
    assert [*pair.store.rglob(".*.merging")] == []
