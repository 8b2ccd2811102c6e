"""The grammar of the verbs that look after many guests."""

from __future__ import annotations

import argparse

from fleece.cli.grammar.options import AddVerb, add_verbose
from fleece.cli.words import ConfigWords, RunWords


def fleet_verbs(verb: AddVerb) -> None:
    """run, config."""
    _run_verb(verb)
    _config_verb(verb)


def _run_verb(verb: AddVerb) -> None:
    run = verb(
        "run",
        "fleet:run",
        RunWords,
        "do what is due of all guests of a configuration: back up, copy, prune, verify",
    )
    run.add_argument("guests", nargs="*", metavar="GUEST", help="only these guests; default: all")
    _add_config(run)
    run.add_argument(
        "--only",
        action="append",
        default=[],
        choices=("backup", "copy", "prune", "verify"),
        help="only this step (repeatable); default: all, in this order",
    )
    run.add_argument(
        "--dry-run", action="store_true", help="only say what would be done; change nothing"
    )
    run.add_argument(
        "--wait",
        type=_seconds,
        default=0.0,
        metavar="SECONDS",
        help="wait so long for the end of another run of the same configuration; default: 0",
    )
    add_verbose(run)


def _config_verb(verb: AddVerb) -> None:
    config = verb("config", "fleet:config", ConfigWords, "check a configuration, or write one")
    config.add_argument(
        "action",
        choices=("check", "example", "schema"),
        metavar="check|example|schema",
        help="check: show the plan, guest by guest; example: write a commented one; schema: write "
        "the JSON schema, for editors",
    )
    _add_config(config)


def _add_config(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--config",
        metavar="FILE",
        help="the configuration, and conf.d/*.toml beside it; default: $FLEECE_CONFIG, or "
        "/etc/fleece/fleece.toml",
    )


def _seconds(text: str) -> float:
    """A number of seconds, from 0 on."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not 0 <= seconds < 1e9:
        raise argparse.ArgumentTypeError(f"takes a number of seconds, and {text!r} is none")
    return seconds
