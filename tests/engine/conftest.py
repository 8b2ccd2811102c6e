"""Fixtures of the engine's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.cloud import Cloud, clouded
from tests.engine.scene import Scene, daemon
from tests.rig import images
from tests.rig.daemon import fuse_usable
from tests.rig.disk import Disk
from tests.rig.initramfs import GuestFiles, guest_files
from tests.rig.s3 import SeaweedFs

MIB = images.MIB


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test here writes to its disks through FUSE, except those that boot a machine."""
    if not fuse_usable():
        here = Path(__file__).parent
        for item in items:
            if here in item.path.parents and item.path.name != "test_guest.py":
                item.add_marker(pytest.mark.skip(reason="no /dev/fuse here"))


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """One qcow2 disk `d0` of 8 MiB, half full."""
    image = images.random_image(tmp_path / "d0.qcow2", 8 * MIB, seed=1)
    with daemon(tmp_path, Disk(image, "d0")) as made:
        yield made


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Scene]:
    """A qcow2 disk `d0` of 8 MiB and a raw disk `d1` of 4 MiB and one sector."""
    first = images.random_image(tmp_path / "d0.qcow2", 8 * MIB, seed=1)
    second = images.random_image(tmp_path / "d1.raw", 4 * MIB + 512, seed=2, fmt="raw")
    with daemon(tmp_path, Disk(first, "d0"), Disk(second, "d1", "raw")) as made:
        yield made


@pytest.fixture
def server(seaweedfs: SeaweedFs, monkeypatch: pytest.MonkeyPatch) -> SeaweedFs:
    """The object store, which the environment names."""
    for name, text in seaweedfs.environment.items():
        monkeypatch.setenv(name, text)
    return seaweedfs


@pytest.fixture
def cloud(tmp_path: Path, server: SeaweedFs) -> Iterator[Cloud]:
    """One qcow2 disk `d0` of 8 MiB, half full, and a store in a bucket of its own."""
    image = images.random_image(tmp_path / "d0.qcow2", 8 * MIB, seed=1)
    with clouded(server, tmp_path, Disk(image, "d0")) as made:
        yield made


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> GuestFiles:
    """What a guest boots from."""
    return guest_files(tmp_path_factory.mktemp("guest"))
