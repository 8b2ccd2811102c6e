"""Guests of libvirt's on another host: refused there before anything is made or read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.engine.libvirt_scene import libvirt_scene
from tests.rig.libvirt import libvirtd
from tests.rig.ssh import libvirt_over_ssh

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a libvirtd of one's own needs root")

_WHY = "the guest is on another host, 127.0.0.1"


def test_a_guest_of_another_host_is_refused_running_or_off(tmp_path: Path) -> None:
    """Its images are not looked for here, where their paths may name others."""
    place = tmp_path / "ssh"
    place.mkdir()
    with (
        libvirtd() as daemon,
        libvirt_scene(daemon, tmp_path) as scene,
        libvirt_over_ssh(place, daemon.inside) as uri,
    ):
        here = ("--connect", uri, "--json")
        backup = ("backup", scene.source, scene.store, "--scratch", scene.scratch, *here)
        for on in (True, False):
            if not on:
                scene.switch(on=False)
            scene.engine.run(*backup).failed(3, _WHY, "run fleece there")
            (row,) = scene.engine.run("doctor", scene.source, *here).succeeded().named("libvirt")
            assert row["refusal"].startswith(_WHY)
            assert os.listdir(scene.scratch) == []
        scene.engine.run("bitmap", scene.source, *here).failed(3, _WHY)
        scene.switch(on=True)
        scene.take("full")
