"""The steps of a backup, each alone: what it tells, and that it changes nothing before its turn."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import fleece
from fleece import events
from fleece.cancel import CancelToken
from fleece.delta.sink import Sink
from fleece.engine.backup.decide import Lineage
from fleece.engine.backup.destination import store_point
from fleece.engine.backup.fill_by_pull import fill_by_pull
from fleece.engine.backup.identity import bound
from fleece.engine.backup.plan import plan_point
from fleece.engine.backup.resume import resume
from fleece.engine.backup.take import take
from fleece.engine.backup.task import Task
from fleece.source.base import Source
from fleece.store.init import make
from fleece.store.marker import Marker
from tests.contract.memory import MemoryBackend
from tests.engine.scene import GUEST, MIB
from tests.rig import images
from tests.rig.daemon import StorageDaemon
from tests.rig.disk import Disk


@pytest.fixture
def source(tmp_path: Path) -> Iterator[fleece.QemuSource]:
    """A guest of two disks."""
    disks = [
        Disk(images.random_image(tmp_path / f"{name}.qcow2", 4 * MIB, seed=1), name)
        for name in ("d0", "d1")
    ]
    with (
        tempfile.TemporaryDirectory(prefix="fleece-") as scratch,  # short: a socket lies in it
        StorageDaemon(disks) as daemon,
        fleece.QemuSource(str(daemon.qmp_socket), Path(scratch)) as made,
    ):
        yield made


def _task(
    source: Source, store: fleece.Store, heard: list[events.Event], output: Sink | None = None
) -> Task:
    catalogue = store.catalogue()
    chain_id = store.chain_of(GUEST, catalogue)
    bond = bound(source, catalogue, GUEST, chain_id)
    lineage = Lineage(source, catalogue, GUEST, chain_id)
    options = fleece.BackupOptions(disks=() if output is None else ("d0", "d1"))
    return Task(store, lineage, bond, options, heard.append, CancelToken(), output)


def _store() -> fleece.Store:
    return make(MemoryBackend(), Marker.new(fleece.StoreWishes(), None))


def _bitmaps(source: fleece.QemuSource) -> int:
    return len(source.bitmaps())


def test_a_plan_tells_what_will_be_and_changes_nothing(source: fleece.QemuSource) -> None:
    heard: list[events.Event] = []
    store = _store()
    plan = plan_point(_task(source, store, heard))
    assert [made.disk.name for made in plan.decisions] == ["d0", "d1"]
    assert (plan.ref.sequence, plan.transport, plan.gone) == (1, fleece.Transport.PULL, ())
    told = [event for event in heard if isinstance(event, events.DiskPlanned)]
    assert [(each.disk, each.mode) for each in told] == [("d0", "full"), ("d1", "full")]
    assert not store.catalogue().points
    assert _bitmaps(source) == 0


def test_a_stream_of_two_disks_is_refused_by_the_plan(source: fleece.QemuSource) -> None:
    with pytest.raises(fleece.UsageError, match="takes one disk, and these are 2: d0, d1"):
        plan_point(_task(source, _store(), [], io.BytesIO()))
    assert _bitmaps(source) == 0


def test_a_taken_point_lives_until_its_stack_ends(source: fleece.QemuSource) -> None:
    heard: list[events.Event] = []
    store = _store()
    task = _task(source, store, heard)
    with contextlib.ExitStack() as stack:
        assert resume(task, stack) is None
        taken = take(task, plan_point(task), stack)
        assert [export.disk for export in taken.living.exports] == ["d0", "d1"]
        assert isinstance(heard[-1], events.PointTaken)
        with store.locked(GUEST):
            results = store_point(task, taken, fill_by_pull)
        # It is in the store, and nothing was let go of yet.
        taken.living.check()
    assert [point.id for point in store.catalogue().points] == [taken.ref.id]
    assert {done.disk: done.root for done in results} == {
        name: entry.root for name, entry in store.catalogue().points[0].disks.items()
    }
    with pytest.raises(fleece.FleeceError):
        taken.living.check()


def test_a_point_that_cannot_be_filled_leaves_nothing_in_the_store(
    source: fleece.QemuSource,
) -> None:
    store = _store()
    task = _task(source, store, [])

    def fails(filling: object) -> list[fleece.DiskResult]:
        raise fleece.PointError("given up")

    with contextlib.ExitStack() as stack:
        taken = take(task, plan_point(task), stack)
        with store.locked(GUEST), pytest.raises(fleece.PointError, match="given up"):
            store_point(task, taken, fails)
    assert not store.catalogue().points
    assert store.remove_partial(GUEST) == []
