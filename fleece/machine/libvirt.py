"""Put a machine into a libvirt: its definition made to fit, checked before, defined at the end."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from xml.etree.ElementTree import Element

from fleece.cancel import CancelToken
from fleece.closing import Closing
from fleece.delta.part import PartKind
from fleece.disk.image import ImageFormat
from fleece.errors import TargetError
from fleece.machine.base import (
    NVRAM_FILE,
    Landed,
    MachineWish,
    PlacedDisk,
    PlacedFile,
    SavedMachine,
)
from fleece.machine.domain import (
    Fit,
    bridges,
    fitted,
    image_formats,
    networks,
    own_name,
    own_uuid,
    tpm_secrets,
    tpm_version,
)
from fleece.machine.hypervisor import Hypervisor, Known
from fleece.machine.swtpm import (
    StateFolder,
    check_free,
    placed_state,
    state_files,
    state_folder,
)
from fleece.machine.xml import believed
from fleece.source.libvirt.inventory import image_of
from fleece.source.libvirt.places import tpm_state
from fleece.source.libvirt.xml import checkpoint_xml
from fleece.source.point_name import PointName

_PRIVATE = 0o600


class LibvirtLanding(Closing):
    """A libvirt that gets a guest.

    Args:
        saved: the machine.
        wish: where it is put, and as what.
        cancel: of the run.

    Raises:
        StoreError: the point's definition is none of a guest.
        TargetError: libvirt cannot be reached.
        UsageError: libvirt's Python bindings are missing.
    """

    kind = "libvirt"

    def __init__(self, saved: SavedMachine, wish: MachineWish, cancel: CancelToken) -> None:
        self._saved, self._wish = saved, wish
        where = f"the definition of point {saved.point}"
        self._root = believed(saved.parts[PartKind.LIBVIRT_XML], where)
        self._name = wish.name or own_name(self._root)
        own = own_uuid(self._root) or saved.uuid
        self._uuid = str(uuid.uuid4()) if own is None or not wish.keep_identity else own
        self._state = (
            state_files(saved.parts[PartKind.TPM]) if PartKind.TPM in saved.parts else None
        )
        self._nvram = saved.parts.get(PartKind.NVRAM)
        self._disks: tuple[PlacedDisk, ...] = ()
        self._old: Known | None = None
        self._xml = ""
        self._made: Known | None = None
        self._libvirt = Hypervisor(wish.connect, cancel)

    def close(self) -> None:
        """Let go of libvirt."""
        self._libvirt.close()

    def formats(self) -> Mapping[str, ImageFormat]:
        """As the definition says."""
        return image_formats(self._root)

    # ---- before anything is made -----------------------------------------------------------------

    def prepare(self, disks: Sequence[PlacedDisk]) -> Sequence[str]:
        """Make the definition fit, and see that libvirt can run it.

        Raises:
            TargetError: it cannot, or has a guest of that name or UUID.
        """
        self._disks = tuple(disks)
        self._old = self._replaced()
        if self._old is not None:
            self._uuid = self._old.uuid
        version = tpm_version(self._root)
        if version is not None and self._state is not None:
            check_free(self._place_of_state(version), force=self._wish.force)
        loaders = self._able(self._root)
        fit = Fit(
            self._name,
            self._uuid,
            self._wish.keep_identity,
            {disk.name: disk for disk in disks},
            self._wish.folder / NVRAM_FILE,
            self._nvram is not None,
            loaders,
            self._wish.trusted,
        )
        found = fitted(self._root, fit)
        self._xml = found.xml
        self._libvirt.check(found.xml)
        lacking = self._lacking(version)
        if lacking and self._wish.start:
            raise TargetError(
                f"the guest would not start: {'; '.join(lacking)}",
                where=self._libvirt.where,
                hint="make it, or leave --start out, and edit the definition then",
            )
        later = [f"the guest does not start before there is {each}" for each in lacking]
        return [*found.notices, *later]

    def _place_of_state(self, version: str) -> StateFolder:
        of_system = self._libvirt.of_system
        path = tpm_state(self._uuid, version, of_system=of_system)
        return state_folder(path, of_system=of_system)

    def _replaced(self) -> Known | None:
        """The guest that is replaced; None: none is.

        Raises:
            TargetError: there is one that must not be.
        """
        named = self._libvirt.guest_named(self._name)
        same = self._libvirt.guest_of(self._uuid)
        found = named or same
        if found is None:
            return None
        shown = f"a guest {found.name} (UUID {found.uuid})"
        if not self._wish.force:
            raise TargetError(
                f"this libvirt has {shown} already",
                where=self._libvirt.where,
                hint="--name gives the restored one another name, without --keep-identity another "
                "UUID; --force replaces the one that is there",
            )
        if found.name != self._name or (self._wish.keep_identity and found.uuid != self._uuid):
            raise TargetError(
                f"this libvirt has {shown}, and only one of the two is the restored one's",
                where=self._libvirt.where,
                hint="choose another --name, or undefine that guest",
            )
        if found.on or found.kept is not None:
            state = "is on" if found.on else f"has {found.kept}"
            raise TargetError(
                f"{shown} {state}", where=self._libvirt.where, hint="it cannot be replaced so"
            )
        return found

    def _able(self, root: Element) -> set[str]:
        """See that the machine and its CPU are known here; gives the firmware that is.

        Raises:
            TargetError: they are not.
        """
        system, kind = root.find("os/type"), root.get("type", "")
        arch = "" if system is None else system.get("arch", "")
        machine = None if system is None else system.get("machine")
        told = self._libvirt.capabilities(kind, arch, machine)
        model = root.find("cpu[@mode='custom']/model")
        known = told.findall("cpu/mode[@name='custom']/model")
        if model is not None and known:
            usable = {each.text for each in known if each.get("usable") != "no"}
            if model.text not in usable and model.get("fallback") == "forbid":
                raise TargetError(
                    f"this host has no CPU that can be the guest's ({model.text})",
                    where=self._libvirt.where,
                )
        return {each.text or "" for each in told.iterfind("os/loader/value")}

    def _lacking(self, version: str | None) -> list[str]:
        """What must be made here before the guest can start."""
        lacking = [
            f"an active network {name}"
            for name in networks(self._root)
            if not self._libvirt.has_network(name)
        ]
        if self._libvirt.of_system:
            lacking += [
                f"a network device {name}"
                for name in bridges(self._root)
                if not os.path.exists(f"/sys/class/net/{name}")
            ]
        if version is not None:
            lacking += [
                f"the secret {each} that its TPM's state is encrypted with"
                for each in tpm_secrets(self._root)
                if not self._libvirt.has_secret(each)
            ]
        return lacking

    def files(self) -> Sequence[PlacedFile]:
        """The variables of its UEFI."""
        if self._nvram is None:
            return ()
        return (PlacedFile(self._wish.folder / NVRAM_FILE, self._nvram, _PRIVATE),)

    def bitmap(self, disk: str, chain_id: str, sequence: int, point: str) -> str:
        """That of a checkpoint, which is the same on all disks."""
        return str(PointName(chain_id, sequence, point))

    # ---- when the disks are there ----------------------------------------------------------------

    def land(self, bitmap: Mapping[str, str]) -> Landed:
        """Put the TPM's state in its place, and define the guest.

        Raises:
            TargetError: libvirt refuses; it has nothing of the guest then.
        """
        notices: list[str] = []
        with contextlib.ExitStack() as stack:
            version = tpm_version(self._root)
            if self._state is not None and version is not None:
                place = self._place_of_state(version)
                stack.enter_context(placed_state(place, self._state, force=self._wish.force))
            before = None if self._old is None else self._libvirt.definition(self._old)
            made, doubt = self._libvirt.define(self._xml)
            try:
                if bitmap:
                    self._remember(made, bitmap)
            except BaseException:
                if before is None:
                    self._libvirt.forget(made)
                else:
                    self._libvirt.define(before)
                raise
            self._made = made
            if doubt is not None:
                notices.append(f"libvirt may not know all of the definition: {doubt}")
        told = f"libvirt has the guest {made.name}, UUID {made.uuid}"
        return Landed(made.name, made.uuid, told, tuple(notices))

    def _remember(self, made: Known, bitmap: Mapping[str, str]) -> None:
        """Tell libvirt of the checkpoint that the disks have the bitmaps of."""
        images = {
            disk.name: (image_of(str(disk.path)),) for disk in self._disks if disk.name in bitmap
        }
        (name,) = set(bitmap.values())
        self._libvirt.remember(made, checkpoint_xml(name, images, int(time.time())))

    def start(self) -> None:
        """Start the guest.

        Raises:
            TargetError: it does not start.
        """
        if self._made is not None:
            self._libvirt.start(self._made)
