"""The grammar of the verbs that change what a store keeps."""

from __future__ import annotations

import argparse

from fleece.cli.grammar.options import (
    ONLY_TAGGED,
    POINT,
    STORE,
    AddVerb,
    add_guest,
    add_key,
    add_shard,
    add_tags,
    add_verbose,
    tag_list,
)
from fleece.cli.words import MergeWords, PinWords, PruneWords, StatsWords, TagWords

_UNITS = {
    "hourly": "hours",
    "daily": "days",
    "weekly": "weeks",
    "monthly": "months",
    "yearly": "years",
}


def keep_verbs(verb: AddVerb) -> None:
    """merge, prune, pin, unpin, tag, stats."""
    _merge_verb(verb)
    _prune_verb(verb)
    _pin_verbs(verb)
    _tag_verb(verb)
    _stats_verb(verb)


def _merge_verb(verb: AddVerb) -> None:
    merge = verb(
        "merge",
        "keep:merge",
        MergeWords,
        "merge older deltas into a point's deltas; by default all, which makes a full",
    )
    merge.add_argument("store", metavar="STORE", help=STORE)
    merge.add_argument("point", metavar="POINT", help=POINT)
    merge.add_argument(
        "--from",
        dest="first",
        metavar="FIRST",
        help="the oldest point to merge; default: all, which makes a full",
    )
    add_guest(merge)
    add_verbose(merge)
    add_key(merge)


def _prune_verb(verb: AddVerb) -> None:
    prune = verb(
        "prune",
        "keep:prune",
        PruneWords,
        "drop the points that no rule keeps; the others stay whole",
    )
    prune.add_argument("store", metavar="STORE", help=STORE)
    _add_rules(prune)
    prune.add_argument(
        "--dry-run", action="store_true", help="only say what would be done, and change nothing"
    )
    prune.add_argument(
        "--merge",
        choices=("auto", "always", "never"),
        default="auto",
        help="merge what kept points need of dropped ones into them, so that these can go; auto "
        "(default): in a folder of this host, not in a bucket, where it is traffic both ways",
    )
    prune.add_argument(
        "--guest", help="only the points of this guest; default: those of each guest, separately"
    )
    add_shard(prune)
    add_verbose(prune)
    add_key(prune)


def _add_rules(made: argparse.ArgumentParser) -> None:
    """Add the options that say which points stay."""
    made.add_argument(
        "--keep-last", dest="last", type=int, default=0, metavar="N", help="the N newest points"
    )
    for rule, unit in _UNITS.items():
        made.add_argument(
            f"--keep-{rule}",
            dest=rule,
            type=int,
            default=0,
            metavar="N",
            help=f"the newest point of each of the newest N {unit} that have one; -1: of all",
        )
    made.add_argument(
        "--keep-within",
        dest="within",
        metavar="DURATION",
        help="points younger than this, seen from the newest: 2y5m7d3h",
    )
    add_tags(made, "points that have all these tags (repeatable: or all those)", "--keep-tag")
    add_tags(made, "the rules are for " + ONLY_TAGGED + "; the others stay")


def _stats_verb(verb: AddVerb) -> None:
    stats = verb(
        "stats",
        "stats:stats",
        StatsWords,
        "show what is stored of each guest, and what prune would free",
    )
    stats.add_argument("store", metavar="STORE", help=STORE)
    _add_rules(stats)
    stats.add_argument("--guest", help="only this guest")
    add_key(stats)


def _pin_verbs(verb: AddVerb) -> None:
    for name, text in (
        ("pin", "protect a point from prune"),
        ("unpin", "end a point's protection"),
    ):
        made = verb(name, f"keep:{name}", PinWords, text)
        made.add_argument("store", metavar="STORE", help=STORE)
        made.add_argument("point", metavar="POINT", help=POINT)
        add_guest(made)
        add_key(made)


def _tag_verb(verb: AddVerb) -> None:
    tag = verb("tag", "keep:tag", TagWords, "add tags to a point, or remove some")
    tag.add_argument("store", metavar="STORE", help=STORE)
    tag.add_argument("point", metavar="POINT", help=POINT)
    for name, text in (
        ("add", "give the point these tags (repeatable)"),
        ("remove", "remove these tags from the point (repeatable)"),
        ("set", "give the point these tags and no others (repeatable)"),
    ):
        tag.add_argument(
            f"--{name}",
            action="append",
            type=tag_list,
            default=[],
            dest=f"{name}_tags",
            metavar="TAG[,TAG]",
            help=text,
        )
    add_guest(tag)
    add_key(tag)
