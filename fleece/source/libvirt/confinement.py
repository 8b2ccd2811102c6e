"""What else confines a guest's QEMU than its user: AppArmor and SELinux, and what lets it work.

By libvirt's own word: its capabilities name the security drivers that it uses, and the guest's
definition how each labels the guest. Neither lets QEMU make a socket in a folder that it was not
told of. The lines are those that users of other programs report to help; there was no host with
AppArmor or SELinux to try them on (docs/howto/libvirt.rst).
"""

from __future__ import annotations

import shlex
from pathlib import Path
from xml.etree.ElementTree import Element

_APPARMOR_RULES = "/etc/apparmor.d/local/abstractions/libvirt-qemu"


def confinement(capabilities: Element, definition: Element, scratch: Path) -> tuple[str, ...]:
    """What to do so that a confined QEMU can use a scratch folder, a text each; none: nothing.

    Args:
        capabilities: of libvirt.
        definition: of the guest.
        scratch: the folder.
    """
    used = {each.findtext("model", "") for each in capabilities.iterfind("host/secmodel")}
    labels = {each.get("model", ""): each for each in definition.iterfind("seclabel")}
    advice = []
    for model, lines in (("apparmor", _for_apparmor), ("selinux", _for_selinux)):
        label = labels.get(model)
        if model in used and (label is None or label.get("type") != "none"):
            advice += lines(scratch, definition.findtext("uuid", ""))
    return tuple(advice)


def _for_apparmor(scratch: Path, uuid: str) -> list[str]:
    rule = shlex.quote(f'"{scratch}/**" rwk,')
    return [
        "AppArmor confines the guest's QEMU. If a backup is refused the scratch, run as root: "
        f"echo {rule} >> {_APPARMOR_RULES} && "
        f"apparmor_parser -r /etc/apparmor.d/libvirt/libvirt-{uuid}"
    ]


def _for_selinux(scratch: Path, uuid: str) -> list[str]:
    folder = shlex.quote(str(scratch))
    pattern = shlex.quote(f"{scratch}(/.*)?")
    return [
        "SELinux confines the guest's QEMU. If a backup is refused the scratch, run as root: "
        f"semanage fcontext -a -t svirt_image_t {pattern} && restorecon -R {folder}"
    ]
