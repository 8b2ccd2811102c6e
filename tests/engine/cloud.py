"""A QEMU with disks, and a store in a bucket of a real object store."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import fleece
from fleece.store.s3.client.bucket import Bucket
from tests.engine.scene import GUEST, INTACT, KIB64, MIB, Engine, Ran, Scene, daemon
from tests.rig import images
from tests.rig.ceph import Ceph
from tests.rig.disk import Disk
from tests.rig.s3 import SeaweedFs

_PREFIX = "vms/first"


class Cloud(Scene):
    """A scene whose store is in a bucket.

    Attributes:
        bucket: it.
    """

    bucket: Bucket

    @property
    def address(self) -> str:
        return f"s3://{self.bucket.address.bucket}/{_PREFIX}"

    def words(self, *words: object, store: Path | None = None) -> tuple[object, ...]:
        assert store is None
        options = ("--json", "--guest", GUEST, "--scratch", self.scratch)
        return ("backup", self.source, self.address, *options, *words)

    def opened(self, store: Path | None = None) -> fleece.Store:
        return fleece.open_store(self.address)

    def run(self, verb: str, *words: object) -> Ran:
        """A verb on the store, with machine output."""
        return INTACT.run(verb, self.address, *words, "--json")

    def change(self, place: int, length: int = KIB64, disk: str = "d0") -> None:
        """Write some of a disk of the guest's."""
        self.writer(disk).write(place, os.urandom(length))
        self.writer(disk).flush()

    def back_up_here(self) -> None:
        """Back up by the library, in this process: a tenth of the time."""
        options = fleece.SourceOptions(scratch=self.scratch)
        with fleece.open_source(self.source, options) as source:
            fleece.backup(source, self.opened(), fleece.BackupOptions(guest=GUEST))

    def objects(self, kind: str = "/data/") -> list[str]:
        """Keys of what is in the store."""
        return [item.key for item in self.bucket.list(f"{_PREFIX}/") if kind in item.key]

    def damage(self, where: str, position: int, mask: int) -> None:
        key = where.removeprefix(f"s3://{self.bucket.address.bucket}/")
        data = bytearray(self.bucket.get(key).data)
        data[position] ^= mask
        self.bucket.put(key, data)

    def begun(self) -> int:
        return len([*self.bucket.uploads(f"{_PREFIX}/")])

    def nothing_left(self, *, foreign_server: bool = False) -> None:
        super().nothing_left(foreign_server=foreign_server)
        assert self.begun() == 0
        assert len(self.objects()) == len(self.opened().backend.listing().deltas)

    def verify(self) -> None:
        assert fleece.verify_store(self.opened().catalogue()).errors == ()


@contextmanager
def clouded(
    server: SeaweedFs | Ceph, folder: Path, *disks: Disk, engine: Engine = INTACT
) -> Iterator[Cloud]:
    """A scene on a storage daemon with these disks, and a new store; the environment tells it."""
    with daemon(folder, *disks, engine=engine) as made:
        cloud = Cloud(made.qemu, folder, engine)
        cloud.bucket = server.bucket()
        fleece.init(cloud.address)
        yield cloud


@contextmanager
def lived(server: SeaweedFs | Ceph, folder: Path) -> Iterator[Cloud]:
    """A disk whose fulls are sent in three parts, and a point of it: it lives through all tests."""
    image = images.random_image(folder / "d0.qcow2", 20 * MIB, seed=1, fill=1.0)
    with pytest.MonkeyPatch.context() as patch:
        for name, text in server.environment.items():
            patch.setenv(name, text)
        with clouded(server, folder, Disk(image, "d0")) as made:
            made.backup().succeeded()
            yield made


@contextmanager
def object_store() -> Iterator[SeaweedFs]:
    """A server of one's own, which the environment tells: of it, and of no other cache."""
    with tempfile.TemporaryDirectory(prefix="seaweedfs-") as name:
        server = SeaweedFs(Path(name))
        os.environ.update(server.environment | {"XDG_CACHE_HOME": name})
        try:
            yield server
        finally:
            server.kill()
