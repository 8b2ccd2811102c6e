"""A Ceph on this host, small and in memory: a monitor, one OSD, and its gateway for S3.

Debian has it: radosgw, ceph-osd, ceph-mon, ceph-common. Without a manager nothing counts what pools
hold, so quotas of pools have no effect; those of buckets and the ratio at which an OSD is full do.
"""

from __future__ import annotations

import itertools
import json
import secrets
import shutil
import time
import uuid
from pathlib import Path

from fleece.store.s3.client.address import Address
from fleece.store.s3.client.bucket import Bucket
from tests.rig.process import LIMIT, Child, RigError, run_checked
from tests.rig.s3 import ACCESS, SECRET, environment_at, free_ports, settings_at, wait_for

PROGRAMS = "ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin"
_USER = "fleece"
_ROOM = 512 << 20
"""Bytes of the OSD."""
_USUAL = {"full": 0.95, "backfillfull": 0.9, "nearfull": 0.85}

_CONFIG = """[global]
fsid = {fsid}
mon initial members = a
mon host = v1:127.0.0.1:{monitor}
ms bind msgr2 = false
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
mon allow pool size one = true
mon max pg per osd = 1000
mon data avail crit = 1
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd class update on start = false
osd crush update on start = false
osd objectstore = memstore
memstore device bytes = {room}
osd class dir = {libraries}/rados-classes
plugin dir = {libraries}/ceph
erasure code dir = {libraries}/ceph/erasure-code
mon data = {folder}/mon
osd data = {folder}/osd
run dir = {folder}
admin socket = {folder}/$name.$pid.asok
log file = {folder}/$name.log
pid file =
rgw bucket quota ttl = 0
rgw gc obj min wait = 10
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{port}
"""


def is_installed() -> bool:
    """Whether all its programs are."""
    return all(map(shutil.which, PROGRAMS))


class Ceph:
    """A running one.

    Args:
        folder: for its monitor's data and its logs.

    Attributes:
        port: that it speaks S3 at, over HTTP, on loopback alone.

    Raises:
        RigError: it does not come up.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names = itertools.count()
        self._token = secrets.token_hex(3)
        self._children: list[Child] = []
        try:
            self._start()
        except BaseException:
            self.kill()
            raise

    @property
    def environment(self) -> dict[str, str]:
        """What tells a program of it."""
        return environment_at(self.port)

    def bucket(self) -> Bucket:
        """A new bucket."""
        name = f"test-{self._token}-{next(self._names)}"
        made = Bucket(Address(name), settings_at(self.port, name))
        made.create()
        return made

    def kill(self) -> None:
        """End it at once."""
        for child in reversed(self._children):
            child.kill()

    def be_full(self, *, full: bool) -> None:
        """Have its OSD count as full, or not any more, and wait until it does."""
        order = ("nearfull", "backfillfull", "full") if full else _USUAL
        for kind in order:
            self._ceph("osd", f"set-{kind}-ratio", str(0.0001 if full else _USUAL[kind]))
        until = time.monotonic() + LIMIT
        while ("OSD_FULL" in json.loads(self._ceph("health", "-f", "json"))["checks"]) != full:
            if time.monotonic() > until:
                raise RigError("Ceph does not notice how full it is")
            time.sleep(0.1)

    def limit(self, bucket: Bucket, most: int | None) -> None:
        """Give a bucket a quota of so many bytes; None: no more."""
        of = f"--bucket={bucket.address.bucket}", "--quota-scope=bucket"
        if most is not None:
            self._admin("quota", "set", *of, f"--max-size={most}")
        self._admin("quota", "disable" if most is None else "enable", *of)

    def _start(self) -> None:
        monitor, self.port = free_ports(2)
        fsid, own = str(uuid.uuid4()), str(uuid.uuid4())
        prefix = Path(str(shutil.which("radosgw"))).parents[1]
        (libraries, *_) = [found.parent for found in prefix.glob("lib/*/rados-classes")]
        for name in "mon", "osd":
            (self._folder / name).mkdir()
        self._config = self._folder / "ceph.conf"
        self._config.write_text(
            _CONFIG.format(
                fsid=fsid,
                monitor=monitor,
                port=self.port,
                room=_ROOM,
                libraries=libraries,
                folder=self._folder,
            )
        )
        monitors = self._folder / "monmap"
        place = f"v1:127.0.0.1:{monitor}"
        run_checked("monmaptool", "--create", "--addv", "a", place, "--fsid", fsid, monitors)
        named = "-c", self._config, "-i"
        run_checked("ceph-mon", *named, "a", "--mkfs", "--monmap", monitors)
        self._run("ceph-mon", "-i", "a")
        self._ceph("osd", "new", own)
        self._ceph("osd", "crush", "add", "0", "1", "root=default", "host=here")
        run_checked("ceph-osd", *named, "0", "--mkfs", "--osd-uuid", own)
        self._run("ceph-osd", "-i", "0")
        user = f"--uid={_USER}", f"--display-name={_USER}"
        self._admin("user", "create", *user, f"--access-key={ACCESS}", f"--secret-key={SECRET}")
        self._run("radosgw", "-n", "client.rgw")
        wait_for(self.port, self._children[-1])

    def _run(self, program: str, *words: str) -> None:
        command = [program, "-c", str(self._config), "-f", *words]
        self._children.append(Child(command, self._folder / f"{program}.out"))

    def _ceph(self, *words: str) -> str:
        own = ("/usr/bin/python3", str(shutil.which("ceph")))  # Debian's modules, not a venv's
        limit = f"--connect-timeout={LIMIT:.0f}"
        return run_checked(*own, "-c", self._config, limit, *words)

    def _admin(self, *words: str) -> None:
        run_checked("radosgw-admin", "-c", self._config, "-n", "client.admin", *words)
