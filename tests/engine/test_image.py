"""Images at rest: full, incremental, rescan; on and off by turns; guests that are on."""

from __future__ import annotations

import itertools
import json
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import fleece
from tests.engine.scene import GUEST, INTACT, KIB64, MIB, Json, Ran, Scene
from tests.rig import images
from tests.rig.daemon import StorageDaemon
from tests.rig.disk import Disk
from tests.rig.process import run_checked


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
        options = ("--guest", GUEST, "--scratch", self.scratch, "--json")
        return ("backup", self.source, store or self.store, *options, *words)

    def backup(self, *words: object, store: Path | None = None) -> Ran:
        """Back up by the command line."""
        return INTACT.run(*self.words(*words, store=store))

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
        opened = fleece.open_store(store or self.store)
        point = opened.catalogue().points[-1].id
        for disk in self.disks:
            target = self.folder / f"restored-{next(self.numbers)}"
            fleece.restore(opened, point, disk.node, str(target))
            images.compare(disk.path, target, disk.fmt, "raw")
            target.unlink()

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
