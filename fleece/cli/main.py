"""Parse the command line, run a verb, turn the outcome into an exit code."""

from __future__ import annotations

import argparse
import importlib
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
    "list": "list_points",
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
    """The parser of all verbs. Each verb sets `verb`: its function, in `cli.verbs` or `MODULE:`."""
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
        made.set_defaults(verb=_FUNCTIONS.get(name, name))
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
    backup.add_argument("--level", type=int, default=None, help="zstd level, 1 to 19; default: 1")
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
    info = verb("info", "show what a delta file says of itself")
    info.add_argument("file", metavar="FILE", help="a delta")
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
    _image_format(verify)
    root = verb("root", "compute the root of an image, with no store at hand")
    root.add_argument("image", metavar="IMAGE", help="a file, block device or NBD URI")
    _image_format(root)
    restore = verb("restore", "write a disk of a point to a new image and prove it")
    restore.add_argument("store", metavar="STORE", help=_STORE)
    restore.add_argument("point", metavar="POINT", help=_POINT)
    restore.add_argument("disk", metavar="DISK", help="the disk's name")
    restore.add_argument("target", metavar="TARGET", help="path of the image to make")
    restore.add_argument(
        "--format",
        choices=("raw", "qcow2"),
        dest="target_format",
        default=None,
        help="of the target; default: by its ending, else raw",
    )
    restore.add_argument("--force", action="store_true", help="replace a target that exists")
    _guest(restore)


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
    for name, text in (
        ("pin", "protect a point from prune"),
        ("unpin", "end a point's protection"),
    ):
        made = verb(name, text)
        made.add_argument("store", metavar="STORE", help=_STORE)
        made.add_argument("point", metavar="POINT", help=_POINT)
        _guest(made)


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
    output = Output("--json" in argv)
    cancel = CancelToken()

    def stop(number: int, frame: FrameType | None) -> None:
        cancel.cancel()

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    try:
        options = vars(parser().parse_args(argv))
        options.pop("machine")
        module, _, function = options.pop("verb").rpartition(":")
        verbs = importlib.import_module(f"fleece.cli.{module or 'verbs'}")
        run = getattr(verbs, function)
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
