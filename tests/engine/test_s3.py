"""A real QEMU backed up into a bucket of a real object store, by the commands that users type."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import fleece
from fleece.store.s3.client.bucket import Bucket
from tests.engine.scene import GUEST, INTACT, KIB64, MIB, Ran, Scene, daemon
from tests.rig import images
from tests.rig.daemon import fuse_usable
from tests.rig.disk import Disk
from tests.rig.s3 import SeaweedFs


class Cloud(Scene):
    """A scene whose store is in a bucket.

    Attributes:
        bucket: it.
        url: of the store.
    """

    bucket: Bucket
    url: str

    def words(self, *words: object, store: Path | None = None) -> tuple[object, ...]:
        assert store is None
        options = ("--json", "--guest", GUEST, "--scratch", self.scratch)
        return ("backup", self.source, self.url, *options, *words)

    def opened(self, store: Path | None = None) -> fleece.Store:
        return fleece.open_store(self.url)

    def run(self, verb: str, *words: object) -> Ran:
        """A verb on the store, with machine output."""
        return INTACT.run(verb, self.url, *words, "--json")

    def change(self, place: int) -> None:
        """Write 64 KiB of the guest's disk."""
        self.writer().write(place, os.urandom(KIB64))
        self.writer().flush()

    def check(self, point: str = "latest") -> None:
        """The point, restored, is what the disk is now."""
        target = self.folder / f"restored-{point}"
        self.run("restore", point, "d0", target).succeeded()
        self.same_as_live("d0", target)
        target.unlink()

    def objects(self) -> list[str]:
        """Keys of all that is in the bucket."""
        return [item.key for item in self.bucket.list()]


@pytest.fixture
def cloud(tmp_path: Path, seaweedfs: SeaweedFs, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    """One qcow2 disk `d0` of 8 MiB, half full, and a store in a bucket of its own."""
    if not fuse_usable():
        pytest.skip("no /dev/fuse here")
    for name, text in seaweedfs.environment.items():
        monkeypatch.setenv(name, text)
    image = images.random_image(tmp_path / "d0.qcow2", 8 * MIB, seed=1)
    with daemon(tmp_path, Disk(image, "d0")) as made:
        scene = Cloud(made.qemu, tmp_path)
        scene.bucket = seaweedfs.bucket()
        scene.url = f"s3://{scene.bucket.address.bucket}/vms/first"
        scene.run("init").succeeded()
        yield scene


def test_a_life_in_a_bucket(cloud: Cloud) -> None:
    """Full, incrementals, and each verb that needs nothing but the store."""
    points = []
    for number in range(3):
        cloud.change(number * MIB)
        done = cloud.backup().succeeded().result
        assert done["disks"][0]["mode"] == ("full" if number == 0 else "incremental")
        points.append(done["point"])
        cloud.check()
    first, second, third = points
    listed = cloud.run("list").succeeded().named("point")
    assert [row["point"] for row in listed] == points
    assert listed[0]["path"].startswith(f"{cloud.url}/{GUEST}/data/")
    cloud.run("verify").succeeded()
    assert cloud.run("status").succeeded().named("guest")[0]["unverified"] == 0
    cloud.run("pin", first).succeeded()
    pruned = cloud.run("prune", "--keep-last", "1").succeeded().result
    assert (pruned["kept"], pruned["removed"]) == (2, 1)
    cloud.run("unpin", first).succeeded()
    cloud.run("prune", "--keep-last", "1").succeeded()
    assert [row["point"] for row in cloud.run("list").succeeded().named("point")] == [third]
    assert second not in " ".join(key for key in cloud.objects() if "/data/" in key)
    cloud.run("verify").succeeded()
    cloud.check()
    assert cloud.run("status").succeeded().named("foreign") == []
