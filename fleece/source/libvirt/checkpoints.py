"""Our checkpoints in libvirt: what they tell of a disk, and how they are deleted."""

from __future__ import annotations

import time
from collections.abc import Collection

from fleece.errors import SourceError
from fleece.source.base import Since, Unknown
from fleece.source.libvirt.connection import Refused
from fleece.source.libvirt.domain import Code, Domain
from fleece.source.libvirt.inventory import LibvirtDisk, told_apart
from fleece.source.libvirt.xml import Checkpoint, checkpoint_xml
from fleece.source.point_name import PointName


def of_chain(domain: Domain, chain_id: str) -> list[PointName]:
    """A chain's checkpoints, in the order of their sequences."""
    found = (PointName.parse(name) for name in domain.checkpoints())
    mine = (name for name in found if name is not None and name.chain_id == chain_id)
    return sorted(mine, key=lambda name: (name.sequence, name.point))


def written_since(
    domain: Domain, disk: LibvirtDisk, name: PointName, others: Collection[str]
) -> Since | Unknown:
    """Whether a checkpoint tells what was written on a disk since its point.

    Args:
        domain: the guest, which is on.
        disk: as the inventory shows it now.
        name: of the checkpoint.
        others: names of the chain's disks.
    """
    if not disk.keeps_bitmaps:
        return Unknown(f"its image is {disk.format}, which keeps no bitmaps")
    found = domain.checkpoint(str(name)) or _remembered(domain, disk, name, others)
    if found is None or disk.name not in found.images:
        return Unknown(f"libvirt has no checkpoint of it since point {name.point}")
    if not found.images[disk.name] and set(others) - {disk.name}:
        return Unknown(
            f"checkpoint {name} does not tell which image it is of, and the guest has several"
        )
    if not is_of(found, disk):
        return Unknown("its image is not the one that it had then, or this user cannot look at it")
    if disk.name not in found.sizes:
        return Unknown(f"its bitmap {name} is gone or broken: QEMU did not end cleanly")
    return Since((str(name),), min(found.sizes[disk.name], disk.size))


def is_of(told: Checkpoint, disk: LibvirtDisk) -> bool:
    """Whether a checkpoint's bitmap was made for an image of the disk, as far as it tells."""
    images = told.images[disk.name]
    return not images or bool(told_apart(images) & set(disk.images))


def _remembered(
    domain: Domain, disk: LibvirtDisk, name: PointName, others: Collection[str]
) -> Checkpoint | None:
    """Have libvirt know a checkpoint again whose bitmap is still in the image.

    libvirt forgets its checkpoints when a guest is undefined or renamed. Which image each bitmap
    was made for is forgotten with them; so this is done only for a chain of one disk.
    """
    if set(others) - {disk.name}:
        return None
    if not domain.redefine(checkpoint_xml(str(name), {disk.name: ()}, int(time.time()))):
        return None
    found = domain.checkpoint(str(name))
    return None if found is None else Checkpoint(found.name, {disk.name: ()}, found.sizes)


def delete(domain: Domain, name: str) -> None:
    """Delete a checkpoint and those of its bitmaps that are there.

    libvirt deletes nothing of it if one bitmap is missing. Then it is told again of those that are
    there; if there are none, only its own record goes.

    Raises:
        SourceError: libvirt refuses.
    """
    try:
        domain.delete(name)
    except Refused as error:
        if error.number != Code.INTERNAL:
            raise
        found = domain.checkpoint(name)
        if found is None:
            return
        whole = {disk: found.images[disk] for disk in found.sizes}
        if whole and domain.redefine(checkpoint_xml(name, whole, int(time.time()))):
            domain.delete(name)
        else:
            domain.delete(name, metadata_only=True)


def delete_below(domain: Domain, chain_id: str, sequence: int) -> tuple[str, ...]:
    """Delete a chain's checkpoints of points before one.

    Returns:
        Why some could not be deleted, a line each.
    """
    kept = []
    try:
        names = of_chain(domain, chain_id)
    except SourceError as error:
        return (f"old checkpoints were not looked for: {error}",)
    for name in names:
        if name.sequence < sequence:
            try:
                delete(domain, str(name))
            except SourceError as error:
                kept.append(f"checkpoint {name} is kept for now: {error}")
    return tuple(kept)
