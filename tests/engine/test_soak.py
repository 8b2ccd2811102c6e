"""A short piece of the long soak (``tools/soak``): whatever happens, nothing is lost."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fleece.errors import FleeceError
from tests.engine.cloud_soak import CloudSoak, stormy
from tests.engine.libvirt_scene import libvirt_scene
from tests.engine.libvirt_soak import LibvirtSoak
from tests.engine.matrix import started
from tests.engine.scene import INTACT, Engine, Mutation
from tests.engine.soak import Soak
from tests.rig.libvirt import libvirtd
from tests.rig.s3 import SeaweedFs

EVENTS: tuple[Callable[[Soak], None], ...] = (
    Soak.restart_in_mid_backup,
    Soak.engine_dies,
    Soak.points_are_merged,
    Soak.qemu_dies,
    Soak.store_fails,
    Soak.delta_is_damaged,
    lambda here: here.store_is_pruned(keep=2),
    Soak.bitmaps_are_audited,
)


def soak(folder: Path, engine: Engine = INTACT) -> Soak:
    """One of each kind, then some at random."""
    folder.mkdir(exist_ok=True)
    with started(Soak, folder, 7, engine) as here:
        for event in EVENTS:
            event(here)
        for _ in range(8):
            here.happen()
    return here


def test_a_short_soak_loses_nothing(tmp_path: Path) -> None:
    done = soak(tmp_path).done
    assert done["backup"] >= 10
    assert done["fault"] >= 6
    assert done["checked"] >= done["backup"] // 2


FAULTS = (
    Mutation(
        "prune does not merge forward",
        (
            (
                "engine/upkeep/prune.py",
                "for entry, count in plan.merges:\n                cancel.check()",
                "for entry, count in ():\n                cancel.check()",
            ),
            ("engine/upkeep/prune.py", "        _nothing_needs(now, plan)\n", "        pass\n"),
        ),
    ),
    Mutation(
        "verify reads no frames",
        (
            ("engine/check/verify.py", "item.record.kind is Kind.DATA:", "False:"),
            ("delta/check.py", "tree.root != delta.footer.root", "False"),
        ),
    ),
)


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_fault_in_the_engine_ends_a_soak(fault: Mutation, tmp_path: Path) -> None:
    engine = fault.engine(tmp_path)
    with pytest.raises((AssertionError, FleeceError)):
        soak(tmp_path / "soak", engine)


def test_a_short_soak_of_a_bucket_and_its_copies_loses_nothing(
    tmp_path: Path, server: SeaweedFs
) -> None:
    with started(CloudSoak, tmp_path, 7, where=functools.partial(stormy, server)) as here:
        for event in (
            here.server_dies_in_mid_backup,
            here.requests_fail,
            here.points_are_merged,
            here.server_dies_in_mid_copy,
        ):
            event()
    assert here.done["checked"] >= 3
    assert here.done["copied"] >= 1


@pytest.mark.skipif(os.geteuid() != 0, reason="a libvirtd of one's own needs root")
def test_a_short_soak_of_libvirts_guests_loses_nothing(tmp_path: Path) -> None:
    """One of each kind but the random deaths, which test_libvirt has."""
    with libvirtd() as daemon, libvirt_scene(daemon, tmp_path) as scene:
        here = LibvirtSoak(scene, 7)
        try:
            for event in (
                here.guest_is_switched,
                here.guest_stops_in_mid_backup,
                here.qemu_dies,
                here.libvirtd_is_started_anew,
            ):
                event()
                here.back_up()
        finally:
            here.stop()
    assert here.done["checked"] >= 5
