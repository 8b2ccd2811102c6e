"""QEMU's NBD server. A QEMU can run only one: all fleece runs share it, the last one stops it.

Who starts it has it listen in the work folder of its point; that socket stays until the last run
leaves. What must not overlap happens under a lock file beside the socket: starting or joining it
until the exports are there, the look for exports before it is stopped, and the question whether it
listens.

A client that negotiates when the server is stopped hangs QEMU 7.2 for ever, and the guest with it
(seen on 7.2.22: `nbd-server-stop` waits until all connections are closed, in a loop in which those
that have no export yet are not served). So who asks whether it listens takes its leave as the
protocol has it, and before it is stopped there must be no connection.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fleece.errors import SourceError
from fleece.reach import connected, may_be_served
from fleece.source.qemu.monitor import CommandError, Monitor, Unanswered
from fleece.source.qemu.processes import server_of
from fleece.source.qemu.unseen import with_reasons
from fleece.source.sockets import connections
from fleece.source.workfolder import (
    JOINED,
    PREFIX,
    QEMU_FOLDER,
    SERVER,
    SOCKET,
    Note,
    Strangers,
    WorkFolder,
    believed,
    work_folders,
)

_LEAVE = struct.pack(">I8sII", 3, b"IHAVEOPT", 2, 0)
"""A client's flags (fixed newstyle, no zeroes) and NBD_OPT_ABORT (NBD protocol, "Newstyle
negotiation"): the server lets it go."""
_PATIENCE = 5.0
_LEAVING = 15.0
"""Seconds to wait for a client to go: QEMU 7.2.22 ends one that negotiates for 10 s."""
_PAUSE = 0.05
_GLANCE = 0.005
"""Seconds: mostly it is our own question whose end QEMU is about to close."""
_TRIES = 20


def listens(path: Path) -> bool:
    """Whether an NBD server listens on a unix socket, if only too busy to answer.

    It has let go of the connection when this returns, unless it is too busy for that. Of a socket
    that this user may not open, a server may well listen: that is taken for granted, since one
    that is taken for gone is never stopped, and QEMU can run no other.
    """
    try:
        probe = connected(str(path), _PATIENCE)
    except OSError as error:
        return may_be_served(error)
    with probe, contextlib.suppress(OSError):
        probe.sendall(_LEAVE)
        end = time.monotonic() + _PATIENCE
        while probe.recv(4096) and time.monotonic() < end:
            pass
    return True


def listens_in(work: WorkFolder) -> bool:
    """Whether a work folder's server listens; asks while nobody may stop it."""
    if not work.folder.has(SERVER):
        return False
    with _locked(work) as held:
        if not held and work.folder.has(SERVER):
            return True
        return listens(work.socket)


@contextlib.contextmanager
def joined(monitor: Monitor, work: WorkFolder, homes: Callable[[], Homes]) -> Iterator[Path]:
    """Start the server, or join that of another fleece run; its lock is held in the context.

    Args:
        monitor: of the QEMU.
        work: of the point, for the socket if the server is started.
        homes: tells, each time it is asked, where else fleece may have one.

    Returns:
        The socket that it listens on.

    Raises:
        SourceError: a server runs that is not fleece's, or QEMU cannot make its socket.
    """
    for _ in range(_TRIES):  # one may end between a try to start and a try to join
        with contextlib.ExitStack() as stack:
            try:
                place = _start(monitor, work, stack) or _join(homes(), work, stack)
            except OSError as error:
                raise SourceError(
                    f"the scratch folder cannot be used ({error.strerror})",
                    where=work.path,
                    hint="choose another one with --scratch",
                ) from error
            if place is not None:
                yield place
                return
        time.sleep(_PAUSE)
    raise SourceError(
        "an NBD server that is not fleece's runs in this QEMU, and it can run only one",
        where=monitor.path,
        hint="stop it with nbd-server-stop if nobody needs it",
    )


class Homes:
    """Finds our own work folders of a QEMU whose socket its server may listen on.

    Args:
        qemu: the process number that their locks name.
        points: work folders of points that are in this QEMU, whatever their locks name: a monitor
            that is reached through a proxy has the proxy's number.
        scratch: a folder to look in, besides those that the points' folders are in.
    """

    def __init__(self, qemu: int, points: set[Path], scratch: Path | None) -> None:
        self._qemu = qemu
        self._points = points
        self._scratches = {point.parent for point in points}
        if scratch is not None:
            self._scratches.add(Path(os.path.realpath(scratch)))

    def __iter__(self) -> Iterator[WorkFolder]:
        """Each is open until the next one is asked for."""
        unheard = Strangers()
        found: set[Path] = set()
        for scratch in self._scratches:
            for work in work_folders(scratch, PREFIX, unheard):
                if (home := self._home(work, unheard)) is not None:
                    found.add(home)
        for path in sorted(found):
            home_folder = believed(path, unheard)
            if home_folder is not None:
                with home_folder:
                    yield home_folder

    def _home(self, work: WorkFolder, unheard: Strangers) -> Path | None:
        """Where the server is that a point's work folder tells of, if it is this QEMU's."""
        said = Note(work, JOINED).read()
        ours = work.path in self._points
        if said is None:
            return work.path if ours or server_of(work) == self._qemu else None
        home = believed(Path(os.fsdecode(said)), unheard)
        if home is None:
            return None
        with home:
            return home.path if ours or server_of(home) == self._qemu else None


def stop_idle(monitor: Monitor, homes: Homes) -> Iterator[WorkFolder]:
    """Stop the server if it is fleece's and nobody is served; gives the folder that it was in.

    Raises:
        SourceError: a client of it stays connected, or what is left of it cannot be removed.
    """
    for home in homes:
        with _locked(home) as held:
            if not held:
                continue
            if any(
                item.text("type") == "nbd" for item in monitor.execute("query-block-exports").list()
            ):
                return
            stopped = listens(home.socket)
            if stopped:
                _wait_for_clients(monitor.peer.pid, home.socket)
                _stop(monitor)
            _remove_server(home)
        if stopped:
            yield home


def _remove_server(home: WorkFolder) -> None:
    """Remove the socket, which QEMU has removed mostly, and then the lock file beside it."""
    try:
        with contextlib.suppress(FileNotFoundError), home.folder.folder(QEMU_FOLDER) as theirs:
            theirs.remove(Path(SOCKET).name)
        home.folder.remove(SERVER)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise SourceError(
            f"what is left of the NBD server cannot be removed ({error.strerror})",
            where=error.filename,
        ) from error


def _wait_for_clients(qemu: int, path: Path) -> None:
    end = time.monotonic() + _LEAVING
    while connections(qemu, path):
        if time.monotonic() > end:
            raise SourceError(
                "somebody is connected to fleece's NBD server: QEMU would hang if it stopped it",
                where=path,
                hint="end that program (ss -xp shows it), then run fleece clean",
            )
        time.sleep(_GLANCE)


def _stop(monitor: Monitor) -> None:
    try:
        monitor.execute("nbd-server-stop")
    except CommandError as error:
        if "not running" not in error.reason:
            raise


def _start(monitor: Monitor, work: WorkFolder, stack: contextlib.ExitStack) -> Path | None:
    """Start it, with its lock held; None: one runs already."""
    address = {"type": "unix", "data": {"path": str(work.socket)}}
    with contextlib.ExitStack() as own:
        os.close(work.folder.lasting_file(SERVER))
        own.enter_context(_locked(work))
        # Only now, with the lock held, is it one that others look at.
        _write(work, str(monitor.peer.pid).encode())
        try:
            # By default it takes 100 clients, and more of them wait for ever.
            arguments: dict[str, object] = {"addr": address, "max-connections": 0}
            with_reasons(monitor, work.socket, "nbd-server-start", arguments)
        except Unanswered:  # it may run: its file says where
            raise
        except SourceError as error:
            work.folder.remove(SERVER)
            if isinstance(error, CommandError) and "already running" in error.reason:
                return None
            raise
        stack.push(own.pop_all())
    return work.socket


def _write(work: WorkFolder, text: bytes) -> None:
    """Write into the lock file, which must stay the one that is locked."""
    descriptor = work.folder.file(SERVER, os.O_WRONLY)
    try:
        os.write(descriptor, text)
    finally:
        os.close(descriptor)


def _join(homes: Homes, work: WorkFolder, stack: contextlib.ExitStack) -> Path | None:
    """Hold the lock of the server of another run; None: there is none, or it just ended."""
    for home in homes:
        with contextlib.ExitStack() as own:
            if own.enter_context(_locked(home)) and listens(home.socket):
                Note(work, JOINED).write(os.fsencode(home.path))
                stack.push(own.pop_all())
                return home.socket
    return None


@contextlib.contextmanager
def _locked(work: WorkFolder) -> Iterator[bool]:
    """Hold a server's lock file; gives whether that was possible and it is still the one there."""
    try:
        descriptor = work.folder.file(SERVER, os.O_RDWR)
    except FileNotFoundError:
        yield False
        return
    try:
        yield _lock(descriptor) and _is_in(descriptor, work)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(_PAUSE)
        else:
            return True


def _is_in(descriptor: int, work: WorkFolder) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), work.folder.stat(SERVER))
    except FileNotFoundError:
        return False
