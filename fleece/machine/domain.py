"""A definition of libvirt's, made to fit another place: pure, from one tree to another."""

from __future__ import annotations

import os
import uuid
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from fleece.disk.image import ImageFormat
from fleece.errors import StoreError, TargetError
from fleece.machine.base import PlacedDisk
from fleece.machine.confine import confine

_MEDIA = ("cdrom", "floppy")
_NAMESPACES = {
    "qemu": "http://libvirt.org/schemas/domain/qemu/1.0",
}
for _prefix, _space in _NAMESPACES.items():
    ElementTree.register_namespace(_prefix, _space)


@dataclass(frozen=True)
class Fit:
    """What a definition is made to fit.

    Attributes:
        name, uuid: of the guest.
        keep_identity: the addresses of its network cards stay.
        disks: where each disk is, by name.
        nvram: where its UEFI's variables are.
        has_nvram: they are there already: the point had them.
        loaders: firmware that the target has, by path.
        trusted: what reaches into the host is kept.
    """

    name: str
    uuid: str
    keep_identity: bool
    disks: Mapping[str, PlacedDisk]
    nvram: Path
    has_nvram: bool
    loaders: Collection[str]
    trusted: bool


@dataclass(frozen=True)
class Fitted:
    """A definition that fits.

    Attributes:
        xml: for libvirt.
        notices: what of the guest was not carried, a line each.
    """

    xml: str
    notices: tuple[str, ...]


def fitted(root: Element, fit: Fit) -> Fitted:
    """Make a definition fit. The tree that is given is changed.

    Raises:
        TargetError: the target lacks what it cannot do without.
    """
    told: list[str] = []
    if fit.trusted:
        _check_boot(root)
    else:
        told += confine(root)
    told += _fit_disks(root, fit)
    told += _fit_firmware(root, fit)
    _identify(root, fit)
    return Fitted(ElementTree.tostring(root, "unicode"), tuple(dict.fromkeys(told)))


def own_name(root: Element) -> str:
    """The guest's own name.

    Raises:
        StoreError: it has none, or the document is none of a guest.
    """
    name = (root.findtext("name") or "").strip()
    if root.tag != "domain" or not name:
        raise StoreError("the definition in the point is not one of a guest")
    return name


def own_uuid(root: Element) -> str | None:
    """The guest's own UUID, as libvirt writes one; None: it has none."""
    try:
        return str(uuid.UUID((root.findtext("uuid") or "").strip()))
    except ValueError:
        return None


def image_formats(root: Element) -> dict[str, ImageFormat]:
    """The formats of the disks' images, by target: qcow2 for all that is neither that nor raw."""
    found = {}
    for disk in root.iterfind("devices/disk"):
        driver = disk.find("driver")
        raw = driver is None or driver.get("type", "raw") == ImageFormat.RAW
        found[_target(disk)] = ImageFormat.RAW if raw else ImageFormat.QCOW2
    return found


def networks(root: Element) -> list[str]:
    """The virtual networks that its cards are on."""
    sources = root.iterfind("devices/interface/source")
    names = (source.get("network") for source in sources)
    return sorted({name for name in names if name is not None})


def bridges(root: Element) -> list[str]:
    """The host's network devices that its cards are on."""
    sources = list(root.iterfind("devices/interface/source"))
    names = (source.get(key) for source in sources for key in ("bridge", "dev"))
    return sorted({name for name in names if name is not None})


def tpm_version(root: Element) -> str | None:
    """The version of its emulated TPM; None: it has none."""
    for backend in root.iterfind("devices/tpm/backend"):
        if backend.get("type") == "emulator":
            return backend.get("version", "2.0")
    return None


def tpm_secrets(root: Element) -> list[str]:
    """The UUIDs of libvirt's secrets that its TPM's state is encrypted with."""
    found = (each.get("secret") for each in root.iterfind("devices/tpm/backend/encryption"))
    return [each for each in found if each is not None]


def _target(disk: Element) -> str:
    target = disk.find("target")
    return "" if target is None else target.get("dev", "")


# ---- what it starts from -------------------------------------------------------------------------


def _check_boot(root: Element) -> None:
    """See that the files of the host are there that a guest starts from that is trusted.

    Raises:
        TargetError: one is not.
    """
    for tag in ("kernel", "initrd", "dtb", "loader"):
        path = (root.findtext(f"os/{tag}") or "").strip()
        if path and not os.path.exists(path):
            raise TargetError(
                "is not here, and the guest starts from it",
                where=path,
                hint="put it there; without --trust-definition the guest starts from its disks",
            )


def _fit_firmware(root: Element, fit: Fit) -> Iterator[str]:
    system = root.find("os")
    if system is None:
        return
    loader, nvram = system.find("loader"), system.find("nvram")
    path = "" if loader is None else (loader.text or "").strip()
    if loader is not None and path and not fit.trusted and path not in fit.loaders:
        yield from _other_firmware(system, loader, path)
    if nvram is None and system.get("firmware") != "efi" and not fit.has_nvram:
        return
    form = None if nvram is None else nvram.get("format")
    template = None if nvram is None else nvram.get("template")
    if nvram is not None:
        system.remove(nvram)
    made = Element("nvram")
    made.text = str(fit.nvram)
    if form is not None:
        made.set("format", form)
    if fit.trusted and template is not None and not fit.has_nvram:
        made.set("template", template)
    after = [child.tag for child in system]
    system.insert(after.index("loader") + 1 if "loader" in after else len(after), made)
    if not fit.has_nvram:
        yield "its UEFI variables are not in the point: it gets new ones, with no boot entries"


def _other_firmware(system: Element, loader: Element, path: str) -> Iterator[str]:
    """Have libvirt choose the firmware."""
    flash = loader.get("type") == "pflash"
    secure = loader.get("secure")
    system.remove(loader)
    if not flash:
        yield f"its firmware {path} is not one that this libvirt knows: it gets the usual BIOS"
        return
    system.set("firmware", "efi")
    if secure is not None:
        system.append(Element("loader", secure=secure))
    yield f"its firmware {path} is not one that this libvirt knows: libvirt chooses another"


# ---- disks ---------------------------------------------------------------------------------------


def _fit_disks(root: Element, fit: Fit) -> Iterator[str]:
    devices = root.find("devices")
    if devices is None:
        devices = SubElement(root, "devices")
    missing = dict(fit.disks)
    for disk in devices.findall("disk"):
        name = _target(disk)
        if name in missing:
            yield from _fit_disk(disk, missing.pop(name))
        elif disk.get("device") in _MEDIA:
            yield from _eject(disk, name, trusted=fit.trusted)
        else:
            devices.remove(disk)
            yield f"disk {name} is not in the point: the guest comes without it"
    for name, placed in missing.items():
        yield f"disk {name} is not in the definition: attach {placed.path} yourself"


def _fit_disk(disk: Element, placed: PlacedDisk) -> Iterator[str]:
    if disk.find("encryption") is not None or disk.find("source/encryption") is not None:
        yield f"disk {placed.name}: its image was encrypted, and the restored one is not"
    for tag in ("source", "backingStore", "mirror", "encryption", "auth", "transient"):
        for child in disk.findall(tag):
            disk.remove(child)
    for key in ("rawio", "sgio"):
        disk.attrib.pop(key, None)
    disk.set("type", "block" if placed.device else "file")
    if disk.get("device") == "lun":
        disk.set("device", "disk")
    driver = disk.find("driver")
    if driver is None:
        driver = Element("driver")
        disk.insert(0, driver)
    driver.set("name", "qemu")
    driver.set("type", placed.format.value)
    place = {"dev" if placed.device else "file": str(placed.path)}
    disk.insert(list(disk).index(driver) + 1, Element("source", place))


def _eject(disk: Element, name: str, *, trusted: bool) -> Iterator[str]:
    """Empty a drive, unless its medium is here and the definition is trusted."""
    source = disk.find("source")
    medium = None if source is None else source.get("file") or source.get("dev")
    if source is None or (trusted and medium is not None and os.path.exists(medium)):
        return
    for tag in ("source", "backingStore", "auth", "encryption"):
        for child in disk.findall(tag):
            disk.remove(child)
    disk.set("type", "file")
    yield f"drive {name} is empty now: its medium was {medium or 'no file'}"


# ---- who it is -----------------------------------------------------------------------------------


def _identify(root: Element, fit: Fit) -> None:
    root.attrib.pop("id", None)
    _set(root, "name", fit.name)
    _set(root, "uuid", fit.uuid)
    for entry in root.iterfind("sysinfo/system/entry"):
        if entry.get("name") == "uuid":
            entry.text = fit.uuid  # libvirt refuses another one than the guest's
    generation = root.find("genid")
    if generation is not None:
        # It tells the guest that it was set back to an earlier time: it must be a new one.
        generation.text = None
    if fit.keep_identity:
        return
    for card in root.iterfind("devices/interface"):
        for address in card.findall("mac"):
            card.remove(address)
    for cid in root.iterfind("devices/vsock/cid"):
        cid.set("auto", "yes")
        cid.attrib.pop("address", None)


def _set(root: Element, tag: str, text: str) -> None:
    child = root.find(tag)
    if child is None:
        child = Element(tag)
        root.insert(0, child)
    child.text = text
