"""A whole life of a store that is not a folder: nothing above a `Backend` knows the difference."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import fleece
from fleece.store.init import make
from fleece.store.marker import Marker
from tests.contract.memory import MemoryBackend
from tests.engine.scene import GUEST, KIB64, MIB, Scene, daemon
from tests.rig import images
from tests.rig.daemon import fuse_usable
from tests.rig.disk import Disk

WISHES = fleece.StoreWishes()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """One qcow2 disk `d0` of 8 MiB, half full."""
    if not fuse_usable():
        pytest.skip("no /dev/fuse here")
    image = images.random_image(tmp_path / "d0.qcow2", 8 * MIB, seed=1)
    with daemon(tmp_path, Disk(image, "d0")) as made:
        yield made


def _store() -> fleece.Store:
    return make(MemoryBackend(), Marker.new(WISHES, None))


def _streamed(store: fleece.Store, entry: fleece.Entry) -> io.BytesIO:
    blob = store.backend.open(entry.key)
    return io.BytesIO(blob.read_at(0, blob.length))


def test_a_life_in_memory(scene: Scene) -> None:
    store, copy = _store(), _store()
    roots: dict[str, str] = {}
    for number in range(4):
        scene.writer().write(number * MIB, os.urandom(KIB64))
        scene.writer().flush()
        with fleece.QemuSource(str(scene.qemu.qmp_socket), scene.scratch) as source:
            result = fleece.backup(source, store, fleece.BackupOptions(guest=GUEST))
        assert result.disks[0].mode == ("full" if number == 0 else "incremental")
        roots[result.point] = result.disks[0].root
    first, second, third, last = roots
    assert [point.id for point in store.catalogue().points] == [*roots]
    assert not fleece.verify_store(store.catalogue(), record=True).errors
    assert fleece.status(store.catalogue()).guests[0].unverified == 0

    for point in store.catalogue().points:
        fleece.import_delta(copy, _streamed(store, point.disk("d0")).read)
    assert [point.id for point in copy.catalogue().points] == [*roots]

    fleece.set_pin(store, second)
    fleece.merge(store, third)
    done = fleece.prune(store, fleece.KeepRules(last=1))
    assert (done.kept, done.removed) == (2, 2)
    kept = store.catalogue()
    assert [point.id for point in kept.points] == [second, last]
    assert {point.id: point.disk("d0").root for point in kept.points} == {
        second: roots[second],
        last: roots[last],
    }
    assert not fleece.verify_store(kept).errors
    assert not fleece.verify_store(copy.catalogue()).errors

    for place, taken in ((store, second), (store, last), (copy, first), (copy, third)):
        target = scene.folder / f"{id(place)}-{taken}"
        fleece.restore(place, taken, "d0", str(target))
        with fleece.open_image(str(target), "raw") as image:
            assert fleece.disk_root(image).hex() == roots[taken]
    assert not [*scene.folder.rglob("*.fleece")]
