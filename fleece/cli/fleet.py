"""The verbs that look after many guests by one file: `run` and `config`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import fleece
from fleece import events
from fleece.cancel import CancelToken
from fleece.cli.choosing import shard_of
from fleece.cli.journal import Priority
from fleece.cli.output import Output
from fleece.cli.secret import secret_of
from fleece.cli.table import Column, table
from fleece.cli.words import ConfigWords, RunWords
from fleece.errors import FleeceError, NoticeError, UsageError, bug
from fleece.fleet import document, example
from fleece.fleet.alone import alone
from fleece.fleet.config import Config, StoreConfig, load
from fleece.fleet.notices.desk import Desk
from fleece.fleet.notices.trouble import of_failure, of_run
from fleece.fleet.plan import Plan, PlannedGuest, plan
from fleece.fleet.run import run as run_all
from fleece.fleet.steps import GuestResult, Step, Work
from fleece.terminal import counted, human, span

_DEFAULT = "/etc/fleece/fleece.toml"

_RESULTS = (
    Column("GUEST", gives_way=True),
    Column("STORE"),
    Column("MODE"),
    Column("READ", right=True),
    Column("STORED", right=True),
    Column("TOOK", right=True),
    Column("WHAT", gives_way=True),
)
_PLAN = (
    Column("GUEST", gives_way=True),
    Column("SOURCE", gives_way=True),
    Column("HOST"),
    Column("STORE"),
    Column("COPIES"),
    Column("KEEP"),
)


def run(output: Output, cancel: CancelToken, words: RunWords) -> None:
    """`fleece run [GUEST]...`."""
    path = config_path(words.config)
    config = load(path)
    steps = [Step(word) for word in words.only] or [*Step]
    shard = shard_of(words.shard)
    if shard is not None and words.guests:
        raise UsageError("--shard does not go with GUEST: one guest has no parts")
    with alone(path, words.wait, cancel, part=words.shard or ""):
        planned = plan(config, words.guests, cancel, shard=shard)
        for what, error in planned.troubles:
            output.listen(events.Warned(f"{what}: {error}"))
        whole = not words.guests
        told = {} if words.dry_run else config.notices
        with Desk(path, told, cancel, part=words.shard or "") as desk:
            if whole and shard is None and Step.BACKUP in steps:
                desk.begin()
            try:
                secrets = _secrets(config, planned, cancel)
                work = Work(
                    config,
                    steps,
                    secrets,
                    output.listen_of,
                    cancel,
                    words.dry_run,
                    words.any_time,
                )
                result = run_all(planned, work, lambda one: _tell(output, one))
            except Exception as error:
                failure = error if isinstance(error, FleeceError) else bug(error)
                _warn(output, desk.end(of_failure(failure), failure))
                raise
            untold = desk.end(of_run(planned, work, result.guests, whole), result.error)
    rows = [] if output.in_journal else [*map(_row, result.guests)]
    lines = [*table(_RESULTS, rows, output.width())]
    failed = sum(guest.error is not None for guest in result.guests)
    fields: dict[str, object] = {"guests": len(result.guests), "failed": failed}
    fields["dry_run"] = words.dry_run
    fields["untold"] = [*map(str, untold)]
    _warn(output, untold)
    worst = result.error or next(iter(untold), None)
    if worst is not None:
        output.answer(lines)
        raise _failure(worst, failed, len(result.guests), fields)
    output.succeed([*lines, f"{counted(len(result.guests), 'guest')}, all well"], **fields)


def config(output: Output, cancel: CancelToken, words: ConfigWords) -> None:
    """`fleece config check|example|schema`."""
    if words.action == "schema":
        output.listing(json.dumps(document.schema(), indent=2).split("\n"))
        return
    if words.action == "example":
        output.listing(example.commented(document.schema()))
        return
    path = config_path(words.config)
    planned = plan(load(path), (), cancel)
    for _, error in planned.troubles:
        raise error
    if output.machine:
        for guest in planned.guests:
            output.row("guest", "", guest=guest.name, source=guest.source, store=_store(guest))
    output.answer(table(_PLAN, [*map(_planned, planned.guests)], output.width()))
    output.succeed(f"{path}: {counted(len(planned.guests), 'guest')}", guests=len(planned.guests))


def config_path(given: str | None) -> Path:
    """Where the configuration is: as the command line says, else the environment."""
    return Path(given or os.environ.get("FLEECE_CONFIG") or _DEFAULT)


def _store(guest: PlannedGuest) -> str:
    return guest.config.store.name


def _planned(guest: PlannedGuest) -> tuple[str, ...]:
    config = guest.config
    keep = {} if config.keep is None else asdict(config.keep)
    rules = [f"{name} {count}" for name, count in keep.items() if isinstance(count, int) and count]
    if config.keep is not None and config.keep.within is not None:
        rules.append("within")
    store, host = config.store, guest.host
    return (
        guest.name,
        guest.source,
        host.name if guest.source.startswith("libvirt:") else "",
        store.name,
        ", ".join(store.copy_to),
        ", ".join(rules) or "all",
    )


def _secrets(config: Config, planned: Plan, cancel: CancelToken) -> dict[str, fleece.Secret]:
    """The keys of the stores that the planned guests need."""
    needed = {guest.config.store.name for guest in planned.guests}
    needed |= {name for store in [*needed] for name in config.stores[store].copy_to}
    found = {}
    for name in sorted(needed):
        secret = _secret_of(config.stores[name], cancel)
        if secret is not None:
            found[name] = secret
    return found


def open_configured(store: StoreConfig, cancel: CancelToken) -> fleece.Store:
    """Open a store of the configuration, by its key."""
    return fleece.open_store(store.place, _secret_of(store, cancel), cancel)


def _secret_of(store: StoreConfig, cancel: CancelToken) -> fleece.Secret | None:
    """The key of a store of the configuration; None: it has none."""
    return secret_of(store.key_file, store.passphrase_file, {}, cancel)


def _tell(output: Output, result: GuestResult) -> None:
    """Tell of a guest that is done."""
    if output.machine:
        output.emit(_fields(result))
    elif result.error is not None:
        text = f"{result.guest}: {_step(result)} failed: {result.error}"
        output.note(text, Priority.FAILED, **_entry(result))
    elif output.in_journal:  # elsewhere the table tells it
        _, store, *told = filter(None, _row(result))
        output.note(
            f"{result.guest} into {store}: {', '.join(told)}", Priority.TOLD, **_entry(result)
        )


def _warn(output: Output, untold: Sequence[NoticeError]) -> None:
    """Tell here of what nobody else could be told."""
    for error in untold:
        output.listen(events.Warned(str(error)))


def _step(result: GuestResult) -> str:
    return result.steps[-1].step


def _fields(result: GuestResult) -> dict[str, object]:
    steps = [
        {
            "step": step.step,
            "ok": step.error is None,
            "seconds": round(step.seconds, 3),
            "said": step.said,
            "error": None if step.error is None else str(step.error),
            "exit_code": 0 if step.error is None else int(step.error.code),
            "point": None if step.backup is None else step.backup.point,
        }
        for step in result.steps
    ]
    return {"event": "guest", "guest": result.guest, "store": result.store, "steps": steps}


def _entry(result: GuestResult) -> dict[str, object]:
    """The fields of an entry in the journal."""
    backup, error = result.backup, result.error
    return {
        "FLEECE_GUEST": result.guest,
        "FLEECE_STORE": result.store,
        "FLEECE_STEPS": " ".join(step.step for step in result.steps),
        "FLEECE_SECONDS": round(sum(step.seconds for step in result.steps), 3),
        "FLEECE_EXIT_CODE": 0 if error is None else int(error.code),
        "FLEECE_POINT": None if backup is None else backup.point,
        "FLEECE_MODE": None if backup is None else backup.mode,
        "FLEECE_READ_BYTES": None if backup is None else _total(backup, "read_bytes"),
        "FLEECE_STORED_BYTES": None if backup is None else _total(backup, "stored_bytes"),
    }


def _total(backup: fleece.BackupResult, what: str) -> int:
    return sum(getattr(disk, what) for disk in backup.disks)


def _row(result: GuestResult) -> tuple[str, ...]:
    backup, error = result.backup, result.error
    said = [step.said for step in result.steps if step.said and step.backup is None]
    what = f"{_step(result)} FAILED: {error}" if error is not None else "; ".join(said)
    return (
        result.guest,
        result.store,
        "" if backup is None else backup.mode,
        "" if backup is None else human(_total(backup, "read_bytes")),
        "" if backup is None else human(_total(backup, "stored_bytes")),
        span(sum(step.seconds for step in result.steps)),
        what,
    )


def _failure(
    worst: FleeceError, failed: int, guests: int, fields: dict[str, object]
) -> FleeceError:
    """The run's own error, of the worst one's family."""
    if failed == 0:
        error = worst
    else:
        error = FleeceError(f"{failed} of {counted(guests, 'guest')} failed; the worst: {worst}")
        error.code = worst.code
    error.fields = fields
    return error
