"""What several verbs take."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable

SOURCE = (
    "libvirt:DOMAIN, the name, UUID or id of a guest of libvirt's; "
    "qmp:SOCKET, the unix socket of a QMP monitor that nobody else uses; "
    "image:[NAME=]PATH[,...], the images of a guest that is off; "
    "nbd://HOST[:PORT]/[EXPORT] (nbds, nbd+unix), an export of a point that somebody else holds; "
    "or provider:PROGRAM [ARGS], a program that begins and ends points"
)
STORE = (
    "a store: a folder, s3://BUCKET/PREFIX or ssh://HOST/PATH; 'fleece init' makes one; it can be "
    "left out if $FLEECE_STORE names it"
)
ONLY_TAGGED = "only points that have all these tags (repeatable: or all those)"
NEW_STORE = "a folder that is empty or does not exist yet, or s3://BUCKET/PREFIX"
POINT = "a point's id, an unambiguous beginning of one, or 'latest'"

AddVerb = Callable[[str, str, type, str], argparse.ArgumentParser]
"""Makes a verb of this name, run by this function (`module:function` in `fleece.cli`), which takes
what was said as this class of `fleece.cli.words`, with this text of help."""


def filled(text: str) -> str:
    """The type of every word of which nothing else is said.

    An empty one is mostly a variable of a script that is not set. As a folder it would be the
    working one, as a point any, as an option none: something else than what was meant. Files to
    make are of type `str` or `file_to_make`: what makes them judges their names.
    """
    if not text:
        raise argparse.ArgumentTypeError("is empty")
    return text


def add_disks(made: argparse.ArgumentParser, text: str) -> None:
    """Add the option that chooses disks, any number of times; its help says which there are."""
    made.add_argument(
        "--disk", action="append", default=[], dest="disks", metavar="NAME", help=text
    )


def add_bitmap(made: argparse.ArgumentParser) -> None:
    """Add the options that say what tells what was written."""
    made.add_argument(
        "--bitmap",
        action="append",
        default=[],
        metavar="[DISK=]NAME",
        help="of nbd: sources: the dirty bitmap that tells what was written since the point "
        "of --since, on every disk or on DISK (repeatable)",
    )
    made.add_argument(
        "--since",
        metavar="POINT",
        help="with --bitmap: the id of the point that each bitmap began at or before; if the store "
        "lacks it, all is read",
    )


def add_scratch(made: argparse.ArgumentParser) -> None:
    """Add the option for the scratch folder."""
    made.add_argument(
        "--scratch",
        metavar="DIR",
        help="folder for scratch files: copies of what "
        "the guest overwrites during the backup; default: /var/lib/fleece/scratch, or "
        "/var/tmp/fleece-UID if not root",
    )


def add_connect(
    made: argparse.ArgumentParser, what: str = "the libvirt that has the guest"
) -> None:
    """Add the option that names a libvirt."""
    made.add_argument(
        "--connect",
        metavar="URI",
        help=f"{what}, as virsh names it; default: $LIBVIRT_DEFAULT_URI, else libvirt's own",
    )


def add_http(made: argparse.ArgumentParser) -> None:
    """Add the options that serve disks over HTTP."""
    made.add_argument(
        "--http",
        metavar="ADDRESS:PORT",
        help="serve the disks over HTTP too, in the dialect of oVirt's imageio; beyond this host "
        "only with TLS",
    )
    made.add_argument(
        "--tls-cert",
        metavar="FILE",
        help="with --http: TLS, by this server certificate (PEM)",
    )
    made.add_argument("--tls-key", metavar="FILE", help="with --tls-cert: its key (PEM)")


def add_scratch_limit(made: argparse.ArgumentParser) -> None:
    """Add the option that limits the scratch."""
    made.add_argument(
        "--scratch-limit",
        metavar="BYTES",
        help="limit of all scratch files together, like 500M or 20G: the run is given up before "
        "it is exceeded; default: the room in their file system, less a reserve",
    )


def add_fleecing(made: argparse.ArgumentParser) -> None:
    """Add the option that says how a point is held."""
    made.add_argument(
        "--fleecing",
        choices=("classic", "filter"),
        default="classic",
        help="how the point is held: classic (default), by backup jobs, never stopping the guest; "
        "filter, by filters that give the point up rather than keep the guest waiting",
    )


def tag_list(text: str) -> tuple[str, ...]:
    """The type of tags, with commas between them."""
    tags = tuple(tag.strip() for tag in text.split(","))
    if not all(tags):
        raise argparse.ArgumentTypeError("has an empty tag")
    return tags


def add_tags(made: argparse.ArgumentParser, text: str, option: str = "--tag") -> None:
    """Add an option for tags, any number of times; its help says what becomes of them."""
    made.add_argument(
        option,
        action="append",
        type=tag_list,
        default=[],
        dest="keep_tags" if option == "--keep-tag" else "tags",
        metavar="TAG[,TAG]",
        help=text,
    )


def add_quiet(made: argparse.ArgumentParser, default: object = False) -> None:
    """Add the option that has people told less."""
    made.add_argument(
        "-q",
        "--quiet",
        action="store_true",
        default=default,
        help="print what was asked for, and trouble: no progress, no closing line",
    )


def add_verbose(made: argparse.ArgumentParser) -> None:
    """Add the option that has people told more."""
    made.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="also print each step, and how long each part took",
    )


def add_nice(made: argparse.ArgumentParser) -> None:
    """Add the option that lets others go first."""
    made.add_argument(
        "--nice",
        action="store_true",
        help="let everything else on this host go first: nice 19, and the idle class of ionice",
    )


def add_key(made: argparse.ArgumentParser) -> None:
    """Add the options that name a key."""
    made.add_argument(
        "--key-file",
        metavar="FILE",
        help="the store's key: any file of 32 bytes or more; default: $FLEECE_KEY_FILE",
    )
    made.add_argument(
        "--passphrase-file",
        metavar="FILE",
        help="the first line of FILE is the store's passphrase; "
        "default: $FLEECE_PASSPHRASE_FILE, or $FLEECE_PASSPHRASE itself",
    )


def file_to_make(text: str) -> str:
    """The type of a file to make, which cannot be standard output."""
    if text == "-":
        raise argparse.ArgumentTypeError("needs the name of a file; write ./- for a file called -")
    return text


def permissions(text: str) -> int:
    """The type of a mode, in octal digits."""
    if re.fullmatch("[0-7]{1,4}", text) is None or int(text, 8) > 0o777:
        raise argparse.ArgumentTypeError("takes permissions in octal digits, like 640")
    return int(text, 8)


def add_mode(made: argparse.ArgumentParser, what: str) -> None:
    """Add the option for the permissions of what is made.

    Args:
        made: the verb's parser.
        what: is made.
    """
    made.add_argument(
        "--mode",
        type=permissions,
        dest="permissions",
        metavar="OCTAL",
        help=f"permissions of {what}; default: 600, or those of a file that is replaced",
    )


def add_guest(made: argparse.ArgumentParser) -> None:
    """Add the option that names a guest."""
    made.add_argument("--guest", help="the guest, if the store holds several")


def add_shard(made: argparse.ArgumentParser) -> None:
    """Add the option that chooses a part of all guests."""
    made.add_argument(
        "--shard",
        metavar="K/N",
        help="only the Kth of N parts of all guests; a guest's name decides which it is in",
    )


def add_image_format(made: argparse.ArgumentParser) -> None:
    """Add the option for the format of an image."""
    made.add_argument(
        "--format",
        dest="image_format",
        metavar="FORMAT",
        help="format of IMAGE, as qemu-img names it; default: detected",
    )
