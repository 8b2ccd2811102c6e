"""What of a guest's definition reaches into the host: taken out, each with a word about it.

A definition comes from a store, and whoever wrote that chose what it says. libvirt does what a
definition says as root: it opens files, gives devices away, runs programs. So what is kept is what
is known to stay inside of the guest (formatdomain of libvirt's documentation); all else goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from xml.etree.ElementTree import Element

_OF_GUESTS = (
    "name uuid genid title description metadata memory currentMemory maxMemory memoryBacking vcpu "
    "vcpus iothreads iothreadids defaultiothread cputune numatune blkiotune memtune os features "
    "cpu clock on_poweroff on_reboot on_crash on_lockfailure pm devices sysinfo keywrap "
    "launchSecurity perf"
)
_TOP = frozenset(_OF_GUESTS.split())
_SILENT = frozenset(("resource", "seclabel", "bootloader"))
"""What belongs to a host, and each host has its own of it."""

_HARMLESS = (
    "disk controller interface input graphics video sound audio serial console parallel channel "
    "redirdev hub watchdog memballoon rng tpm panic vsock iommu crypto memory nvram"
)
_DEVICES = frozenset(_HARMLESS.split())
_WHAT = {
    "hostdev": "a device of the host",
    "filesystem": "a folder of the host",
    "shmem": "memory that is shared with other programs",
    "smartcard": "a card reader of the host",
    "lease": "a lease of the host's lock manager",
    "pstore": "a file of the host",
}
_PORTS = ("serial", "console", "parallel", "channel", "redirdev")
_HARMLESS_PORTS = frozenset(("pty", "null", "spicevmc", "spiceport", "qemu-vdagent", "dbus"))
_ENTROPY = frozenset(("/dev/urandom", "/dev/random", "/dev/hwrng"))
_HARMLESS_SOUND = frozenset(("none", "spice", "dbus"))
_FILES = frozenset(("file", "xauth", "logFile", "socket", "rendernode"))
"""Attributes of devices that are files of the host, be their paths absolute or not."""
_WAYS = frozenset(("network", "bridge", "direct", "user"))


def confine(root: Element) -> list[str]:
    """Take out of a definition all that reaches into the host, but for its disks and firmware.

    Returns:
        What the guest lacks then, a line each.
    """
    return [*_confine_top(root), *_confine_boot(root), *_confine_devices(root)]


def _drop(parent: Element, *tags: str) -> bool:
    """Remove children of these names; whether there were any."""
    found = [child for child in parent if child.tag in tags]
    for child in found:
        parent.remove(child)
    return bool(found)


def _confine_top(root: Element) -> Iterator[str]:
    for child in list(root):
        if child.tag not in _TOP:
            root.remove(child)
            if child.tag not in _SILENT:
                yield f"<{_shown(child.tag)}>: is for a host, or not known"
    for tuning in root.iterfind("blkiotune"):
        if _drop(tuning, "device"):
            yield "<blkiotune>: its devices are the host's"
    for info in root.findall("sysinfo"):
        for entry in info.findall("entry"):
            if entry.get("file") is not None:
                info.remove(entry)
                yield f"<sysinfo> {entry.get('name')}: is a file of the host"


def _shown(tag: str) -> str:
    """A tag without the long form of its name space."""
    space, _, name = tag.rpartition("}")
    return f"{space.rpartition('/domain/')[2].partition('/')[0]}:{name}" if space else name


def _confine_boot(root: Element) -> Iterator[str]:
    system = root.find("os")
    if system is None:
        return
    if _drop(system, "kernel", "initrd", "cmdline", "dtb"):
        yield "the kernel that it starts is a file of the host: it starts from its disks"
    if _drop(system, "acpi"):
        yield "its ACPI tables are files of the host"


def _confine_devices(root: Element) -> Iterator[str]:
    devices = root.find("devices")
    if devices is None:
        return
    _drop(devices, "emulator")  # libvirt has one of its own
    for device in list(devices):
        why = _WHAT.get(device.tag, "not known") if device.tag not in _DEVICES else _refused(device)
        if why is not None:
            devices.remove(device)
            yield f"<{_shown(device.tag)}>: {why}"
        else:
            yield from _confine_device(device)
            yield from _confine_paths(device)


def _confine_paths(device: Element) -> Iterator[str]:
    """Take out what else has the form of a path, in whatever word a later libvirt has for it."""
    if device.tag == "disk":  # its image's place is another one in any case
        return
    for element in device.iter():
        for key in sorted(_FILES.intersection(element.keys())):
            del element.attrib[key]
            yield f"<{device.tag}>: its {element.tag} {key} is the host's"
        for key in [key for key, value in element.items() if value.startswith("/")]:
            del element.attrib[key]
            yield f"<{device.tag}>: its {element.tag} {key} is a path of the host"


def _refused(device: Element) -> str | None:
    """Why a device of a known kind cannot be kept; None: it can."""
    kind = device.get("type", "")
    if device.tag == "interface" and kind not in _WAYS:
        return f"a network card of type {kind}, which is a device, a program or a port of the host"
    if device.tag == "input" and kind in ("passthrough", "evdev"):
        return "an input device of the host"
    if device.tag == "redirdev" and kind != "spicevmc":
        return f"of type {kind}"
    backend = device.find("backend")
    if device.tag == "tpm" and (backend is None or backend.get("type") != "emulator"):
        return "a TPM of the host"
    if device.tag == "rng" and (backend is None or backend.get("model") == "egd"):
        return "its entropy comes from a program of the host"
    if device.tag == "memory" and device.find("source/path") is not None:
        return "memory whose content is a file of the host, and in no point"
    return None


def _confine_device(device: Element) -> Iterator[str]:
    """Keep a device, less what in it is the host's."""
    confined = _CONFINED.get("port" if device.tag in _PORTS else device.tag)
    if confined is not None:
        yield from confined(device)


def _confine_card(card: Element) -> Iterator[str]:
    if _drop(card, "script", "downscript", "backend"):
        yield "<interface>: its script, or its devices, are the host's"


def _confine_audio(device: Element) -> Iterator[str]:
    kind, number = device.get("type"), device.get("id", "1")
    if kind not in _HARMLESS_SOUND:
        device.clear()
        device.attrib.update({"id": number, "type": "none"})
        yield f"<audio>: of type {kind}, which is the host's; it is mute"


def _confine_entropy(device: Element) -> Iterator[str]:
    for backend in device.iterfind("backend"):
        if backend.get("model") == "random" and (backend.text or "").strip() not in _ENTROPY:
            backend.text = "/dev/urandom"
    yield from ()


def _confine_tpm(device: Element) -> Iterator[str]:
    for backend in device.iterfind("backend"):
        _drop(backend, "source")
    yield from ()


def _confine_port(port: Element) -> Iterator[str]:
    """A port leads to nowhere, to libvirt's own socket or a terminal."""
    logged = _drop(port, "log")
    kind, source = port.get("type", ""), port.find("source")
    if kind in _HARMLESS_PORTS:
        if kind == "pty":
            _drop(port, "source")
    elif kind != "unix" or port.tag != "channel" or source is not None:
        port.set("type", "unix" if port.tag == "channel" else "pty")
        _drop(port, "source", "protocol")
        logged = True
    if logged and port.tag != "console":  # the first console is the first serial port again
        target = port.find("target")
        name = None if target is None else target.get("name") or target.get("port")
        named = f"<{port.tag}>" if name is None else f"<{port.tag}> {name}"
        yield f"{named}: was a file, a socket or a log of the host, and is libvirt's own now"


def _confine_graphics(device: Element) -> Iterator[str]:
    if device.attrib.pop("address", None) is not None:
        yield "<graphics>: its address is that of a bus of the host"


_CONFINED: dict[str, Callable[[Element], Iterator[str]]] = {
    "port": _confine_port,
    "interface": _confine_card,
    "graphics": _confine_graphics,
    "audio": _confine_audio,
    "rng": _confine_entropy,
    "tpm": _confine_tpm,
}
