"""Guests of libvirt's on another host: refused there before anything is made or read."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import pytest

from tests.engine.libvirt_scene import LibvirtScene, libvirt_scene
from tests.rig.libvirt import libvirtd
from tests.rig.process import run, run_checked
from tests.rig.ssh import FarHost, far_host

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a libvirtd of one's own needs root")

_WHY = "the guest is on another host, 127.0.0.1"


def test_a_guest_of_another_host_is_refused_running_or_off(tmp_path: Path) -> None:
    """Its images are not looked for here, where their paths may name others."""
    place = tmp_path / "ssh"
    place.mkdir()
    with (
        libvirtd() as daemon,
        libvirt_scene(daemon, tmp_path) as scene,
        far_host(place, daemon.inside) as far,
    ):
        here = ("--connect", far.libvirt, "--json")
        backup = ("backup", scene.source, scene.store, "--scratch", scene.scratch, *here)
        for on in (True, False):
            if not on:
                scene.switch(on=False)
            scene.engine.run(*backup).failed(3, _WHY, "run fleece there")
            (row,) = scene.engine.run("doctor", scene.source, *here).succeeded().named("libvirt")
            assert row["refusal"].startswith(_WHY)
            for verb in ("clean", "bitmap"):
                scene.engine.run(verb, scene.source, *here).failed(3, _WHY)
            assert os.listdir(scene.scratch) == []
        scene.switch(on=True)
        scene.take("full")
        _check_living_backup_stays(scene, far)
        _check_it_is_backed_up_there(scene, far)


def _check_living_backup_stays(scene: LibvirtScene, far: FarHost) -> None:
    """What tells that its run lives is there; from a host that does not see it, it is not ended."""
    scene.write()
    running = scene.slow()
    running.wait_event("progress")
    blind = f"mount -t tmpfs none {scene.scratch} && exec {sys.executable} -m fleece"
    words = shlex.join(("clean", scene.source, "--connect", far.libvirt))
    done = run("unshare", "--mount", "sh", "-c", f"{blind} {words}")
    assert (done.returncode, _WHY in done.stderr) == (3, True), done
    running.wait().succeeded()
    scene.check_exact()


def _check_it_is_backed_up_there(scene: LibvirtScene, far: FarHost) -> None:
    """By the fleece of that host, and its points come here by ssh; nothing is opened there."""
    there, here = scene.folder / "there", scene.folder / "here"
    far.run("fleece", "init", there)
    fleece_ = ("env", f"FLEECE_RSH={far.client}", sys.executable, "-m", "fleece")
    run_checked(*fleece_, "init", here, "--like", far.store(there))
    for mode in ("full", "incremental"):
        scene.write()
        told = far.run("fleece", "backup", scene.source, there, "--scratch", scene.scratch)
        assert mode in told
        run_checked(*fleece_, "copy", far.store(there), here, "--newer")
        scene.check_exact(store=here)
        far.run("fleece", "prune", there, "--keep-last", "1")
    scene.nothing_left(checkpoints=None)
