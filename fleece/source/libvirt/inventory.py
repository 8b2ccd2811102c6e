"""The disks of a guest of libvirt's, as its definition tells of them."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from fleece.disk.image import ImageFormat
from fleece.errors import PointError
from fleece.source.choice import writable
from fleece.source.image.inventory import Image
from fleece.source.libvirt.domain import Domain
from fleece.source.workfolder import Owner

_MEDIA = ("cdrom", "floppy")
_UNSEEN = "?"
_QCOW2_MAGIC = b"QFI\xfb"
_IOTHREAD_FIXED = 8_002_003


@dataclass(frozen=True)
class LibvirtDisk:
    """A disk of the guest.

    Attributes:
        name: its target, like vda.
        size: in bytes.
        read_only: the guest cannot write it.
        format: of its image, as libvirt was told.
        images: its image and those below it that no other disk of the guest is on, from the top,
            each told from others (`_image`).
        place: of its image.
        keeps_bitmaps: its image can store them.
        iothread: it is served by one.
        unfit: why libvirt cannot back it up; None: it can.
    """

    name: str
    size: int
    read_only: bool
    format: str
    images: tuple[str, ...]
    place: str
    keeps_bitmaps: bool
    iothread: bool
    unfit: str | None


@dataclass(frozen=True)
class LibvirtInventory:
    """All disks with a medium, in the definition's order."""

    disks: tuple[LibvirtDisk, ...]

    def choose(self, names: tuple[str, ...]) -> tuple[LibvirtDisk, ...]:
        """The disks of these names, or all that are writable.

        Raises:
            UsageError: a name is given twice.
            PointError: there is no such disk, or libvirt cannot back it up, or it is read-only, or
                there is none at all.
        """
        chosen = writable(self.disks, names, "nothing can change on it")
        for disk in chosen:
            if disk.unfit is not None:
                others = [each.name for each in self.disks if each.unfit is None]
                raise PointError(
                    f"disk {disk.name} cannot be backed up through libvirt: {disk.unfit}",
                    hint=f"name the others with --disk: {', '.join(others) or 'there are none'}",
                )
        return chosen


def take_inventory(domain: Domain) -> LibvirtInventory:
    """Ask libvirt for all of it."""
    definition = domain.definition()
    sizes = domain.sizes()
    drives = definition.findall("devices/disk")
    layers = {_target(drive): _images(drive) for drive in drives}
    shared = Counter(image for images in layers.values() for image in set(images))
    found = [
        _disk(drive, sizes[name], [image for image in layers[name] if shared[image] == 1])
        for drive in drives
        if (name := _target(drive)) in sizes and layers[name]
    ]
    return LibvirtInventory(tuple(found))


def _target(drive: Element) -> str:
    target = drive.find("target")
    return "" if target is None else target.get("dev", "")


def _disk(drive: Element, size: int, images: list[str]) -> LibvirtDisk:
    driver = drive.find("driver")
    kind = _format(drive)
    read_only = drive.find("readonly") is not None or drive.get("device") in _MEDIA
    place = _place(drive)
    return LibvirtDisk(
        _target(drive),
        size,
        read_only,
        kind,
        tuple(images),
        place,
        kind == "qcow2" and not _is_old_qcow2(place),
        driver is not None and driver.get("iothread") is not None,
        _unfit(drive),
    )


def _unfit(drive: Element) -> str | None:
    if drive.get("device") == "lun":
        return "it is a SCSI device passed through"
    if drive.find("transient") is not None:
        return "it is transient: what is written to it is forgotten"
    if drive.get("type") in ("vhostuser", "nvme", "dir"):
        return f"it is of type {drive.get('type')}, which QEMU's block layer does not see"
    return None


def _images(drive: Element) -> list[str]:
    """Its image and those below it, each as `_image` tells of it."""
    found = []
    layer: Element | None = drive
    while layer is not None and (source := layer.find("source")) is not None:
        found.append(_image(source))
        layer = layer.find("backingStore")
    return found


def _place(drive: Element) -> str:
    source = drive.find("source")
    return "" if source is None else _named(source)


def _named(source: Element) -> str:
    """What an image's source is called: a path, or the parts of something that has none."""
    path = source.get("file") or source.get("dev")
    names = [source.get(key) for key in ("protocol", "pool", "volume", "name", "type")]
    for host in source.iterfind("host"):
        names += [host.get(key) for key in ("name", "port", "socket")]
    return path or ":".join(name for name in names if name)


def told_apart(images: Iterable[str]) -> set[str]:
    """Those of some images that are known to be no others of the same place."""
    return {image for image in images if not image.startswith(f"{_UNSEEN} ")}


def image_of(path: str) -> str:
    """What tells a file or block device from others (`_image`)."""
    return f"{_inode(path)} {path}"


def resting_drives(definition: Element) -> tuple[tuple[Image, ...], dict[str, str]]:
    """The writable disks of a guest that is off: their images, and why others have none."""
    images: list[Image] = []
    unfit: dict[str, str] = {}
    for drive in definition.findall("devices/disk"):
        source, name = drive.find("source"), _target(drive)
        if source is None or drive.find("readonly") is not None or drive.get("device") in _MEDIA:
            continue
        path, form = source.get("file") or source.get("dev"), _format(drive)
        if _unfit(drive) is not None:
            unfit[name] = str(_unfit(drive))
        elif path is None or form not in (ImageFormat.RAW, ImageFormat.QCOW2):
            unfit[name] = f"it is a {drive.get('type')} disk of format {form}"
        else:
            images.append(Image(name, path, ImageFormat(form)))
    return tuple(images), unfit


def _format(drive: Element) -> str:
    driver = drive.find("driver")
    return "raw" if driver is None else driver.get("type", "raw")


def _image(source: Element) -> str:
    """What tells an image from others, as long as nobody copies it: `INODE PLACE`.

    The inode's number is there of files. Two images whose files were exchanged differ in it. A file
    that this user cannot look at has a question mark for it (`told_apart`).
    """
    path = source.get("file") or source.get("dev")
    return f"{'-' if path is None else _inode(path)} {_named(source)}"


def _inode(path: str) -> str:
    try:
        state = os.stat(path)
    except OSError:
        return _UNSEEN
    return str(state.st_ino) if stat.S_ISREG(state.st_mode) else "-"


def _is_old_qcow2(path: str) -> bool:
    """Whether an image is of qcow2's version 2, which has no bitmaps, as far as this host sees."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        start = os.pread(descriptor, 8, 0)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return start[:4] == _QCOW2_MAGIC and start[4:] == b"\0\0\0\2"


def lost_client_kills(disk: LibvirtDisk, qemu: int) -> bool:
    """Whether a QEMU ends, and the guest with it, when an NBD client of the disk is lost.

    Before 8.2.3 it does if an iothread serves the disk (`nbd_blockdev_client_closed`).

    Args:
        disk: the disk.
        qemu: its version, as libvirt numbers it.
    """
    return disk.iothread and qemu < _IOTHREAD_FIXED


def passed_through(definition: Element) -> tuple[str, ...]:
    """The host's devices that the guest has besides its disks, a line each kind: pci, usb, scsi."""
    kinds = Counter(each.get("type", "other") for each in definition.iterfind("devices/hostdev"))
    return tuple(
        f"{count} device(s) of the host of type {kind} are passed through to the guest: QEMU does "
        "not see what is on them, so it is not backed up"
        for kind, count in sorted(kinds.items())
    )


def owner_of(definition: Element) -> Owner:
    """The user that the guest's QEMU runs as: by the DAC label of its definition, else ours."""
    for label in definition.iterfind("seclabel"):
        if label.get("model") == "dac":
            user, _, group = label.findtext("label", "").partition(":")
            if user.lstrip("+").isdecimal() and group.lstrip("+").isdecimal():
                return Owner(int(user.lstrip("+")), int(group.lstrip("+")))
    return Owner(os.geteuid(), os.getegid())
