"""The grammar of the verbs that read, check and mend stores and files."""

from __future__ import annotations

from fleece.cli.grammar.options import (
    NEW_STORE,
    ONLY_TAGGED,
    POINT,
    STORE,
    AddVerb,
    add_guest,
    add_image_format,
    add_key,
    add_mode,
    add_shard,
    add_tags,
    add_verbose,
    file_to_make,
    permissions,
)
from fleece.cli.words import (
    ImportWords,
    InfoWords,
    InitWords,
    ListWords,
    RootWords,
    SalvageWords,
    StatusWords,
    VerifyWords,
)


def _init_verb(verb: AddVerb) -> None:
    init = verb("init", "stores:init", InitWords, "make a new store")
    init.add_argument("store", metavar="STORE", help=NEW_STORE)
    init.add_argument(
        "--hash",
        choices=("xxh3-128", "blake3"),
        default=None,
        dest="hash_name",
        help="xxh3-128 (default) or blake3; with a key, blake3 finds tampering",
    )
    init.add_argument("--encrypt", action="store_true", help="encrypt all deltas; needs a key")
    init.add_argument(
        "--mode",
        type=permissions,
        default=0o600,
        dest="permissions",
        metavar="OCTAL",
        help="permissions of the store's files, like 640; default: 600, only the user's own",
    )
    init.add_argument(
        "--like",
        metavar="OTHER",
        help="a store or a delta: use its hash, key and encryption, so that deltas of that store "
        "can be imported",
    )
    init.add_argument(
        "--create-bucket",
        action="store_true",
        help="with s3://BUCKET/PREFIX: make the bucket, too",
    )
    init.add_argument(
        "--single-writer",
        action="store_true",
        help="with s3://BUCKET/PREFIX: use a server that ignores If-None-Match; you see to it that "
        "no two engines ever write at once",
    )
    init.add_argument(
        "--lock-days",
        type=int,
        metavar="N",
        help="with s3://BUCKET/PREFIX and object lock: nobody can delete a point for N days, nor "
        "what it builds on",
    )
    add_key(init)


def _listing_verb(verb: AddVerb) -> None:
    listing = verb("list", "stores:list_points", ListWords, "list the points of a store")
    listing.add_argument("store", metavar="STORE", help=STORE)
    listing.add_argument("--guest", help="only the points of this guest")
    add_tags(listing, ONLY_TAGGED)
    listing.add_argument(
        "--long",
        action="store_true",
        help="a line for each disk and part, with its root and what locks it",
    )
    add_key(listing)


def _status_verb(verb: AddVerb) -> None:
    status = verb(
        "status",
        "checking:status",
        StatusWords,
        "show how old, deep, large and well verified the points are",
    )
    status.add_argument("store", metavar="STORE", help=STORE)
    add_key(status)


def _taking_verb(verb: AddVerb) -> None:
    taking = verb(
        "import",
        "stream:import_delta",
        ImportWords,
        "import a delta from standard input into a store, after checking all of it",
    )
    taking.add_argument("store", metavar="STORE", help=STORE)
    taking.add_argument(
        "--adopt",
        action="store_true",
        help="add it to the points of another guest of the same name",
    )
    add_verbose(taking)
    add_key(taking)


def _info_verb(verb: AddVerb) -> None:
    info = verb("info", "stores:info", InfoWords, "show what a delta file says of itself")
    info.add_argument("file", metavar="FILE", help="a delta")
    add_key(info)


def _verify_verb(verb: AddVerb) -> None:
    verify = verb(
        "verify",
        "checking:verify",
        VerifyWords,
        "read every byte and recompute every hash; or compare an image with a point",
    )
    verify.add_argument("store", metavar="STORE", help=STORE)
    verify.add_argument("point", metavar="POINT", nargs="?", help=f"{POINT}; default: all")
    verify.add_argument(
        "--against",
        metavar="IMAGE",
        help="a file, block device or NBD URI that must equal POINT's disk",
    )
    verify.add_argument("--disk", metavar="NAME", help="with --against: which disk of the point")
    verify.add_argument(
        "--max-age",
        metavar="DURATION",
        help="only what was not verified within this time, like 30d; the longest unverified first",
    )
    verify.add_argument(
        "--fraction",
        metavar="PART",
        help="stop when this part of the store has been read, like 10%%",
    )
    add_guest(verify)
    add_shard(verify)
    add_verbose(verify)
    add_key(verify)
    add_image_format(verify)


def _root_verb(verb: AddVerb) -> None:
    root = verb(
        "root", "checking:root", RootWords, "compute the root of an image; no store is needed"
    )
    root.add_argument("image", metavar="IMAGE", help="a file, block device or NBD URI")
    add_image_format(root)
    add_verbose(root)
    root.add_argument(
        "--hash",
        choices=("xxh3-128", "blake3"),
        default="xxh3-128",
        dest="hash_name",
        help="the store's hash; default: xxh3-128",
    )


def _salvage_verb(verb: AddVerb) -> None:
    salvage = verb(
        "salvage",
        "salvage:salvage",
        SalvageWords,
        "save what can still be proven of a damaged or cut delta into a new file",
    )
    salvage.add_argument("file", metavar="FILE", help="the damaged delta; it is only read")
    salvage.add_argument(
        "-o",
        "--output",
        type=file_to_make,
        metavar="NEW",
        required=True,
        dest="target",
        help="the file to make",
    )
    salvage.add_argument("--force", action="store_true", help="replace a file that exists")
    add_mode(salvage, "NEW")
    add_verbose(salvage)
    add_key(salvage)


_VERBS = (
    _init_verb,
    _listing_verb,
    _status_verb,
    _taking_verb,
    _info_verb,
    _verify_verb,
    _root_verb,
    _salvage_verb,
)


def store_verbs(verb: AddVerb) -> None:
    """init, list, status, import, info, verify, root, salvage."""
    for add in _VERBS:
        add(verb)
