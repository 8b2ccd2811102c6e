"""Debian's virtnbdbackup on the same guest, under a libvirt of its own.

libvirtd runs in mounts of its own, with its folders in /etc, /run and /var empty, so that it meets
no libvirt of this host. It needs root and the packages virtnbdbackup, libvirt-daemon,
libvirt-daemon-driver-qemu and libvirt-clients.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.rig.process import Child, find_tool, run_checked
from tests.rig.qmp import Monitor
from tools.benchmark.cases import FLEECE, GUEST, Bench, Case, Side
from tools.benchmark.timing import BenchError, Meter

_TOOLS = ("libvirtd", "virsh", "virtnbdbackup")
_DOMAIN = "bench"
_SECONDS = 20.0

_SETTINGS = """
security_driver = "none"
user = "root"
group = "root"
cgroup_controllers = []
namespaces = []
remember_owner = 0
stdio_handler = "file"
"""

_SCRIPT = """
set -e
for hidden in /etc/libvirt /run/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt; do
  mkdir -p $hidden; mount -t tmpfs none $hidden
done
cp "$1" /etc/libvirt/qemu.conf
# libvirt looks for this user, whatever the settings say.
{ cat /etc/passwd; echo "libvirt-qemu:x:64055:64055::/:/bin/false"; } > "$2/passwd"
{ cat /etc/group; echo "libvirt-qemu:x:64055:"; } > "$2/group"
for base in passwd group; do mount --bind "$2/$base" /etc/$base; done
exec libvirtd
"""

_XML = """
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{domain}</name>
  <memory unit='MiB'>64</memory>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <cpu mode='custom' match='exact'><model>qemu64</model></cpu>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/><source file='{image}'/><target dev='vda' bus='virtio'/>
    </disk>
    <memballoon model='none'/>
  </devices>
  <qemu:commandline>
    <qemu:arg value='-qmp'/><qemu:arg value='unix:{folder}/ours.sock,server=on,wait=off'/>
    <qemu:arg value='-qmp'/><qemu:arg value='unix:{folder}/control.sock,server=on,wait=off'/>
  </qemu:commandline>
</domain>
"""


class _Libvirt:
    """A libvirtd and one domain, whose processor never runs."""

    def __init__(self, folder: Path, image: Path, stack: ExitStack) -> None:
        folder.mkdir()
        stack.callback(shutil.rmtree, folder)
        settings, xml = folder / "qemu.conf", folder / "domain.xml"
        settings.write_text(_SETTINGS)
        xml.write_text(_XML.format(domain=_DOMAIN, image=image, folder=folder))
        words = ["bash", "-c", _SCRIPT, "-", str(settings), str(folder)]
        self._daemon = Child(words, folder / "log", prefix=["unshare", "--mount"])
        stack.callback(self._end)
        self.socket = folder / "ours.sock"
        self._wait(lambda: self._virsh("version", check=False) == 0)
        self._virsh("create", str(xml), "--paused")
        stack.callback(self._virsh, "destroy", _DOMAIN)
        self.control = stack.enter_context(Monitor(folder / "control.sock"))
        pids = self.inside("pidof", "qemu-system-x86_64")
        self.qemu = int(
            next(
                pid
                for pid in subprocess.run(
                    pids, check=True, stdout=subprocess.PIPE, text=True
                ).stdout.split()
                if str(folder) in Path(f"/proc/{pid}/cmdline").read_text()
            )
        )

    def inside(self, *words: str | Path) -> list[str | Path]:
        """A command line that runs where this libvirt is seen."""
        return [find_tool("nsenter"), f"--mount=/proc/{self._daemon.pid}/ns/mnt", *words]

    def forget(self) -> None:
        """Remove the dirty bitmaps that backups left."""
        for node in self.control.command("query-named-block-nodes"):
            for bitmap in node.get("dirty-bitmaps", []):
                arguments = {"node": node["node-name"], "name": bitmap["name"]}
                self.control.command("block-dirty-bitmap-remove", arguments)

    def _virsh(self, *words: str, check: bool = True) -> int:
        done = subprocess.run(
            [str(word) for word in self.inside("virsh", "-q", *words)],
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode != 0:
            raise BenchError(f"virsh {words[0]}: {done.stderr}\n{self._daemon.output()}")
        return done.returncode

    def _wait(self, ready: Callable[[], bool]) -> None:
        end = time.monotonic() + _SECONDS
        while not ready():
            if not self._daemon.alive or time.monotonic() > end:
                raise BenchError(f"libvirtd does not answer: {self._daemon.output()}")
            time.sleep(0.1)

    def _end(self) -> None:
        self._daemon.kill()


@contextmanager
def virtnbdbackup(bench: Bench) -> Iterator[Case]:
    """A full backup of a libvirt guest against virtnbdbackup's, compressed by lz4.

    Its mode is `copy`, which makes no bitmap and so does less than a full.
    """
    missing = [tool for tool in _TOOLS if shutil.which(tool, path="/usr/bin:/usr/sbin") is None]
    if missing or os.geteuid() != 0:
        raise BenchError(f"needs root, and {', '.join(missing) or 'no more packages'}")
    size, out = bench.setting.size, bench.folder / "peer"
    image = bench.folder / "guest.qcow2"
    run_checked("qemu-img", "convert", "-U", "-O", "qcow2", bench.image, image)
    with ExitStack() as stack:
        stack.callback(image.unlink)
        libvirt = _Libvirt(bench.folder / "libvirt", image, stack)
        meter = Meter([libvirt.qemu])
        ours: list[str | Path] = [*FLEECE, "backup", f"qmp:{libvirt.socket}", bench.store]
        ours += ["--guest", GUEST, "--mode", "full", "--level", "1", "--scratch", bench.folder]
        theirs = libvirt.inside("virtnbdbackup", "-d", _DOMAIN, "-l", "copy", "-n", "-z")
        theirs += ["-S", bench.folder, "-o", out]

        def forget() -> None:
            shutil.rmtree(bench.store)
            bench.make_store()
            libvirt.forget()

        yield Case(
            Side("fleece backup --mode full", size, lambda: meter.run(ours), after=forget),
            Side(
                "virtnbdbackup -l copy -z",
                size,
                lambda: meter.run(theirs),
                after=lambda: shutil.rmtree(out),
            ),
        )


CASES = {"full-virtnbdbackup": virtnbdbackup}
