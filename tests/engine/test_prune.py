"""Pruning: what stays is whole at every moment, and what cannot all be seen is not touched."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fleece
from fleece.engine.upkeep.retention import KeepRules
from tests.engine.scene import (
    _DIE,
    GUEST,
    INTACT,
    KIB64,
    MIB,
    ROOT,
    Moment,
    Ran,
    Scene,
    daemon,
    fill,
    small_tmpfs,
)
from tests.engine.test_merge import catalogue, history, same
from tests.rig import images
from tests.rig.disk import Disk

NOW = datetime(2024, 3, 31, 12, tzinfo=UTC)


def _ids(scene: Scene) -> list[str]:
    return [point.id for point in catalogue(scene).points]


def test_what_stays_is_whole_and_the_next_incremental_is_right(pair: Scene) -> None:
    known = history(pair, 5)
    ids = [*known]
    INTACT.run("pin", pair.store, ids[1]).succeeded()
    files = sorted(pair.store.rglob("*"))
    dry = INTACT.run("prune", pair.store, "--keep-last", 2, "--dry-run", "--json").succeeded()
    assert sorted(pair.store.rglob("*")) == files
    ran = INTACT.run("prune", pair.store, "--keep-last", 2, "--json").succeeded()
    for said in (dry, ran):
        reasons = {event["point"]: event["reasons"] for event in said.named("pruned")}
        assert reasons[ids[4]] == ["last", "newest"]
        assert [name for name in ids if reasons[name]] == [ids[1], ids[3], ids[4]]
        assert reasons[ids[1]] == ["pinned"]
    assert [event["point"] for event in ran.named("dropped")] == [ids[2], ids[0]]
    left = {name: known[name] for name in (ids[1], ids[3], ids[4])}
    same(pair, left)
    pair.writer("d0").write(0, os.urandom(100))
    assert [disk.dirty_bytes for disk in pair.take("incremental").disks] == [KIB64, 0]
    pair.check_exact()
    pair.only_newest_segment()
    INTACT.run("unpin", pair.store, ids[1]).succeeded()
    INTACT.run("prune", pair.store, "--keep-last", 1).succeeded()
    assert len(_ids(pair)) == 1
    pair.check_exact()
    pair.verify()


MOMENTS = (
    Moment("one delta is merged", "fleece.store.rewrite", "Replacement.commit"),
    Moment("about to drop", "fleece.store.rewrite", "drop", "before"),
    Moment(
        "a point is out, its files are there",
        "fleece.store.folder.backend",
        "remove_folder",
        "before",
    ),
    Moment("one point is dropped", "fleece.store.rewrite", "drop"),
)


def test_a_killed_prune_leaves_all_that_is_kept_and_the_next_one_ends_it(pair: Scene) -> None:
    known = history(pair, 4)
    ids = [*known]
    for moment in MOMENTS:
        place = moment.module, moment.function, moment.when, moment.nth
        words = ("prune", pair.store, "--keep-last", 1)
        ran = INTACT.script(_DIE, *place, *words).wait()
        assert ran.code == -9, f"{moment}: {ran}"
        pair.verify()
        assert ids[-1] in _ids(pair)
        pair.check_exact()
    INTACT.run("prune", pair.store, "--keep-last", 1).succeeded()
    same(pair, {ids[-1]: known[ids[-1]]})
    assert [*pair.store.rglob(".dropped-*")] == []
    assert len([*pair.store.rglob("*.fleece")]) == 2


def test_what_cannot_all_be_seen_is_not_touched(scene: Scene) -> None:
    history(scene, 3)
    paths = sorted(Path(entry.where) for entry in catalogue(scene).entries)
    for path in paths:
        content = path.read_bytes()
        path.write_bytes(content[:-1])
        INTACT.run("prune", scene.store, "--keep-last", 1).failed(5, "nothing was deleted")
        path.write_bytes(content)
    gone = paths[0].with_suffix(".away")
    paths[0].rename(gone)
    INTACT.run("prune", scene.store, "--keep-last", 1).failed(5)
    gone.rename(paths[0])
    assert sorted(Path(entry.where) for entry in catalogue(scene).entries) == paths
    INTACT.run("prune", scene.store).failed(2, "no rule")


def test_a_pin_beside_any_copy_of_a_point_holds(scene: Scene) -> None:
    """The copy whose path comes first is the one that is used; the pin is not beside it."""
    ids = [*history(scene, 3)]
    INTACT.run("pin", scene.store, ids[1]).succeeded()
    pinned = Path(catalogue(scene).find(ids[1]).disk("d0").where)
    copied = pinned.parent.with_name("0-copy")
    copied.mkdir()
    shutil.copy(pinned, copied)
    assert Path(catalogue(scene).find(ids[1]).disk("d0").where).parent == copied
    INTACT.run("prune", scene.store, "--keep-last", 1).succeeded()
    assert _ids(scene) == ids[1:]
    INTACT.run("unpin", scene.store, ids[1]).succeeded()
    INTACT.run("prune", scene.store, "--keep-last", 1).succeeded()
    assert _ids(scene) == ids[2:]
    scene.check_exact()


def test_a_folder_that_somebody_put_into_a_points_is_kept_and_told(scene: Scene) -> None:
    ids = [*history(scene, 3)]
    notes = Path(catalogue(scene).find(ids[0]).disk("d0").where).with_name("notes")
    notes.mkdir()
    (notes / "why").write_text("before the upgrade")
    ran = INTACT.run("prune", scene.store, "--keep-last", 1, "--json").succeeded()
    assert _ids(scene) == ids[2:]
    (kept,) = scene.store.glob("*/foreign-*")
    assert (kept / "notes" / "why").read_text() == "before the upgrade"
    assert str(kept) in ran.named("warning")[0]["what"]
    said = INTACT.run("status", scene.store, "--json").succeeded()
    assert [line["path"] for line in said.named("foreign")] == [str(kept)]


def test_a_listing_that_fails_is_never_an_empty_one(scene: Scene) -> None:
    """Each listing of a folder of the store in turn fails with EIO."""
    known = history(scene, 3)
    folders = [scene.store, *(path for path in scene.store.rglob("*") if path.is_dir())]
    words = [sys.executable, "-m", "fleece", "prune", str(scene.store), "--keep-last", "1"]
    for number in (1, 2, 4, 6):
        fault = f"inject=getdents64:error=EIO:when={number}"
        traced = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=getdents64", "-e", fault]
        traced += [word for folder in folders for word in ("-P", str(folder))]
        done = subprocess.run([*traced, *words], cwd=ROOT, capture_output=True, check=False)
        assert done.returncode == 5, done.stderr
        assert b"Input/output error" in done.stderr
        assert _ids(scene) == [*known]
    same(scene, known)


def test_a_full_store_can_be_pruned(tmp_path: Path) -> None:
    image = images.random_image(tmp_path / "d0.qcow2", MIB, seed=1)
    with small_tmpfs(6) as small, daemon(tmp_path, Disk(image, "d0")) as scene:
        scene.store = small / "store"
        for _ in range(3):
            scene.take("full")
        (lock,) = small.rglob(".lock")
        lock.write_bytes(b"")  # or the process id would fit into the place of the last one's
        fill(small)
        INTACT.run("pin", scene.store, "latest").failed(5, "No space left")
        ran = INTACT.run("prune", scene.store, "--keep-last", 1, "--json").succeeded()
        assert len(ran.named("dropped")) == 2
        assert scene.points() == 1
        INTACT.run("pin", scene.store, "latest").succeeded()
        scene.check_exact()
        scene.verify()


def test_a_store_whose_file_system_cannot_lock_is_told(scene: Scene) -> None:
    """As an NFS server without its lock manager."""
    scene.take()
    (lock,) = scene.store.rglob(".lock")
    words = [sys.executable, "-m", "fleece", "prune", str(scene.store), "--keep-last", "1"]
    fault = ["-P", str(lock), "-e", "trace=flock", "-e", "inject=flock:error=ENOLCK"]
    traced = ["strace", "-f", "-qq", "-o", "/dev/null", *fault, *words]
    done = subprocess.run(traced, cwd=ROOT, capture_output=True, text=True, check=False)
    Ran(done.returncode, done.stdout, done.stderr).failed(5, "No locks available", "lock files")


def test_a_base_of_several_stays(scene: Scene) -> None:
    """Two differentials: merging their full into each would store it twice."""
    first = scene.take().point
    kept = []
    for number in range(2):
        scene.writer().write(number * KIB64, os.urandom(KIB64))
        kept.append(scene.take("differential").point)
    result = fleece.prune(fleece.open_store(scene.store), KeepRules(last=2))
    assert (result.removed, _ids(scene)) == (0, [first, *kept])
    fleece.prune(fleece.open_store(scene.store), KeepRules(last=1))
    assert _ids(scene) == kept[1:]
    scene.check_exact()


def test_a_backup_of_one_disk_does_not_count_for_the_others(pair: Scene) -> None:
    both = pair.take().point
    alone = pair.take(disks=["d0"]).point
    fleece.prune(fleece.open_store(pair.store), KeepRules(last=1), GUEST)
    assert _ids(pair) == [both, alone]
    pair.verify()


@pytest.mark.parametrize(
    ("rules", "hours_ago", "kept"),
    [
        (KeepRules(last=2), [0, 1, 2], [0, 1]),
        (KeepRules(daily=2), [0, 1, 24, 25, 48], [0, 24]),
        (KeepRules(daily=5), [0, 1, 24, 25], [0, 24, 25]),  # counts are left: the oldest too
        (KeepRules(monthly=2), [0, 24, 24 * 31, 24 * 32, 24 * 62], [0, 24 * 31]),
        (KeepRules(weekly=1), [0, 24, 24 * 7], [0]),
        (KeepRules(yearly=-1), [0, 24, 24 * 366, 24 * 367], [0, 24 * 366, 24 * 367]),
        (KeepRules(within=fleece.Duration.parse("1d1h")), [0, 24, 25, 26], [0, 24]),
        (KeepRules(hourly=1, last=2), [0, 0, 5], [0, 0]),
    ],
)
def test_the_rules(rules: KeepRules, hours_ago: list[int], kept: list[int]) -> None:
    times = [NOW - timedelta(hours=hours) for hours in hours_ago]
    reasons = rules.apply(times, NOW)
    assert [hours for hours, why in zip(hours_ago, reasons, strict=True) if why] == kept


@given(
    hours=st.lists(st.integers(0, 20000), min_size=1, max_size=40),
    counts=st.tuples(*[st.integers(-1, 4)] * 6).filter(any),
)
def test_pruning_again_drops_nothing_more(hours: list[int], counts: tuple[int, ...]) -> None:
    last, hourly, daily, weekly, monthly, yearly = counts
    rules = KeepRules(last, hourly, daily, weekly, monthly, yearly)
    times = [NOW - timedelta(hours=count) for count in sorted(hours)]
    reasons = rules.apply(times, NOW)
    left = [moment for moment, why in zip(times, reasons, strict=True) if why]
    assert reasons[0]
    assert all(rules.apply(left, NOW))


@pytest.mark.parametrize("text", ["", "0d", "5", "3w", "1h2d", "-1d", "1d "])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(fleece.UsageError, match="not a duration"):
        fleece.Duration.parse(text)
