"""What is done for one guest: its backup, then what its store's entry asks for."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import itertools
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import fleece
from fleece import events
from fleece.cancel import CancelToken
from fleece.errors import FleeceError, PointError, StoreError, bug
from fleece.fleet.config import Booting, Config, StoreConfig, Verifying
from fleece.fleet.hooks import around
from fleece.fleet.plan import PlannedGuest
from fleece.fleet.shelf import Shelf
from fleece.pace import rate_now
from fleece.terminal import counted

_TICK = 0.2
_SLACK = 0.9
"""Of `every`: a timer does not run a guest at the same second each day."""


class Step(enum.StrEnum):
    """What a run can do for a guest, in this order."""

    BACKUP = "backup"
    COPY = "copy"
    PRUNE = "prune"
    VERIFY = "verify"
    BOOT_TEST = "boot-test"


@dataclass(frozen=True)
class StepResult:
    """What became of one step.

    Attributes:
        step: which.
        seconds: that it took.
        said: what it did, for people; empty: it failed.
        error: why it failed; None: it did not.
        backup: of a backup: its result.
        begun: else it was not due in these hours, and nothing is known by it.
    """

    step: Step
    seconds: float
    said: str = ""
    error: FleeceError | None = None
    backup: fleece.BackupResult | None = None
    begun: bool = True


@dataclass(frozen=True)
class GuestResult:
    """What became of one guest in a run.

    Attributes:
        guest: its name.
        store: the name of its store.
        steps: that were begun; none: it was not due.
    """

    guest: str
    store: str
    steps: tuple[StepResult, ...]

    @property
    def error(self) -> FleeceError | None:
        """The first that failed; None: none did."""
        return next((step.error for step in self.steps if step.error is not None), None)

    @property
    def backup(self) -> fleece.BackupResult | None:
        """Its new point; None: there is none."""
        return next((step.backup for step in self.steps if step.backup is not None), None)


Listener = Callable[[str, events.Event], None]
"""Is told what happens, with the guest's name; by several threads at once."""


@dataclass(frozen=True)
class Work:
    """How the guests of a run are worked on.

    Attributes:
        config: the configuration.
        steps: that are asked for.
        secrets: of the stores, by their names in the file; those without a key are not there.
        listener: hears what happens.
        cancel: stops it.
        dry_run: nothing is changed; what would be done is told.
        any_time: steps are begun outside of the windows, too.
        shelf: the stores that are open.
    """

    config: Config
    steps: Sequence[Step]
    secrets: Mapping[str, fleece.Secret]
    listener: Listener
    cancel: CancelToken
    dry_run: bool = False
    any_time: bool = False
    shelf: Shelf = field(default_factory=Shelf)


def look_after(guest: PlannedGuest, work: Work) -> GuestResult:
    """Do for one guest what is asked for; a step that fails is the last one.

    So nothing is dropped that could not be copied, or after which there is no newer point. What is
    not verified now, the next run verifies.
    """
    done: list[StepResult] = []
    for step, run in _asked(guest, work):
        done.append(_run(guest, step, run, work))
        if done[-1].error is not None:
            break
    return GuestResult(guest.name, guest.config.store.name, tuple(done))


@dataclass(frozen=True)
class _Done:
    """What a step did."""

    said: str
    backup: fleece.BackupResult | None = None


_Run = Callable[[PlannedGuest, fleece.Store, Work], _Done]


def _asked(guest: PlannedGuest, work: Work) -> Iterator[tuple[Step, _Run]]:
    config = guest.config
    if Step.BACKUP in work.steps:
        yield Step.BACKUP, _backup
    if Step.COPY in work.steps:
        for name in config.store.copy_to:
            yield Step.COPY, functools.partial(_copy, target=work.config.stores[name])
    if Step.PRUNE in work.steps and (keep := config.keep) is not None:
        yield Step.PRUNE, functools.partial(_prune, keep=keep)
    verifying = config.store.verifying
    if Step.VERIFY in work.steps and verifying is not None:
        yield Step.VERIFY, functools.partial(_verify, verifying=verifying)
    if Step.BOOT_TEST in work.steps and (booting := config.booting) is not None:
        yield Step.BOOT_TEST, functools.partial(_boot_test, booting=booting)


def _run(guest: PlannedGuest, step: Step, run: _Run, work: Work) -> StepResult:
    """Run a step; once more, some times, while somebody else holds what it needs."""
    begun, limits = time.monotonic(), work.config.limits
    tries = itertools.count(1)
    while True:
        if not work.any_time and (closed := limits.closed()) is not None:
            return StepResult(step, time.monotonic() - begun, f"not begun {closed}", begun=False)
        try:
            work.cancel.check()
            with _opened(guest.config.store, work) as store:
                done = run(guest, store, work)
        except Exception as error:
            failed = error if isinstance(error, FleeceError) else bug(error)
            attempt = next(tries)
            if not failed.busy or attempt > limits.retries:
                return StepResult(step, time.monotonic() - begun, error=failed)
            _wait(limits.retry_wait * 2 ** (attempt - 1), work.cancel)
        else:
            return StepResult(step, time.monotonic() - begun, done.said, backup=done.backup)


def _wait(seconds: float, cancel: CancelToken) -> None:
    end = time.monotonic() + seconds
    while not cancel.cancelled and time.monotonic() < end:
        time.sleep(_TICK)


def _opened(store: StoreConfig, work: Work) -> contextlib.AbstractContextManager[fleece.Store]:
    return work.shelf.borrowed(store, work.secrets.get(store.name), work.cancel)


def _backup(guest: PlannedGuest, store: fleece.Store, work: Work) -> _Done:
    config = guest.config
    if config.every is not None and (young := _younger(store, guest.name, config.every)):
        return _Done(f"not due: point {young} is younger than that")
    if work.dry_run:
        return _Done(f"would back up {guest.source}")
    result = around(
        config.hooks,
        {
            "FLEECE_GUEST": guest.name,
            "FLEECE_SOURCE": guest.source,
            "FLEECE_STORE": config.store.name,
        },
        lambda: _point(guest, store, work),
        _listener(guest, work),
        work.cancel,
    )
    return _Done(f"point {result.point}", result)


def _point(guest: PlannedGuest, store: fleece.Store, work: Work) -> fleece.BackupResult:
    config, limits = guest.config, work.config.limits
    own = config.backup.rate
    rate = (lambda: limits.rate(rate_now(own))) if limits.rates else own
    options = dataclasses.replace(config.backup, guest=guest.name, rate=rate)
    with fleece.open_source(guest.source, guest.options, work.cancel) as source:
        if config.left_out_disks:
            disks = _without(source, config.left_out_disks)
            options = dataclasses.replace(options, disks=disks)
        return fleece.backup(source, store, options, _listener(guest, work), work.cancel)


def _without(source: fleece.Source, left_out: Collection[str]) -> tuple[str, ...]:
    """The names of the disks that can be written, without some.

    Raises:
        PointError: no disk is left.
    """
    disks = source.inventory().disks
    names = [disk.name for disk in disks if not disk.read_only and disk.name not in left_out]
    if not names:
        raise PointError("every disk is left out", where=source.where)
    return tuple(names)


def _younger(store: fleece.Store, guest: str, every: fleece.Duration) -> str | None:
    """The newest point of a guest, if it is too young for the next one."""
    points = store.catalogue(guest).of_guest(guest)
    if points and datetime.fromisoformat(points[-1].time) > _due(every):
        return points[-1].id
    return None


def _due(every: fleece.Duration) -> datetime:
    """What was done before this is due again."""
    now = datetime.now(UTC)
    return now - (now - every.before(now)) * _SLACK


def _copy(guest: PlannedGuest, source: fleece.Store, work: Work, *, target: StoreConfig) -> _Done:
    if not _has_points(source.catalogue(guest.name), guest):
        return _Done("nothing to copy yet")
    options = fleece.CopyOptions(guests=(guest.name,), newer=True, dry_run=work.dry_run)
    with _opened(target, work) as to:
        report = fleece.copy(source, to, options, _listener(guest, work), work.cancel)
    if report.errors:
        raise StoreError(report.errors[0], where=source.where, hint=_more(report.errors))
    sent = counted(len(report.points), "point")
    return _Done(f"{'would send' if work.dry_run else 'sent'} {sent} to {target.name}")


def _prune(
    guest: PlannedGuest, store: fleece.Store, work: Work, *, keep: fleece.KeepRules
) -> _Done:
    if not _has_points(store.catalogue(guest.name), guest):
        return _Done("nothing to prune yet")
    listen = _listener(guest, work)
    result = fleece.prune(
        store, keep, guest.name, dry_run=work.dry_run, listener=listen, cancel=work.cancel
    )
    verb = "would remove" if work.dry_run else "removed"
    return _Done(f"{verb} {result.removed} of {counted(len(result.points), 'point')}")


def _verify(guest: PlannedGuest, store: fleece.Store, work: Work, *, verifying: Verifying) -> _Done:
    catalogue = store.catalogue(guest.name)
    if not _has_points(catalogue, guest):
        return _Done("nothing to verify yet")
    if work.dry_run:
        return _Done("would verify")
    rules = fleece.ScrubRules(verifying.max_age, verifying.fraction, guest.name)
    result = fleece.scrub(catalogue, rules, _listener(guest, work), work.cancel)
    if result.errors:
        raise StoreError(result.errors[0], where=catalogue.where, hint=_more(result.errors))
    return _Done(f"verified {counted(result.deltas, 'delta')}, {result.left} left")


def _boot_test(guest: PlannedGuest, store: fleece.Store, work: Work, *, booting: Booting) -> _Done:
    catalogue = store.catalogue(guest.name)
    if not catalogue.of_guest(guest.name):
        return _Done("nothing to boot yet")
    sound = [
        drill
        for drill in fleece.drills_of(catalogue.access, guest.name)
        if drill.boot and drill.error is None
    ]
    if sound and sound[-1].time > _due(booting.every):
        return _Done(f"not due: has booted on {sound[-1].time:%Y-%m-%d}")
    if work.dry_run:
        return _Done("would boot")
    listen = _listener(guest, work)
    made = fleece.drill(store, guest.name, booting.wish, listen, work.cancel)
    return _Done(f"point {made.point} has booted")


def _has_points(catalogue: fleece.Catalogue, guest: PlannedGuest) -> bool:
    return any(point.guest == guest.name for point in catalogue.points)


def _more(errors: Sequence[str]) -> str | None:
    return f"and {len(errors) - 1} more" if len(errors) > 1 else None


def _listener(guest: PlannedGuest, work: Work) -> events.Listener:
    return functools.partial(work.listener, guest.name)
