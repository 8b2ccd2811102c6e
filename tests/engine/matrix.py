"""The kill matrix: an engine that dies at every step, again and again, on one living guest.

Two disks of one storage daemon are written all the time, by numbered writes, each done before the
next begins. So the disks at a point are the disks after the first n writes, for one n: whatever a
committed point restores to must be exactly that, of both disks, bit for bit.

Engines run in forks of one process that has loaded the package already: a death costs 0.2 s. Where
an engine dies at a step, it gathers no writes: each one of a delta's is a step.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

import fleece
from tests.engine.scene import GUEST, INTACT, MIB, Engine, MachineScene, Ran, Scene, daemon
from tests.rig import images
from tests.rig.disk import Disk
from tests.rig.machine import Machine

NODES = ("d0", "d1")
FULL_EVERY = 32
"""So many points have a full among them: restoring each does not read ever longer chains."""


@dataclass(frozen=True)
class Shape:
    """What the guest's disks are like.

    Attributes:
        sizes: in bytes, by node.
        fill: the share of them that holds random data at first.
        zeros: sectors of the longest write of zeros.
    """

    sizes: Mapping[str, int]
    fill: float
    zeros: int


SIZES = {"d0": 6 * MIB, "d1": 3 * MIB + 512}
SMALL = Shape(SIZES, 0.5, 300)
IN_PARTS = Shape({"d0": 24 * MIB, "d1": 6 * MIB + 512}, 1.0, 8)
"""What is written stays long: enough changes between two points that a delta is sent in parts."""

# Reads jobs from its standard input, a JSON object a line, and does each in a fork of itself. In
# the fork every control-plane step has a name; at one of them, or after a time, something happens.
_NURSERY = """
import errno, io, json, os, signal, socket, sys, threading, time
import fleece, fleece.api, fleece.cli.main, fleece.cli.backing_up, fleece.nbd.binding
import fleece.source.qemu.hold_by_jobs as classic, fleece.source.qemu.monitor as monitor
import fleece.nbd.connection as connection, fleece.delta.writer as writer
import fleece.store.folder.sink as sink
if "AWS_ENDPOINT_URL" in os.environ:
    import botocore.session, fleece.store.s3.open, fleece.store.s3.upload
    from fleece.store.s3.client.caller import Caller
    fleece.store.s3.upload._LEAST = 5 << 20  # the least that servers take
fleece.nbd.binding.libnbd()

def engine(job):
    seen, names = {}, []
    names_steps = job["fault"] == "list" or job.get("step") is not None
    sockets = []
    def at(step):
        seen[step] = seen.get(step, 0) + 1
        name = f"{step} {seen[step]}"
        names.append(name)
        if name != job.get("step"):
            return
        if job["fault"] == "list":
            return
        if job["fault"] == "monitor":
            for known in sockets:
                known.shutdown(socket.SHUT_RDWR)
        elif job["fault"].startswith("E"):
            number = getattr(errno, job["fault"])
            raise OSError(number, os.strerror(number))
        else:
            os.kill(os.getpid(), getattr(signal, job["fault"]))
    def wrap(owner, function, name):
        wrapped = getattr(owner, function)
        def wrapper(*arguments, **named):
            step = name(*arguments)
            at("before " + step)
            result = wrapped(*arguments, **named)
            at("after " + step)
            return result
        setattr(owner, function, wrapper)
    opened = monitor.Monitor._open_socket
    def remember(self):
        sockets.append(opened(self))
        return sockets[-1]
    monitor.Monitor._open_socket = remember
    wrap(monitor.Monitor, "execute", lambda self, command, *rest: command)
    wrap(classic, "finished", lambda command, *rest: os.path.basename(command[0]))
    kinds = {"fleece-": "work-folder", "qemu": "socket-folder"}
    def made_folder(path, *rest):
        name = os.path.basename(os.fsdecode(path))
        return "mkdir-" + next((kinds[k] for k in kinds if name.startswith(k)), "point")
    wrap(os, "mkdir", made_folder)
    for name in ("rename", "fsync", "unlink", "rmdir", "ftruncate"):
        wrap(os, name, lambda *rest, name=name: name)
    wrap(sink.DeltaFile, "__init__", lambda *rest: "open delta")
    wrap(writer.DeltaWriter, "finish", lambda *rest: "finish delta")
    if "AWS_ENDPOINT_URL" in os.environ:
        wrap(Caller, "call", lambda self, call, *rest: f"{call.method}-{call.action[3:]}")
    made = sink.DeltaFile.__init__
    class File:
        def __init__(self, file):
            self.__dict__["file"] = file
        def __getattr__(self, name):
            return getattr(self.file, name)
        def write(self, data):
            at("before write")
            return self.file.write(data)
    def make(self, *arguments, **named):
        made(self, *arguments, **named)
        gathered = 1 if names_steps else sink._GATHERED
        self._file = io.BufferedWriter(File(self._file.detach()), gathered)
    sink.DeltaFile.__init__ = make
    if job.get("slow"):
        read = connection.Connection.read
        def slowly(self, *arguments):
            time.sleep(job["slow"])
            return read(self, *arguments)
        connection.Connection.read = slowly
    sys.stdout = os.fdopen(os.open(job["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "w")
    sys.stderr = sys.stdout
    code = fleece.cli.main.main(job["words"])
    sys.stdout.flush()
    if job["fault"] == "list":
        with open(job["out"] + ".steps", "w") as file:
            json.dump(names, file)
    os._exit(code)

for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        try:
            engine(job)
        finally:
            os._exit(99)
    if job.get("after") is not None:
        while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            with open(job["out"]) as file:
                text = file.read()
            if '"event": "point"' in text or '"event": "resumed"' in text:
                break
            time.sleep(0.002)
        time.sleep(job["after"])
        os.kill(child, getattr(signal, job["fault"]))
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


class Nursery:
    """Runs engines as forks of a process that has the package loaded."""

    def __init__(self, folder: Path, engine: Engine = INTACT) -> None:
        self._out = folder / "engine-output"
        self._process = subprocess.Popen(
            [sys.executable, "-c", _NURSERY],
            cwd=engine.root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        words: tuple[object, ...],
        fault: str = "none",
        *,
        step: str | None = None,
        after: float | None = None,
        slow: float = 0.0,
    ) -> Ran:
        """Run one command.

        Args:
            words: of the command line, --json among them.
            fault: a signal's name, an error's (`EIO`), `monitor` (its connection is lost), `list`.
            step: at which control-plane step the fault happens.
            after: seconds after the point was taken, when it happens; signals only.
            slow: seconds that each read takes longer.
        """
        job = {
            "words": [str(word) for word in words],
            "fault": fault,
            "step": step,
            "after": after,
            "slow": slow,
            "out": str(self._out),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._out.write_text("")
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        lines = self._out.read_text().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        return Ran(code, "".join(whole), "")

    def steps(self, words: tuple[object, ...]) -> list[str]:
        """The names of all control-plane steps of a run that nothing happens to."""
        ran = self.run(words, "list")
        assert ran.code == 0, ran
        return list(json.loads(Path(f"{self._out}.steps").read_text()))

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@dataclass(frozen=True)
class Write:
    """One write of the guest; `data` None: zeros."""

    node: str
    offset: int
    length: int
    data: bytes | None


class Guest:
    """Writes to two disks, one write after the other, in a thread; remembers every one.

    Data begins with the number of its write. It lies within a page: the kernel sometimes makes two
    requests of what crosses from one to the next, and a point may come between them.
    """

    def __init__(self, scene: Scene, seed: int, shape: Shape = SMALL) -> None:
        self._scene = scene
        self._shape = shape
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._error: OSError | None = None
        self.writes: list[Write] = []
        self.go_on()

    def go_on(self) -> None:
        """Start to write, or go on after `stop`."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                made = self._next(len(self.writes) + 1)
                self.writes.append(made)
                writer = self._scene.writer(made.node)
                if made.data is None:
                    writer.zero(made.offset, made.length, unmap=False)
                else:
                    writer.write(made.offset, made.data)
                time.sleep(0.004)
        except OSError as error:
            self._error = error

    def _next(self, number: int) -> Write:
        node = NODES[number % 2]
        rest = self._shape.sizes[node]
        offset = self._random.randrange(rest // 512) * 512
        rest -= offset
        if number % 5 == 0:
            zeros = min(512 * self._random.randint(1, self._shape.zeros), rest)
            return Write(node, offset, zeros, None)
        length = min(512 * self._random.randint(1, 8), rest, 4096 - offset % 4096)
        data = number.to_bytes(8, "big") + self._random.randbytes(length - 8)
        return Write(node, offset, length, data)

    def halt(self) -> None:
        """Stop it."""
        self._stop.set()
        self._thread.join()

    def stop(self) -> None:
        """Stop it.

        Raises:
            OSError: a write had failed: the backups hurt the guest.
        """
        self.halt()
        if self._error is not None:
            raise self._error


@dataclass
class Model:
    """The disks after some number of writes; it only goes forward."""

    disks: dict[str, bytearray]
    done: int = 0

    def advance(self, writes: list[Write], count: int) -> None:
        """Go on to the state after the first `count` writes."""
        for made in writes[self.done : count]:
            data = bytes(made.length) if made.data is None else made.data
            self.disks[made.node][made.offset : made.offset + made.length] = data
        self.done = max(self.done, count)


@dataclass
class Counts:
    """What happened.

    Attributes:
        runs: engines that something was to happen to.
        killed, failed, ended: how they ended: by a signal, by an exit code, as if nothing was.
        resumed: points that the engine after one of them resumed.
        begun: objects that they left in parts, in a bucket.
        points: committed, each compared with the guest's writes in the end.
        writes: of the guest.
    """

    runs: int = 0
    killed: int = 0
    failed: int = 0
    ended: int = 0
    resumed: int = 0
    begun: int = 0
    points: int = 0
    writes: int = 0


class Matrix:
    """One guest, one store, many deaths.

    Attributes:
        scene: where they happen.
        counts: of what happened so far.
        way: words that each backup gets.
        shape: of the guest's disks.
    """

    way: tuple[str, ...] = ()
    shape: Shape = SMALL

    def __init__(self, scene: Scene, nursery: Nursery, base: dict[str, bytes], seed: int) -> None:
        self.scene = scene
        self.counts = Counts()
        self._nursery = nursery
        self._base = base
        self._origins: dict[str, str] = {}
        self._seed = seed
        self.guest: Guest | None = None

    def start(self) -> None:
        """The first backup; then the guest begins to write."""
        self.backup()
        self.guest = Guest(self.scene, self._seed, self.shape)

    def backup(self) -> Ran:
        """A backup that must succeed, leave nothing, and not fall back to reading all."""
        full = self.counts.points % FULL_EVERY == 0
        words = ("--mode", "full", "--no-resume") if full else ()
        ran = self._nursery.run(self._words(*words)).succeeded()
        assert ran.result["mode"] == ("full" if full else "incremental"), ran.out
        self.counts.points += 1
        self.counts.resumed += bool(ran.result["resumed"])
        self.scene.nothing_left()
        self.scene.only_newest_segment()
        return ran

    def steps(self) -> list[str]:
        """The names of all steps of an incremental backup."""
        names = self._nursery.steps(self._words())
        self.counts.points += 1
        return names

    def hit(
        self, fault: str, step: str | None = None, after: float | None = None, slow: float = 0.0
    ) -> Ran:
        """A run that something happens to (`Nursery.run`), then one that nothing happens to."""
        ran = self.only_hit(fault, step, after, slow)
        self.backup()
        return ran

    def only_hit(
        self, fault: str, step: str | None = None, after: float | None = None, slow: float = 0.0
    ) -> Ran:
        """A run that something happens to."""
        ran = self._nursery.run(self._words(), fault, step=step, after=after, slow=slow)
        for event in ran.named("point") + ran.named("resumed"):
            self._origins[event["point"]] = f"{fault} {step or after}"
        self.counts.runs += 1
        self.counts.killed += ran.code < 0
        self.counts.failed += ran.code > 0
        self.counts.ended += ran.code == 0
        self.counts.begun += self.scene.begun()
        return ran

    def _words(self, *more: object) -> tuple[object, ...]:
        """Of a backup."""
        return self.scene.words(*self.way, *more)

    def stop(self) -> None:
        """End the guest; check every point that was ever committed, and the last state."""
        assert self.guest is not None
        self.guest.stop()
        self.counts.writes = len(self.guest.writes)
        self.backup()
        self.scene.check_exact()
        self.scene.verify()
        self._check_points(self.guest.writes)

    def _first_model(self) -> Model:
        return Model({node: bytearray(data) for node, data in self._base.items()})

    def _check_points(self, writes: list[Write]) -> None:
        points = self._points()
        self._check_states(self._first_model(), points, writes)
        self.counts.points = len(points)

    def _catalogue(self) -> fleece.Catalogue:
        return fleece.open_store(self.scene.address).catalogue()

    def _points(self) -> list[fleece.StoredPoint]:
        return self._catalogue().of_guest(GUEST)

    def _check_states(
        self, model: Model, points: Sequence[fleece.StoredPoint], writes: list[Write]
    ) -> None:
        """Check that points, oldest first, are states that the disks had, from the model's on."""
        for point in points:
            held = {}
            for node in NODES:
                restored = self.scene.restore(node, point.id)
                held[node] = restored.read_bytes()
                restored.unlink()
            done = model.done
            origin = self._origins.get(point.id, "undisturbed")
            assert _matches(model, writes, held), (
                f"point {point.sequence} of {len(points)} ({origin}) is no state that the disks "
                f"had after write {done}"
            )


def _matches(model: Model, writes: list[Write], held: dict[str, bytes]) -> bool:
    """Advance the model to the first state that is what a point holds, if there is one."""
    for count in range(model.done, len(writes) + 1):
        model.advance(writes, count)
        if count < len(writes) and _has(held, model, writes[count]):
            continue  # it costs less to see that a point is younger than to compare all of it
        if all(model.disks[node] == held[node] for node in NODES):
            return True
    return False


def _has(held: dict[str, bytes], model: Model, then: Write) -> bool:
    """Whether a point differs from the model already where the next write went."""
    place = slice(then.offset, then.offset + then.length)
    return model.disks[then.node][place] != held[then.node][place]


def control_steps(names: list[str]) -> list[str]:
    """Of all steps, those that change something, before each; and after those that decide.

    Of the many writes into deltas a few stand for all: the first ones, one in the middle, the last.
    """
    writes = [name for name in names if name.startswith("before write")]
    few = {*writes[:3], *writes[len(writes) // 2 :][:1], *writes[-2:]}
    decisive = ("transaction", "rename", "fsync", "open delta", "nbd-server-stop", *_DECIDING)
    return [
        name
        for name in names
        if (name in few)
        or (name.startswith("before ") and not name.split()[1].startswith(_MANY))
        or (name.startswith("after ") and name[6:].rpartition(" ")[0] in decisive)
    ]


_DECIDING = ("PUT-PutObject", "POST-PutObject", "POST-DeleteObject", "DELETE-DeleteObject")
"""Requests of a bucket: those that change something."""


_MANY = ("query-", "write", "x-debug", "qom-")


Where: TypeAlias = Callable[..., AbstractContextManager[Scene]]
"""Makes a scene of a folder and disks."""


@contextmanager
def matrix(
    folder: Path,
    seed: int,
    engine: Engine = INTACT,
    *,
    iothreads: bool = False,
    where: Where | None = None,
    shape: Shape = SMALL,
) -> Iterator[Matrix]:
    """A matrix whose guest writes; it is checked when the body has ended well.

    Args:
        folder: for everything.
        seed: of the guest's writes.
        engine: that dies.
        iothreads: the disks are a machine's, and have iothreads; else a storage daemon's.
        where: makes the scene; None: as `iothreads` says.
        shape: of the disks.
    """
    where = where or (_machine if iothreads else daemon)
    with started(Matrix, folder, seed, engine, where=where, shape=shape) as made:
        yield made


_Kind = TypeVar("_Kind", bound=Matrix)


@contextmanager
def started(
    kind: Callable[[Scene, Nursery, dict[str, bytes], int], _Kind],
    folder: Path,
    seed: int,
    engine: Engine = INTACT,
    *,
    where: Where = daemon,
    shape: Shape = SMALL,
) -> Iterator[_Kind]:
    """The same for a kind of matrix."""
    first, second = folder / "d0.qcow2", folder / "d1.raw"
    images.random_image(first, shape.sizes["d0"], seed=1, fill=shape.fill)
    images.random_image(second, shape.sizes["d1"], seed=2, fmt="raw", fill=shape.fill)
    disks = Disk(first, "d0"), Disk(second, "d1", "raw")
    base = {
        disk.node: images.to_raw(disk.path, folder / f"base-{disk.node}", disk.fmt).read_bytes()
        for disk in disks
    }
    with where(folder, *disks, engine=engine) as scene:
        nursery = Nursery(folder, engine)
        made = kind(scene, nursery, base, seed)
        made.shape = shape
        try:
            made.start()
            yield made
            made.stop()
        finally:
            if made.guest is not None:
                made.guest.halt()
            nursery.close()


@contextmanager
def _machine(folder: Path, *disks: Disk, engine: Engine) -> Iterator[Scene]:
    """A scene on a running machine whose disks have iothreads."""
    with Machine(disks, iothreads=True) as qemu:
        qemu.control.command("cont")
        yield MachineScene(qemu, folder, engine)
