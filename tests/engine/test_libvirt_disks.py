"""Disks of libvirt's guests that are no files, and devices that are no disks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.libvirt_scene import MIB, LibvirtScene, libvirt_scene
from tests.rig import images
from tests.rig.libvirt import GuestDisk, libvirtd, until
from tests.rig.process import Child

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a libvirtd of one's own needs root")


class _NetworkDisk(GuestDisk):
    """A disk that an NBD server has; its path is what that serves."""

    @property
    def socket(self) -> Path:
        """Where the server listens."""
        return self.path.with_suffix(".sock")

    def xml(self) -> str:
        """As libvirt takes it."""
        return (
            f"<disk type='network' device='disk'><driver name='qemu' type='{self.fmt}'/>"
            f"<source protocol='nbd'><host transport='unix' socket='{self.socket}'/></source>"
            f"<target dev='{self.target}' bus='virtio'/></disk>"
        )


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[LibvirtScene]:
    """A running guest with a file `vda`, and two disks of NBD servers: qcow2 and raw."""
    first = GuestDisk("vda", images.random_image(tmp_path / "a.qcow2", 2 * MIB, seed=1))
    second = _NetworkDisk("vdb", images.random_image(tmp_path / "b.qcow2", 2 * MIB, seed=2))
    third = _NetworkDisk(
        "vdc", images.random_image(tmp_path / "c.raw", 2 * MIB, seed=3, fmt="raw"), "raw"
    )
    words = ("qemu-nbd", "--persistent", "--shared=0", "--format=raw")
    servers = [
        Child([*words, f"--socket={disk.socket}", str(disk.path)], tmp_path / f"{disk.target}.log")
        for disk in (second, third)
    ]
    until(lambda: second.socket.exists() and third.socket.exists(), "the servers")
    try:
        with libvirtd() as daemon, libvirt_scene(daemon, tmp_path, first, second, third) as made:
            yield made
    finally:
        for server in servers:
            server.kill()


def test_network_disks_are_backed_up_while_the_guest_runs(scene: LibvirtScene) -> None:
    """As others are: qcow2 keeps bitmaps wherever it is. Their images are not seen from here."""
    scene.take("full")
    scene.check_exact()
    for target in scene.held:
        scene.write(target)
    found = {disk["disk"]: disk["mode"] for disk in scene.take("incremental").result["disks"]}
    assert found == {"vda": "incremental", "vdb": "incremental", "vdc": "rescan"}
    scene.check_exact()
    scene.nothing_left()
    scene.switch(on=False)
    scene.backup().failed(4, "disk vdb cannot be backed up while the guest is off", "network")
    scene.take("incremental", "--disk", "vda")
