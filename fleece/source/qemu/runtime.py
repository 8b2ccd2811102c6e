"""Take down what a point has in QEMU, found by name: after a backup, and after a dead one.

The order is the only safe one: exports first, while clients may still be connected; then the
jobs, those that push before those that fleece; then the nodes, a filter only when its device has
left it; then the server, whose clients may take their time to go; then the scratch files. Every
step may be repeated.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleece.errors import SourceError
from fleece.source.qemu.inventory import children, plugged
from fleece.source.qemu.monitor import CommandError, Monitor
from fleece.source.qemu.names import (
    FROZEN,
    LOCK,
    PREFIX,
    PUSH_JOB,
    SERVER,
    SINK,
    SOCKET,
    STOPPED,
    is_access,
    is_guard,
)
from fleece.source.qemu.server import Homes, listens_in, stop_idle

STOPPED_BY_ERROR = "io-error"
"""The run state of a guest that QEMU stopped on an I/O error."""

_LIMIT = 60.0
_POINT = re.compile(rf"({PREFIX}[0-9a-f]{{8}}-[0-9a-f]{{10}})[a-z]\d+")
_WORK_FILE = re.compile(rf"{re.escape(SOCKET)}|{re.escape(SINK)}|{LOCK}|{SERVER}|s\d+\.(qcow2|raw)")


@dataclass(frozen=True)
class Removed:
    """One thing that was taken down."""

    kind: str
    item: str


def point_prefixes(monitor: Monitor) -> set[str]:
    """The name prefixes of all points that have anything in this QEMU."""
    found = [export["id"] for export in monitor.execute("query-block-exports")]
    found += [job["id"] for job in monitor.execute("query-jobs")]
    found += [node["node-name"] for node in monitor.execute("query-named-block-nodes")]
    return {match[1] for name in found if (match := _POINT.fullmatch(name))}


def work_folder(monitor: Monitor, prefix: str) -> Path | None:
    """The folder of a point's scratch files, as QEMU names them; None if it has none open."""
    for node in monitor.execute("query-named-block-nodes"):
        # Only of a protocol node is this a path: a format node over a backing may show `json:`.
        if node["node-name"].startswith(prefix) and node["drv"] == "file":
            folder = Path(node["file"]).parent
            if folder.name == prefix:
                return folder
    return None


def is_held(folder: Path) -> bool:
    """Whether a living engine holds the point of this work folder."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno == errno.EWOULDBLOCK
    finally:
        os.close(descriptor)
    return False


def has_only_ours(folder: Path) -> bool:
    """Whether a work folder holds nothing but the files that a point alone has there."""
    return all(_WORK_FILE.fullmatch(item.name) for item in folder.iterdir())


def process_lives(pid: int) -> bool:
    """Whether a process of this number exists."""
    return Path(f"/proc/{pid}").exists()


def qemu_of(folder: Path) -> int | None:
    """The process number of the QEMU that a work folder was made for; None: it was not noted."""
    try:
        return int((folder / LOCK).read_text())
    except (OSError, ValueError):
        return None


def run_state(monitor: Monitor) -> str | None:
    """QEMU's run state (QAPI `RunState`); None: qemu-storage-daemon, which runs no guest."""
    try:
        return str(monitor.execute("query-status")["status"])
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


def take_down(monitor: Monitor, prefix: str, folder: Path | None) -> Iterator[list[Removed]]:
    """Remove everything of one point from QEMU, and its work folder.

    The first of its two parts is all that the guest can feel. Readers of the point may still be at
    work then: they find no export any more. In the second part there must be none.

    Args:
        monitor: of the QEMU.
        prefix: of the point's names.
        folder: the point's work folder, if it is known.

    Raises:
        SourceError: something could not be removed, or the connection was lost. If it is only that
            the server has a client, everything else is removed.
    """
    homes = server_homes(monitor, None if folder is None else folder.parent)
    yield _release(monitor, prefix)
    yield _put_away(monitor, homes, folder)


def _release(monitor: Monitor, prefix: str) -> list[Removed]:
    removed = list(_remove_exports(monitor, prefix))
    # A push job reads what the fleecing job holds still, and the end of that waits for its reads.
    removed += _end_jobs(monitor, prefix + PUSH_JOB)
    removed += _end_jobs(monitor, prefix)
    removed += take_down_nodes(monitor, prefix)
    return removed


def _put_away(monitor: Monitor, homes: Homes, folder: Path | None) -> list[Removed]:
    removed: list[Removed] = []
    try:
        removed += _stop_server(monitor, homes, folder)
    finally:
        removed += remove_folder(folder)
    return removed


def _remove_exports(monitor: Monitor, prefix: str) -> Iterator[Removed]:
    def ours() -> list[str]:
        exports = monitor.execute("query-block-exports")
        return [item["id"] for item in exports if item["id"].startswith(prefix)]

    for name in ours():
        with _gone_is_fine("not found"):
            monitor.execute("block-export-del", {"id": name, "mode": "hard"})
        yield Removed("export", name)
    _wait(lambda: not ours(), "an export to go away", monitor)


def server_homes(monitor: Monitor, scratch: Path | None) -> Homes:
    """Where fleece may have this QEMU's NBD server: in a scratch folder, or beside living points.

    Args:
        monitor: of the QEMU.
        scratch: the folder to look in besides.
    """
    found = {work_folder(monitor, prefix) for prefix in point_prefixes(monitor)}
    return Homes(monitor.peer.pid, {folder for folder in found if folder is not None}, scratch)


def _stop_server(monitor: Monitor, homes: Homes, folder: Path | None) -> Iterator[Removed]:
    """Stop QEMU's NBD server if it is fleece's and serves nobody, whoever started it."""
    for home in list(stop_idle(monitor, homes)):
        yield Removed("NBD server", str(home / SOCKET))
        if home != folder and not is_held(home):
            yield from remove_folder(home)


def _end_jobs(monitor: Monitor, prefix: str) -> Iterator[Removed]:
    def ours() -> list[dict[str, Any]]:
        return [job for job in monitor.execute("query-jobs") if job["id"].startswith(prefix)]

    for job in ours():
        if job["status"] not in ("concluded", "aborting", "null"):
            with _gone_is_fine("not found", "cannot accept command"):
                monitor.execute("block-job-cancel", {"device": job["id"], "force": True})
        yield Removed("job", job["id"])

    def dismissed() -> bool:
        left = ours()
        for job in left:
            if job["status"] == "concluded":
                with _gone_is_fine("not found"):
                    monitor.execute("job-dismiss", {"id": job["id"]})
        return not left

    _wait(dismissed, "a job to end", monitor)


def take_down_nodes(monitor: Monitor, prefix: str) -> list[Removed]:
    """Remove a point's nodes from QEMU when nothing else of it is there any more."""
    removed = list(_remove_nodes(monitor, prefix, is_access))
    removed += _put_back(monitor, prefix)
    removed += _remove_nodes(monitor, prefix)
    return removed


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
        plug(monitor, device, graph[node]["file"])
        yield Removed("filter", device)


def plug(monitor: Monitor, device: str, node: str) -> None:
    """Plug a node into a device that has one, running or not (`qom-set` of its drive)."""
    monitor.execute("qom-set", {"path": device, "property": "drive", "value": node})


def _remove_nodes(
    monitor: Monitor, prefix: str, wanted: Callable[[str], bool] = lambda name: True
) -> Iterator[Removed]:
    """Delete our nodes, the upper ones first: a node that is in use refuses until its user went."""

    def ours() -> list[str]:
        nodes = monitor.execute("query-named-block-nodes")
        names = [node["node-name"] for node in nodes if node["node-name"].startswith(prefix)]
        return [name for name in names if wanted(name)]

    left = ours()
    while left:
        before = len(left)
        refusal: CommandError | None = None
        for name in left:
            try:
                monitor.execute("blockdev-del", {"node-name": name})
                yield Removed("node", name)
            except CommandError as error:
                refusal = error
        left = ours()
        if len(left) >= before:
            raise SourceError(
                f"node {left[0]} cannot be removed: {refusal.reason if refusal else ''}",
                where=monitor.path,
                hint=refusal.hint if refusal else None,
            )


def remove_folder(folder: Path | None) -> Iterator[Removed]:
    """Remove a work folder: the files of ours by name, then the folder if nothing else is in it.

    The note of a guest that may still be frozen or stopped stays, and so does a server that others
    use; and with them what says whose they are.
    """
    if folder is None or not folder.is_dir():
        return
    kept = {LOCK} if (folder / FROZEN).exists() or (folder / STOPPED).exists() else set()
    if listens_in(folder):
        kept |= {LOCK, SERVER, SOCKET}
    for item in list(folder.iterdir()):
        if _WORK_FILE.fullmatch(item.name) and item.name not in kept:
            item.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()
        yield Removed("scratch", str(folder))


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
