"""The grammar of the verbs that bring points from store to store."""

from __future__ import annotations

import argparse

from fleece.cli.grammar.options import (
    ONLY_TAGGED,
    STORE,
    AddVerb,
    add_key,
    add_shard,
    add_tags,
    add_verbose,
)
from fleece.cli.words import CopyWords, ServeStoreWords


def copy_verbs(verb: AddVerb) -> None:
    """copy, serve-store."""
    _serving_verb(verb)
    copy = verb("copy", "copying:copy", CopyWords, "copy points from one store into another")
    copy.add_argument("store", metavar="FROM", help=f"{STORE}; it is only read")
    copy.add_argument("to", metavar="TO", help="the store that takes them")
    _add_choice(copy)
    copy.add_argument(
        "--follow",
        action="store_true",
        help="continue with new points as they appear, until a signal ends it",
    )
    copy.add_argument("--dry-run", action="store_true", help="only say what would be sent")
    copy.add_argument(
        "--rate",
        metavar="BYTES",
        help="send at most this many bytes a second, of all together, like 50M",
    )
    copy.add_argument(
        "--jobs", type=int, default=4, metavar="N", help="deltas that are sent at once; default: 4"
    )
    add_verbose(copy)
    add_key(copy)
    copy.add_argument(
        "--to-key-file", metavar="FILE", help="the key of TO; default: that of FROM, if TO has one"
    )
    copy.add_argument(
        "--to-passphrase-file",
        metavar="FILE",
        help="the first line of FILE is the passphrase of TO; default: that of FROM, if TO has one",
    )


def _serving_verb(verb: AddVerb) -> None:
    serving = verb(
        "serve-store",
        "copying:serve_store",
        ServeStoreWords,
        "let a fleece elsewhere use a store of this host, over standard input and output",
    )
    serving.add_argument("store", metavar="STORE", help="a folder, as an absolute path")
    serving.add_argument(
        "--append-only",
        action="store_true",
        help="refuse whatever replaces or removes what is committed",
    )


def _add_choice(copy: argparse.ArgumentParser) -> None:
    """Add the options that choose points."""
    copy.add_argument(
        "--guest",
        action="append",
        default=[],
        dest="guests",
        metavar="GUEST",
        help="only the points of this guest; may be given several times; default: all",
    )
    add_shard(copy)
    add_tags(copy, ONLY_TAGGED + ", and what they build on")
    copy.add_argument(
        "--last",
        type=int,
        default=None,
        metavar="N",
        help="only the N newest points of each guest, and what they build on",
    )
    copy.add_argument(
        "--since",
        metavar="TIME",
        help="only points of this time or later, and what they build on: 2026-11-30, "
        "2026-11-30T18:00 (UTC), or how long ago, like 7d",
    )
    copy.add_argument(
        "--newer",
        action="store_true",
        help="only what is newer than the newest point that TO has of the chain: what was pruned "
        "there is not sent again",
    )
