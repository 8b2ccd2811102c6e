"""The verb `report`: one page that shows how the backups are."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import fleece
from fleece import events
from fleece.cancel import CancelToken
from fleece.cli.fleet import config_path, open_configured
from fleece.cli.output import Output
from fleece.cli.words import ReportWords
from fleece.errors import FleeceError, TargetError, UsageError
from fleece.fleet.config import Config, load
from fleece.fleet.page import page
from fleece.fleet.plan import Plan, plan
from fleece.fleet.report import Asked, Limits, Report, State, Subject
from fleece.fleet.report import report as look
from fleece.folder import Folder
from fleece.terminal import counted, human
from fleece.there import is_file


def report(output: Output, cancel: CancelToken, words: ReportWords) -> None:
    """`fleece report [STORE]... --html FILE`."""
    final = Path(words.html)
    _check_place(final)
    limits = Limits(
        None if words.max_age is None else fleece.Duration.parse(words.max_age), words.maps
    )
    if words.maps < 0:
        raise UsageError("--maps takes 0 or more", where=words.maps)
    unknown: dict[str, FleeceError] = {}
    if words.stores:
        subjects = [*_named(words, cancel)]
    else:
        config = load(config_path(words.config))
        planned = plan(config, (), cancel)
        unknown |= planned.unknown
        subjects = [*_configured(config, planned, cancel)]
    told = look(subjects, limits, cancel, unknown)
    size = _write(final, page(told))
    fields: dict[str, object] = {
        "html": words.html,
        "stores": len(told.stores),
        "guests": len(told.guests),
        "trouble": told.count(State.BAD),
    }
    for error in _errors(told):
        output.listen(events.Warned(str(error)))
    for error in _errors(told):
        error.fields = fields
        raise error
    output.succeed(
        f"{words.html}: {counted(len(told.guests), 'guest')}, {told.count(State.BAD)} in trouble; "
        f"{human(size)}",
        **fields,
    )


def _errors(told: Report) -> Sequence[FleeceError]:
    """What the page could not tell of."""
    stores = (store.error for store in told.stores if store.error is not None)
    return [*stores, *told.unknown.values()]


def _named(words: ReportWords, cancel: CancelToken) -> Iterator[Subject]:
    """The stores of the command line, which one secret opens."""
    for place in dict.fromkeys(words.stores):
        yield Subject(
            place, place, functools.partial(fleece.open_store, place, words.secret, cancel)
        )


def _configured(config: Config, planned: Plan, cancel: CancelToken) -> Iterator[Subject]:
    """The stores of a configuration, with the guests that each should have."""
    asked: dict[str, dict[str, Asked]] = {name: {} for name in config.stores}
    for guest in planned.guests:
        for name in guest.config.store.copy_to:
            asked[name].setdefault(guest.name, Asked(copied=True))
    for guest in planned.guests:
        asked[guest.config.store.name][guest.name] = Asked(
            guest.config.every, stale_after=guest.config.stale_after
        )
    for name, store in config.stores.items():
        yield Subject(
            name, store.place, functools.partial(open_configured, store, cancel), asked[name]
        )


def _check_place(final: Path) -> None:
    """Refuse a file that cannot be written before the stores are read, which takes its time."""
    if not final.name or (final.exists() and not is_file(final)):
        raise TargetError("is not a regular file", where=final, hint="--html FILE makes FILE")
    if not final.parent.is_dir():
        raise TargetError("there is no such folder", where=final.parent)


def _write(final: Path, text: str) -> int:
    """Write the page, whole or not at all, for this user alone; gives its bytes."""
    data = text.encode()
    try:
        with Folder.open(final.parent) as folder:
            folder.put(final.name, data)
    except OSError as error:
        raise TargetError(
            f"cannot be written ({error.strerror})", where=error.filename or final
        ) from error
    return len(data)
