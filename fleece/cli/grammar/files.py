"""The grammar of the verb `files` and its two verbs."""

from __future__ import annotations

import argparse

from fleece.cli.grammar.options import POINT, STORE, AddVerb, add_guest, add_key, add_quiet
from fleece.cli.words import CpWords, LsWords

_PATH = "a path in the volume's file system, like /etc/fstab"


def files_verbs(verb: AddVerb) -> None:
    """files."""
    files = verb(
        "files",
        "files:ls",
        LsWords,
        "list and copy files out of a point, without mounting and without root",
    )
    files.add_argument("store", metavar="STORE", help=STORE)
    files.add_argument("point", metavar="POINT", help=POINT)
    files.add_argument("disk", metavar="DISK", help="the disk's name")
    verbs = files.add_subparsers(title="verbs", metavar="ls|cp", required=True)
    verbs.type = str  # the verb's own words pass here too
    text = "list the disk's volumes, or what is at a path"
    ls = verbs.add_parser("ls", help=text, description=text)
    ls.set_defaults(verb="files:ls", words=LsWords)
    ls.add_argument("paths", metavar="PATH", nargs="*", help=f"{_PATH}; none: list the volumes")
    ls.add_argument("-l", action="store_true", dest="long", help="modes, owners, sizes and times")
    ls.add_argument("-r", "-R", action="store_true", dest="recursive", help="all below, too")
    _add_common(ls)
    text = "copy files and folders, with all that is in them, out of the disk"
    cp = verbs.add_parser("cp", help=text, description=text)
    cp.set_defaults(verb="files:cp", words=CpWords)
    cp.add_argument("paths", metavar="PATH", nargs="+", help=_PATH)
    cp.add_argument(
        "target",
        metavar="DEST",
        help="a folder, the copy's name in one, or - to write one file to standard output",
    )
    cp.add_argument("--force", action="store_true", help="replace files that exist")
    _add_common(cp)


def _add_common(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--volume",
        metavar="NAME",
        help="a volume's number, name, label or GROUP/VOLUME; default: the only file system",
    )
    made.add_argument(
        "--json",
        action="store_true",
        dest="machine",
        default=argparse.SUPPRESS,  # it may have been given before the inner verb
        help="print one JSON object a line; the last one is the result",
    )
    add_quiet(made, argparse.SUPPRESS)
    add_guest(made)
    add_key(made)
