"""Parse the command line, run a verb, turn the outcome into an exit code."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NoReturn

from fleece.cancel import CancelToken
from fleece.cli.output import Output
from fleece.errors import ExitCode, FleeceError, UsageError
from fleece.version import VERSION

_SOURCE = "qmp:SOCKET, the unix socket of a QMP monitor that nobody else uses"
_STORE = "a folder; backup makes it"
_FUNCTIONS = {
    "list": "verbs:list_points",
    "audit": "audit:audit",
    "import": "stream:import_delta",
    "restore": "restoring:restore",
    "salvage": "salvage:salvage",
    "merge": "keep:merge",
    "prune": "keep:prune",
    "pin": "keep:pin",
    "unpin": "keep:unpin",
}
_POINT = "a point's id, an unambiguous beginning of one, or 'latest'"


class _Parser(argparse.ArgumentParser):
    """Reports a bad command line as an error of the usage family."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=f"see '{self.prog} --help'")


def parser() -> argparse.ArgumentParser:
    """The parser of all verbs. Each sets `verb`: a module of `fleece.cli`, and its function."""
    top = _Parser(
        prog="fleece",
        description="Back up the disks of running QEMU guests, restore them, prove them by hash.",
        epilog="Exit codes: 0 done, 2 usage, 3 source, 4 point impossible, 5 store, "
        "6 verification failed, 7 target, 130 interrupted. docs/cli.rst tells all.",
    )
    top.add_argument("--version", action="version", version=f"fleece {VERSION}")
    common = _Parser(add_help=False)
    common.add_argument(
        "--json",
        action="store_true",
        dest="machine",
        help="print one JSON object a line; the last one is the result",
    )
    verbs = top.add_subparsers(title="verbs", metavar="VERB", required=True, parser_class=_Parser)

    def verb(name: str, text: str) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=text, description=text, parents=[common])
        made.set_defaults(verb=_FUNCTIONS.get(name, f"verbs:{name}"))
        return made

    _source_verbs(verb)
    _store_verbs(verb)
    _keep_verbs(verb)
    return top


_AddVerb = Callable[[str, str], argparse.ArgumentParser]


def _source_verbs(verb: _AddVerb) -> None:
    backup = verb("backup", "take a point of a running guest's disks and store it")
    backup.add_argument("source", metavar="SOURCE", help=_SOURCE)
    backup.add_argument("store", metavar="STORE", help=_STORE)
    _key(backup)
    backup.add_argument(
        "--hash",
        choices=("xxh3-128", "blake3"),
        default=None,
        dest="hash_name",
        help="of a new store: xxh3-128 (default) or blake3; with a key, blake3 finds tampering",
    )
    backup.add_argument(
        "--encrypt", action="store_true", help="make a new store one whose deltas are encrypted"
    )
    backup.add_argument(
        "--output",
        choices=("-",),
        default=None,
        dest="stream",
        metavar="-",
        help="write the delta of the one disk to standard output instead of the store",
    )
    backup.add_argument(
        "--mode",
        choices=("auto", "full", "incremental", "differential", "rescan"),
        default="auto",
        help="default: auto, which decides and says why",
    )
    backup.add_argument(
        "--guest",
        help="the guest's name in the store; default: QEMU's name for it, else the socket's",
    )
    backup.add_argument(
        "--disk",
        action="append",
        default=[],
        dest="disks",
        metavar="NAME",
        help="back up this disk (repeatable); default: all writable ones",
    )
    _scratch(backup)
    _scratch_limit(backup)
    backup.add_argument(
        "--guest-agent",
        metavar="SOCKET",
        help="the unix socket of the guest agent's port: freeze the guest's file systems for the "
        "moment of the point",
    )
    backup.add_argument(
        "--require-freeze",
        action="store_true",
        help="with --guest-agent: fail, exit code 4, if the guest cannot be frozen",
    )
    backup.add_argument("--level", type=int, default=None, help="zstd level, 1 to 19; default: 1")
    backup.add_argument(
        "--no-resume",
        action="store_false",
        dest="resume",
        help="take a new point even if a dead run left one that could be gone on with",
    )
    backup.add_argument(
        "--audit",
        type=float,
        default=0.0,
        metavar="FRACTION",
        help="also read this part (0 to 1) of what QEMU calls unchanged, chosen at random, and "
        "compare it with the store; default: 0",
    )
    audit = verb("audit", "compare all that QEMU calls unchanged with the store; store nothing")
    audit.add_argument("source", metavar="SOURCE", help=_SOURCE)
    audit.add_argument("store", metavar="STORE", help="a folder with points of this guest")
    audit.add_argument("--guest", help="the guest's name in the store")
    audit.add_argument(
        "--disk",
        action="append",
        default=[],
        dest="disks",
        metavar="NAME",
        help="audit this disk (repeatable); default: all writable ones",
    )
    _scratch(audit)
    _scratch_limit(audit)
    _key(audit)
    clean = verb("clean", "remove what dead backups left in a QEMU")
    clean.add_argument("source", metavar="SOURCE", help=_SOURCE)
    _scratch(clean)
    doctor = verb(
        "doctor", "say what a QEMU can do, which disks can be pulled, which bitmaps exist"
    )
    doctor.add_argument("source", metavar="SOURCE", help=_SOURCE)


def _store_verbs(verb: _AddVerb) -> None:
    listing = verb("list", "list the points of a store")
    listing.add_argument("store", metavar="STORE", help=_STORE)
    _key(listing)
    taking = verb("import", "take a delta from standard input into a store, fully checked")
    taking.add_argument("store", metavar="STORE", help=_STORE)
    _key(taking)
    info = verb("info", "show what a delta file says of itself")
    info.add_argument("file", metavar="FILE", help="a delta")
    _key(info)
    verify = verb(
        "verify", "read every byte, recompute every hash; or hold an image against a point"
    )
    verify.add_argument("store", metavar="STORE", help=_STORE)
    verify.add_argument("point", metavar="POINT", nargs="?", help=f"{_POINT}; default: all")
    verify.add_argument(
        "--against",
        metavar="IMAGE",
        help="a file, block device or NBD URI that must equal POINT's disk",
    )
    verify.add_argument("--disk", metavar="NAME", help="with --against: which disk of the point")
    _guest(verify)
    _key(verify)
    _image_format(verify)
    root = verb("root", "compute the root of an image, with no store at hand")
    root.add_argument("image", metavar="IMAGE", help="a file, block device or NBD URI")
    _image_format(root)
    root.add_argument(
        "--hash",
        choices=("xxh3-128", "blake3"),
        default="xxh3-128",
        dest="hash_name",
        help="the store's hash; default: xxh3-128",
    )
    _restore_verb(verb)
    salvage = verb("salvage", "save what a damaged or cut delta still proves into a new file")
    salvage.add_argument("file", metavar="FILE", help="the damaged delta; it is only read")
    salvage.add_argument(
        "-o", "--output", metavar="NEW", required=True, dest="target", help="the file to make"
    )
    salvage.add_argument("--force", action="store_true", help="replace a file that exists")
    _key(salvage)
    _looking_verbs(verb)


def _restore_verb(verb: _AddVerb) -> None:
    restore = verb("restore", "write a disk of a point to an image, a device or a stream; prove it")
    restore.add_argument("store", metavar="STORE", help=_STORE)
    restore.add_argument("point", metavar="POINT", help=_POINT)
    restore.add_argument("disk", metavar="DISK", help="the disk's name")
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
        help="of the target; default: by its ending, else raw; in place: probed",
    )
    restore.add_argument("--force", action="store_true", help="replace a target that exists")
    restore.add_argument(
        "--in-place",
        action="store_true",
        help="write to a target that exists only the leaves that differ",
    )
    restore.add_argument(
        "--as-chain",
        action="store_const",
        dest="verb",
        const="restoring:as_chain",
        help="make TARGET a folder of qcow2 images, one for each point, each backed by the older",
    )
    restore.add_argument(
        "--partial",
        action="store_const",
        dest="verb",
        const="salvage:restore_partial",
        help="restore what can be proven though deltas are damaged or missing; list the rest; "
        "exit code 6 if anything is lost",
    )
    _guest(restore)
    _key(restore)


def _looking_verbs(verb: _AddVerb) -> None:
    diff = verb("diff", "tell what changed between two points, by their hash trees")
    diff.set_defaults(verb="looking:diff")
    diff.add_argument("store", metavar="STORE", help=_STORE)
    diff.add_argument("old", metavar="A", help=_POINT)
    diff.add_argument("new", metavar="B", help=_POINT)
    diff.add_argument(
        "--disk",
        action="append",
        default=[],
        dest="disks",
        metavar="NAME",
        help="compare this disk (repeatable); default: all of either point",
    )
    _guest(diff)
    _key(diff)
    picture = verb("map", "show which parts of a disk are data, and from which point each is")
    picture.set_defaults(verb="looking:draw")
    picture.add_argument("store", metavar="STORE", help=_STORE)
    picture.add_argument("point", metavar="POINT", help=_POINT)
    picture.add_argument("disk", metavar="DISK", help="the disk's name")
    picture.add_argument("--svg", metavar="FILE", help="write the picture there too")
    _guest(picture)
    _key(picture)
    serve = verb("serve", "serve the disks of a point over NBD until it is interrupted")
    serve.set_defaults(verb="serving:serve")
    serve.add_argument("store", metavar="STORE", help=_STORE)
    serve.add_argument("point", metavar="POINT", help=_POINT)
    serve.add_argument(
        "--disk",
        action="append",
        default=[],
        dest="disks",
        metavar="NAME",
        help="serve this disk (repeatable); default: all of the point's",
    )
    serve.add_argument("--socket", metavar="PATH", help="unix socket to make; default: a new one")
    serve.add_argument(
        "--writable",
        action="store_true",
        help="take writes and throw them away in the end; the store is never written",
    )
    serve.add_argument(
        "--scratch",
        metavar="DIR",
        help="with --writable: folder for what is written; default: /var/tmp",
    )
    _guest(serve)
    _key(serve)


def _keep_verbs(verb: _AddVerb) -> None:
    merge = verb("merge", "make a point's deltas stand for a run of deltas, or for all: a full")
    merge.add_argument("store", metavar="STORE", help=_STORE)
    merge.add_argument("point", metavar="POINT", help=_POINT)
    merge.add_argument(
        "--from",
        dest="first",
        metavar="FIRST",
        help="the oldest point that is merged in; default: all, which gives a full",
    )
    _guest(merge)
    _key(merge)
    prune = verb("prune", "drop the points that no rule keeps; those that stay stay whole")
    prune.add_argument("store", metavar="STORE", help=_STORE)
    prune.add_argument(
        "--keep-last", dest="last", type=int, default=0, metavar="N", help="the N newest points"
    )
    for rule, unit in _UNITS.items():
        prune.add_argument(
            f"--keep-{rule}",
            dest=rule,
            type=int,
            default=0,
            metavar="N",
            help=f"the newest point of each of the newest N {unit} that have one; -1: of all",
        )
    prune.add_argument(
        "--keep-within",
        dest="within",
        metavar="DURATION",
        help="what is younger, seen from the newest point: 2y5m7d3h",
    )
    prune.add_argument("--dry-run", action="store_true", help="only say what would be done")
    prune.add_argument("--guest", help="whose points; default: those of each guest, by itself")
    _key(prune)
    for name, text in (
        ("pin", "protect a point from prune"),
        ("unpin", "end a point's protection"),
    ):
        made = verb(name, text)
        made.add_argument("store", metavar="STORE", help=_STORE)
        made.add_argument("point", metavar="POINT", help=_POINT)
        _guest(made)
        _key(made)


_UNITS = {
    "hourly": "hours",
    "daily": "days",
    "weekly": "weeks",
    "monthly": "months",
    "yearly": "years",
}


def _scratch(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--scratch",
        metavar="DIR",
        help="folder for scratch files, which take what "
        "the guest overwrites during the backup; default: /var/tmp",
    )


def _key(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--key-file",
        metavar="FILE",
        help="the store's key: any file of 32 bytes or more; default: $FLEECE_KEY_FILE",
    )
    made.add_argument(
        "--passphrase-file",
        metavar="FILE",
        help="its first line is the store's passphrase; "
        "default: $FLEECE_PASSPHRASE_FILE, or $FLEECE_PASSPHRASE itself",
    )


def _scratch_limit(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--scratch-limit",
        metavar="BYTES",
        help="what the scratch files may take together, like 500M or 20G: the run is given up "
        "before they take more; default: what their file system has, less a reserve",
    )


def _guest(made: argparse.ArgumentParser) -> None:
    made.add_argument("--guest", help="which guest, if the store holds several")


def _image_format(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--format",
        dest="image_format",
        metavar="FORMAT",
        help="of IMAGE, as qemu-img names it; default: found out",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; gives the exit code."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    output = Output("--json" in argv, "-" in argv or "--output=-" in argv)
    cancel = CancelToken()

    def stop(number: int, frame: FrameType | None) -> None:
        cancel.cancel()

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    try:
        options = vars(parser().parse_args(argv))
        options.pop("machine")
        if "key_file" in options:
            from fleece.cli.secret import secret_of

            files = options.pop("key_file"), options.pop("passphrase_file")
            options["secret"] = secret_of(*files, os.environ)
        module, _, function = options.pop("verb").partition(":")
        run = getattr(importlib.import_module(f"fleece.cli.{module}"), function)
        run(output, cancel, **options)
    except FleeceError as error:
        output.fail(error, **error.fields)
        return int(error.code)
    except BrokenPipeError:
        sys.stderr.close()
        return int(ExitCode.INTERNAL)
    except Exception as error:
        traceback.print_exc()
        output.fail(FleeceError(f"a bug in fleece: {error!r}", hint="please report it"))
        return int(ExitCode.INTERNAL)
    return int(ExitCode.OK)
