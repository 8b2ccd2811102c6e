"""The page about a host that is gone, walked through: only the store and its key are left."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import libvirt
import pytest

from tests.engine.scene import MIB, ROOT
from tests.rig import images
from tests.rig.libvirt import GuestDisk, Libvirtd, guest_xml, libvirtd
from tests.rig.process import LIMIT, run_checked

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a libvirtd of one's own needs root")

_PAGE = ROOT / "docs/howto/disaster-recovery.rst"
_GUESTS = ("web1", "db1")


def _fleece(host: Libvirtd, home: Path, *words: str) -> str:
    """Run a command on a host, with nothing but a home that nobody has used."""
    clean = (f"HOME={home}", "PATH=/usr/bin:/bin:/usr/sbin:/sbin", f"PYTHONPATH={ROOT}")
    done = subprocess.run(
        [*host.inside, "/usr/bin/env", "-i", *clean, sys.executable, "-m", "fleece", *words],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


def _lose_a_host(folder: Path, key: Path) -> dict[str, Path]:
    """Back guests up on a host that is gone then; gives what their disks were."""
    store, kept = folder / "backup", folder / "kept"
    old = folder / "old"
    for made in (kept, old):
        made.mkdir()
    true: dict[str, Path] = {}
    with libvirtd() as host:
        words = ("--encrypt", "--key-file", str(key))
        _fleece(host, old, "init", str(store), *words)
        for seed, name in enumerate(_GUESTS):
            image = images.random_image(old / f"{name}.qcow2", MIB, seed=seed)
            disk = GuestDisk("vda", image)
            host.connection.defineXML(guest_xml(name, [disk]))
            for offset in ("0", "512k"):
                _fleece(host, old, "backup", f"libvirt:{name}", str(store), *words[1:])
                change = f"write -q -P {seed + 1} {offset} 64k"
                run_checked("qemu-io", "-f", "qcow2", "-c", change, image)
            _fleece(host, old, "backup", f"libvirt:{name}", str(store), *words[1:])
            true[name] = kept / f"{name}.raw"
            run_checked("qemu-img", "convert", "-O", "raw", image, true[name])
    shutil.rmtree(old)
    return true


def _commands(places: dict[str, Path]) -> list[list[str]]:
    """The commands of the page, for places of this test."""
    found = re.findall(r"^    fleece (.*)$", _PAGE.read_text(), re.MULTILINE)
    told = [shlex.split(line) for line in found]
    assert [words[0] for words in told] == ["list", "verify", *["restore-guest"] * 2, "backup"]
    return [[str(places.get(word, word)) for word in words] for words in told]


def test_guests_come_back_from_the_store_and_its_key(tmp_path: Path) -> None:
    key = tmp_path / "backup.key"
    key.write_bytes(os.urandom(32).hex().encode())
    key.chmod(0o600)
    true = _lose_a_host(tmp_path, key)
    places = {"/backup": tmp_path / "backup", "/root/backup.key": key}
    places |= {f"/var/lib/libvirt/images/{name}": tmp_path / "new" / name for name in _GUESTS}
    home = tmp_path / "home"
    for made in (home, tmp_path / "new"):
        made.mkdir()
    with libvirtd() as host:
        *walk, again = _commands(places)
        told = [_fleece(host, home, *words) for words in walk]
        assert all(name in told[0] for name in _GUESTS)
        for name, disk in true.items():
            assert host.connection.lookupByName(name).state()[0] == libvirt.VIR_DOMAIN_RUNNING
            back = tmp_path / "new" / name / "vda.qcow2"
            run_checked("qemu-img", "compare", "-U", "-f", "raw", "-F", "qcow2", disk, back)
        assert "incremental" in _fleece(host, home, *again)
