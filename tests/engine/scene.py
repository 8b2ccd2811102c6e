"""A QEMU with disks, a store beside it, and the engine, run as its users run it."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fleece
from fleece.events import DiskPlanned, Event, Listener, ignore
from fleece.store.folder.create import is_free
from tests.rig import images
from tests.rig.daemon import StorageDaemon
from tests.rig.disk import Disk
from tests.rig.forks import Fork, Nursery
from tests.rig.process import LIMIT as LIMIT
from tests.rig.process import run, run_checked
from tests.rig.qemu import QemuProcess
from tests.rig.qmp import QmpError
from tests.rig.writer import Writer

ROOT = Path(__file__).parents[2]
MIB = images.MIB
KIB64 = 65536
GUEST = "g"

Json = dict[str, Any]


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @cached_property
    def events(self) -> list[Json]:
        """What a command with --json printed."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def result(self) -> Json:
        """The last line of a command with --json."""
        last = self.events[-1]
        assert last["event"] == "result"
        assert [event["event"] for event in self.events].count("result") == 1
        return last

    def named(self, event: str) -> list[Json]:
        """The events of one name."""
        return [found for found in self.events if found["event"] == event]

    def failed(self, code: int, *words: str) -> Ran:
        """Check that it failed as a user should see it: one line, its family's exit code."""
        assert self.code == code, f"exit code {self.code}, not {code}\n{self.out}{self.err}"
        if self.out.startswith("{"):
            assert self.result["ok"] is False
            assert self.result["exit_code"] == code
            message = self.result["error"]
            assert self.err == ""
        else:
            message = self.err.splitlines()[-1]
            assert message.startswith("fleece: ")
        assert "Traceback" not in self.out + self.err
        assert "\n" not in message
        for word in words:
            assert word in message, f"{word!r} is not in: {message}"
        return self

    def succeeded(self) -> Ran:
        """Check that it succeeded."""
        assert self.code == 0, f"exit code {self.code}\n{self.out}{self.err}"
        return self


@dataclass(frozen=True)
class Engine:
    """A copy of the package `fleece`, run in processes of its own.

    Attributes:
        root: the folder that holds the package.
        limits: modules, constants in them, and the seconds that these are instead.
    """

    root: Path
    limits: tuple[tuple[str, str, float], ...] = ()

    def limited(self, module: str, constant: str, seconds: float) -> Engine:
        """The same with another time limit, for a test in which what it waits for never comes."""
        return replace(self, limits=(*self.limits, (module, constant, seconds)))

    def command(self, *words: object) -> Running:
        """Start `fleece WORDS`."""
        return self._start(_MAIN, *words)

    def talk(self, *words: object) -> Running:
        """Start `fleece WORDS`, whose standard input is written to by `Running.say`."""
        return self._start(_MAIN, *words, gated=True)

    def dying(self, moment: Moment, *words: object) -> Running:
        """Start `fleece WORDS`, killed by SIGKILL at a moment; standard input as in `talk`."""
        place = moment.module, moment.function, moment.when, moment.nth
        return self._start(_DIE, *place, *words, gated=True)

    def run(self, *words: object) -> Ran:
        """Run `fleece WORDS` to its end."""
        return self.command(*words).wait()

    def script(self, code: str, *words: object) -> Running:
        """Start a Python program that sees this copy of the package, and has loaded none of it."""
        return self._start(code, *words, forked=False)

    def slow(self, module: str, function: str, milliseconds: int, *words: object) -> Running:
        """Start `fleece WORDS`, each call of one function of which takes longer.

        And none goes on before the test waits for the command's end or sends a signal, but for the
        one that an event "progress" needs: the command is where the test meets it, however slow
        the host is.
        """
        place = module, function, "before", milliseconds
        return self._start(_SLOW, *place, *words, gated=True)

    def _start(
        self, program: str, *words: object, gated: bool = False, forked: bool = True
    ) -> Running:
        texts = [*map(str, words)]
        for module, constant, seconds in (*self.limits, *(_ALL_PROGRESS if forked else ())):
            program = f"import {module}; {module}.{constant} = {seconds}\n{program}"
        environment = os.environ | {"PYTHONPATH": str(self.root)}
        if forked and self.root == ROOT and (nursery := _nursery()).serves(environment):
            return Running(nursery.start(program, texts, environment, stdin=gated))
        # The working directory comes first on Python's path: it must be this copy's.
        process = subprocess.Popen(
            [sys.executable, "-c", program, *texts],
            cwd=self.root,
            env=environment,
            stdin=subprocess.PIPE if gated else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return Running(process)


_ALL_PROGRESS = (("fleece.cli.output", "_PROGRESS_EVERY", 0.0),)
"""A command tells of each step of its progress, and not once a second: tests meet it there."""


@cache
def _nursery() -> Nursery:
    """Of the package as it is; each process that runs tests has one."""
    return Nursery(ROOT, os.environ | {"PYTHONPATH": str(ROOT)})


class Running:
    """A command that runs."""

    def __init__(self, process: subprocess.Popen[str] | Fork) -> None:
        self._process = process
        self._lines: list[str] = []
        self._ran: Ran | None = None
        self._fed = False

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def wait(self) -> Ran:
        """Wait for its end; again, if it was waited for already."""
        if self._ran is None:
            self._ran = self._waited_for()
        return self._ran

    def _waited_for(self) -> Ran:
        self._let_go()
        # Popen.communicate would lose what `wait_event` has read ahead.
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        hung = threading.Event()

        def give_up() -> None:
            hung.set()
            self._process.kill()

        net = threading.Timer(LIMIT, give_up)
        net.start()
        with ThreadPoolExecutor(1) as pool, self._process.stdout, self._process.stderr:
            told = pool.submit(self._process.stderr.read)
            out = "".join(self._lines) + self._process.stdout.read()
            err = told.result()
        code = self._process.wait()
        net.cancel()
        if hung.is_set():
            pytest.fail(f"a command hung: {self._process.args!r}\n{out}{err}")
        return Ran(code, out, err)

    def wait_event(self, name: str, *, held: bool = False) -> Json:
        """Wait until a command with --json has printed an event of this name.

        Args:
            name: of the event.
            held: let no call of a slow command go on for it, as is done for "progress".
        """
        assert self._process.stdout is not None
        net = threading.Timer(LIMIT, self._process.kill)
        net.start()
        try:
            with self._feeding(name == "progress" and not held):
                while line := self._process.stdout.readline():
                    self._lines.append(line)
                    event: Json = json.loads(line)
                    if event["event"] == name:
                        return event
        finally:
            net.cancel()
        pytest.fail(f"it ended without {name}: {self.wait()}")

    @contextmanager
    def _feeding(self, wanted: bool) -> Iterator[None]:
        """Let the calls of a slow command go on meanwhile, one after the other."""
        gate, enough = self._process.stdin, threading.Event()
        if gate is None or not wanted:
            yield
            return
        again, self._fed = self._fed, True

        def feed() -> None:
            with suppress(OSError):  # it has ended
                while not enough.is_set():
                    os.write(gate.fileno(), b"+" if again else b".")
                    while not enough.wait(1) and _waiting(gate.fileno()):
                        pass

        thread = threading.Thread(target=feed)
        thread.start()
        try:
            yield
        finally:
            enough.set()
            thread.join()

    def say(self, line: str) -> None:
        """Write a line to its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def hang_up(self) -> None:
        """Close its standard input."""
        self._let_go()

    def signal(self, number: int) -> None:
        """Send it a signal; a slow one goes on when it has taken it."""
        self._process.send_signal(number)
        wait_until(lambda: not _pending(self.pid, number), "the signal to be taken")
        self._let_go()

    def _let_go(self) -> None:
        """Of a slow one: its calls take their time, but wait for nobody any more."""
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()
            self._process.stdin = None

    def close_output(self) -> Ran:
        """Stop reading what it prints, and wait for its end."""
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._let_go()
        assert self._process.stderr is not None
        err = self._process.stderr.read()
        return Ran(self._process.wait(), "".join(self._lines), err)

    def kill(self) -> Ran:
        """SIGKILL, and wait for its end."""
        self.signal(signal.SIGKILL)
        return self.wait()


def _pending(pid: int, number: int) -> bool:
    """Whether a process that runs has not taken a signal yet."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has ended
        return False
    fields = dict(line.split(":\t", 1) for line in lines)
    runs = fields["State"][0] not in "TZX"
    return runs and bool(int(fields["ShdPnd"], 16) >> (number - 1) & 1)


def _waiting(pipe: int) -> bool:
    """Whether a pipe holds what nobody has taken yet."""
    return fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)) != bytes(4)


INTACT = Engine(ROOT)


@dataclass(frozen=True)
class Mutation:
    """A deliberate fault: in `file` of the package, each text is replaced by another.

    The texts are `(file, old, new)`; each old one must be there exactly once.
    """

    name: str
    edits: tuple[tuple[str, str, str], ...]

    def __str__(self) -> str:
        return self.name

    def engine(self, folder: Path) -> Engine:
        """The package with the fault, in a new folder."""
        root = folder / f"broken-{self.name.replace(' ', '-')}"
        shutil.copytree(ROOT / "fleece", root / "fleece")  # compiled as it is
        for file, old, new in self.edits:
            path = root / "fleece" / file
            text = path.read_text()
            if text.count(old) != 1:  # no AssertionError: that is what a fault is to cause
                raise ValueError(f"{old!r} is {text.count(old)} times in {file}")
            path.write_text(text.replace(old, new))
        return Engine(root)


# What runs in the engine's process before `fleece.cli.main`: wraps one function so that something
# happens before its nth call begins, or after n calls of all threads have ended.
# Words: module, name, before|after, n, then those of the command line.
_WRAPPER = """
import importlib, itertools, os, signal, sys, time
module, name, when, nth = *sys.argv[1:4], int(sys.argv[4])
owner = importlib.import_module(module)
*path, last = name.split(".")
for part in path:
    owner = getattr(owner, part)
wrapped, calls = getattr(owner, last), itertools.count(1)
def wrapper(*arguments, **named):
    if when == "before":
        happen(next(calls))
    result = wrapped(*arguments, **named)
    if when == "after":
        happen(next(calls))
    return result
def happen(number):
    {happen}
setattr(owner, last, wrapper)
from fleece.cli.main import main
sys.exit(main(sys.argv[5:]))
"""
_MAIN = "import sys; from fleece.cli.main import main; sys.exit(main())"
_DIE = _WRAPPER.replace("{happen}", "number == nth and os.kill(os.getpid(), signal.SIGKILL)")
# A byte lets one call go on, a dot only as long as no progress was told; their end lets all go on.
_HELD = """
    time.sleep(nth / 1000)
    while os.read(0, 1) == b"." and told:
        pass
told = []
from fleece.cli.output import Output
listen = Output.listen
def hear(self, event):
    if event.name == "progress":
        told.append(event)
    listen(self, event)
Output.listen = hear
"""
_SLOW = _WRAPPER.replace("    {happen}\n", _HELD)


@dataclass(frozen=True)
class Moment:
    """A named moment in the engine's life: before or after the nth call of a function."""

    name: str
    module: str
    function: str
    when: str = "after"
    nth: int = 1

    def __str__(self) -> str:
        return self.name


def died(engine: Engine, moment: Moment, words: Sequence[object], *, may_end: bool) -> Ran:
    """Run a command that is killed by SIGKILL at a moment.

    Args:
        engine: that runs it.
        moment: when.
        words: of the command.
        may_end: it may end by itself if the moment never comes.

    Returns:
        What it printed.
    """
    ran = engine.dying(moment, *words).wait()
    assert ran.code == -signal.SIGKILL or (may_end and ran.code == 0), f"{moment}: {ran}"
    return ran


class Scene:
    """A running QEMU, a store and a scratch folder.

    Attributes:
        qemu: the process.
        folder: for images, stores, targets.
        store: where backups go unless a test says otherwise.
        scratch: the scratch folder; its path is short, as a unix socket's must be.
        engine: what backs up in processes of its own.
    """

    def __init__(self, qemu: QemuProcess, folder: Path, engine: Engine = INTACT) -> None:
        self.qemu = qemu
        self.folder = folder
        self.engine = engine
        self.store = folder / "store"
        self.scratch = qemu.folder / "scratch"
        self.scratch.mkdir(exist_ok=True)
        self._numbers = itertools.count(1)
        self._writers: dict[tuple[int, str], Writer] = {}

    @property
    def source(self) -> str:
        """The source's name on the command line."""
        return f"qmp:{self.qemu.qmp_socket}"

    @property
    def address(self) -> str:
        """What the scene's own store is opened by."""
        return str(self.store)

    def writer(self, node: str = "d0") -> Writer:
        """The guest's side of a disk."""
        key = self.qemu.pid, node
        if key not in self._writers:
            self._writers[key] = self.qemu.writer(node)
        return self._writers[key]

    def init(self, *words: object, store: Path | None = None) -> None:
        """`fleece init`, for a store that is not made as `place` makes it."""
        INTACT.run("init", store or self.store, *words).succeeded()

    def place(self, store: Path | None = None) -> Path:
        """A store's folder; if there is no store yet, a plain one is made."""
        path = store or self.store
        if is_free(path):
            fleece.init(path)
        return path

    def opened(self, store: Path | None = None) -> fleece.Store:
        """A store, opened; made if there is none yet."""
        return fleece.open_store(self.place(store))

    def words(self, *words: object, store: Path | None = None) -> tuple[object, ...]:
        """The words of a backup command; those given take the place of the scene's own."""
        place = self.place(store)
        options: list[object] = ["--json"]
        for name, value in (("--guest", GUEST), ("--scratch", self.scratch)):
            options += () if name in words else (name, value)
        return ("backup", self.source, place, *options, *words)

    def backup(self, *words: object, store: Path | None = None) -> Ran:
        """Back up by the command line."""
        return self.engine.run(*self.words(*words, store=store))

    def slow_backup(self, *words: object, milliseconds: int = 200) -> Running:
        """Start a backup each of whose reads takes longer."""
        command = self.words(*words)
        return self.slow("fleece.nbd.connection", "Connection.read", milliseconds, *command)

    def slow(self, module: str, function: str, milliseconds: int, *words: object) -> Running:
        """Start a command, each call of one function of which takes longer."""
        return self.engine.slow(module, function, milliseconds, *words)

    def killed_backup(self, moment: Moment, *words: object, may_end: bool = False) -> Ran:
        """Back up, and be killed by SIGKILL at a moment.

        Args:
            moment: when.
            words: more words of the command.
            may_end: it may end by itself if the moment never comes.

        Returns:
            What it printed.
        """
        return died(self.engine, moment, self.words(*words), may_end=may_end)

    def take(
        self,
        mode: str = "auto",
        *,
        store: Path | None = None,
        listener: Listener = ignore,
        disks: Sequence[str] = (),
        cancel: fleece.CancelToken | None = None,
        resume: bool = True,
        fleecing: str = "classic",
    ) -> fleece.BackupResult:
        """Back up by the library, in this process."""
        wish = fleece.ModeWish(mode)
        options = fleece.BackupOptions(wish, GUEST, tuple(disks), resume=resume)
        way = fleece.Fleecing(fleecing)
        with fleece.QemuSource(str(self.qemu.qmp_socket), self.scratch, None, way) as source:
            return fleece.backup(source, self.opened(store), options, listener, cancel)

    def restore(self, disk: str = "d0", point: str = "latest", store: Path | None = None) -> Path:
        """Restore a disk to a new raw file by the library."""
        target = self.folder / f"restored-{disk}-{next(self._numbers)}"
        fleece.restore(fleece.open_store(store or self.address), point, disk, str(target))
        return target

    def check_exact(self, *nodes: str, store: Path | None = None) -> None:
        """Check that the newest point is what the disks hold now, by qemu-img.

        Raises:
            AssertionError: they differ.
        """
        newest = self.newest(store)
        for node in nodes or self.qemu.disks:
            restored = self.restore(node, newest, store=store)
            self.same_as_live(node, restored)
            restored.unlink()

    def same_as_live(self, node: str, raw: Path) -> None:
        """Check that a raw image is what a disk of the running QEMU holds now."""
        self.writer(node).flush()
        disk = self.qemu.disks[node]
        info = json.loads(run("qemu-img", "info", "-U", "--output=json", disk.path).stdout)
        assert raw.stat().st_size == info["virtual-size"]
        done = run("qemu-img", "compare", "-U", "-f", disk.fmt, "-F", "raw", disk.path, raw)
        assert done.returncode == 0, done.stdout + done.stderr

    def damage(self, where: str, position: int, mask: int) -> None:
        """Change one byte of what has a name in the store; twice is nothing."""
        flip(Path(where), position, mask)

    def begun(self) -> int:
        """How many objects lie in the store in parts that may never be made whole."""
        return 0

    def nothing_left(self, *, foreign_server: bool = False) -> None:
        """`nothing_left`, and no half-written point in the store."""
        nothing_left(self.qemu, self.scratch, foreign_server=foreign_server)
        assert [*self.folder.rglob(".partial-*")] == []
        assert [*self.folder.rglob("*.partial")] == []

    def segments(self, node: str = "d0") -> list[str]:
        """The names of the engine's bitmaps on a disk."""
        return [item["name"] for item in self.bitmaps(node) if item["name"].startswith("fleece-")]

    def bitmaps(self, node: str = "d0") -> list[Json]:
        """All named bitmaps on a disk, as QEMU describes them."""
        nodes = self.qemu.control.command("query-named-block-nodes")
        (found,) = (item for item in nodes if item["node-name"] == node)
        return [item for item in found.get("dirty-bitmaps", []) if item.get("name")]

    def only_newest_segment(self, *nodes: str) -> None:
        """Check that each disk has one segment: the one that the newest point began."""
        newest = self.newest()
        for node in nodes or self.qemu.disks:
            (name,) = self.segments(node)
            assert f"-{newest}-" in name

    def newest(self, store: Path | None = None) -> str:
        """The id of the newest complete point, whatever is damaged beside it."""
        points = fleece.open_store(store or self.address).catalogue().points
        return [point.id for point in points if point.complete][-1]

    def points(self) -> int:
        """The number of complete points in the store."""
        return len(fleece.open_store(self.address).catalogue().of_guest(GUEST))

    def verify(self) -> None:
        """Check every byte of the store by the library, every delta by `zstd -t`."""
        catalogue = fleece.open_store(self.address).catalogue()
        result = fleece.verify_store(catalogue)
        assert result.errors == ()
        for entry in catalogue.entries:
            done = run("zstd", "-t", entry.where)
            assert done.returncode == 0, done.stderr


class MachineScene(Scene):
    """A machine, whose disks are called as their devices.

    Attributes:
        way: words that each backup gets.
    """

    way: tuple[str, ...] = ()

    def words(self, *words: object, store: Path | None = None) -> tuple[object, ...]:
        """The words of a backup command; those given take the place of the scene's own."""
        way = () if self.way and self.way[0] in words else self.way
        return super().words(*way, *words, store=store)

    def restore(self, disk: str = "d0", point: str = "latest", store: Path | None = None) -> Path:
        """Restore the disk of a node."""
        return super().restore(f"vd-{disk}", point, store)

    @property
    def status(self) -> str:
        """The guest's run state."""
        return str(self.qemu.control.command("query-status")["status"])

    def plugged(self) -> list[str]:
        """The nodes that the guest writes to."""
        found = self.qemu.control.command("query-block")
        return [device["inserted"]["node-name"] for device in found if device.get("inserted")]

    def clean(self) -> Ran:
        """`fleece clean`."""
        return self.engine.run("clean", self.source, "--scratch", self.scratch, "--json")


def nothing_left(qemu: QemuProcess, scratch: Path, *, foreign_server: bool = False) -> None:
    """Check that nothing of a point is in a QEMU or in the scratch folder.

    Args:
        qemu: running, or not.
        scratch: the folder.
        foreign_server: an NBD server that is not the engine's must still run.

    Raises:
        AssertionError: something is left.
    """
    if qemu.alive:
        ask = qemu.control.command
        exports = [item["id"] for item in ask("query-block-exports") if item["type"] == "nbd"]
        assert not [name for name in exports if name.startswith("fleece-") or not foreign_server]
        assert ask("query-jobs") == []
        nodes = [item["node-name"] for item in ask("query-named-block-nodes")]
        assert not [name for name in nodes if name.startswith("fleece-")]
        if not foreign_server:
            with pytest.raises(QmpError, match="not running"):
                ask("nbd-server-stop")
    assert [item.name for item in scratch.iterdir()] == []


@contextmanager
def daemon(folder: Path, *disks: Disk, engine: Engine = INTACT) -> Iterator[Scene]:
    """A scene on a storage daemon with these disks."""
    with StorageDaemon(disks) as qemu:
        yield Scene(qemu, folder, engine)


def is_nbd_server(path: str) -> bool:
    """Whether an NBD server greets on a unix socket; it has let go of us when this returns.

    A client that still negotiates when QEMU 7.2 stops its server hangs it.
    """
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(LIMIT)
        client.connect(path)
        client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(4096), b"")).startswith(b"NBDMAGIC")


def wait_until(done: Callable[[], bool], what: str) -> None:
    """Wait for something that must come."""
    end = time.monotonic() + LIMIT
    while not done():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.005)


def reasons(heard: list[Event]) -> dict[str, tuple[str, str]]:
    """Mode and reason of each disk, from the events of a backup."""
    return {
        event.disk: (event.mode, event.reason) for event in heard if isinstance(event, DiskPlanned)
    }


def flip(path: Path, position: int, mask: int = 0x10) -> None:
    """Change one byte of a file."""
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ mask]))


def fragmented_disk(path: Path, size: int) -> bytes:
    """Make a qcow2 disk with a hole after every 512 bytes of data; gives its content.

    QEMU cuts a block status reply at 131072 extents: here, after 64 MiB.
    """
    cells = np.zeros((size // 1024, 1024), np.uint8)
    cells[:, :512] = np.random.default_rng(1).integers(1, 255, (len(cells), 1), np.uint8)
    content = cells.tobytes()
    raw = path.with_name(path.name + ".raw")
    raw.write_bytes(content)
    words = ("-t", "unsafe", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=512", "-S", "512")
    run_checked("qemu-img", "convert", *words, raw, path)
    raw.unlink()
    return content


class Proxy:
    """A unix socket that passes everything on to another one, until it is cut.

    Attributes:
        path: of the socket.
    """

    def __init__(self, path: Path, behind: Path) -> None:
        self.path = path
        self._behind = behind
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Cut all connections."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self.drop()

    def drop(self) -> int:
        """Cut all connections, but take new ones; gives how many ends were cut."""
        dropped, self._open = self._open, []
        for connection in dropped:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        return len(dropped)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(str(self._behind))
                self._open += [client, server]
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=_pass_on, args=(source, sink), daemon=True).start()


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for end in (source, sink):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@contextmanager
def small_tmpfs(mebibytes: int) -> Iterator[Path]:
    """A file system of this size under a short name; skips the test without root.

    Mount it before QEMU is started: a storage daemon has mounts of its own.
    """
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    folder = Path(tempfile.mkdtemp(prefix="rig-", dir="/tmp"))
    options = f"size={mebibytes}m,mode=1777"
    try:
        done = run("mount", "-t", "tmpfs", "-o", options, "fleece-test", folder)
        if done.returncode != 0:
            pytest.skip(f"cannot mount here: {done.stderr}")
        try:
            yield folder
        finally:
            run_checked("umount", "-l", folder)
    finally:
        folder.rmdir()


def fill(folder: Path, leave: int = 0) -> None:
    """Fill a small file system, but for so many pages."""
    with (folder / "fill").open("wb", buffering=0) as file:
        with suppress(OSError):
            while file.write(bytes(KIB64)):
                pass
        file.truncate(file.tell() - leave * os.sysconf("SC_PAGESIZE"))
    assert os.statvfs(folder).f_bfree == leave
