"""The grammar of the verbs that look after many guests."""

from __future__ import annotations

import argparse

from fleece.cli.grammar.options import AddVerb, add_key, add_shard, add_verbose, file_to_make
from fleece.cli.words import (
    ConfigWords,
    DrillWords,
    MetricsWords,
    ReportWords,
    RunWords,
    ScheduleWords,
)


def fleet_verbs(verb: AddVerb) -> None:
    """run, config, metrics, schedule, report, drill."""
    _run_verb(verb)
    _config_verb(verb)
    _metrics_verb(verb)
    _schedule_verb(verb)
    _report_verb(verb)
    _drill_verb(verb)


def _run_verb(verb: AddVerb) -> None:
    run = verb(
        "run",
        "fleet:run",
        RunWords,
        "back up, copy, prune, verify and boot all guests of a configuration, as far as it is due",
    )
    run.add_argument("guests", nargs="*", metavar="GUEST", help="only these guests; default: all")
    _add_config(run)
    add_shard(run)
    run.add_argument(
        "--only",
        action="append",
        default=[],
        choices=("backup", "copy", "prune", "verify", "boot-test"),
        help="only this step (repeatable); default: all, in this order",
    )
    run.add_argument(
        "--dry-run", action="store_true", help="only say what would be done; change nothing"
    )
    run.add_argument(
        "--any-time",
        action="store_true",
        help="begin steps outside of the windows of the configuration, too",
    )
    run.add_argument(
        "--wait",
        type=_seconds,
        default=0.0,
        metavar="SECONDS",
        help="wait at most so long for another run of the same configuration to end; default: 0",
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


def _metrics_verb(verb: AddVerb) -> None:
    metrics = verb(
        "metrics",
        "metrics:metrics",
        MetricsWords,
        "print how guests and stores are, for Prometheus",
    )
    metrics.add_argument(
        "stores",
        nargs="*",
        metavar="STORE",
        help="all guests of these; default: those of the configuration, in its stores",
    )
    _add_config(metrics)
    way = metrics.add_mutually_exclusive_group()
    way.add_argument(
        "--output",
        metavar="FILE",
        help="write FILE instead, whole at each moment, readable for all: for the textfile "
        "collector",
    )
    way.add_argument(
        "--listen",
        metavar="ADDRESS:PORT",
        help="answer scrapes over HTTP, until interrupted; figures are a minute old at most",
    )
    way.add_argument("--rules", action="store_true", help="print alert rules for Prometheus")
    way.add_argument("--dashboard", action="store_true", help="print a dashboard for Grafana")
    add_key(metrics)


def _schedule_verb(verb: AddVerb) -> None:
    schedule = verb(
        "schedule",
        "scheduling:schedule",
        ScheduleWords,
        "have systemd run a configuration each night",
    )
    schedule.add_argument(
        "action",
        choices=("install", "show", "remove"),
        metavar="install|show|remove",
        help="install: write a service and a timer, and have the timer run; show: print them; "
        "remove: take them away",
    )
    _add_config(schedule)
    schedule.add_argument(
        "--calendar",
        metavar="WHEN",
        help="when, as systemd writes it (systemd.time(7)); default: 02:15",
    )
    schedule.add_argument(
        "--cron", action="store_true", help="with show: print a file for /etc/cron.d instead"
    )
    schedule.add_argument(
        "--root",
        metavar="DIR",
        help="install into, or remove from, the system whose root is DIR; nothing runs then",
    )


def _report_verb(verb: AddVerb) -> None:
    report = verb(
        "report", "report:report", ReportWords, "write one page that shows how all backups are"
    )
    report.add_argument(
        "stores",
        nargs="*",
        metavar="STORE",
        help="a store to tell of; default: all of the configuration",
    )
    report.add_argument(
        "--html",
        type=file_to_make,
        required=True,
        metavar="FILE",
        help="the page, one file of HTML that needs no other; a regular file is replaced",
    )
    _add_config(report)
    report.add_argument(
        "--max-age",
        metavar="DURATION",
        help="a guest whose last good point is older is in trouble, like 36h or 2d",
    )
    report.add_argument(
        "--maps",
        type=int,
        default=20,
        metavar="N",
        help="draw the disks of the N guests of each store that grew most; default: 20",
    )
    add_key(report)


def _drill_verb(verb: AddVerb) -> None:
    drill = verb(
        "drill",
        "drill:drill",
        DrillWords,
        "restore or boot the newest points of some guests, and note in the store what came of it",
    )
    drill.add_argument(
        "stores",
        nargs="*",
        metavar="STORE",
        help="a store whose guests are drilled; default: all of the configuration",
    )
    _add_config(drill)
    drill.add_argument(
        "--guest",
        action="append",
        default=[],
        dest="guests",
        metavar="GUEST",
        help="drill this guest (repeatable); default: those that were drilled longest ago",
    )
    drill.add_argument(
        "--sample",
        type=int,
        metavar="N",
        help="drill N guests of each store; default: as the configuration says, or 1",
    )
    _add_boot(drill)
    drill.add_argument(
        "--scratch",
        metavar="DIR",
        help="where it is restored, or what a guest that boots writes; default: /var/tmp",
    )
    add_key(drill)


def _add_boot(drill: argparse.ArgumentParser) -> None:
    drill.add_argument(
        "--boot",
        action="store_true",
        help="boot them in a machine without network; default: as the configuration says, or "
        "restore each disk and prove it by its root",
    )
    drill.add_argument(
        "--console-text",
        dest="text",
        metavar="TEXT",
        help="with --boot: TEXT must come on the serial console; default: the agent must answer",
    )
    drill.add_argument(
        "--timeout",
        type=_seconds,
        dest="limit",
        metavar="SECONDS",
        help="with --boot: wait so long for that; default: 300",
    )


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
