"""A system that systemd has started: this one's files, and nothing that is written there stays."""

from __future__ import annotations

import os
import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.rig.process import LIMIT, Child, RigError, run, run_checked

_GROUPS = [Path("/sys/fs/cgroup", name) for name in ("systemd", "unified", "")]
"""Where the kernel's control groups are that systemd uses: of whichever version, or both."""

_SCRIPT = """\
for groups in {groups}; do
    [ -e $groups/cgroup.procs ] || continue
    mkdir $groups/fleece-test-$$
    echo $$ > $groups/fleece-test-$$/cgroup.procs
done
mkdir -p {layers}
mount -t tmpfs none {layers}
mkdir {layers}/upper {layers}/work {layers}/root
mount -t overlay -o lowerdir=/,upperdir={layers}/upper,workdir={layers}/work none {layers}/root
exec unshare --pid --fork --kill-child --mount-proc \
    systemd-nspawn -q --register=no --keep-unit -D {layers}/root --bind={folder} --boot \
    --console=pipe systemd.unit=basic.target systemd.mask=systemd-networkd-wait-online.service
"""
"""systemd-nspawn takes no `/`, so it gets an overlay; killed, it would leave the system running, so
it is the first process of its name space. Two of them do not share a control group. Nobody needs
what else would be started."""


class Booted:
    """Such a system.

    Args:
        init: the process id of its systemd.
    """

    def __init__(self, init: int) -> None:
        self._inside = ("nsenter", f"--target={init}", "--mount", "--pid", "--uts", "--ipc")

    def run(self, *words: object) -> str:
        """Run a program there that must succeed; gives what it prints."""
        return run_checked(*self._inside, *map(str, words))

    def fails(self, *words: object) -> bool:
        """Run a program there; gives whether it does not succeed."""
        return run(*self._inside, *map(str, words)).returncode != 0


@contextmanager
def booted(folder: Path) -> Iterator[Booted]:
    """A system that ends with the context. Needs root.

    Args:
        folder: that it shares with this one.
    """
    layers = folder / "layers"
    script = _SCRIPT.format(
        groups=" ".join(map(str, _GROUPS)),
        layers=shlex.quote(str(layers)),
        folder=shlex.quote(str(folder)),
    )
    prefix = ["unshare", "--mount", "--propagation", "private"]
    child = Child(["sh", "-e", "-c", script], folder / "boot.log", prefix=prefix)
    try:
        yield Booted(_init_of(child))
    finally:
        for pid in _children(child.pid):
            os.kill(pid, signal.SIGKILL)  # and with it all in its name space
        child.wait(LIMIT)
        child.kill()
        for groups in _GROUPS:
            mine = groups / f"fleece-test-{child.pid}"
            for group in sorted([mine, *mine.rglob("*/")], reverse=True):
                with suppress(OSError):
                    group.rmdir()


def _init_of(child: Child) -> int:
    """The process id of its systemd, once that has come up."""
    end = time.monotonic() + LIMIT
    while child.alive and time.monotonic() < end:
        for pid in [pid for nspawn in _children(child.pid) for pid in _children(nspawn)]:
            if not Booted(pid).fails("systemctl", "is-system-running", "--wait"):
                return pid
        time.sleep(0.1)
    raise RigError(f"no system has come up: {child.output()}")


def _children(pid: int) -> list[int]:
    with suppress(FileNotFoundError):
        return [*map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    return []
