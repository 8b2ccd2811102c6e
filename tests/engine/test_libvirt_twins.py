"""Two guests of one UUID on two libvirts, backed up into one store from one scratch folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from tests.engine.libvirt_scene import KIB64, LibvirtScene, libvirt_scene
from tests.engine.scene import Moment
from tests.rig.libvirt import GuestDisk, Libvirtd, LibvirtGuest, libvirtd

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a libvirtd of one's own needs root")

Twins = tuple[LibvirtScene, LibvirtScene]


@pytest.fixture(scope="module")
def daemons() -> Iterator[tuple[Libvirtd, Libvirtd]]:
    """Two libvirts."""
    with libvirtd() as one, libvirtd() as two:
        yield one, two


@pytest.fixture
def twins(daemons: tuple[Libvirtd, Libvirtd], tmp_path: Path) -> Iterator[Twins]:
    """A guest that has a point, and its clone, which has the bitmap since that point too."""
    one, two = daemons
    there = tmp_path / "clone"
    there.mkdir()
    with libvirt_scene(one, tmp_path) as first:
        first.take("full")
        first.write()
        first.switch(on=False)
        image = there / "vda.qcow2"
        shutil.copy(tmp_path / "vda.qcow2", image)
        text = first.guest.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        made = two.connection.defineXML(text.replace(str(tmp_path / "vda.qcow2"), str(image)))
        clone = LibvirtScene(LibvirtGuest(two, made), there, [GuestDisk("vda", image)])
        own, clone.scratch, clone.store = clone.scratch, first.scratch, first.store
        shutil.rmtree(own)
        for twin in (first, clone):
            twin.switch(on=True)
        try:
            yield first, clone
        finally:
            clone.guest.remove()


def test_each_goes_on_from_its_own_newest_point(twins: Twins) -> None:
    """By turns, in one chain: no delta builds on a point of the other's."""
    assert twins[0].guest.domain.UUIDString() == twins[1].guest.domain.UUIDString()
    newest: dict[str, str] = {}
    for number in range(4):
        for twin in twins:
            twin.write()
        twin = twins[(number + 1) % 2]
        ran = twin.take("incremental")
        twin.check_exact()
        (plan,) = ran.named("plan")
        if (own := newest.get(twin.uri)) is not None:
            assert plan["reason"] == f"changed since point {own}"
        newest[twin.uri] = ran.result["point"]
    twins[0].take("full", "--guest", "other")
    twins[1].take("incremental")


_COPY = Moment("in the copy", "fleece.nbd.connection", "Connection.read", "after", 3)
_FREEZE = Moment("before the freeze", "fleece.source.libvirt.domain", "Domain.freeze", "before")


@pytest.mark.parametrize("moment", [_COPY, _FREEZE], ids=str)
def test_what_a_killed_run_left_is_its_own_guests(moment: Moment, twins: Twins) -> None:
    """The other's run neither ends the job nor takes the note of a freeze for its own."""
    first, clone = twins
    for number in range(8):
        first.write("vda", number * 8 * KIB64, KIB64)
    first.killed(moment, "--jobs", "1", "--freeze")
    left = {path: path.stat().st_ino for path in first.scratch.rglob("*")}
    assert left
    job = first.guest.job()
    clone.write()
    clone.backup().succeeded()
    clone.check_exact()
    assert clone.clean().named("removed") == []
    assert {path: path.stat().st_ino for path in first.scratch.rglob("*")} == left
    assert first.guest.job() == job
    first.write()
    first.backup().succeeded()
    first.check_exact()
    first.nothing_left()
    assert clone.guest.domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING
