"""Take down what a point is held by: the backup job, and its work folder."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from fleece.attempts import Attempts
from fleece.errors import SourceError
from fleece.source.base import Removed
from fleece.source.emptying import remove_work_folder
from fleece.source.libvirt.domain import Busy, Domain, State
from fleece.source.libvirt.names import FolderName, socket_in
from fleece.source.libvirt.xml import BackupJob
from fleece.source.sockets import connections
from fleece.source.workfolder import FROZEN, LOCK, WorkFolder

_LEAVING = 15.0
"""Seconds to wait for a client to go: QEMU 7.2 ends one that negotiates for 10 s."""
_PAUSE = 0.01


def folder_of(job: BackupJob) -> Path | None:
    """The work folder of one of our points that a job is for; None: the job is not ours."""
    folders = {disk.scratch.parent for disk in job.disks.values()}
    if len(folders) != 1:
        return None
    (folder,) = folders
    listens = None if job.mode == "push" else socket_in(folder)
    if FolderName.parse(folder.name) is None or job.socket != listens:
        return None
    return folder


def take_down_job(domain: Domain, folder: Path, *, resume: bool) -> Iterator[Removed]:
    """End a point's job, if it is there, and let a guest go on that it stopped.

    Args:
        domain: the guest.
        folder: the point's work folder.
        resume: a guest that an I/O error stopped is let go on.

    Raises:
        SourceError: it does not end, or somebody is connected to its server.
    """
    if not domain.is_active():
        return
    found = domain.settled()
    if isinstance(found, Busy) or found is None or folder_of(found) != folder:
        return
    if found.socket is not None:
        wait_for_clients(domain, found.socket)
    domain.end_job()
    yield Removed("job", folder.name)
    if resume and domain.state() is State.IO_ERROR:
        domain.resume()
        yield Removed("stop of the guest", domain.where)


def wait_for_clients(domain: Domain, socket: Path) -> None:
    """Wait until nobody is connected to a server.

    A client that negotiates when its server is stopped hangs QEMU 7.2 for ever, and the guest with
    it (../qemu/server.py), and to end a job is to stop the server.

    Raises:
        SourceError: somebody stays.
    """
    end = time.monotonic() + _LEAVING
    while connections("self", socket):
        if time.monotonic() > end:
            raise SourceError(
                "somebody is connected to the backup's NBD server: QEMU would hang if it ended",
                where=socket,
                hint=f"end that program (ss -xp shows it), then run fleece clean {domain.where}",
            )
        time.sleep(_PAUSE)


def remove_folder(work: WorkFolder, *, thawed: bool = False) -> Iterator[Removed]:
    """Remove a work folder.

    Args:
        work: the folder.
        thawed: the guest is not frozen, whatever a note says.

    The note of a guest that may still be frozen stays, and what says whose it is.

    Raises:
        SourceError: something in it cannot be removed.
    """
    tried = Attempts()
    frozen = False
    with tried.step():
        frozen = work.folder.has(FROZEN) and not thawed
    if not tried.failures:  # else it is not known
        yield from remove_work_folder(work, tried, (FROZEN, LOCK) if frozen else ())
    tried.settle(SourceError)
