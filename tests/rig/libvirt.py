"""A libvirtd of our own, its guests, and who writes to their disks.

It runs in a mount namespace in which all its folders are below one of ours, so that it and the
host's own know nothing of each other, and several can run. As root it is in system mode.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import libvirt
import libvirt_qemu

from tests.rig.initramfs import KERNEL_WORDS, GuestFiles
from tests.rig.process import LIMIT, Child, RigError

_CONFIGURATION = """\
security_driver = "none"
user = "{user}"
group = "{group}"
dynamic_ownership = 1
remember_owner = 0
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
swtpm_user = "root"
swtpm_group = "root"
"""
_DAEMON = """\
unix_sock_group = "{group}"
unix_sock_rw_perms = "0770"
auth_unix_rw = "none"
auth_unix_ro = "none"
log_outputs = "2:file:{log}"
host_uuid = "{host}"
"""
_MOUNT = """
mkdir -p /run/libvirt /var/log/libvirt /var/cache/libvirt /var/lib/libvirt /etc/libvirt
for place in etc:/etc/libvirt run:/run/libvirt lib:/var/lib/libvirt log:/var/log/libvirt \\
    cache:/var/cache/libvirt passwd:/etc/passwd group:/etc/group; do
  mount --bind "$1/${place%%:*}" "${place#*:}"
done
shift
exec "$@"
"""
_QEMU_USER = "libvirt-qemu"


class Libvirtd:
    """A running libvirtd.

    Args:
        user: that its QEMUs run as: root, or libvirt-qemu as Debian's do.
        group: that may use it, besides root: its name, or its number after a plus sign.

    Attributes:
        folder: all that is its own.
        uri: by which it is reached.
        connection: to it.
    """

    def __init__(self, user: str = "root", group: str = "root") -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rig-"))
        self.folder.chmod(0o755)
        self.uri = f"qemu+unix:///system?socket={self.folder}/run/libvirt-sock"
        self._configure(user, group)
        libvirt.registerErrorHandler(lambda context, error: None, None)
        self.start()

    def _configure(self, user: str, users: str) -> None:
        for name in ("etc/qemu", "run", "lib/qemu", "log/qemu", "cache/qemu"):
            (self.folder / name).mkdir(parents=True)
        group = "root" if user == "root" else _group_of_kvm()
        (self.folder / "etc/qemu.conf").write_text(_CONFIGURATION.format(user=user, group=group))
        log = self.folder / "log/libvirtd.log"
        (self.folder / "etc/libvirtd.conf").write_text(
            _DAEMON.format(group=users, log=log, host=uuid.uuid4())
        )
        for name, line in (
            ("passwd", f"{_QEMU_USER}:x:64055:64055::/var/lib/libvirt:/usr/sbin/nologin\n"),
            ("group", f"{_QEMU_USER}:x:64055:\n"),
        ):
            text = Path("/etc", name).read_text()
            known = f"{_QEMU_USER}:" in text
            (self.folder / name).write_text(text if known else text + line)

    def start(self) -> None:
        """Start the daemon; its guests of before are there again."""
        config = self.folder / "etc/libvirtd.conf"
        command = ["libvirtd", "-f", str(config), "-p", str(self.folder / "daemon.pid")]
        self._child = Child(
            ["sh", "-c", _MOUNT, "sh", str(self.folder), *command],
            self.folder / "log/out",
            prefix=["unshare", "--mount", "--propagation", "private"],
        )
        end = time.monotonic() + LIMIT
        while True:
            try:
                self.connection = libvirt.open(self.uri)
            except libvirt.libvirtError as error:
                if time.monotonic() > end or not self._child.alive:
                    raise RigError(f"libvirtd: {error}: {self._child.output()}") from error
                time.sleep(0.05)
            else:
                return

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End the daemon, not its guests."""
        os.kill(self._child.pid, number)
        if not self._child.wait(LIMIT):
            raise RigError("libvirtd does not end")

    @property
    def inside(self) -> tuple[str, ...]:
        """What a program is started by to which this is the host's libvirtd."""
        return ("nsenter", "--mount", f"--target={self._child.pid}")

    def close(self) -> None:
        """End all guests, and it."""
        try:
            if not self._child.alive:
                self.start()
            for domain in self.connection.listAllDomains(0):
                with suppress(libvirt.libvirtError):
                    if domain.isActive():
                        domain.destroy()
            self.connection.close()
        finally:
            self._child.kill()
            for pid in (self.folder / "run/qemu").glob("*.pid"):  # what would not be destroyed
                with suppress(OSError, ValueError):
                    os.kill(int(pid.read_text()), signal.SIGKILL)
            shutil.rmtree(self.folder, ignore_errors=True)

    def define(self, name: str, disks: Sequence[GuestDisk], **more: str) -> LibvirtGuest:
        """Define a guest of these disks, which is off then."""
        return LibvirtGuest(self, self.connection.defineXML(guest_xml(name, disks, **more)))


@dataclass(frozen=True)
class GuestDisk:
    """A disk of a guest.

    Attributes:
        target: its name, like vda.
        path: of the image.
        fmt: of that.
        driver: more attributes of the driver.
        extra: more elements of the disk.
        device: disk, cdrom or the like.
    """

    target: str
    path: Path
    fmt: str = "qcow2"
    driver: str = ""
    extra: str = ""
    device: str = "disk"

    def xml(self) -> str:
        """As libvirt takes it."""
        bus = "virtio" if self.device == "disk" else "sata"
        return (
            f"<disk type='file' device='{self.device}'>"
            f"<driver name='qemu' type='{self.fmt}' {self.driver}/>"
            f"<source file='{self.path}'/><target dev='{self.target}' bus='{bus}'/>"
            f"{self.extra}</disk>"
        )


def boot_xml(files: GuestFiles, words: str) -> str:
    """What boots the rig's own Linux, with these words for its init."""
    return (
        f"<kernel>{files.kernel}</kernel><initrd>{files.initramfs}</initrd>"
        f"<cmdline>{KERNEL_WORDS} {words}</cmdline>"
    )


AGENT = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
"""The device that the guest's agent answers on."""


def guest_xml(
    name: str,
    disks: Sequence[GuestDisk],
    devices: str = "",
    top: str = "",
    boot: str = "",
    crash: str = "destroy",
) -> str:
    """A small guest, emulated; without `boot` it has no operating system."""
    return f"""<domain type='qemu'><name>{name}</name>{top}
<memory unit='MiB'>{256 if boot else 64}</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type>{boot}</os><features><acpi/></features>
<cpu mode='custom' match='exact'><model>qemu64</model></cpu>
<on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>{crash}</on_crash>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
{"".join(disk.xml() for disk in disks)}{devices}<memballoon model='none'/></devices></domain>"""


@dataclass
class LibvirtGuest:
    """A guest, and the way to its disks that the guest's own writes take.

    Attributes:
        daemon: that it is of.
        domain: its handle.
    """

    daemon: Libvirtd
    domain: Any
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def name(self) -> str:
        """Its own."""
        return str(self.domain.name())

    def again(self) -> None:
        """Find it by a new connection, after the daemon was started again."""
        self.domain = self.daemon.connection.lookupByName(self.name)

    @property
    def pid(self) -> int:
        """Of its QEMU."""
        return int((self.daemon.folder / f"run/qemu/{self.name}.pid").read_text())

    def hmp(self, command: str) -> str:
        """A command of the human monitor."""
        flag = libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
        return str(libvirt_qemu.qemuMonitorCommand(self.domain, command, flag))

    def _device(self, target: str) -> str:
        root = ElementTree.fromstring(self.domain.XMLDesc(0))
        for disk in root.iterfind("devices/disk"):
            found, alias = disk.find("target"), disk.find("alias")
            if found is not None and found.get("dev") == target and alias is not None:
                return f"/machine/peripheral/{alias.get('name')}/virtio-backend"
        raise RigError(f"no disk {target}")

    def write(self, target: str, offset: int, data: bytes) -> None:
        """Write into a disk as the guest would; whole sectors."""
        with tempfile.NamedTemporaryFile(dir=self.daemon.folder) as file, self._lock:
            os.fchmod(file.fileno(), 0o644)  # QEMU may be another user's
            file.write(data)
            file.flush()
            command = f"write -q -s {file.name} {offset} {len(data)}"
            said = self.hmp(f'qemu-io -d {self._device(target)} "{command}"')
        if said.strip():
            raise OSError(f"qemu-io: {said.strip()}")

    def zero(self, target: str, offset: int, length: int) -> None:
        """Write zeros, as a guest does that knows that they are."""
        said = self.hmp(f'qemu-io -d {self._device(target)} "write -q -z {offset} {length}"')
        if said.strip():
            raise OSError(f"qemu-io: {said.strip()}")

    def kill(self) -> None:
        """SIGKILL its QEMU, and wait until libvirt knows."""
        os.kill(self.pid, signal.SIGKILL)
        until(lambda: not self.domain.isActive(), "the guest to be off")

    def remove(self) -> None:
        """End it, and have libvirt forget it."""
        if self.domain.isActive():
            self.kill()
        self.domain.undefineFlags(
            libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
            | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
            | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
        )

    def checkpoints(self) -> list[str]:
        """The names of its checkpoints."""
        return sorted(each.getName() for each in self.domain.listAllCheckpoints(0))

    def job(self) -> str | None:
        """The XML of its backup job; None: it has none."""
        try:
            return str(self.domain.backupGetXMLDesc(0))
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_BACKUP:
                return None
            raise


def _group_of_kvm() -> str:
    """The group of a QEMU that has a user of its own: the one that may use KVM, as on Debian.

    Where KVM was found and that user may not open its device, libvirt believes nothing that it
    has kept of QEMU, and starts it anew to ask, several times in each verb.
    """
    try:
        return f"+{os.stat('/dev/kvm').st_gid}"
    except OSError:
        return "kvm"


def until(done: Callable[[], object], what: str) -> None:
    """Wait for something."""
    end = time.monotonic() + LIMIT
    while not done():
        if time.monotonic() > end:
            raise RigError(f"waited in vain for {what}")
        time.sleep(0.01)


@contextmanager
def libvirtd(user: str = "root", group: str = "root") -> Iterator[Libvirtd]:
    """A libvirtd that ends with the context (`Libvirtd`)."""
    made = Libvirtd(user, group)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def session(user: int) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """A libvirtd in session mode, of an ordinary user's.

    Gives:
        A folder of that user's, and what its programs are started by: to them this is
        `qemu:///session`.
    """
    folder = Path(tempfile.mkdtemp(prefix="rig-"))
    variables = {"HOME": "", "XDG_RUNTIME_DIR": "run", "TMPDIR": "tmp"}
    for name in ("config", "cache", "data"):
        variables[f"XDG_{name.upper()}_HOME"] = name
    for name in variables.values():
        (folder / name).mkdir(exist_ok=True)
    for path in (folder, *folder.iterdir()):
        os.chown(path, user, user)
    set_ = [f"{name}={folder / place}" for name, place in variables.items()]
    become = ("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "env", *set_)
    daemon = Child(["libvirtd"], folder / "log", prefix=become)
    try:
        until((folder / "run/libvirt/libvirt-sock").exists, "libvirtd")
        yield folder, become
    finally:
        daemon.kill()
        for pid in (folder / "run/libvirt/qemu/run").glob("*.pid"):
            with suppress(OSError, ValueError):
                os.kill(int(pid.read_text()), signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)
