"""Serve the disks of a point over NBD, by an nbdkit of our own whose plugin reads the chains."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fleece import events
from fleece.cancel import CancelToken
from fleece.disk.nbd import NbdDisk
from fleece.engine.http.door import HttpDoor, HttpListening, http_listening
from fleece.engine.http.extents import HttpDisk
from fleece.engine.http.server import HttpServer
from fleece.engine.serve.plugin_exports import Report, Wish
from fleece.engine.work.new_file import is_there
from fleece.environment import server_environment, store_secrets
from fleece.errors import TargetError, UsageError, family_of
from fleece.nbd.nbdkit import start, wait_for, why_ended
from fleece.nbd.uri import unix_uri
from fleece.store.catalogue import StoredPoint
from fleece.store.names import safe_name
from fleece.store.store import Store
from fleece.temporary import temporary_folder

_PLUGIN = Path(__file__).with_name("nbdkit_plugin.py")
_END_LIMIT = 1.0
"""Seconds until nbdkit is killed: it waits for clients to leave, and they may be idle for ever."""

_KEYED_MODULES = (
    "cryptography.hazmat.primitives.ciphers.aead",
    "cryptography.hazmat.primitives.kdf.hkdf",
)
"""What a store with a key needs besides; else loaded when it is first used."""

_LONGEST_SOCKET = 107
"""Bytes of a unix socket's path, by the kernel (unix(7))."""


@dataclass(frozen=True)
class ServedDisk:
    """One export.

    Attributes:
        disk: its name, and the export's.
        uri: where it is.
        size: in bytes.
        root: of the disk at the point, hexadecimal.
        http: its URL, whose ticket is a secret; None: it is not served over HTTP.
    """

    disk: str
    uri: str
    size: int
    root: str
    http: str | None = None


class Serving:
    """A point that is being served.

    Attributes:
        guest, point: whose point.
        disks: the exports; every one of them has answered.
    """

    def __init__(
        self, point: StoredPoint, servers: list[_Server], disks: tuple[ServedDisk, ...]
    ) -> None:
        self.guest = point.guest
        self.point = point.id
        self._servers = servers
        self.disks = disks

    @property
    def problems(self) -> int:
        """How many different errors reads have met so far."""
        return sum(server.problems for server in self._servers)

    def check(self) -> None:
        """Raise if a server has ended by itself.

        Raises:
            TargetError: it has.
        """
        for server in self._servers:
            server.check()


@dataclass(frozen=True)
class ServeOptions:
    """How to serve.

    Attributes:
        guest: which guest, if `latest` could mean several.
        socket: path of the unix socket to make; None: one in a folder of its own. Writable disks
            have a server each: of several, each socket's name is this one and the disk's. nbdkit
            makes it so that only this user may connect, whatever the umask (unix(7)).
        writable: clients may write; what they write is thrown away in the end. The store is never
            written.
        scratch: folder for what they write; None: /var/tmp.
        http: where HTTP clients are let in as well; None: nowhere.
    """

    guest: str | None = None
    socket: str | None = None
    writable: bool = False
    scratch: Path | None = None
    http: HttpDoor | None = None

    def check(self) -> None:
        """Raise `UsageError` if no point can be served so."""
        if self.http is None:
            return
        if self.writable:
            raise UsageError(
                "over HTTP there is the point, not what clients write",
                hint="leave --writable or --http out",
            )
        self.http.check()


@contextlib.contextmanager
def serve(
    store: Store,
    point: str,
    disks: tuple[str, ...] = (),
    options: ServeOptions | None = None,
    listener: events.Listener = events.ignore,
    cancel: CancelToken | None = None,
) -> Iterator[Serving]:
    """Serve disks of a point for as long as the context lasts.

    Args:
        store: that holds the point.
        point: an id, a prefix of one, or `latest`.
        disks: which; none: all of the point's.
        options: how.
        listener: hears `Problem` when a read meets damage, from a thread.
        cancel: stops the start.

    Raises:
        StoreError: the point is not there, or a chain is broken.
        TargetError: a socket cannot be made, or nbdkit failed.
        UsageError: nbdkit is missing, the point has no such disk, or it makes no sense so.
    """
    modules = () if store.access.secret is None else _KEYED_MODULES
    options = options or ServeOptions()
    options.check()
    writable = options.writable
    way = _Way(writable, options.scratch, listener, modules)
    with contextlib.ExitStack() as stack:
        door = None if options.http is None else stack.enter_context(http_listening(options.http))
        folder = stack.enter_context(temporary_folder()) if options.socket is None else None

        def started(disk: str | None) -> _Server:
            server = _Server(_place(options.socket, folder, disk), folder, way)
            stack.callback(server.end)
            return server

        # One server is certain, unless disks are writable: it gets ready while the store is read.
        early = None if writable else started(None)
        catalogue = store.catalogue()
        found = catalogue.find(point, options.guest)
        names = disks or tuple(sorted(found.disks))
        lines = {name: [e.key for e in catalogue.line(found.disk(name))] for name in names}
        groups = [(name,) for name in names] if writable else [names]
        servers = []
        for group in groups:
            server = early or started(group[0] if len(groups) > 1 else None)
            server.tell(_wish(store, {name: lines[name] for name in group}), found)
            servers.append(server)
        for server in servers:
            server.wait(cancel or CancelToken())
        shown = tuple(disk for server in servers for disk in server.disks)
        if door is not None:
            shown = stack.enter_context(_over_http(door, shown))
        yield Serving(found, servers, shown)


@contextlib.contextmanager
def _over_http(
    door: HttpListening, served: tuple[ServedDisk, ...]
) -> Iterator[tuple[ServedDisk, ...]]:
    """Show the exports over HTTP as well; gives them with their URLs. nbdkit tells of damage."""
    ending = CancelToken()
    disks = [HttpDisk(each.disk, NbdDisk(each.uri, cancel=ending)) for each in served]
    with HttpServer(door, disks, ending) as server:
        yield tuple(replace(each, http=server.urls[each.disk]) for each in served)


def _wish(store: Store, lines: dict[str, list[str]]) -> Wish:
    secret = store.access.secret
    return Wish(store.backend.address, lines, None if secret is None else secret.to_pipe())


def _place(socket: str | None, folder: Path | None, disk: str | None) -> Path:
    """The path of a server's socket, which must be free."""
    place = Path(socket or "").absolute() if folder is None else folder / "nbd"
    if disk is not None:
        place = Path(f"{place}.{safe_name(disk)}")
    if len(os.fsencode(place)) > _LONGEST_SOCKET:
        raise TargetError(f"the socket's path is longer than {_LONGEST_SOCKET} bytes", where=place)
    if is_there(place):
        raise TargetError("exists already", where=place, hint="remove it if nothing listens there")
    return place


@dataclass(frozen=True)
class _Way:
    """How to serve."""

    writable: bool
    scratch: Path | None
    listener: events.Listener
    modules: tuple[str, ...]

    def environment(self) -> dict[str, str]:
        """nbdkit's cow filter takes its folder from TMPDIR, /var/tmp without.

        The store is opened there again.
        """
        kept = server_environment() | store_secrets()
        kept.pop("TMPDIR", None)
        return kept if self.scratch is None else kept | {"TMPDIR": str(self.scratch)}


class _Server:
    """One nbdkit with one socket. It loads its modules, and then waits to be told what to serve.

    Args:
        socket: to make.
        folder: of nothing but the socket, removed with it; None: it stays.
        way: how to serve.
    """

    def __init__(self, socket: Path, folder: Path | None, way: _Way) -> None:
        self._socket = str(socket)
        self._way = way
        self._listener = way.listener
        self._said: deque[str] = deque(maxlen=20)
        self._failed: Report | None = None
        self.problems = 0
        self.disks: tuple[ServedDisk, ...] = ()
        words = ["--filter=cow" if way.writable else "--readonly"]
        self._process = start(_PLUGIN, socket, words, way.environment())
        self._hearing = threading.Thread(target=self._hear, name="fleece-serve", daemon=True)
        self._hearing.start()
        python = [*sys.version_info[:2]]
        path = [item or str(Path.cwd()) for item in sys.path]
        # Where this package was found comes first: nbdkit's working directory is not Python's.
        path.insert(0, str(_PLUGIN.parents[2]))
        own = None if folder is None else str(folder)
        said = {"python": python, "path": path, "modules": way.modules}
        self._send(said | {"socket": self._socket, "folder": own})

    def tell(self, wish: Wish, point: StoredPoint) -> None:
        """Say what to serve: disks of this point."""
        self.disks = tuple(
            ServedDisk(name, unix_uri(self._socket, name), entry.header.size, entry.root)
            for name, entry in ((name, point.disk(name)) for name in wish.lines)
        )
        self._send(asdict(wish))
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def _send(self, said: dict[str, Any]) -> None:
        """Write a line to the plugin: through a pipe, because a command line is public."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(said).encode() + b"\n")
            self._process.stdin.flush()

    def _hear(self) -> None:
        assert self._process.stderr is not None
        for raw in self._process.stderr:
            line = raw.decode(errors="replace").rstrip()
            report = Report.parse(line)
            if report is None:
                self._said.append(line)
            elif report.fleece == "failed":
                self._failed = report
            else:
                self.problems += 1
                self._tell(events.Problem(report.where or self._socket, report.what))

    def _tell(self, problem: events.Problem) -> None:
        """Tell the listener, as long as it listens: nbdkit must be heard whatever becomes of it."""
        try:
            self._listener(problem)
        except Exception as error:
            self._listener = events.ignore
            self._said.append(f"a listener failed: {error!r}")

    def wait(self, cancel: CancelToken) -> None:
        """Wait until every export has answered a client."""
        wait_for(Path(self._socket), self.check, TargetError, cancel)
        for served in self.disks:
            found = NbdDisk(served.uri, TargetError, cancel=cancel)
            if found.size != served.size or found.read_only == self._way.writable:
                raise TargetError("nbdkit serves something else", where=served.uri)

    def check(self) -> None:
        """Raise if nbdkit has ended.

        Raises:
            FleeceError: it has; of the family that the plugin named, else a TargetError.
        """
        if self._process.poll() is None:
            return
        self._hearing.join()
        if self._failed is not None:
            said = self._failed
            raise family_of(said.code)(said.what, where=said.where, hint=said.hint)
        reason = why_ended(" ".join(self._said), self._process.returncode)
        raise TargetError(f"nbdkit ended: {reason}", where=self._socket)

    def end(self) -> None:
        """End nbdkit and remove its socket."""
        self._process.terminate()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_END_LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._hearing.join()
        with contextlib.suppress(OSError):
            os.unlink(self._socket)
