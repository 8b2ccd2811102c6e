"""A disk that was resized: only what differs is stored, and every reader takes such a chain."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fleece
from fleece.events import Event
from tests.engine.scene import GUEST, INTACT, KIB64, MIB, Moment, Mutation, Scene, flip, reasons
from tests.rig import images
from tests.rig.disk import Disk
from tests.rig.machine import Machine
from tests.rig.process import run_checked

SIZE = 8 * MIB
DISK = "vd-d0"

SIZES = [
    pytest.param(12 * MIB, id="grown"),
    pytest.param(12 * MIB + 512, id="grown to an odd size"),
    pytest.param(SIZE + 512, id="grown by a sector"),
    pytest.param(5 * MIB, id="shrunk"),
    pytest.param(5 * MIB + 1536, id="shrunk to an odd size"),
    pytest.param(SIZE - 512, id="shrunk by a sector"),
    pytest.param(512, id="shrunk to a sector"),
]


def machine(path: Path, size: int = SIZE, fmt: str = "qcow2", fill: float = 1.0) -> Machine:
    """A machine with one disk that is full of data."""
    return Machine([Disk(images.random_image(path, size, seed=1, fmt=fmt, fill=fill), "d0", fmt)])


@pytest.fixture(params=["qcow2", "raw"])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    """A full disk of 8 MiB, of which there is a point."""
    with machine(tmp_path / "d0", fmt=request.param) as qemu:
        made = Scene(qemu, tmp_path)
        made.take()
        yield made


def _resize(scene: Scene, *sizes: int) -> None:
    for size in sizes:
        scene.qemu.control.command("block_resize", {"node-name": "d0", "size": size})


def _stored(scene: Scene) -> fleece.Extents:
    """What the newest delta holds."""
    newest = fleece.open_store(scene.store).catalogue().find("latest", GUEST)
    with fleece.open_delta(newest.disks[DISK].where) as delta:
        return delta.extents()


def _exact(scene: Scene) -> None:
    """The newest point is what the disk is; the store is sound."""
    raw = scene.restore(DISK)
    scene.same_as_live("d0", raw)
    raw.unlink()
    scene.verify()
    scene.nothing_left()


def _at_the_seam(one: int, two: int) -> fleece.Extents:
    """What a delta must hold between these sizes, by the words of the format."""
    return fleece.Extents.of([((min(one, two) - 1) // KIB64 * KIB64, two)])


@pytest.mark.parametrize("size", SIZES)
def test_a_resized_disk_is_rescanned(size: int, scene: Scene) -> None:
    """While QEMU runs, on a disk that keeps bitmaps and on one that does not."""
    _resize(scene, size)
    heard: list[Event] = []
    result = scene.take(listener=heard.append)
    text = f"the disk's size changed from {SIZE} to {size} bytes"
    assert reasons(heard) == {DISK: ("rescan", text)}
    assert result.disks[0].size == size
    assert _stored(scene) == _at_the_seam(SIZE, size)
    _exact(scene)
    if size > MIB:
        scene.writer().write(MIB, os.urandom(KIB64))
        assert scene.take("incremental").disks[0].dirty_bytes == KIB64
        _exact(scene)


@pytest.mark.parametrize("size", SIZES)
def test_what_was_written_before_and_after_is_stored_too(size: int, scene: Scene) -> None:
    scene.writer().write(0, b"before")
    _resize(scene, size)
    scene.writer().write(size - 512, b"a new end".ljust(512, b"."))
    assert scene.take().mode == "rescan"
    first = fleece.Extents.of([(0, min(KIB64, size))])
    assert _stored(scene) == _at_the_seam(SIZE, size).union(first)
    _exact(scene)


@pytest.mark.parametrize("size", SIZES)
def test_a_disk_that_was_resized_while_it_was_off(size: int, tmp_path: Path) -> None:
    path = tmp_path / "d0"
    with machine(path) as qemu:
        scene = Scene(qemu, tmp_path)
        scene.take()
        qemu.quit()
        run_checked("qemu-img", "resize", "-q", "-f", "qcow2", "--shrink", path, str(size))
        qemu.start()
        assert scene.take().mode == "rescan"
        assert _stored(scene) == _at_the_seam(SIZE, size)
        _exact(scene)


def test_no_incremental_is_possible_over_a_resize(scene: Scene) -> None:
    _resize(scene, 6 * MIB)
    for mode in ("incremental", "differential"):
        with pytest.raises(fleece.PointError, match="size changed"):
            scene.take(mode)
        scene.nothing_left()
    assert scene.take("rescan").mode == "rescan"
    assert scene.take("full").mode == "full"
    _exact(scene)


def test_a_differential_builds_on_a_full_of_another_size(scene: Scene) -> None:
    for size in (5 * MIB + 512, 9 * MIB, 7 * MIB + 1024):
        _resize(scene, size)
        scene.writer().write(3 * MIB, os.urandom(KIB64))
        assert scene.take().mode == "rescan"
        assert scene.take("differential").mode == "differential"
        _exact(scene)


# ---- shrunk and grown back between two points ------------------------------------------------


@pytest.mark.parametrize(
    "cut",
    [
        pytest.param(6 * MIB, id="much"),
        pytest.param(6 * MIB + 512, id="within a leaf"),
        pytest.param(512, id="almost all"),
    ],
)
def test_a_disk_that_was_shrunk_and_grown_back(cut: int, tmp_path: Path) -> None:
    """QEMU marks nothing dirty then: all that was cut off reads as zeros."""
    with machine(tmp_path / "d0") as qemu:
        scene = Scene(qemu, tmp_path)
        scene.take()
        scene.writer().write(MIB, os.urandom(KIB64))
        _resize(scene, cut, SIZE)
        assert sum(bitmap["count"] for bitmap in scene.bitmaps()) <= KIB64
        with pytest.raises(fleece.PointError, match=r"no incremental .* shrunk"):
            scene.take("incremental")
        scene.nothing_left()
        heard: list[Event] = []
        assert scene.take(listener=heard.append).mode == "rescan"
        assert "shrunk and grown back" in reasons(heard)[DISK][1]
        assert _stored(scene).total <= SIZE - cut // KIB64 * KIB64 + KIB64
        _exact(scene)
        assert scene.take("incremental").disks[0].read_bytes == 0


def test_what_an_image_keeps_behind_a_cut_is_no_change(tmp_path: Path) -> None:
    """qcow2 keeps the rest of the cluster that it is cut in, and shows it again."""
    with machine(tmp_path / "d0") as qemu:
        scene = Scene(qemu, tmp_path)
        scene.take()
        _resize(scene, SIZE - 512, SIZE)
        assert scene.take().mode == "incremental"
        _exact(scene)


def test_what_was_written_behind_the_cut_hides_nothing(tmp_path: Path) -> None:
    """The new end is dirty; what lies before it tells. The same while QEMU is off."""
    path = tmp_path / "d0"
    with machine(path) as qemu:
        scene = Scene(qemu, tmp_path)
        scene.take()
        _resize(scene, 6 * MIB, SIZE)
        scene.writer().write(7 * MIB, os.urandom(MIB))
        assert scene.take().mode == "rescan"
        _exact(scene)
        qemu.quit()
        for size in (5 * MIB, SIZE):
            run_checked("qemu-img", "resize", "-q", "-f", "qcow2", "--shrink", path, str(size))
        qemu.start()
        scene.writer().write(7 * MIB, os.urandom(MIB))
        assert scene.take().mode == "rescan"
        _exact(scene)


def test_no_more_than_a_leaf_is_read_to_know_that_nothing_was_cut(tmp_path: Path) -> None:
    """Also where the end of the disk is a hole, and the last data is dirty."""
    with machine(tmp_path / "d0", fill=0.5) as qemu:
        scene = Scene(qemu, tmp_path)
        _resize(scene, 2 * SIZE)
        scene.take()
        _resize(scene, SIZE + MIB, 2 * SIZE)  # only zeros were cut: nothing changed
        scene.writer().write(SIZE - 3 * KIB64, os.urandom(3 * KIB64))
        ran = scene.slow("fleece.nbd.connection", "Connection.read", 0, *scene.words()).wait()
        result = ran.succeeded().result
        assert (result["mode"], result["disks"][0]["read_bytes"]) == ("incremental", 3 * KIB64)
        _exact(scene)


def test_held_by_filters_it_is_noticed_too(tmp_path: Path) -> None:
    with machine(tmp_path / "d0") as qemu:
        scene = Scene(qemu, tmp_path)
        scene.take(fleecing="filter")
        _resize(scene, 6 * MIB, SIZE)
        assert scene.take(fleecing="filter").mode == "rescan"
        _exact(scene)
        _resize(scene, 9 * MIB)
        assert scene.take(fleecing="filter").mode == "rescan"
        _exact(scene)


def test_pushed_by_qemu(tmp_path: Path) -> None:
    """Nothing of a disk of another size is taken for held, whatever QEMU pushes."""
    with machine(tmp_path / "d0") as qemu:
        scene = Scene(qemu, tmp_path)
        push = ("--transport", "push")
        scene.backup(*push).succeeded()
        for size in (12 * MIB + 512, 5 * MIB + 1536, 16 * MIB):
            _resize(scene, size)
            scene.writer().write(MIB, os.urandom(KIB64))
            assert scene.backup(*push).succeeded().result["mode"] == "rescan"
            _exact(scene)
            scene.writer().write(2 * MIB, os.urandom(KIB64))
            ran = scene.backup(*push, "--mode", "differential").succeeded()
            assert ran.result["mode"] == "differential"
            _exact(scene)


# ---- everything that reads a chain -----------------------------------------------------------

HISTORY = [4 * MIB, 7 * MIB + 512, 2 * MIB + 1024, 2 * MIB + KIB64, 6 * MIB, 5 * MIB]
"""The sizes of a disk at its points."""


class Line:
    """A disk that had all these sizes, a point at each, and an incremental behind it.

    Attributes:
        images: what the disk was at each point, by the point's id, oldest first.
    """

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.images: dict[str, Path] = {}
        for number, size in enumerate(HISTORY):
            _resize(scene, size)
            if number != 3:  # once, what was cut off is not written again
                scene.writer().write(size - KIB64 - 512, os.urandom(KIB64))
            self._point()
            scene.writer().write((number + 1) * 4 * KIB64, os.urandom(100))
            self._point()

    def _point(self) -> None:
        point = self.scene.take().point
        self.scene.writer().flush()
        raw = self.scene.folder / f"{point}.raw"
        path = self.scene.qemu.disks["d0"].path
        run_checked("qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", path, raw)
        self.images[point] = raw

    @property
    def points(self) -> list[str]:
        """Their ids, oldest first."""
        return [*self.images]

    def all_are_exact(self) -> None:
        """Every point that is left restores to what the disk was."""
        store = fleece.open_store(self.scene.store)
        for point in store.catalogue().of_guest(GUEST):
            raw = self.scene.restore(DISK, point.id)
            images.compare(raw, self.images[point.id], "raw", "raw")
            raw.unlink()
        self.scene.verify()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    """A line; nobody writes to its store."""
    folder = tmp_path_factory.mktemp("line")
    with machine(folder / "d0", HISTORY[0]) as qemu:
        yield Line(Scene(qemu, folder))


@pytest.fixture
def line(finished: Line, tmp_path: Path) -> Line:
    """A line with a store of its own."""
    run_checked("cp", "-a", finished.scene.store, tmp_path / "store")
    made = Line.__new__(Line)
    made.scene, made.images = Scene(finished.scene.qemu, tmp_path), finished.images
    return made


def test_every_point_restores(finished: Line) -> None:
    finished.all_are_exact()
    sizes = [images.virtual_size(image, "raw") for image in finished.images.values()]
    assert sizes == [size for size in HISTORY for _ in range(2)]
    modes = [
        point.disks[DISK].header.mode
        for point in fleece.open_store(finished.scene.store).catalogue().of_guest(GUEST)
    ]
    assert modes == ["full", *["incremental", "rescan"] * 5, "incremental"]


def test_roots_are_those_of_the_images(finished: Line) -> None:
    found = fleece.open_store(finished.scene.store).catalogue()
    for point, image in finished.images.items():
        ran = INTACT.run("root", image, "--json").succeeded()
        assert ran.result["root"] == found.find(point).disks[DISK].root


def test_any_run_of_them_is_merged(line: Line) -> None:
    """Whatever sizes lie between; down to a full that needs nothing else."""
    store = fleece.open_store(line.scene.store)
    points = line.points
    for newest, oldest in ((11, 10), (9, 6), (8, 3), (4, 2), (5, 1)):
        fleece.merge(store, points[newest], points[oldest])
        line.all_are_exact()
    fleece.merge(store, points[7])
    fleece.merge(store, points[11])
    line.all_are_exact()


def test_pruning(line: Line) -> None:
    for last in (9, 6, 4, 3, 1):
        fleece.prune(fleece.open_store(line.scene.store), fleece.KeepRules(last=last))
        line.all_are_exact()
    assert line.scene.points() == 1


def test_serving(finished: Line, tmp_path: Path) -> None:
    store = fleece.open_store(finished.scene.store)
    for point, image in finished.images.items():
        with fleece.serve(store, point) as serving:
            copy = tmp_path / "copy"
            run_checked("nbdcopy", serving.disks[0].uri, copy)
        images.compare(copy, image, "raw", "raw")


def test_as_a_qcow2_chain(finished: Line, tmp_path: Path) -> None:
    """Each image has the size that the disk had; QEMU reads through smaller and larger ones."""
    for number in (3, 7, 11):
        point = finished.points[number]
        target = tmp_path / f"{number}"
        words = ("restore", finished.scene.store, point, DISK, target, "--as-chain")
        INTACT.run(*words, "--json").succeeded()
        made = sorted(target.iterdir())
        assert len(made) == number + 1
        for image, expected in zip(made, finished.images.values(), strict=False):
            images.compare(image, expected, "qcow2", "raw")


def test_in_place_and_into_a_pipe(finished: Line, tmp_path: Path) -> None:
    one, two = finished.points[3], finished.points[9]
    store = fleece.open_store(finished.scene.store)
    target = tmp_path / "target"
    run_checked("cp", finished.images[one], target)
    os.truncate(target, HISTORY[4])
    fleece.restore(store, two, DISK, str(target), options=fleece.RestoreOptions(in_place=True))
    images.compare(target, finished.images[two], "raw", "raw")
    piped = tmp_path / "piped"
    with piped.open("wb") as file:
        words = ("-m", "fleece", "restore", finished.scene.store, two, DISK, "-")
        subprocess.run([sys.executable, *map(str, words)], stdout=file, check=True)
    images.compare(piped, finished.images[two], "raw", "raw")


def test_diff_and_map(finished: Line) -> None:
    """What differs, by the images themselves; the map covers the disk."""
    for one, two in ((1, 2), (3, 8), (8, 3), (4, 6)):
        old, new = finished.points[one], finished.points[two]
        ran = INTACT.run("diff", finished.scene.store, old, new, "--disk", DISK, "--json")
        told = [(row["start"], row["end"]) for row in ran.succeeded().named("differs")]
        assert told == _differing(finished.images[old], finished.images[new])
    for point, image in finished.images.items():
        rows = INTACT.run("map", finished.scene.store, point, DISK, "--json").succeeded()
        extents = rows.named("extent")
        ends = [row["start"] + row["length"] for row in extents]
        assert [row["start"] for row in extents] == [0, *ends[:-1]]
        assert ends[-1] == image.stat().st_size


def _differing(old: Path, new: Path) -> list[tuple[int, int]]:
    one, two = old.read_bytes(), new.read_bytes()
    most = max(len(one), len(two))
    one, two = one.ljust(most, b"\0"), two.ljust(most, b"\0")
    return [
        *fleece.Extents.of(
            (at, min(at + KIB64, most))
            for at in range(0, most, KIB64)
            if one[at : at + KIB64] != two[at : at + KIB64]
        )
    ]


def test_what_was_cut_off_is_checked_all_the_same(line: Line) -> None:
    """A restore reads every byte of its deltas, also those that the disk no longer has."""
    store = fleece.open_store(line.scene.store)
    entry = store.catalogue().find(line.points[4]).disks[DISK]
    full = store.catalogue().line(entry)[-1]
    with fleece.open_delta(full.where) as delta:
        last = delta.rows_within(full.header.size - 1, full.header.size)[0]
    assert entry.header.size < last["offset"]
    behind = int(last["position"]) + 1000  # the RECORD: in its zstd frame
    flip(Path(full.where), behind)
    with pytest.raises(fleece.DeltaError, match="compressed data does not match"):
        line.scene.restore(DISK, line.points[4])


def test_a_partial_restore_brings_nothing_old_back(line: Line) -> None:
    """With each delta missing in turn: what is restored is what the disk was, or told as lost."""
    store = fleece.open_store(line.scene.store)
    newest = line.points[-1]
    expected = line.images[newest].read_bytes()
    for entry in store.catalogue().line(store.catalogue().find(newest).disks[DISK])[1:]:
        path = Path(entry.where)
        path.rename(path.with_suffix(".away"))
        target = line.scene.folder / "partial"
        result = fleece.restore_partial(store, newest, DISK, str(target))
        kept = bytearray(expected)
        for part in result.lost:
            kept[part.offset : part.offset + part.length] = bytes(part.length)
        assert target.read_bytes() == kept
        target.unlink()
        path.with_suffix(".away").rename(path)


def test_through_a_pipe_into_another_store(line: Line) -> None:
    """Each delta is taken in where its parent of another size is."""
    other = fleece.init(line.scene.folder / "other")
    entries = fleece.open_store(line.scene.store).catalogue().entries
    for entry in sorted(entries, key=lambda entry: entry.header.point.sequence):
        with open(entry.where, "rb") as file:
            fleece.import_delta(other, file.read)
    line.scene.store = Path(other.where)
    line.all_are_exact()
    assert line.scene.points() == len(HISTORY) * 2


def test_a_reader_of_the_formats_page_alone(finished: Line, tmp_path: Path) -> None:
    newest = finished.points[-1]
    catalogue = fleece.open_store(finished.scene.store).catalogue()
    paths = [part.where for part in catalogue.line(catalogue.find(newest).disks[DISK])]
    raw = tmp_path / "raw"
    run_checked(sys.executable, INTACT.root / "tools" / "read_delta.py", raw, *paths)
    images.compare(raw, finished.images[newest], "raw", "raw")


def test_an_audit_after_a_resize(tmp_path: Path) -> None:
    with machine(tmp_path / "d0") as qemu:
        scene = Scene(qemu, tmp_path)
        scene.take()
        _resize(scene, 9 * MIB + 512)
        words = ("audit", scene.source, scene.store, "--guest", GUEST, "--scratch", scene.scratch)
        INTACT.run(*words, "--json").failed(4, "nothing to audit", "size changed")
        scene.take()
        ran = INTACT.run(*words, "--json").succeeded()
        assert ran.result["disks"][0]["compared_bytes"] == 9 * MIB + 512
        scene.backup("--audit", "1").succeeded()


def test_a_killed_rescan_of_a_resized_disk_goes_on(tmp_path: Path) -> None:
    with machine(tmp_path / "d0") as qemu:
        scene = Scene(qemu, tmp_path)
        scene.take()
        scene.writer().write(0, os.urandom(3 * MIB))
        _resize(scene, 9 * MIB + 512)
        scene.killed_backup(
            Moment("copying", "fleece.delta.writer", "DeltaWriter.data", "after", 2)
        )
        ran = scene.backup().succeeded()
        assert (ran.result["mode"], ran.result["resumed"]) == ("rescan", True)
        _exact(scene)


# ---- these checks can fail -------------------------------------------------------------------


FAULTS = [
    pytest.param(
        Mutation(
            "nobody looks at the end",
            (("engine/backup/fill_by_pull.py", "if place is None:", "if place is None or place:"),),
        ),
        SIZE,
        (6 * MIB, SIZE),
        id="shrunk and grown back",
    ),
    pytest.param(
        Mutation(
            "the seam counts as held",
            (
                (
                    "engine/backup/fill_by_pull.py",
                    "HeldLeaves(base, head.covers_from) if base is not None and rescan",
                    "HeldLeaves(base) if base is not None and rescan",
                ),
            ),
        ),
        16 * MIB,  # the tree of a larger disk is higher
        (20 * MIB,),
        id="the seam",
    ),
    pytest.param(
        Mutation(
            "the tree keeps what was cut off",
            (
                (
                    "tree.py",
                    "result[number * span >= min(shape.leaves, held.leaves)] = ",
                    "_ = number, ",
                ),
            ),
        ),
        SIZE,
        (5 * MIB,),
        id="the tree",
    ),
]


@pytest.mark.parametrize(("fault", "first", "sizes"), FAULTS)
def test_these_checks_can_fail(
    fault: Mutation, first: int, sizes: tuple[int, ...], tmp_path: Path
) -> None:
    """With a fault in the engine, a restore is not exact or the store not sound."""
    with machine(tmp_path / "d0", first) as qemu:
        scene = Scene(qemu, tmp_path)
        scene.take()
        _resize(scene, *sizes)
        scene.engine = fault.engine(tmp_path)
        scene.backup().succeeded()
        with pytest.raises((AssertionError, fleece.FleeceError)):
            _exact(scene)
