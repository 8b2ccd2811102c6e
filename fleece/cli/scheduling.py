"""The verb `schedule`: a configuration that is run by itself."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from fleece.cancel import CancelToken
from fleece.cli.fleet import config_path
from fleece.cli.output import Output
from fleece.cli.words import ScheduleWords
from fleece.errors import UsageError
from fleece.fleet.config import load
from fleece.fleet.schedule import Units, check_calendar
from fleece.fleet.units import cron_line, unit_names, units

_NIGHTLY = "02:15"


def schedule(output: Output, cancel: CancelToken, words: ScheduleWords) -> None:
    """`fleece schedule install|show|remove`."""
    _refuse_idle(words)
    path = Path(os.path.abspath(config_path(words.config)))
    there = Units(None if words.root is None else Path(words.root), cancel)
    if words.action == "remove":
        removed = there.remove(unit_names(path))
        for name in removed:
            output.row("removed", f"removed {there.place / name}", unit=name)
        output.succeed("" if removed else "nothing was there", removed=len(removed))
        return
    calendar = words.calendar or _NIGHTLY
    if not words.cron:
        check_calendar(calendar, cancel)
    command = _command()
    texts = units(load(path), path, command, calendar)
    if words.action == "show":
        shown = {"cron.d/fleece": cron_line(path, command)} if words.cron else texts
        for name, text in shown.items():
            output.row("unit", [f"# {name}", *text.split("\n")], unit=name, content=text)
        output.succeed("", units=len(shown))
        return
    there.install(texts)
    for name in texts:
        output.row("installed", f"installed {there.place / name}", unit=name)
    output.succeed(f"the guests of {path} are backed up at {calendar}")


def _refuse_idle(words: ScheduleWords) -> None:
    """Refuse options that have no effect on what is to be done."""
    if words.cron and words.action != "show":
        raise UsageError("--cron goes with 'show'", hint="put what it prints into /etc/cron.d")
    if words.cron and words.calendar is not None:
        raise UsageError("--calendar has no effect with --cron", hint="edit the line")
    if words.root is not None and words.action == "show":
        raise UsageError("--root has no effect on 'show'", hint="leave it out")
    if words.calendar is not None and words.action == "remove":
        raise UsageError("--calendar has no effect on 'remove'", hint="leave it out")


def _command() -> list[str]:
    """What starts this fleece, whatever the PATH of a service is."""
    script = Path(sys.argv[0])
    if script.name == "fleece" and script.is_absolute() and os.access(script, os.X_OK):
        return [str(script)]
    return [sys.executable, "-m", "fleece"]
