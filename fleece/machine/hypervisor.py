"""A libvirt that gets a guest: what it has, what it can run, and what it is told."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from fleece.cancel import CancelToken
from fleece.closing import Closing
from fleece.errors import SourceError, TargetError
from fleece.source.libvirt.connection import GivenUp, Libvirt, Refused

_NO_DOMAIN, _NO_NETWORK, _NO_SECRET = 42, 43, 66
_INVALID_SCHEMA = 92
"""Of `virErrorNumber` (virterror.h)."""
_DEFINE_LIMIT = 120.0

T = TypeVar("T")


class Hypervisor(Closing):
    """A libvirt.

    Args:
        uri: of it; None: libvirt's default.
        cancel: of the run.

    Raises:
        TargetError: it cannot be reached, or is on another host.
        UsageError: libvirt's Python bindings are missing.
    """

    def __init__(self, uri: str | None, cancel: CancelToken) -> None:
        self.where = uri or "libvirt"
        with _of_target():
            self._libvirt = Libvirt(uri, self.where, cancel)
        self._lib, self._connection = self._libvirt.lib, self._libvirt.connection
        self._calls = self._libvirt.calls
        if (host := self._libvirt.other_host) is not None:
            self.close()
            raise TargetError(
                f"this libvirt is on another host, {host}, and the disks would be here",
                where=self.where,
                hint="run fleece there",
            )

    def close(self) -> None:
        """Let go of it. Safe to repeat."""
        self._libvirt.close()

    @property
    def of_system(self) -> bool:
        """Whether it is the host's own, and not a user's."""
        return self._libvirt.of_system

    def _ask(self, what: str, call: Callable[[], T], **limit: float) -> T:
        with _of_target():
            return self._calls(what, call, **limit)

    def _found(self, what: str, call: Callable[[], T], absent: int) -> T | None:
        """What is looked up; None: there is none."""
        with _of_target():
            try:
                return self._calls(what, call)
            except Refused as error:
                if error.number == absent:
                    return None
                raise

    # ---- what it has ---------------------------------------------------------------------------

    def guest_named(self, name: str) -> Known | None:
        """The guest of a name, if it has one."""
        return self._known(lambda: self._connection.lookupByName(name))

    def guest_of(self, uuid: str) -> Known | None:
        """The guest of a UUID, if it has one."""
        return self._known(lambda: self._connection.lookupByUUIDString(uuid))

    def _known(self, call: Callable[[], Any]) -> Known | None:
        found = self._found("a guest", call, _NO_DOMAIN)
        return None if found is None else self._ask("the guest", lambda: Known(found))

    def has_network(self, name: str) -> bool:
        """Whether it has a virtual network, and that is on."""
        found = self._found(
            f"network {name}", lambda: self._connection.networkLookupByName(name), _NO_NETWORK
        )
        return found is not None and bool(self._ask(f"network {name}", found.isActive))

    def has_secret(self, uuid: str) -> bool:
        """Whether it has a secret."""
        call = self._connection.secretLookupByUUIDString
        return self._found("a secret", lambda: call(uuid), _NO_SECRET) is not None

    def capabilities(self, kind: str, arch: str, machine: str | None) -> Element:
        """What it can run (`<domainCapabilities>`).

        Raises:
            TargetError: no such machine.
        """
        call = self._connection.getDomainCapabilities
        text = self._ask("such a machine", lambda: call(None, arch, machine, kind))
        return ElementTree.fromstring(text)

    def check(self, xml: str) -> None:
        """See that it could make a QEMU of a definition. Nothing is changed.

        Raises:
            TargetError: it could not.
        """
        call = self._connection.domainXMLToNative
        self._ask("the definition", lambda: call("qemu-argv", xml, 0))

    # ---- what it is told -----------------------------------------------------------------------

    def define(self, xml: str) -> tuple[Known, str | None]:
        """Define a guest; one of its UUID is defined anew.

        Returns:
            The guest, and why the definition does not fit libvirt's schema, if it does not.

        Raises:
            TargetError: it refuses.
        """
        call, flag = self._connection.defineXMLFlags, self._lib.VIR_DOMAIN_DEFINE_VALIDATE
        doubt = None
        with _of_target():
            try:
                made = self._calls("the definition", lambda: call(xml, flag), _DEFINE_LIMIT)
            except Refused as error:
                if error.number != _INVALID_SCHEMA:
                    raise
                doubt = error.reason
                made = self._calls("the definition", lambda: call(xml, 0), _DEFINE_LIMIT)
        return self._ask("the guest", lambda: Known(made)), doubt

    def definition(self, guest: Known) -> str:
        """All of a guest's definition, to define it anew."""
        flags = self._lib.VIR_DOMAIN_XML_INACTIVE | self._lib.VIR_DOMAIN_XML_SECURE
        return str(self._ask("the definition", lambda: guest.handle.XMLDesc(flags)))

    def forget(self, guest: Known) -> None:
        """Undo a definition; files stay."""
        flags = self._lib.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
        flags |= self._lib.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
        self._ask("to forget the guest", lambda: guest.handle.undefineFlags(flags))

    def remember(self, guest: Known, checkpoint: str) -> None:
        """Tell it of a checkpoint whose bitmaps are in the images."""
        flags = self._lib.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE
        self._ask("a checkpoint", lambda: guest.handle.checkpointCreateXML(checkpoint, flags))

    def start(self, guest: Known) -> None:
        """Start a guest.

        Raises:
            TargetError: it does not start.
        """
        self._ask("to start the guest", guest.handle.create, limit=_DEFINE_LIMIT)


class Known:
    """A guest that a libvirt has.

    Args:
        handle: libvirt's own.

    Attributes:
        name, uuid: of the guest.
        on: it runs, or is paused.
        kept: what libvirt keeps of its run beside its disks, in words; None: nothing.
    """

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.name: str = handle.name()
        self.uuid: str = handle.UUIDString()
        self.on = bool(handle.isActive())
        self.kept: str | None = None
        if handle.hasManagedSaveImage(0):
            self.kept = "a saved state (virsh managedsave-remove)"
        elif handle.snapshotNum(0):
            self.kept = "snapshots (virsh snapshot-delete)"


@contextlib.contextmanager
def _of_target() -> Iterator[None]:
    """What libvirt refuses is an error of the target."""
    try:
        yield
    except GivenUp:
        raise
    except SourceError as error:
        raise TargetError(error.what, where=error.where, hint=error.hint) from error
