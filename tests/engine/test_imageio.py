"""oVirt's imageio: points that its real daemon serves, by the provider that comes with fleece."""

from __future__ import annotations

import contextlib
import json
import shlex
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import fleece
from fleece.source.provider.text import parse
from fleece.testing.provider.checks import (
    a_committed_point_is_a_base,
    it_may_be_killed,
    the_end_of_its_input_ends_it,
    verdicts,
)
from tests.engine.scene import KIB64, wait_until
from tests.rig import images
from tests.rig.process import run_checked

_CONFIG = """
[daemon]
run_dir = {run}
drop_privileges = false
systemd_enable = false
[tls]
enable = false
[remote]
host = 127.0.0.1
port = {port}
[local]
enable = false
[control]
socket = {run}/control
[loggers]
keys = root
[handlers]
keys = stderr
[logger_root]
level = WARNING
handlers = stderr
"""


@dataclass
class Host:
    """An oVirt host, and what its engine would do: an image, its checkpoints and transfers of it.

    Attributes:
        folder: for the image, the store and the state of the provider.
        place: for sockets; its path is short.
    """

    folder: Path
    place: Path

    @property
    def image(self) -> Path:
        """The disk."""
        return self.folder / "disk.qcow2"

    def checkpoint(self, name: str) -> None:
        """Begin a bitmap: the image stands still."""
        run_checked("qemu-img", "bitmap", "--add", self.image, name)

    def write(self, offset: int, pattern: int) -> None:
        """Have the guest write a block."""
        words = f"write -P {pattern} {offset} {KIB64}"
        run_checked("qemu-io", "-f", "qcow2", "-c", words, self.image)

    @contextlib.contextmanager
    def transfer(self, since: str | None) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
        """A transfer of the disk: its URL, and the daemon."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        conf = self.place / "conf.d"
        conf.mkdir(exist_ok=True)
        (conf / "50-test.conf").write_text(_CONFIG.format(run=self.place, port=port))
        nbd, ticket = self.place / "nbd", self.place / "ticket"
        told = {"uuid": "t1", "size": 4 * images.MIB, "timeout": 3000, "ops": ["read"]}
        told |= {"url": f"nbd:unix:{nbd}:exportname=vda", "dirty": since is not None}
        ticket.write_text(json.dumps(told))
        words = ["-B", since] if since else []
        server = ["qemu-nbd", "-r", "-t", "-e", "0", "-f", "qcow2", "-x", "vda", "-k", str(nbd)]
        daemon = [sys.executable, str(Path(sys.executable).with_name("ovirt-imageio"))]
        daemon += ["--conf-dir", str(self.place), "--ticket", str(ticket)]
        dies, url = ["setpriv", "--pdeathsig", "KILL"], f"http://127.0.0.1:{port}/images/t1"
        with (
            subprocess.Popen([*dies, *server, *words, str(self.image)]) as one,
            subprocess.Popen([*dies, *daemon]) as two,
        ):
            try:
                wait_until(lambda: nbd.exists() and _answers(url), "the daemon")
                yield url, two
            finally:
                one.kill()
                two.kill()
                nbd.unlink(missing_ok=True)

    def provider(self, url: str, checkpoint: str, since: str | None) -> str:
        """What the provider of a transfer is called by."""
        file = self.folder / "transfers"
        file.write_text(f"vda={url}\n")
        words = ["--state", str(self.folder / "state"), "--checkpoint", checkpoint]
        words += ["--since", since] if since else []
        return f"provider:ovirt-imageio {shlex.join([*words, f'@{file}'])}"

    def backup(self, source: str, store: fleece.Store) -> fleece.BackupResult:
        """Back a transfer up."""
        with fleece.open_source(source) as opened:
            return fleece.backup(opened, store, fleece.BackupOptions(guest="g"))


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError):
        request = urllib.request.Request(url, method="OPTIONS")
        with urllib.request.urlopen(request, timeout=60):
            return True
    return False


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """Of an image of 4 MiB with zeros."""
    with tempfile.TemporaryDirectory(prefix="rig-", dir="/tmp") as place:
        made = Host(tmp_path, Path(place))
        run_checked("qemu-img", "create", "-q", "-f", "qcow2", made.image, "4M")
        made.write(images.MIB, 1)
        yield made


def test_points_of_imageio_are_backed_up_since_the_engines_checkpoints(host: Host) -> None:
    store = fleece.init(host.folder / "store")
    host.checkpoint("c1")
    with host.transfer(None) as (url, _):
        assert host.backup(host.provider(url, "c1", None), store).mode == "full"
    host.write(0, 2)
    host.write(images.MIB, 3)
    host.checkpoint("c2")
    with host.transfer("c1") as (url, daemon):
        source = host.provider(url, "c2", "c1")
        killed = fleece.BackupOptions(guest="g")

        def kill(event: fleece.events.Event) -> None:
            if isinstance(event, fleece.events.PointTaken):
                daemon.kill()
                daemon.wait()

        with fleece.open_source(source) as opened, pytest.raises(fleece.PointError):
            fleece.backup(opened, store, killed, kill)
    with host.transfer("c1") as (url, _):
        result = host.backup(host.provider(url, "c2", "c1"), store)
    assert result.mode == "incremental"
    assert result.disks[0].read_bytes == 2 * KIB64
    target = host.folder / "restored"
    fleece.restore(store, result.point, "vda", str(target))
    images.compare(host.image, target, "qcow2", "raw")
    with host.transfer(None) as (url, _):  # the engine gave no bitmap after all
        assert host.backup(host.provider(url, "c3", "c2"), store).mode == "rescan"


def test_it_keeps_what_a_provider_promises(host: Host) -> None:
    host.checkpoint("c1")
    with host.transfer("c1") as (url, _):
        command = parse(host.provider(url, "c1", "c1").partition(":")[2])
        for check in (the_end_of_its_input_ends_it, it_may_be_killed, a_committed_point_is_a_base):
            (verdict,) = verdicts(command, only=check.__name__)
            assert verdict.failed is verdict.skipped is None, verdict
