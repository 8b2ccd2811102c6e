"""Take down what a point has in QEMU, found by name: after a backup, and after a dead one.

The order is the only safe one: exports first, while clients may still be connected; then the
jobs, those that push before those that fleece; then the nodes, a filter only when its device has
left it; then the server, whose clients may take their time to go; then the scratch files. Every
step may be repeated.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from fleece.attempts import Attempts
from fleece.errors import SourceError
from fleece.source.base import Removed
from fleece.source.emptying import remove_work_folder
from fleece.source.qemu.answers import known
from fleece.source.qemu.inventory import children, node_names, plugged
from fleece.source.qemu.monitor import CommandError, Monitor, Unanswered
from fleece.source.qemu.names import PUSH_JOB, is_access, is_guard
from fleece.source.qemu.processes import process_lives
from fleece.source.qemu.server import Homes, listens_in, stop_idle
from fleece.source.workfolder import (
    FROZEN,
    LOCK,
    PREFIX,
    QEMU_FOLDER,
    SERVER,
    STOPPED,
    WorkFolder,
)

STOPPED_BY_ERROR = "io-error"
"""The run state of a guest that QEMU stopped on an I/O error."""

_LIMIT = 60.0
_POINT = re.compile(rf"({PREFIX}[0-9a-f]{{8}}-[0-9a-f]{{10}})[a-z]\d+")


class Unremoved(SourceError):
    """Files in the scratch could not be removed. Nothing of the point is in QEMU."""


def point_prefixes(monitor: Monitor) -> set[str]:
    """The name prefixes of all points that have anything in this QEMU."""
    found = [export.text("id") for export in monitor.execute("query-block-exports").list()]
    found += [job.text("id") for job in monitor.execute("query-jobs").list()]
    found += node_names(monitor)
    return {match[1] for name in found if (match := _POINT.fullmatch(name))}


def work_folder(monitor: Monitor, prefix: str) -> Path | None:
    """Where QEMU says that a point's scratch files are; None if it has none open."""
    for node in monitor.execute("query-named-block-nodes").list():
        # Only of a protocol node is this a path: a format node over a backing may show `json:`.
        if node.text("node-name").startswith(prefix) and node.text("drv") == "file":
            folder = Path(node.text("file")).parent
            if folder.name == prefix:
                return folder
    return None


def run_state(monitor: Monitor) -> str | None:
    """QEMU's run state (QAPI `RunState`); None: qemu-storage-daemon, which runs no guest."""
    try:
        return monitor.execute("query-status").text("status")
    except CommandError:
        return None


def continue_guest(monitor: Monitor) -> bool:
    """Continue a guest that QEMU stopped on an I/O error; gives whether there was one.

    QEMU repeats the failed write, so the guest never sees the error (QAPI `BlockdevOnError`, stop).
    """
    if run_state(monitor) != STOPPED_BY_ERROR:
        return False
    monitor.execute("cont")
    return True


class _Steps(Attempts):
    """Steps of taking a point down. A QEMU that does not answer is not asked again."""

    @contextlib.contextmanager
    def asking(self) -> Iterator[bool]:
        """A step that asks QEMU; gives whether it may."""
        with self.step():
            yield not any(isinstance(error, Unanswered) for error in self.failures)

    def end(self) -> None:
        """Raise what failed.

        Raises:
            Unremoved: only files are left.
            SourceError: something is left in QEMU, or may be.
        """
        files = all(isinstance(error, OSError) for error in self.failures)
        self.settle(Unremoved if files else SourceError)


def take_down(monitor: Monitor, prefix: str, work: WorkFolder | None) -> Iterator[list[Removed]]:
    """Remove everything of one point from QEMU, and its work folder.

    The first of its two parts is all that the guest can feel. Readers of the point may still be at
    work then: they find no export any more. In the second part there must be none.

    Every step is tried, whatever became of those before. The files stay for as long as QEMU may
    have something of the point, so that the next run finds both.

    Args:
        monitor: of the QEMU.
        prefix: of the point's names.
        work: the point's work folder, if it is known.

    Raises:
        Unremoved: at the end: files could not be removed.
        SourceError: at the end: what is in QEMU could not be, or the connection was lost.
    """
    steps = _Steps()
    homes: Homes | None = None
    with steps.asking():
        homes = server_homes(monitor, None if work is None else work.path.parent)
    yield _release(monitor, prefix, steps)
    yield _put_away(monitor, prefix, homes, work, steps)
    steps.end()


def _release(monitor: Monitor, prefix: str, steps: _Steps) -> list[Removed]:
    removed: list[Removed] = []
    _remove_exports(monitor, prefix, removed, steps)
    # A push job reads what the fleecing job holds still, and the end of that waits for its reads.
    _end_jobs(monitor, prefix + PUSH_JOB, removed, steps)
    _end_jobs(monitor, prefix, removed, steps)
    for each in _nodes_in_order(monitor, prefix):
        with steps.asking() as may:
            if may:
                _gather(removed, each)
    return removed


def _gather(removed: list[Removed], more: Iterator[Removed]) -> None:
    """Append one by one: what was removed before an error counts."""
    for one in more:
        removed.append(one)


def _put_away(
    monitor: Monitor, prefix: str, homes: Homes | None, work: WorkFolder | None, steps: _Steps
) -> list[Removed]:
    removed: list[Removed] = []
    with steps.asking() as may:
        if may and homes is not None:
            _gather(removed, _stop_server(monitor, homes, work))
    gone = not process_lives(monitor.peer.pid)
    if not gone:
        with steps.asking() as may:
            gone = may and prefix not in point_prefixes(monitor)
    if gone and work is not None:
        _gather(removed, remove_folder(work, steps))
    return removed


def _remove_exports(monitor: Monitor, prefix: str, removed: list[Removed], steps: _Steps) -> None:
    def ours() -> list[str]:
        exports = monitor.execute("query-block-exports").list()
        return [name for item in exports if (name := item.text("id")).startswith(prefix)]

    going: set[str] = set()
    with steps.asking() as may:
        for name in ours() if may else ():
            with steps.asking() as still:
                if still:
                    with _gone_is_fine("not found"):
                        monitor.execute("block-export-del", {"id": name, "mode": "hard"})
                    going.add(name)
                    removed.append(Removed("export", name))
    with steps.asking() as may:
        if may:
            _wait(lambda: going.isdisjoint(ours()), "an export to go away", monitor)


def server_homes(monitor: Monitor, scratch: Path | None) -> Homes:
    """Where fleece may have this QEMU's NBD server: in a scratch folder, or beside living points.

    Args:
        monitor: of the QEMU.
        scratch: the folder to look in besides.
    """
    found = {work_folder(monitor, prefix) for prefix in point_prefixes(monitor)}
    return Homes(monitor.peer.pid, {folder for folder in found if folder is not None}, scratch)


def _stop_server(monitor: Monitor, homes: Homes, work: WorkFolder | None) -> Iterator[Removed]:
    """Stop QEMU's NBD server if it is fleece's and serves nobody, whoever started it."""
    for home in stop_idle(monitor, homes):
        yield Removed("NBD server", str(home.socket))
        if (work is None or home.path != work.path) and not home.is_held():
            left = Attempts()
            yield from remove_folder(home, left)
            left.settle(SourceError)


def _end_jobs(monitor: Monitor, prefix: str, removed: list[Removed], steps: _Steps) -> None:
    def ours() -> dict[str, str]:
        jobs = monitor.execute("query-jobs").by("id")
        return {name: job.text("status") for name, job in jobs.items() if name.startswith(prefix)}

    going: set[str] = set()

    def dismissed() -> bool:
        left = {name: status for name, status in ours().items() if name in going}
        for name, status in left.items():
            if status == "concluded":
                with _gone_is_fine("not found"):
                    monitor.execute("job-dismiss", {"id": name})
        return not left

    with steps.asking() as may:
        for name, status in ours().items() if may else ():
            with steps.asking() as still:
                if still:
                    _cancel(monitor, name, status)
                    going.add(name)
                    removed.append(Removed("job", name))
    with steps.asking() as may:
        if may:
            _wait(dismissed, "a job to end", monitor)


def _cancel(monitor: Monitor, job: str, status: str) -> None:
    if status not in ("concluded", "aborting", "null"):
        with _gone_is_fine("not found", "cannot accept command"):
            monitor.execute("block-job-cancel", {"device": job, "force": True})


def take_down_nodes(monitor: Monitor, prefix: str) -> None:
    """Remove a point's nodes from QEMU when nothing else of it is there any more."""
    for removed in _nodes_in_order(monitor, prefix):
        list(removed)


def _nodes_in_order(monitor: Monitor, prefix: str) -> Iterator[Iterator[Removed]]:
    yield _remove_nodes(monitor, prefix, is_access)
    yield _put_back(monitor, prefix)
    yield _remove_nodes(monitor, prefix)


def _put_back(monitor: Monitor, prefix: str) -> Iterator[Removed]:
    """Plug what is below our filters into their devices again.

    While a filter's snapshot is shown, it lets nobody else write to the disk, and QEMU refuses.
    """
    guarded = {
        device: node
        for device, node in plugged(monitor).items()
        if node.startswith(prefix) and is_guard(node)
    }
    if not guarded:
        return
    graph = children(monitor)
    for device, node in guarded.items():
        plug(monitor, device, known(known(graph, node, monitor.path), "file", monitor.path))
        yield Removed("filter", device)


def plug(monitor: Monitor, device: str, node: str) -> None:
    """Plug a node into a device that has one, running or not (`qom-set` of its drive)."""
    monitor.execute("qom-set", {"path": device, "property": "drive", "value": node})


def _remove_nodes(
    monitor: Monitor, prefix: str, wanted: Callable[[str], bool] = lambda name: True
) -> Iterator[Removed]:
    """Delete our nodes, the upper ones first: a node that is in use refuses until its user went."""

    def ours() -> list[str]:
        names = [name for name in node_names(monitor) if name.startswith(prefix)]
        return [name for name in names if wanted(name)]

    left = ours()
    while left:
        before = len(left)
        refusals: dict[str, CommandError] = {}
        for name in left:
            try:
                monitor.execute("blockdev-del", {"node-name": name})
                yield Removed("node", name)
            except CommandError as error:
                refusals[name] = error
        left = ours()
        if len(left) >= before:
            refusal = refusals.get(left[0])
            raise SourceError(
                f"node {left[0]} cannot be removed: {refusal.reason if refusal else ''}",
                where=monitor.path,
                hint=refusal.hint if refusal else None,
            )


def remove_folder(work: WorkFolder, steps: Attempts) -> Iterator[Removed]:
    """Remove a work folder.

    The note of a guest that may still be frozen or stopped stays, and so does a server that others
    use; and with them what says whose they are.

    Args:
        work: the folder.
        steps: is told of what cannot be removed.
    """
    before = len(steps.failures)
    kept: set[str] = set()
    with steps.step():
        kept = _kept(work, list(work.folder.names()))
    if len(steps.failures) == before:  # else what must stay is not known
        yield from remove_work_folder(work, steps, kept)


def _kept(work: WorkFolder, names: Collection[str]) -> set[str]:
    kept = {name for name in (FROZEN, STOPPED) if name in names}
    if listens_in(work):
        kept |= {SERVER, QEMU_FOLDER}
    return kept | {LOCK} if kept else kept


def _wait(done: Any, what: str, monitor: Monitor) -> None:
    limit = time.monotonic() + _LIMIT
    while not done():
        if time.monotonic() > limit:
            raise SourceError(f"waited {_LIMIT:.0f} s for {what}", where=monitor.path)
        time.sleep(0.005)


@contextlib.contextmanager
def _gone_is_fine(*reasons: str) -> Iterator[None]:
    """Ignore a refusal that only says that the thing is not there any more."""
    try:
        yield
    except CommandError as error:
        if not any(reason in error.reason for reason in reasons):
            raise
