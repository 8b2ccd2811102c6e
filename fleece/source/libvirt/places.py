"""Where libvirt has a guest's files that are no disks (qemu_conf.c, qemu_tpm.c; seen on 9.0)."""

from __future__ import annotations

import os
from pathlib import Path


def tpm_state(uuid: str, version: str | None, *, of_system: bool) -> Path:
    """The folder of the state of a guest's emulated TPM.

    Args:
        uuid: of the guest.
        version: of the TPM, as the definition says: 1.2 or 2.0; None: it does not.
        of_system: the libvirt is the host's own.
    """
    base = Path("/var/lib/libvirt/swtpm") if of_system else _own("swtpm")
    return base / uuid / ("tpm1.2" if version == "1.2" else "tpm2")


def variables(name: str, *, of_system: bool) -> Path:
    """The file of the UEFI variables of a guest of this name, whose firmware libvirt has chosen."""
    base = Path("/var/lib/libvirt/qemu/nvram") if of_system else _own("nvram")
    return base / f"{name}_VARS.fd"


def _own(name: str) -> Path:
    """A folder of an ordinary user's libvirt."""
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(config) / "libvirt/qemu" / name
