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
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fleece.errors import SourceError
from fleece.source.qemu.monitor import CommandError, Monitor
from fleece.source.qemu.names import PREFIX, SERVER, SOCKET

_LEAVE = struct.pack(">I8sII", 3, b"IHAVEOPT", 2, 0)
"""A client's flags (fixed newstyle, no zeroes) and NBD_OPT_ABORT (NBD protocol, "Newstyle
negotiation"): the server lets it go."""
_LISTENING = 1 << 16
"""`__SO_ACCEPTCON` in the flags of proc_net(5), `/proc/net/unix`."""

_PATIENCE = 5.0
_LEAVING = 15.0
"""Seconds to wait for a client to go: QEMU 7.2.22 ends one that negotiates for 10 s."""
_PAUSE = 0.05
_GLANCE = 0.005
"""Seconds: mostly it is our own question whose end QEMU is about to close."""
_TRIES = 20


def listens(path: Path) -> bool:
    """Whether an NBD server listens on a unix socket, if only too busy to answer.

    It has let go of the connection when this returns, unless it is too busy for that.
    """
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_PATIENCE)
        try:
            probe.connect(str(path))
        except (TimeoutError, BlockingIOError):
            return True
        except OSError:
            return False
        with contextlib.suppress(OSError):
            probe.sendall(_LEAVE)
            while probe.recv(4096):
                pass
    return True


def listens_in(folder: Path) -> bool:
    """Whether a work folder's server listens; asks while nobody may stop it."""
    if not (folder / SOCKET).exists():
        return False
    with _locked(folder / SERVER) as held:
        if not held and (folder / SERVER).exists():
            return True
        return listens(folder / SOCKET)


@contextlib.contextmanager
def joined(monitor: Monitor, folder: Path, homes: Callable[[], Homes]) -> Iterator[Path]:
    """Start the server, or join that of another fleece run; its lock is held in the context.

    Args:
        monitor: of the QEMU.
        folder: of the point, for the socket if the server is started.
        homes: tells, each time it is asked, where else fleece may have one.

    Returns:
        The work folder whose socket it listens on.

    Raises:
        SourceError: a server runs that is not fleece's.
    """
    for _ in range(_TRIES):  # one may end between a try to start and a try to join
        with contextlib.ExitStack() as stack:
            try:
                home = _start(monitor, folder, stack) or _join(homes(), folder, stack)
            except OSError as error:
                raise SourceError(
                    f"the scratch folder cannot be used ({error.strerror})",
                    where=folder,
                    hint="choose another one with --scratch",
                ) from error
            if home is not None:
                yield home
                return
        time.sleep(_PAUSE)
    raise SourceError(
        "an NBD server that is not fleece's runs in this QEMU, and it can run only one",
        where=monitor.path,
        hint="stop it with nbd-server-stop if nobody needs it",
    )


class Homes:
    """Finds the work folders of a QEMU whose socket its server may listen on.

    Args:
        qemu: the process number that their locks name.
        points: work folders of points that are in this QEMU, whatever their locks name: a monitor
            that is reached through a proxy has the proxy's number.
        scratch: a folder to look in, besides those that the points' folders are in.
    """

    def __init__(self, qemu: int, points: set[Path], scratch: Path | None) -> None:
        self._qemu = str(qemu)
        self._points = points
        self._scratches = {point.parent for point in points}
        if scratch is not None:
            self._scratches.add(scratch)

    def __iter__(self) -> Iterator[Path]:
        found: set[Path] = set()
        for scratch in self._scratches:
            for path in scratch.glob(f"{PREFIX}*-*/{SERVER}"):
                with contextlib.suppress(OSError):
                    # A run that joined has a link to the lock file of the run that started it.
                    real = path.resolve(strict=True)
                    fits = real.name == SERVER and real.parent.name.startswith(PREFIX)
                    if fits and self._is_of(path, real):
                        found.add(real.parent)
        return iter(sorted(found))

    def _is_of(self, path: Path, real: Path) -> bool:
        return path.parent in self._points or real.read_text() == self._qemu


def stop_idle(monitor: Monitor, homes: Homes) -> Iterator[Path]:
    """Stop the server if it is fleece's and nobody is served; gives the folder that it was in.

    Raises:
        SourceError: a client of it stays connected.
    """
    for home in homes:
        with _locked(home / SERVER) as held:
            if not held:
                continue
            if any(item["type"] == "nbd" for item in monitor.execute("query-block-exports")):
                return
            stopped = listens(home / SOCKET)
            if stopped:
                _wait_for_clients(monitor.peer.pid, home / SOCKET)
                _stop(monitor)
            for name in (SOCKET, SERVER):
                (home / name).unlink(missing_ok=True)
        if stopped:
            yield home


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


def connections(qemu: int, path: Path) -> int:
    """How many connections a unix socket has, with those that are not accepted yet.

    0 if this user may not know (proc_net(5), `/proc/net/unix`, of the network namespace of QEMU).
    """
    try:
        rows = Path(f"/proc/{qemu}/net/unix").read_bytes().splitlines()[1:]
    except OSError:
        return 0
    # QEMU may know the folder by another path; its name is the point's alone.
    ours = os.fsencode(f"/{path.parent.name}/{path.name}")
    flags = [int(row.split()[3], 16) for row in rows if row.endswith(ours)]
    return sum(not flag & _LISTENING for flag in flags)


def _stop(monitor: Monitor) -> None:
    try:
        monitor.execute("nbd-server-stop")
    except CommandError as error:
        if "not running" not in error.reason:
            raise


def _start(monitor: Monitor, folder: Path, stack: contextlib.ExitStack) -> Path | None:
    """Start it, with its lock held; None: one runs already."""
    address = {"type": "unix", "data": {"path": str(folder / SOCKET)}}
    with contextlib.ExitStack() as own:
        own.enter_context(_locked(folder / SERVER, os.O_CREAT))
        # Only now, with the lock held, is it one that others look at.
        (folder / SERVER).write_text(str(monitor.peer.pid))
        try:
            # By default it takes 100 clients, and more of them wait for ever.
            monitor.execute("nbd-server-start", {"addr": address, "max-connections": 0})
        except CommandError as error:
            (folder / SERVER).unlink()
            if "already running" not in error.reason:
                raise
            return None
        stack.push(own.pop_all())
    return folder


def _join(homes: Homes, folder: Path, stack: contextlib.ExitStack) -> Path | None:
    """Hold the lock of the server of another run; None: there is none, or it just ended."""
    for home in homes:
        with contextlib.ExitStack() as own:
            if own.enter_context(_locked(home / SERVER)) and listens(home / SOCKET):
                (folder / SERVER).symlink_to(home / SERVER)
                stack.push(own.pop_all())
                return home
    return None


@contextlib.contextmanager
def _locked(path: Path, more: int = 0) -> Iterator[bool]:
    """Hold a lock file; gives whether that was possible and the file is still the one there."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | more, 0o600)
    except OSError:
        yield False
        return
    try:
        yield _lock(descriptor) and _is_at(descriptor, path)
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


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False
