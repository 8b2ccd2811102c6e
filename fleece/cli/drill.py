"""The verb `drill`: what backups are for, tried on some guests."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import fleece
from fleece import events
from fleece.cancel import CancelToken
from fleece.cli.fleet import config_path, open_configured
from fleece.cli.output import Output
from fleece.cli.words import DrillWords
from fleece.errors import FleeceError, UsageError
from fleece.fleet.config import Drilling, load
from fleece.terminal import counted, span
from fleece.there import is_folder


@dataclass(frozen=True)
class _Place:
    """A store whose guests are drilled."""

    name: str
    open: Callable[[], fleece.Store]


def drill(output: Output, cancel: CancelToken, words: DrillWords) -> None:
    """`fleece drill [STORE]... [--guest GUEST]...`."""
    drilling, places = _asked(words, cancel)
    if drilling.sample < 1 or not drilling.limit > 0:
        raise UsageError("--sample takes 1 or more, --timeout more than 0")
    if drilling.scratch is not None and not is_folder(drilling.scratch):
        raise UsageError("is not a folder", where=drilling.scratch, hint="--scratch DIR is one")
    wish = fleece.DrillWish(
        fleece.BootWish(text=drilling.text, limit=drilling.limit) if drilling.boot else None,
        scratch=drilling.scratch,
    )
    done: list[str] = []
    lines: list[str] = []
    failed: list[FleeceError] = []
    missing = set(words.guests)
    for place in places:
        try:
            store = place.open()
            catalogue = store.catalogue()
            guests = _guests(catalogue, words.guests, drilling.sample)
        except FleeceError as error:
            cancel.check()
            failed.append(error)
            continue
        missing -= set(guests)
        for guest in guests:
            done.append(guest)
            failed += _one(output, cancel, place, guest, wish, lines)
    fields: dict[str, object] = {"drilled": len(done), "failed": len(failed)}
    for guest in sorted(missing):
        failed.append(fleece.StoreError(f"there is no point of guest {guest}"))
    if failed:
        output.answer(lines)
        worst = FleeceError(f"{len(failed)} of {counted(len(done), 'drill')} failed: {failed[0]}")
        worst.code = failed[0].code
        worst.fields = fields
        raise worst
    output.succeed([*lines, f"{counted(len(done), 'drill')}, all well"], **fields)


def _asked(words: DrillWords, cancel: CancelToken) -> tuple[Drilling, list[_Place]]:
    """How to drill, and where: as the command line says, else the configuration."""
    if words.stores:
        drilling = Drilling()
        places = [
            _Place(place, functools.partial(fleece.open_store, place, words.secret, cancel))
            for place in dict.fromkeys(words.stores)
        ]
    else:
        config = load(config_path(words.config))
        drilling = config.drilling
        places = [
            _Place(name, functools.partial(open_configured, store, cancel))
            for name, store in config.stores.items()
        ]
    asked = Drilling(
        drilling.sample if words.sample is None else words.sample,
        words.boot or drilling.boot,
        drilling.text if words.text is None else words.text,
        drilling.limit if words.limit is None else words.limit,
        drilling.scratch if words.scratch is None else Path(words.scratch),
    )
    return asked, places


def _guests(catalogue: fleece.Catalogue, named: list[str], sample: int) -> list[str]:
    """The guests of a store whose turn it is."""
    here = sorted({point.guest for point in catalogue.points})
    if named:
        return [guest for guest in dict.fromkeys(named) if guest in here]
    return fleece.least_drilled(catalogue, here, sample)


def _one(
    output: Output,
    cancel: CancelToken,
    place: _Place,
    guest: str,
    wish: fleece.DrillWish,
    lines: list[str],
) -> Iterator[FleeceError]:
    """Drill a guest; gives the error, if it failed. The next one has its turn all the same.

    What went well is told to programs at once, and added to the lines for people.
    """
    listen = functools.partial(output.listen_of, guest)
    try:
        made = fleece.drill(place.open(), guest, wish, listen, cancel)
    except FleeceError as error:
        cancel.check()
        output.listen_of(guest, events.Problem(place.name, str(error)))
        yield error
        return
    what = "booted" if made.boot else "restored"
    lines.append(f"{guest}: point {made.point} {what} in {span(made.seconds)}")
    if output.machine:
        output.row(
            "drill",
            "",
            guest=guest,
            store=place.name,
            boot=made.boot,
            point=made.point,
            seconds=round(made.seconds, 3),
            roots={**made.roots},
        )
