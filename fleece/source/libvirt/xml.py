"""What libvirt is told and tells, in its own XML.

libvirt's formats: formatdomain, formatbackup and formatcheckpoint of its documentation.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement

from fleece.errors import SourceError

EXPORTED_BITMAP = "delta"


def parsed(text: str, where: str) -> Element:
    """What libvirt wrote.

    Raises:
        SourceError: it is no XML.
    """
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise SourceError(f"what libvirt tells is not XML ({error})", where=where) from error


@dataclass(frozen=True)
class BackedUp:
    """A disk of a backup job.

    Attributes:
        name: its target.
        scratch: the file that takes what the guest overwrites.
        since: the checkpoint since which what changed is exported; None: nothing is told.
        export: its NBD name.
    """

    name: str
    scratch: Path
    since: str | None
    export: str


def backup_xml(socket: Path, disks: Sequence[BackedUp]) -> str:
    """A pull-mode backup of some disks.

    Each disk says for itself what it is since: what is said for all fails for a disk that is new.
    """
    root = Element("domainbackup", mode="pull")
    SubElement(root, "server", transport="unix", socket=str(socket))
    listed = SubElement(root, "disks")
    for disk in disks:
        made = SubElement(listed, "disk", name=disk.name, backup="yes", type="file")
        made.set("exportname", disk.export)
        if disk.since is None:
            made.set("backupmode", "full")
        else:
            made.set("backupmode", "incremental")
            made.set("incremental", disk.since)
            made.set("exportbitmap", EXPORTED_BITMAP)
        SubElement(made, "scratch", file=str(disk.scratch))
    return ElementTree.tostring(root, "unicode")


def pushed_xml(disks: Sequence[BackedUp]) -> str:
    """A push-mode backup of some disks, each into a qcow2 file."""
    root = Element("domainbackup", mode="push")
    listed = SubElement(root, "disks")
    for disk in disks:
        made = SubElement(listed, "disk", name=disk.name, backup="yes", type="file")
        if disk.since is None:
            made.set("backupmode", "full")
        else:
            made.set("backupmode", "incremental")
            made.set("incremental", disk.since)
        SubElement(made, "driver", type="qcow2")
        SubElement(made, "target", file=str(disk.scratch))
    return ElementTree.tostring(root, "unicode")


@dataclass(frozen=True)
class BackupJob:
    """A backup job that libvirt has.

    Attributes:
        mode: pull or push.
        socket: of its NBD server; None: there is none, or it listens elsewhere.
        disks: by name.
    """

    mode: str
    socket: Path | None
    disks: dict[str, BackedUp]


def backup_job(root: Element) -> BackupJob:
    """What `virDomainBackupGetXMLDesc` tells."""
    server, mode = root.find("server"), root.get("mode", "push")
    socket = None if server is None else server.get("socket")
    disks = {}
    for each in root.iterfind("disks/disk"):
        name = each.get("name")
        scratch = each.find("scratch" if mode == "pull" else "target")
        if each.get("backup") != "yes" or name is None:
            continue
        file = "" if scratch is None else scratch.get("file", scratch.get("dev", ""))
        disks[name] = BackedUp(
            name, Path(file), each.get("incremental"), each.get("exportname", name)
        )
    return BackupJob(mode, None if socket is None else Path(socket), disks)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, as libvirt tells of it.

    Attributes:
        name: its own.
        images: of each disk that it has a bitmap on, which images that was on at its point; empty:
            it does not tell.
        sizes: of those disks, how much changed since, in bytes; a disk whose bitmap is broken or
            gone has none.
    """

    name: str
    images: dict[str, tuple[str, ...]]
    sizes: dict[str, int] = field(default_factory=dict)


def checkpoint_xml(
    name: str,
    images: Mapping[str, Sequence[str]],
    made: int | None = None,
) -> str:
    """A checkpoint with a bitmap on some disks. Those that are not listed get none.

    Args:
        name: its own.
        images: those disks, by their names, and the images that each is on.
        made: when it was made, in seconds since the epoch, if it is there already.
    """
    root = Element("domaincheckpoint")
    SubElement(root, "name").text = name
    if made is not None:
        SubElement(root, "creationTime").text = str(made)
    SubElement(root, "description").text = json.dumps(images)
    listed = SubElement(root, "disks")
    for disk in images:
        SubElement(listed, "disk", name=disk, checkpoint="bitmap", bitmap=name)
    return ElementTree.tostring(root, "unicode")


def checkpoint(root: Element) -> Checkpoint:
    """What `virDomainCheckpointGetXMLDesc` tells, its sizes among it if they were asked for."""
    images: dict[str, tuple[str, ...]] = {}
    sizes = {}
    noted = _noted(root.findtext("description", ""))
    for each in root.iterfind("disks/disk"):
        name = each.get("name")
        if name is None or each.get("checkpoint") != "bitmap":
            continue
        told = noted.get(name)
        images[name] = tuple(map(str, told)) if isinstance(told, list) else ()
        size = each.get("size", "")
        if size.isdecimal():
            sizes[name] = int(size)
    return Checkpoint(root.findtext("name", ""), images, sizes)


def _noted(text: str) -> dict[str, object]:
    try:
        noted = json.loads(text)
    except ValueError:
        return {}
    return noted if isinstance(noted, dict) else {}
