"""A guest of libvirt's, a store beside it, and the engine, run as its users run it."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import libvirt

import fleece
from tests.engine.scene import INTACT, Engine, Moment, Ran, Running, died
from tests.rig import images
from tests.rig.libvirt import GuestDisk, Libvirtd, LibvirtGuest
from tests.rig.process import run_checked

MIB = images.MIB
KIB64 = 65536
NAME = "web"


class LibvirtScene:
    """A guest, and what each of its disks must hold, because all writes go through here.

    Attributes:
        guest: the guest.
        store: a store of its own.
        scratch: a folder for scratch files.
        engine: that backs up.
        held: what the guest has written, by disk.
    """

    def __init__(self, guest: LibvirtGuest, folder: Path, disks: Sequence[GuestDisk]) -> None:
        self.guest = guest
        self.folder = folder
        self.store = folder / "store"
        self.scratch = Path(tempfile.mkdtemp(prefix="rig-"))
        self.scratch.chmod(0o711)
        self.engine: Engine = INTACT
        self.engine.run("init", self.store).succeeded()
        self.held = {disk.target: bytearray(_raw(disk, folder)) for disk in disks}
        self._chance = random.Random(1)
        self._numbers = itertools.count()

    @property
    def source(self) -> str:
        """As the command line has it."""
        return f"libvirt:{self.guest.name}"

    @property
    def uri(self) -> str:
        """Of its libvirt."""
        return self.guest.daemon.uri

    def words(self, *words: object, store: Path | None = None) -> tuple[object, ...]:
        """The words of a backup."""
        place = ("--scratch", self.scratch, "--connect", self.uri)
        return ("backup", self.source, store or self.store, *place, "--json", *words)

    def backup(self, *words: object, store: Path | None = None) -> Ran:
        """Back up."""
        return self.engine.run(*self.words(*words, store=store))

    def take(self, mode: str, *words: object, store: Path | None = None) -> Ran:
        """Back up; the mode of the first disk must be this."""
        ran = self.backup(*words, store=store).succeeded()
        assert ran.result["disks"][0]["mode"] == mode, ran.out
        return ran

    def slow(self, *words: object) -> Running:
        """A backup that waits before each read."""
        place = "fleece.nbd.connection", "Connection.read", 100
        return self.engine.slow(*place, *self.words(*words))

    def killed(self, moment: Moment, *words: object, may_end: bool = False) -> Ran:
        """Back up, and be killed by SIGKILL at a moment."""
        return died(self.engine, moment, self.words(*words), may_end=may_end)

    def verb(self, verb: str, *words: object) -> Ran:
        """Run another verb on the guest."""
        return self.engine.run(verb, self.source, *words, "--connect", self.uri, "--json")

    def clean(self) -> Ran:
        """`fleece clean`."""
        return self.verb("clean", "--scratch", self.scratch).succeeded()

    def write(self, target: str = "vda", offset: int | None = None, length: int = 4096) -> None:
        """Write random data, somewhere if not told where."""
        size = len(self.held[target])
        if offset is None:
            offset = self._chance.randrange(size // length) * length
        data = self._chance.randbytes(length)
        self.guest.write(target, offset, data)
        self.held[target][offset : offset + length] = data

    def switch(self, *, on: bool) -> None:
        """Switch the guest on or off, in order."""
        if on:
            self.guest.domain.create()
        else:
            self.guest.domain.destroyFlags(libvirt.VIR_DOMAIN_DESTROY_GRACEFUL)

    def check_exact(self, *, store: Path | None = None) -> None:
        """Check that the newest point is what the guest has written."""
        place = fleece.open_store(store or self.store)
        for target, held in self.held.items():
            path = self.folder / f"restored-{target}-{next(self._numbers)}"
            fleece.restore(place, "latest", target, str(path))
            assert path.read_bytes() == held, target
            path.unlink()

    def nothing_left(self, checkpoints: int | None = 1) -> None:
        """Check that no run has left anything but the newest point's checkpoint."""
        assert self.guest.job() is None
        assert os.listdir(self.scratch) == []
        assert [*self.folder.rglob(".partial-*")] == []
        mine = [name for name in self.guest.checkpoints() if name.startswith("fleece-")]
        assert checkpoints is None or len(mine) == checkpoints, mine

    def close(self) -> None:
        """End the guest."""
        self.guest.remove()
        shutil.rmtree(self.scratch, ignore_errors=True)


def _raw(disk: GuestDisk, folder: Path) -> bytes:
    target = folder / f"{disk.target}.first"
    run_checked("qemu-img", "convert", "-U", "-O", "raw", "-f", disk.fmt, disk.path, target)
    try:
        return target.read_bytes()
    finally:
        target.unlink()


@contextmanager
def libvirt_scene(
    daemon: Libvirtd, folder: Path, *disks: GuestDisk, **more: str
) -> Iterator[LibvirtScene]:
    """A running guest of some disks; by default one qcow2 disk of 4 MiB, half full."""
    if not disks:
        path = images.random_image(folder / "vda.qcow2", 4 * MIB, seed=1)
        disks = (GuestDisk("vda", path),)
    guest = daemon.define(NAME, disks, **more)
    made = LibvirtScene(guest, folder, disks)
    try:
        guest.domain.create()
        yield made
    finally:
        made.close()
