"""The grammar of the verbs that use points: restore, serve, compare, look."""

from __future__ import annotations

import argparse

from fleece.cli.grammar.options import (
    POINT,
    STORE,
    AddVerb,
    add_connect,
    add_disks,
    add_guest,
    add_http,
    add_key,
    add_mode,
    add_verbose,
    file_to_make,
)
from fleece.cli.words import (
    BootWords,
    DiffWords,
    MapWords,
    RestoreGuestWords,
    RestoreWords,
    ServeWords,
)


def point_verbs(verb: AddVerb) -> None:
    """restore, restore-guest, serve, boot-test, diff, map."""
    for add in (
        _restore_verb,
        _restore_guest_verb,
        _boot_verb,
        _diff_verb,
        _picture_verb,
        _serve_verb,
    ):
        add(verb)


def _restore_verb(verb: AddVerb) -> None:
    restore = verb(
        "restore",
        "restoring:restore",
        RestoreWords,
        "write a disk of a point to an image, a device or a stream, and prove it",
    )
    restore.add_argument("store", metavar="STORE", help=STORE)
    restore.add_argument("point", metavar="POINT", help=POINT)
    restore.add_argument(
        "disk", metavar="DISK", help="the disk, or a part of its machine like @nvram"
    )
    restore.add_argument(
        "target",
        metavar="TARGET",
        help="path of the image to make, a block device, an NBD URI, or - for standard output",
    )
    restore.add_argument(
        "--format",
        choices=("raw", "qcow2"),
        dest="target_format",
        default=None,
        help="format of TARGET; default: qcow2 if its name ends with .qcow2, else raw",
    )
    restore.add_argument("--force", action="store_true", help="replace a target that exists")
    restore.add_argument(
        "--in-place",
        action="store_true",
        help="write only what differs to a target that exists",
    )
    ways = restore.add_mutually_exclusive_group()
    ways.add_argument(
        "--as-chain",
        action="store_const",
        dest="verb",
        const="restoring:as_chain",
        help="make TARGET a folder of qcow2 images, one for each point, each backed by the older",
    )
    ways.add_argument(
        "--partial",
        action="store_const",
        dest="verb",
        const="salvage:restore_partial",
        help="restore what can be proven though deltas are damaged or missing; list the rest; "
        "exit code 6 if anything is lost",
    )
    add_mode(restore, "the new image, or of each with --as-chain")
    add_guest(restore)
    add_verbose(restore)
    add_key(restore)


def _restore_guest_verb(verb: AddVerb) -> None:
    guest = verb(
        "restore-guest",
        "putting_back:restore_guest",
        RestoreGuestWords,
        "put a whole guest back: its disks, firmware variables, TPM and definition",
    )
    guest.add_argument("store", metavar="STORE", help=STORE)
    guest.add_argument("point", metavar="POINT", help=POINT)
    guest.add_argument(
        "folder",
        metavar="TARGETDIR",
        help="folder for its disks, DISK.qcow2 or DISK.raw; made if it is not there",
    )
    add_connect(guest, "the libvirt that gets the guest")
    guest.add_argument("--name", metavar="NAME", help="name of the guest; default: its own")
    guest.add_argument(
        "--keep-identity",
        action="store_true",
        help="keep its UUID and network addresses; default: new ones",
    )
    _add_places(guest)
    guest.add_argument(
        "--script",
        action="store_true",
        help="make a script that starts QEMU, even of a guest of libvirt's",
    )
    guest.add_argument(
        "--trust-definition",
        action="store_true",
        dest="trusted",
        help="keep what in the definition reaches into the host: devices, files, programs",
    )
    guest.add_argument("--start", action="store_true", help="start the guest at the end")
    guest.add_argument(
        "--force",
        action="store_true",
        help="replace files, devices, and a guest of the same name that is off",
    )
    add_guest(guest)
    add_verbose(guest)
    add_key(guest)


def _add_places(guest: argparse.ArgumentParser) -> None:
    """Where the disks of a guest go."""
    guest.add_argument(
        "--map",
        action="append",
        type=_place,
        default=[],
        dest="places",
        metavar="DISK=PATH",
        help="put a disk elsewhere, into a file or onto a block device (repeatable)",
    )
    guest.add_argument(
        "--format",
        choices=("raw", "qcow2"),
        dest="target_format",
        default=None,
        help="format of all images; default: as the definition says, else qcow2",
    )


def _place(text: str) -> tuple[str, str]:
    """The type of a disk's place; a disk's name may have an equals sign, a path after it not."""
    disk, equals, path = text.partition("=")
    if not (disk and equals and path):
        raise argparse.ArgumentTypeError("is written DISK=PATH, like vda=/dev/vg0/web1")
    return disk, path


def _diff_verb(verb: AddVerb) -> None:
    diff = verb(
        "diff",
        "looking:diff",
        DiffWords,
        "show what changed between two points, by their hash trees",
    )
    diff.add_argument("store", metavar="STORE", help=STORE)
    diff.add_argument("old", metavar="A", help=POINT)
    diff.add_argument("new", metavar="B", help=POINT)
    add_disks(diff, "compare this disk (repeatable); default: all disks of both points")
    add_guest(diff)
    add_key(diff)


def _picture_verb(verb: AddVerb) -> None:
    picture = verb(
        "map",
        "looking:draw",
        MapWords,
        "show which parts of a disk are data, and from which point each is",
    )
    picture.add_argument("store", metavar="STORE", help=STORE)
    picture.add_argument("point", metavar="POINT", help=POINT)
    picture.add_argument("disk", metavar="DISK", help="the disk's name")
    picture.add_argument(
        "--svg", type=file_to_make, metavar="FILE", help="also write the picture to FILE"
    )
    add_guest(picture)
    add_key(picture)


def _serve_verb(verb: AddVerb) -> None:
    serve = verb(
        "serve",
        "serving:serve",
        ServeWords,
        "serve the disks of a point over NBD until it is interrupted",
    )
    serve.add_argument("store", metavar="STORE", help=STORE)
    serve.add_argument("point", metavar="POINT", help=POINT)
    add_disks(serve, "serve this disk (repeatable); default: all disks of the point")
    serve.add_argument(
        "--socket", metavar="PATH", help="path of the unix socket; default: one in a new folder"
    )
    serve.add_argument(
        "--writable",
        action="store_true",
        help="accept writes and discard them at the end; the store is never written",
    )
    serve.add_argument(
        "--scratch",
        metavar="DIR",
        help="with --writable: folder for what is written; default: /var/tmp",
    )
    add_http(serve)
    add_guest(serve)
    add_key(serve)


def _boot_verb(verb: AddVerb) -> None:
    boot = verb(
        "boot-test",
        "booting:boot_test",
        BootWords,
        "boot a point in a throw-away machine without network",
    )
    boot.add_argument("store", metavar="STORE", help=STORE)
    boot.add_argument("point", metavar="POINT", help=POINT)
    add_disks(boot, "a disk (repeatable), the one to boot from first; default: all, by name")
    boot.add_argument(
        "--console-text",
        dest="text",
        metavar="TEXT",
        help="it has booted when this comes on the serial console; default: when the agent answers",
    )
    boot.add_argument(
        "--timeout",
        dest="limit",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="how long to wait; default: 300",
    )
    boot.add_argument(
        "--screenshot",
        type=file_to_make,
        metavar="FILE",
        help="write the screen, as it is at the end, to FILE (PNG)",
    )
    boot.add_argument(
        "--console-log",
        type=file_to_make,
        dest="console",
        metavar="FILE",
        help="write what came on the serial console to FILE",
    )
    add_mode(boot, "these files")
    _add_machine(boot)
    add_guest(boot)
    add_key(boot)


def _add_machine(boot: argparse.ArgumentParser) -> None:
    """What machine boots."""
    boot.add_argument(
        "--memory",
        type=int,
        default=None,
        metavar="MIB",
        help="memory of the machine; default: the guest's, if the host has it, else 1024",
    )
    boot.add_argument(
        "--cpus",
        dest="processors",
        type=int,
        default=None,
        metavar="N",
        help="processors of the machine; default: the guest's, else 2",
    )
    boot.add_argument(
        "--emulated",
        action="store_true",
        help="emulate the machine, slowly, even where KVM works",
    )
    boot.add_argument(
        "--bus",
        choices=("virtio", "sata", "scsi", "nvme"),
        default=None,
        help="bus of the disks; default: of each its own, else virtio",
    )
    boot.add_argument(
        "--firmware",
        metavar="FILE",
        help="firmware to start, like OVMF.fd; default: the guest's UEFI, else a BIOS",
    )
    boot.add_argument("--kernel", metavar="FILE", help="start this kernel directly")
    boot.add_argument("--initrd", metavar="FILE", help="with --kernel: its initial RAM disk")
    boot.add_argument("--append", type=str, metavar="WORDS", help="with --kernel: its command line")
    boot.add_argument(
        "--scratch", metavar="DIR", help="folder for what it writes; default: /var/tmp"
    )
