"""Drill: use a guest's newest point, throw the result away, and note what came of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from fleece import events
from fleece.cancel import CancelToken
from fleece.engine.restore.image import restore
from fleece.engine.restore.options import RestoreOptions
from fleece.engine.serve.boot import BootMachine, BootWish, boot_test
from fleece.errors import DeltaError, FleeceError, StoreError, VerifyError
from fleece.store.backend import Patience
from fleece.store.catalogue import LATEST, Catalogue
from fleece.store.drills import Drill, drills_of, note_drill
from fleece.store.store import Store
from fleece.temporary import temporary_folder

_SCRATCH = Path("/var/tmp")
_PATIENCE = 600.0
"""Seconds to wait, for the note, until a backup of the guest has ended."""
_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class DrillWish:
    """How to drill.

    Attributes:
        boot: boot the point, and wait for this; None: restore each of its disks and parts, one
            after the other, and prove it by its root. Its guest, scratch and screenshot are the
            drill's own to choose.
        machine: to boot; None: one like the guest's own.
        scratch: folder for what is restored, or what the guest writes; None: /var/tmp.
    """

    boot: BootWish | None = None
    machine: BootMachine | None = None
    scratch: Path | None = None


def least_drilled(catalogue: Catalogue, guests: Sequence[str], count: int) -> list[str]:
    """Of some guests those to drill next: never drilled ones first, then the longest ago.

    So the same one comes again only after all others.

    Args:
        catalogue: of the store. A guest without a complete point is left out.
        guests: their names.
        count: how many.
    """
    known = [guest for guest in guests if catalogue.of_guest(guest)]

    def last(guest: str) -> datetime:
        drills = drills_of(catalogue.access, guest)
        return drills[-1].time if drills else _NEVER

    return sorted(known, key=lambda guest: (last(guest), guest))[:count]


def drill(
    store: Store,
    guest: str,
    wish: DrillWish | None = None,
    listener: events.Listener = events.ignore,
    cancel: CancelToken | None = None,
) -> Drill:
    """Drill the newest point of a guest, and note in the store what came of it.

    Nothing that is there is written over, and nothing is left but the note.

    Args:
        store: that holds the guest.
        guest: its name.
        wish: how.
        listener: hears `Progress`, and `Warned` and `Problem` of a boot.
        cancel: stops it; then there is no note.

    Raises:
        StoreError, VerifyError: the drill failed, which is noted; or it cannot be noted.
        TargetError: there is no room for it, or the machine does not start: that is no fault of the
            point's, and not noted.
        UsageError: a program is missing.
    """
    cancel, wish = cancel or CancelToken(), wish or DrillWish()
    point = store.catalogue(guest).find(LATEST, guest).id
    work = _Work(store, guest, point, wish, listener, cancel)
    begun, clock = datetime.now(UTC), time.monotonic()
    made = Drill(begun, point, wish.boot is not None, 0.0, {})
    failed: FleeceError | None = None
    with temporary_folder(wish.scratch or _SCRATCH) as folder:
        screen = folder / "screen.png"
        try:
            boot = wish.boot
            roots = _restored(work, folder) if boot is None else _booted(work, boot, folder)
            made = replace(made, roots=roots)
        except (StoreError, DeltaError, VerifyError) as error:
            failed = error
            made = replace(made, error=str(error))
        seconds = time.monotonic() - clock
        picture = screen.read_bytes() if screen.is_file() else None
    cancel.check()
    made = replace(made, seconds=seconds, screenshot=picture)
    with store.locked(guest, Patience(_PATIENCE, cancel)):
        note_drill(store.access, guest, made)
    if failed is not None:
        raise failed
    return made


@dataclass(frozen=True)
class _Work:
    """What a drill works on, and how."""

    store: Store
    guest: str
    point: str
    wish: DrillWish
    listener: events.Listener
    cancel: CancelToken


def _restored(work: _Work, folder: Path) -> dict[str, str]:
    """Restore each disk and part into a file, which goes as soon as it is proven."""
    roots: dict[str, str] = {}
    options = RestoreOptions(guest=work.guest)
    point = work.store.catalogue(work.guest).find(work.point, work.guest)
    for name in sorted(point.deltas):
        target = folder / "restored"
        done = restore(
            work.store, work.point, name, str(target), options, work.listener, work.cancel
        )
        target.unlink()
        roots[name] = done.root
    return roots


def _booted(work: _Work, asked: BootWish, folder: Path) -> dict[str, str]:
    """Boot the point, with a picture of the screen in the end, whatever the outcome."""
    wish = replace(
        asked,
        guest=work.guest,
        scratch=folder,
        screenshot=folder / "screen.png",
        console=None,
    )
    machine = work.wish.machine
    done = boot_test(work.store, work.point, (), wish, machine, work.listener, work.cancel)
    return {disk.disk: disk.root for disk in done.disks}
