"""A backup job of libvirt's that somebody else began, read as an export."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

import fleece
from fleece.nbd.uri import unix_uri
from tests.engine.scene import GUEST, KIB64, MIB
from tests.rig import images
from tests.rig.libvirt import GuestDisk, libvirtd, until

_JOB = """
<domainbackup mode='pull'>{since}<server transport='unix' socket='{place}/nbd.sock'/>
<disks><disk name='vda' backup='yes' type='file'><scratch file='{place}/scratch'/></disk></disks>
</domainbackup>"""
_CHECKPOINT = "<domaincheckpoint><name>{name}</name></domaincheckpoint>"


@pytest.mark.skipif(os.geteuid() != 0, reason="a libvirtd of one's own needs root")
def test_a_checkpoint_of_somebody_elses_is_a_bitmap(tmp_path: Path) -> None:
    """By libvirt's own names: the export vda, its bitmap backup-vda."""
    image = images.random_image(tmp_path / "d0.qcow2", 2 * MIB, seed=1)
    shown = bytearray(images.to_raw(image, tmp_path / "shown").read_bytes())
    store = fleece.init(tmp_path / "store")
    with libvirtd() as daemon, tempfile.TemporaryDirectory(prefix="rig-") as place:
        guest = daemon.define("theirs", [GuestDisk("vda", image)])
        guest.domain.create()
        uri = unix_uri(f"{place}/nbd.sock", "vda")
        token: str | None = None
        for turn, mode in enumerate(["full", "incremental", "incremental"]):
            since = f"<incremental>point-{turn - 1}</incremental>" if turn else ""
            job = _JOB.format(since=since, place=place)
            guest.domain.backupBegin(job, _CHECKPOINT.format(name=f"point-{turn}"), 0)
            way = fleece.SourceOptions(bitmap=("backup-vda",) if turn else (), since=token)
            with fleece.open_source(uri, way) as source:
                result = fleece.backup(source, store, fleece.BackupOptions(guest=GUEST))
            guest.domain.abortJob()
            until(lambda: guest.job() is None, "the job's end")
            token = result.point
            (disk,) = result.disks
            assert disk.mode == mode
            assert turn == 0 or disk.read_bytes == KIB64
            target = tmp_path / f"restored-{turn}"
            fleece.restore(store, token, "vda", str(target))
            assert target.read_bytes() == shown
            data = bytes([turn + 1]) * 512
            guest.write("vda", (turn + 3) * KIB64, data)
            shown[(turn + 3) * KIB64 : (turn + 3) * KIB64 + 512] = data
        guest.remove()
