"""Stop the guest for a moment, and let it go on whatever happens.

What several commands do to several disks is one moment for the guest only while it stands still.
A note in the point's work folder tells the next run of a guest that a killed one left stopped.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator

from fleece.errors import SourceError
from fleece.source.qemu.hold import Entangled
from fleece.source.qemu.monitor import CommandError, Monitor
from fleece.source.qemu.teardown import run_state
from fleece.source.workfolder import Note

_RUNNING = "running"
_PAUSED = "paused"
_TRIES = 5
_PAUSE = 0.2
_PATIENCE = 30.0
"""Seconds after which no new connection is tried."""

_ROUNDS = 3
_SOON = 0.05
"""Seconds of a round after which another one would not gain."""
_FILES = ("file", "host_device")
"""QEMU's drivers of what is a file or a block device of the host."""


@contextlib.contextmanager
def standing_still(monitor: Monitor, note: Note) -> Iterator[None]:
    """Have the guest stand still in the context. One that did not run before stays as it was.

    Args:
        monitor: of the QEMU.
        note: is there for as long as the guest may be stopped.

    Raises:
        Entangled: somebody let it go on before the context ended.
        SourceError: the note cannot be made, and nothing was done; or QEMU cannot be told to let it
            go on, and the note stays.
    """
    if run_state(monitor) == _RUNNING:
        _write_out(monitor)  # it may last: only what is so afterwards counts
    monitor.guest_resumed()  # what was before is forgotten
    if run_state(monitor) == _RUNNING:
        _make(note)
        try:
            monitor.execute("stop")
            yield
            went_on = run_state(monitor) == _RUNNING or monitor.guest_resumed()
        finally:
            _let_go(monitor)
            note.drop()
    else:
        yield
        went_on = run_state(monitor) == _RUNNING or monitor.guest_resumed()
    if went_on:
        raise Entangled(
            "somebody continued the guest at the moment of the point", where=monitor.path
        )


def _write_out(monitor: Monitor) -> None:
    """Have the host write out what it holds of QEMU's disks while the guest still runs.

    QEMU flushes all of them within a stop (`do_vm_stop`), and the guest stands still as long: of
    images that go through the page cache, for all that was written since the last flush.
    """
    nodes = monitor.execute("query-named-block-nodes").list()
    shown = [node for node in nodes if node.text("drv") in _FILES and not node.flag("ro")]
    files = sorted({node.text("file") for node in shown})
    for _ in range(_ROUNDS):
        begun = time.monotonic()
        for path in files:
            with contextlib.suppress(OSError):  # only QEMU's own flush counts, and tells
                _flush(path)
        if time.monotonic() < begun + _SOON:
            return


def _flush(path: str) -> None:
    mode = os.stat(path).st_mode
    if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)


def _make(note: Note) -> None:
    try:
        note.write(b"")
    except OSError as error:
        raise SourceError(
            f"a note that the guest is stopped cannot be written ({error.strerror})",
            where=note.path,
            hint="choose another folder with --scratch",
        ) from error


def let_go_noted(monitor: Monitor, note: Note) -> bool:
    """Let a guest go on that an interrupted backup's note names; whether it was stopped.

    Raises:
        SourceError: QEMU refuses, or the note cannot be removed.
    """
    if note.read() is None:
        return False
    stopped = run_state(monitor) == _PAUSED
    if stopped:
        monitor.execute("cont")
    note.drop()
    return stopped


def _let_go(monitor: Monitor) -> None:
    """Continue the guest; over a new connection, should this one be lost."""
    try:
        monitor.execute("cont")
    except CommandError:
        raise
    except SourceError as error:
        end = time.monotonic() + _PATIENCE
        for _ in range(_TRIES):
            with (
                contextlib.suppress(SourceError),
                Monitor(monitor.path, monitor.cancel) as another,
            ):
                another.execute("cont")
                return
            if time.monotonic() > end:
                break
            time.sleep(_PAUSE)
        raise SourceError(
            f"the guest was stopped for the moment of the point and may still be ({error.what})",
            where=monitor.path,
            hint="continue it with 'cont' on its monitor; the next backup does so, too",
        ) from error
