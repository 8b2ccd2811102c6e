"""Disks of a guest that exchange their names, places or images: each is read as a whole again.

A segment lies in an image and goes where that goes. The disks are clones of one template, so that
no leaf at a disk's end tells them apart; what was written later differs.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

import fleece
from fleece.events import Event
from tests.engine.scene import KIB64, MIB, Json, MachineScene, Moment, Ran, reasons
from tests.rig import images
from tests.rig.disk import Disk
from tests.rig.machine import Machine
from tests.rig.process import run

SIZE = 8 * MIB
DISKS = ("d0", "d1")
WAYS = {
    "pull": (),
    "push": ("--transport", "push"),
    "filter": ("--fleecing", "filter"),
}
EVERY_WAY = pytest.mark.parametrize("way", WAYS)

Exchange = Callable[["Exchanged"], None]


class Shuffled(Machine):
    """A machine in which each disk's device can be another's.

    Attributes:
        order: the nodes of the devices `vd-d0`, `vd-d1`, ...
        named: the devices have ids; else they are named after their places.
    """

    def __init__(self, disks: Sequence[Disk]) -> None:
        super().__init__(disks)
        self.order = [disk.node for disk in disks]
        self.named = True

    def _disk_words(self, disk: Disk) -> list[str]:
        words = super()._disk_words(disk)
        if not self.named:
            return self._placed(disk)
        device = f"vd-{DISKS[self.order.index(disk.node)]}"
        return [*words[:-1], words[-1].replace(f"id={disk.device}", f"id={device}")]

    def _placed(self, disk: Disk) -> list[str]:
        at = [*self.disks].index(disk.node)
        path = self.disks[self.order[at]].path
        return ["-drive", f"if=virtio,format=qcow2,discard=unmap,file={path}"]


class Exchanged(MachineScene):
    """A point of two clones of one template, each written to before and after."""

    qemu: Shuffled

    def take_apart(self) -> None:
        """What each disk has before and after the point: never the same on both."""
        for number, image in enumerate(self.images()):
            _write(image, (1 + number) * MIB, 3 * MIB)
        self.qemu.start()
        self.backup().succeeded()
        self.qemu.quit()
        for number, image in enumerate(self.images()):
            _write(image, (5 + number) * MIB)

    def images(self) -> list[Path]:
        """The images of the disks, in order."""
        return [disk.path for disk in self.qemu.disks.values()]

    def rescanned(self, *disks: str, why: str = "exchanged") -> Ran:
        """Back up: these disks are read as a whole, and say why; all are exact."""
        ran = self.backup().succeeded()
        planned = {event["disk"]: event for event in ran.named("plan")}
        assert {name for name, event in planned.items() if event["mode"] == "rescan"} == {*disks}
        for name in disks:
            assert why in planned[name]["reason"]
        self.exact(planned)
        return ran

    def exact(self, names: Sequence[str] | dict[str, Json]) -> None:
        """The newest point is what each device's disk holds, as qemu-img sees it."""
        paths = {
            f"{item['qdev']}/{item['device']}": item["inserted"]["image"]["filename"]
            for item in self.qemu.control.command("query-block")
            if item.get("inserted")
        }
        for name in names:
            (path,) = [path for device, path in paths.items() if name in device.split("/")]
            target = self.folder / "restored"
            store = fleece.open_store(self.store)
            fleece.restore(store, "latest", name, str(target))
            done = run("qemu-img", "compare", "-U", "-f", "qcow2", "-F", "raw", path, target)
            assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
            target.unlink()
        self.verify()
        self.nothing_left()


def _write(image: Path, *places: int) -> None:
    """Write a leaf of something at each of some places, while no QEMU has the image."""
    for place in places:
        pattern = os.urandom(1)[0]
        command = f"write -q -P {pattern} {place} {KIB64}"
        assert run("qemu-io", "-f", "qcow2", "-c", command, image).returncode == 0


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Exchanged]:
    """Two clones; the machine is off."""
    template = images.random_image(tmp_path / "template.qcow2", SIZE, seed=1, fill=1.0)
    disks = [Disk(tmp_path / f"{node}.qcow2", node) for node in DISKS]
    for disk in disks:
        shutil.copy(template, disk.path)
    with Shuffled(disks) as qemu:
        qemu.quit()
        made = Exchanged(qemu, tmp_path)
        yield made
        if qemu.alive:
            qemu.quit()


def _images(scene: Exchanged) -> None:
    one, other = scene.images()
    kept = one.with_name("kept")
    one.rename(kept)
    other.rename(one)
    kept.rename(other)


def _names(scene: Exchanged) -> None:
    scene.qemu.order.reverse()


EXCHANGES = pytest.mark.parametrize("exchange", [_images, _names], ids=["images", "names"])


@EVERY_WAY
@EXCHANGES
def test_disks_that_were_exchanged_are_read_as_a_whole(
    exchange: Exchange, way: str, scene: Exchanged
) -> None:
    scene.way = WAYS[way]
    scene.take_apart()
    exchange(scene)
    scene.qemu.start()
    ran = scene.rescanned("vd-d0", "vd-d1")
    told = {event["disk"]: event["reason"] for event in ran.named("plan")}
    assert "those of disk vd-d1" in told["vd-d0"]
    assert "those of disk vd-d0" in told["vd-d1"]
    scene.qemu.quit()
    _write(scene.images()[0], 7 * MIB)
    scene.qemu.start()
    ran = scene.backup("--mode", "incremental").succeeded()
    assert sorted(disk["dirty_bytes"] for disk in ran.result["disks"]) == [0, KIB64]
    scene.exact(["vd-d0", "vd-d1"])


@EVERY_WAY
def test_disks_without_names_that_exchange_their_places(way: str, scene: Exchanged) -> None:
    """QEMU calls them after where they are."""
    scene.way = WAYS[way]
    scene.qemu.named = False
    scene.take_apart()
    _names(scene)
    scene.qemu.start()
    scene.rescanned("virtio0", "virtio1")


@EVERY_WAY
def test_an_image_that_became_a_copy_of_another_disks(way: str, scene: Exchanged) -> None:
    """The other one goes on as ever."""
    scene.way = WAYS[way]
    scene.take_apart()
    one, other = scene.images()
    shutil.copy(one, other)
    _write(other, 7 * MIB)
    scene.qemu.start()
    scene.rescanned("vd-d1")


def test_disks_that_are_exchanged_and_back_again(scene: Exchanged) -> None:
    """With a point in between, and with none."""
    scene.take_apart()
    _images(scene)
    scene.qemu.start()
    scene.rescanned("vd-d0", "vd-d1")
    scene.qemu.quit()
    _write(scene.images()[0], 4 * MIB)
    _images(scene)
    scene.qemu.start()
    scene.rescanned("vd-d0", "vd-d1")
    scene.qemu.quit()
    _images(scene)
    _write(scene.images()[0], 2 * MIB)
    _images(scene)
    scene.qemu.start()
    scene.rescanned()


def test_a_differential_and_an_incremental_that_were_asked_for_are_refused(
    scene: Exchanged,
) -> None:
    scene.take_apart()
    _images(scene)
    scene.qemu.start()
    for mode in ("incremental", "differential"):
        scene.backup("--mode", mode).failed(4, "vd-d0", "exchanged", "--mode auto")
    scene.nothing_left()
    scene.rescanned("vd-d0", "vd-d1")


def test_an_audit_has_nothing_to_compare(scene: Exchanged) -> None:
    scene.take_apart()
    _images(scene)
    scene.qemu.start()
    words = ("--guest", "g", "--scratch", scene.scratch, "--json")
    scene.engine.run("audit", scene.source, scene.store, *words).failed(4, "exchanged")


def test_a_stream_is_a_rescan(scene: Exchanged, tmp_path: Path) -> None:
    scene.take_apart()
    _images(scene)
    scene.qemu.start()
    heard: list[Event] = []
    piped = tmp_path / "piped.fleece"
    options = fleece.BackupOptions(guest="g", disks=("vd-d0",))
    store = fleece.open_store(scene.store)
    with (
        fleece.QemuSource(str(scene.qemu.qmp_socket), scene.scratch) as source,
        piped.open("wb", buffering=0) as output,
    ):
        fleece.backup(source, store, options, heard.append, output=output)
    assert reasons(heard)["vd-d0"][0] == "rescan"
    with piped.open("rb") as read:
        fleece.import_delta(store, read.read)
    scene.exact(["vd-d0"])


def test_a_failed_backup_between_leaves_segments_that_count_for_nobody_else(
    scene: Exchanged,
) -> None:
    """Its new segments are the other disks' when these are exchanged back."""
    scene.take_apart()
    _images(scene)
    scene.qemu.start()
    died = Moment("in the copy", "fleece.nbd.connection", "Connection.read")
    scene.killed_backup(died)
    scene.qemu.quit()
    _write(scene.images()[0], 4 * MIB)
    _images(scene)
    scene.qemu.start()
    scene.rescanned("vd-d0", "vd-d1")


def test_bitmaps_of_an_early_fleece_are_not_believed_and_can_be_dropped(scene: Exchanged) -> None:
    """They do not say which disk's they are."""
    scene.take_apart()
    scene.qemu.start()
    for node in DISKS:
        (name,) = scene.segments(node)
        early = name.rpartition("-")[0]
        for command in ("add", "merge", "remove"):
            words: Json = {"node": node, "name": name if command == "remove" else early}
            if command == "add":
                words["persistent"] = True
            if command == "merge":
                words = {"node": node, "target": early, "bitmaps": [name]}
            scene.qemu.control.command(f"block-dirty-bitmap-{command}", words)
    scene.rescanned("vd-d0", "vd-d1", why="of an early fleece")
    for node in DISKS:
        assert len(scene.segments(node)) == 1
    chain = early.split("-")[1]
    for name in scene.segments("d0"):
        early = name.rpartition("-")[0]
        add = {"node": "d0", "name": early}
        scene.qemu.control.command("block-dirty-bitmap-add", add)
    ran = scene.engine.run("bitmap", scene.source, "--drop", chain, "--json").succeeded()
    assert ran.result["dropped"] == 3
    assert scene.segments("d0") == scene.segments("d1") == []


def test_two_disks_of_one_name_are_refused(scene: Exchanged) -> None:
    """One is called after its device, the other, which has no id, after its node."""
    words = scene.qemu._disk_words

    def odd(disk: Disk) -> list[str]:
        *first, last = words(disk)
        return [*first, last.replace("id=vd-d0", "id=d1").replace(",id=vd-d1", "")]

    scene.qemu._disk_words = odd  # type: ignore[method-assign]
    scene.qemu.start()
    for choice in ((), ("--disk", "d1")):
        scene.backup(*choice).failed(4, "2 disks are called d1 (nodes d0, d1)", "id=")
    scene.nothing_left()


def test_a_library_user_who_names_another_disks_bitmap_is_refused(scene: Exchanged) -> None:
    scene.take_apart()
    _images(scene)
    scene.qemu.start()
    with fleece.QemuSource(str(scene.qemu.qmp_socket), scene.scratch) as source:
        (disk,) = source.inventory().choose(("vd-d0",))
        wanted = fleece.Wanted(disk, fleece.Since(tuple(bitmap.name for bitmap in disk.bitmaps)))
        with pytest.raises(fleece.PointError, match="not begun for disk vd-d0"):
            source.take(
                fleece.Request(disk.bitmaps[0].name.split("-")[1], 2, "0123456789", [wanted])
            )
