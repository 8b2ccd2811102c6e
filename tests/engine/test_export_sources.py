"""Points for programs of others, of the kinds of sources that there are."""

from __future__ import annotations

import json
import os
import socket
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import fleece
from fleece.nbd.uri import socket_of, unix_uri
from tests.engine.libvirt_scene import LibvirtScene, libvirt_scene
from tests.engine.scene import INTACT, KIB64, MIB, ROOT
from tests.rig import images
from tests.rig.libvirt import libvirtd
from tests.rig.process import run, run_checked


@dataclass
class Copy:
    """A raw copy of a disk, kept by the script of the manual.

    Attributes:
        source: of the guest, with one disk.
        path: of the copy.
    """

    source: str
    path: Path

    def run(self) -> None:
        """Bring it up to date."""
        page = (ROOT / "docs" / "howto" / "export.rst").read_text()
        block = page.partition("    #!/bin/bash\n")[2].partition("\n\n")[0]
        script = self.path.with_name("copy-disk")
        script.write_text("#!/bin/bash\n" + textwrap.dedent(block))
        run_checked("bash", script, self.source, self.path)

    @property
    def base(self) -> str:
        """Of the point that it is."""
        return self.path.with_name(f"{self.path.name}.base").read_text().strip()


def _write(image: Path, offset: int, length: int = KIB64) -> None:
    run_checked(
        "qemu-io", "-f", "qcow2", "-c", f"write -P {offset % 251 + 1} {offset} {length}", image
    )


def _bitmaps(image: Path) -> list[str]:
    told = json.loads(run_checked("qemu-img", "info", "--output=json", image))
    return [each["name"] for each in told["format-specific"]["data"].get("bitmaps", [])]


def _dirty(disk: fleece.ExportedDisk) -> list[tuple[int, int]]:
    """What is to be read of a disk: (start, end) in bytes."""
    if disk.context is None:
        return [(0, disk.size)]
    told = json.loads(run_checked("nbdinfo", f"--map={disk.context}", "--json", disk.uri))
    return [(each["offset"], each["offset"] + each["length"]) for each in told if each["type"]]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Of a guest that is off, 2 MiB."""
    return images.random_image(tmp_path / "vda.qcow2", 2 * MIB, seed=1)


def test_the_script_of_the_manual_keeps_a_copy(image: Path, tmp_path: Path) -> None:
    copy = Copy(f"image:{image}", tmp_path / "copy.raw")
    for turn in range(3):
        copy.run()
        images.compare(image, copy.path, "qcow2", "raw")
        assert len(_bitmaps(image)) == 1
        _write(image, (turn + 3) * KIB64)
    # What was not read the last time was not written either: the script took what changed alone.
    flipped = bytearray(copy.path.read_bytes())
    flipped[0] ^= 1
    copy.path.write_bytes(flipped)
    base = copy.base
    copy.run()
    assert copy.path.read_bytes()[0] == flipped[0]
    assert copy.base != base


def test_an_image_is_exported_and_a_dropped_point_leaves_no_bitmap(image: Path) -> None:
    wish = fleece.ExportOptions()
    with (
        fleece.open_source(f"image:{image}") as source,
        fleece.export(source, wish) as held,
    ):
        base = held.commit()
    _write(image, MIB)
    wish = replace(wish, since=base)
    for _ in range(2):  # the first one is dropped
        with (
            fleece.open_source(f"image:{image}") as source,
            fleece.export(source, wish) as held,
        ):
            (disk,) = held.told.disks
            assert (held.told.mode, disk.dirty_bytes) == ("incremental", KIB64)
            listed = json.loads(run_checked("nbdinfo", "--json", disk.uri))
            assert disk.context in listed["exports"][0]["contexts"]
            held.check()
        assert len(_bitmaps(image)) == 1
    run_checked("qemu-img", "resize", image, "3M")
    with (
        fleece.open_source(f"image:{image}") as source,
        fleece.export(source, wish) as held,
    ):
        assert (held.told.mode, held.told.base) == ("full", None)
        assert "another size" in held.told.reason


def test_a_bitmap_that_a_killed_holder_left_costs_no_full(image: Path) -> None:
    with fleece.open_source(f"image:{image}") as source, fleece.export(source) as held:
        base = held.commit()
    talking = INTACT.talk("export", f"image:{image}", "--since", base, "--json")
    talking.wait_event("exported")
    talking.kill()
    assert len(_bitmaps(image)) == 2
    _write(image, MIB)
    wish = fleece.ExportOptions(since=base)
    with fleece.open_source(f"image:{image}") as source, fleece.export(source, wish) as held:
        assert (held.told.mode, held.told.disks[0].dirty_bytes) == ("incremental", KIB64)
        held.commit()
    assert len(_bitmaps(image)) == 1


def test_a_point_of_somebody_elses_is_not_exported(tmp_path: Path) -> None:
    image = images.random_image(tmp_path / "a.raw", MIB, seed=1, fmt="raw")
    uri = unix_uri(str(tmp_path / "s"), "a")
    script = (
        f"nbdkit -f -U {tmp_path}/s file {image} --run "
        f"'{sys.executable} -m fleece export \"{uri}\"'"
    )
    done = run("bash", "-c", script, cwd=ROOT)
    assert done.returncode == 2
    assert "somebody else's to begin and to end" in done.stderr


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[LibvirtScene]:
    """A running guest of libvirt's with a qcow2 disk `vda` of 4 MiB."""
    with libvirtd() as daemon, libvirt_scene(daemon, tmp_path) as made:
        yield made


@pytest.mark.skipif(os.geteuid() != 0, reason="a libvirtd of one's own needs root")
def test_a_guest_of_libvirts_is_exported_on_and_off(scene: LibvirtScene, tmp_path: Path) -> None:
    """And who says nothing does not keep libvirt from ending the job."""
    base: str | None = None
    way = fleece.SourceOptions(connect=scene.uri, scratch=scene.scratch)
    fresh, copy = tmp_path / "fresh.raw", bytearray(4 * MIB)
    for turn, commits in enumerate((True, False, True, True)):
        scene.write()
        if turn == 3:
            scene.switch(on=False)
        wish = fleece.ExportOptions(since=base)
        with (
            fleece.open_source(scene.source, way) as source,
            fleece.export(source, wish) as held,
            socket.socket(socket.AF_UNIX) as stranger,
        ):
            (disk,) = held.told.disks
            stranger.connect(socket_of(disk.uri) or "")
            assert held.told.mode == ("incremental" if turn else "full")
            run_checked("nbdcopy", disk.uri, fresh)
            assert fresh.read_bytes() == scene.held["vda"]
            if commits:
                for start, end in _dirty(disk):
                    copy[start:end] = fresh.read_bytes()[start:end]
                assert copy == scene.held["vda"]
                base = held.commit()
    scene.nothing_left()
