"""Where a machine is put: the one place that knows which kinds of such places there are."""

from __future__ import annotations

from fleece.cancel import CancelToken
from fleece.delta.part import PartKind
from fleece.errors import UsageError
from fleece.machine.base import Landing, MachineWish, SavedMachine


def open_landing(saved: SavedMachine, wish: MachineWish, cancel: CancelToken) -> Landing:
    """Open the place that takes a machine: a libvirt, if it was one's, else a folder.

    Raises:
        StoreError: a part of the point is not what it says.
        TargetError: libvirt cannot be reached.
        UsageError: an option has no effect there.
    """
    if PartKind.LIBVIRT_XML in saved.parts and not wish.script:
        from fleece.machine.libvirt import LibvirtLanding

        return LibvirtLanding(saved, wish, cancel)
    idle = {
        "--connect": wish.connect is not None,
        "--start": wish.start,
        "--trust-definition": wish.trusted,
    }
    for option, given in idle.items():
        if given:
            why = "with --script" if wish.script else "on a guest that libvirt did not define"
            raise UsageError(
                f"{option} has no effect {why}: a script is made that starts QEMU",
                hint="leave it out",
            )
    from fleece.machine.script import ScriptLanding

    return ScriptLanding(saved, wish)
