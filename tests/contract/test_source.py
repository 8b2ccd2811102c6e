"""Every source that there is keeps the promises of `fleece.source.base`."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fleece
from fleece.source.far.line import Place
from fleece.source.far.source import FarSource
from fleece.testing.source import SourceContract
from tests.contract.nbd_source import NbdSource
from tests.engine.scene import MachineScene, Scene, wait_until
from tests.rig import images
from tests.rig.daemon import StorageDaemon, fuse_usable
from tests.rig.disk import Disk
from tests.rig.libvirt import GuestDisk, Libvirtd, libvirtd
from tests.rig.machine import Machine
from tests.rig.process import run, run_checked

MIB = images.MIB


class _Guest:
    """A guest whose disks are known because all that is written to them goes through here."""

    def __init__(
        self,
        opener: Callable[[int], fleece.Source],
        writer: Callable[[str, int, bytes], None],
        disks: dict[str, Path],
        *,
        runs: bool = True,
    ) -> None:
        self.runs = runs
        self._opener = opener
        self._writer = writer
        self._shown = {name: bytearray(path.read_bytes()) for name, path in disks.items()}

    def open(self) -> fleece.Source:
        """A source of it."""
        return self._opener(0)

    def open_beside(self) -> fleece.Source:
        """Another one, by another monitor."""
        return self._opener(1)

    def write(self, disk: str, offset: int, data: bytes) -> None:
        """Write, and note it."""
        self._writer(disk, offset, data)
        self._shown[disk][offset : offset + len(data)] = data

    def content(self, disk: str) -> bytes:
        """All of a disk."""
        return bytes(self._shown[disk])


def _images(folder: Path) -> tuple[Disk, Disk]:
    first = images.random_image(folder / "d0.qcow2", 2 * MIB, seed=1)
    second = images.random_image(folder / "d1.raw", MIB + 512, seed=2, fmt="raw")
    return Disk(first, "d0"), Disk(second, "d1", "raw")


def _raw(disk: Disk, folder: Path) -> Path:
    target = folder / f"{disk.node}.shown"
    run_checked("qemu-img", "convert", "-O", "raw", "-f", disk.fmt, disk.path, target)
    return target


def _of(scene: Scene, shown: dict[str, Path], prefix: str, way: fleece.Fleecing) -> _Guest:
    def write(disk: str, offset: int, data: bytes) -> None:
        scene.writer(disk.removeprefix(prefix)).write(offset, data)

    def opened(number: int) -> fleece.Source:
        options = fleece.SourceOptions(scene.scratch, fleecing=way)
        return fleece.open_source(f"qmp:{scene.qemu.qmp_sockets[number]}", options)

    return _Guest(opened, write, shown)


@pytest.mark.skipif(not fuse_usable(), reason="no /dev/fuse here")
class TestStorageDaemon(SourceContract):
    """qemu-storage-daemon, points held by jobs."""

    @pytest.fixture
    def guest(self, tmp_path: Path) -> Iterator[_Guest]:
        disks = _images(tmp_path)
        shown = {disk.node: _raw(disk, tmp_path) for disk in disks}
        with StorageDaemon(disks, monitors=2) as qemu:
            scene = Scene(qemu, tmp_path)
            yield _of(scene, shown, "", fleece.Fleecing.CLASSIC)
            scene.nothing_left()


class TestMachine(SourceContract):
    """A machine, points held by filters."""

    @pytest.fixture
    def guest(self, tmp_path: Path) -> Iterator[_Guest]:
        disks = _images(tmp_path)
        shown = {disk.device: _raw(disk, tmp_path) for disk in disks}
        with Machine(disks, monitors=2) as qemu:
            qemu.control.command("cont")
            scene = MachineScene(qemu, tmp_path)
            yield _of(scene, shown, "vd-", fleece.Fleecing.FILTER)
            scene.nothing_left()


@pytest.fixture(scope="module")
def daemon() -> Iterator[Libvirtd]:
    """A libvirtd for all of its guests."""
    with libvirtd() as made:
        yield made


@pytest.mark.skipif(os.geteuid() != 0, reason="a libvirtd of one's own needs root")
class TestLibvirt(SourceContract):
    """A guest of libvirt's, which has one backup job at most."""

    one_at_a_time = True

    @pytest.fixture
    def guest(self, tmp_path: Path, daemon: Libvirtd) -> Iterator[_Guest]:
        disks = _images(tmp_path)[:1]
        shown = {"vda": _raw(disks[0], tmp_path)}
        made = daemon.define("contract", [GuestDisk("vda", disks[0].path)])
        made.domain.create()
        with tempfile.TemporaryDirectory(prefix="rig-") as scratch:
            options = fleece.SourceOptions(Path(scratch), connect=daemon.uri)
            place = "libvirt:contract"
            yield _Guest(lambda _: fleece.open_source(place, options), made.write, shown)
            assert made.job() is None
            assert not os.listdir(scratch)
        made.remove()


class TestImages(SourceContract):
    """Images at rest: qcow2, which keeps bitmaps, and raw, which is always read as a whole."""

    @pytest.fixture
    def guest(self, tmp_path: Path) -> Iterator[_Guest]:
        first, second = _images(tmp_path)
        shown = {disk.node: _raw(disk, tmp_path) for disk in (first, second)}
        with tempfile.TemporaryDirectory(prefix="rig-") as scratch:

            def write(disk: str, offset: int, data: bytes) -> None:
                own = first if disk == "d0" else second
                piece = tmp_path / "piece"
                piece.write_bytes(data)
                words = f"write -s {piece} {offset} {len(data)}"
                run_checked("qemu-io", "-f", own.fmt, "-c", words, own.path)

            def opened(_: int) -> fleece.Source:
                options = fleece.SourceOptions(Path(scratch))
                text = f"image:d0={first.path},d1=raw:{second.path}"
                return fleece.open_source(text, options)

            yield _Guest(opened, write, shown, runs=False)
            assert not [*Path(scratch).iterdir()]


_SSH = """#!/bin/sh
# What stands in for ssh: a socket that is led to is a link, and the command runs here.
for word; do
  case "$before" in
    -L) ln -s "${{word#*:}}" "${{word%%:*}}"; led=yes ;;
    -O) [ "$word" = forward ] || exit 0 ;;
  esac
  before=$word
done
[ "$led" ] && exit
eval "set -- $before"
shift
cd {root} && exec {python} -m fleece "$@"
"""


class TestFar(SourceContract):
    """Images of another host, at rest."""

    @pytest.fixture
    def guest(self, tmp_path: Path) -> Iterator[_Guest]:
        disk = _images(tmp_path)[0]
        ssh = tmp_path / "ssh"
        ssh.write_text(_SSH.format(root=Path(__file__).parents[2], python=sys.executable))
        ssh.chmod(0o755)
        with tempfile.TemporaryDirectory(prefix="rig-") as scratch:
            source = f"image:d0={disk.path}"
            words = shlex.join(("fleece", "serve-source", source, "--scratch", scratch))

            def write(_: str, offset: int, data: bytes) -> None:
                piece = tmp_path / "piece"
                piece.write_bytes(data)
                order = f"write -s {piece} {offset} {len(data)}"
                run_checked("qemu-io", "-f", disk.fmt, "-c", order, disk.path)

            def opened(_: int) -> fleece.Source:
                return FarSource(source, Place("there", (str(ssh),), "there", words))

            yield _Guest(opened, write, {"d0": _raw(disk, tmp_path)}, runs=False)
            assert not [*Path(scratch).iterdir()]


class TestProvider(SourceContract):
    """Images at rest, by a provider."""

    @pytest.fixture
    def guest(self, tmp_path: Path) -> _Guest:
        paths = {name: tmp_path / f"{name}.qcow2" for name in ("d0", "d1")}
        for seed, path in enumerate(paths.values()):
            images.random_image(path, 2 * MIB - 512 * seed, seed=seed)
        shown = {name: _raw(Disk(path, name), tmp_path) for name, path in paths.items()}

        def write(disk: str, offset: int, data: bytes) -> None:
            piece = tmp_path / "piece"
            piece.write_bytes(data)
            words = f"write -s {piece} {offset} {len(data)}"
            run_checked("qemu-io", "-f", "qcow2", "-c", words, paths[disk])

        words = shlex.join(f"{name}={path}" for name, path in paths.items())
        text = f"provider:images {words}"
        return _Guest(lambda _: fleece.open_source(text), write, shown, runs=False)


class TestNbd(SourceContract):
    """What shows that the promises are about no QEMU."""

    @pytest.fixture
    def guest(self, tmp_path: Path) -> Iterator[_Guest]:
        with _served(tmp_path) as (uri, write, shown):
            told = fleece.Machine([fleece.Part(fleece.PartKind.NVRAM, b"variables")])
            made = NbdSource("plain", {"d0": uri}, told)
            yield _Guest(lambda _: made, write, shown, runs=False)


class TestExport(SourceContract):
    """An export that is named by its URI."""

    @pytest.fixture
    def guest(self, tmp_path: Path) -> Iterator[_Guest]:
        with _served(tmp_path) as (uri, write, shown):
            options = fleece.SourceOptions(places=(("d0", uri),))
            yield _Guest(lambda _: fleece.open_source(uri, options), write, shown, runs=False)


@contextlib.contextmanager
def _served(
    folder: Path,
) -> Iterator[tuple[str, Callable[[str, int, bytes], None], dict[str, Path]]]:
    """A raw disk behind nbdkit: its URI, who writes to it, and what it shows."""
    image = images.random_image(folder / "d0.raw", MIB + 512, seed=1, fmt="raw")
    shown = shutil.copy(image, folder / "shown")

    def write(disk: str, offset: int, data: bytes) -> None:
        with image.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    with tempfile.TemporaryDirectory(prefix="rig-") as place:
        socket = Path(place, "nbd.sock")
        command = ["nbdkit", "-f", "-r", "--exit-with-parent", "-U", str(socket), "file"]
        with subprocess.Popen([*command, str(image)]) as server:
            try:
                uri = f"nbd+unix:///?socket={socket}"
                wait_until(lambda: run("nbdinfo", "--size", uri).returncode == 0, "nbdkit")
                yield uri, write, {"d0": Path(shown)}
            finally:
                server.terminate()
