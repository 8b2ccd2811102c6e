"""One system call of a verb fails once, and then the verb is run as it is.

A library (failing_calls.c) is preloaded into the engine, never into its children. A run first
counts the calls; then each (call, number, errno) is one trial: a small store is put back, the verb
is run with that one failure, and looked at.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from errno import EACCES, EAGAIN, ECONNRESET, EIO, EMFILE, ENOMEM, ENOSPC, EPIPE
from pathlib import Path
from typing import Protocol

import fleece
from tests.engine.history import Guest
from tests.engine.scene import INTACT, KIB64, MIB, Engine
from tests.rig import filesystems, images
from tests.rig.process import find_tool, run_checked

ERRORS = {
    "open": (EIO, EACCES, EMFILE),
    "read": (EIO,),
    "write": (EIO, ENOSPC),
    "sync": (EIO, ENOSPC),
    "rename": (EIO, EACCES, ENOSPC),
    "unlink": (EIO, EACCES),
    "mkdir": (EACCES, ENOSPC),
    "link": (EIO, ENOSPC),
    "truncate": (EIO, ENOSPC),
    "chmod": (EIO,),
    "lock": (EIO,),
    "map": (ENOMEM,),
    "statfs": (EIO,),
    "list": (EIO, EMFILE),
    "stat": (EIO,),
    "connect": (EAGAIN, EACCES),
    "send": (EPIPE, EIO),
    "receive": (ECONNRESET, EIO),
    "socket": (EMFILE,),
    "pipe": (EMFILE,),
}
"""What each kind of call may fail with."""

FAMILIES = frozenset({2, 3, 4, 5, 6, 7})
"""The exit codes of failures; 1 would be a fault of fleece's own."""

_NURSERY = """
import ctypes, importlib, importlib.util, json, os, pkgutil, signal, sys, time, traceback
shim = ctypes.CDLL(None)
for name in ("LD_PRELOAD",):
    os.environ.pop(name, None)
import fleece
for module in pkgutil.walk_packages(fleece.__path__, "fleece."):
    if not any(word in module.name for word in ("plugin", "__main__", ".reader", "kvm_probe")):
        importlib.import_module(module.name)
import fleece.cli.main, fleece.nbd.binding
fleece.nbd.binding.libnbd()
importlib.util.find_spec("dissect.volume")  # doctor looks whether it is there
loaded = set(sys.modules)
def engine(job):
    os.dup2(os.open(job["stdin"], os.O_RDONLY), 0)
    out = os.open(job["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(out, 1); os.dup2(out, 2)
    shim.fail_arm(
        job["kind"].encode(), ctypes.c_long(job["nth"]), ctypes.c_long(job["times"]), job["error"]
    )
    code = fleece.cli.main.main(job["words"])
    shim.fail_disarm()
    sys.stdout.flush()
    with open(job["out"] + ".counts", "w") as file:
        counts = {kind: shim.fail_count(kind.encode()) for kind in job["kinds"]}
        json.dump({"counts": counts, "late": sorted(set(sys.modules) - loaded)}, file)
    os._exit(code)
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        try:
            engine(job)
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        os._exit(99)
    end = time.monotonic() + job["limit"]
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Runs command lines as forks of a process that has all of the package loaded."""

HANGS = 300.0
"""Seconds after which a run counts as one that hangs."""


@dataclass(frozen=True)
class Verb:
    """A command line; in the words `{}` is the work folder, `{1}` the first point."""

    name: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return self.name


_SCRATCH = ("--guest", "web", "--scratch", "{scratch}")
_RESTORE = ("restore", "{}/store", "latest", "vda")
VERBS = (
    Verb("init", ("init", "{}/new")),
    Verb("list", ("list", "{}/store")),
    Verb("status", ("status", "{}/store")),
    Verb("info", ("info", "{}/delta")),
    Verb("verify", ("verify", "{}/store")),
    Verb("scrub", ("verify", "{}/store", "--fraction", "1")),
    Verb("import", ("import", "{}/store")),
    Verb("merge", ("merge", "{}/store", "{2}")),
    Verb("prune", ("prune", "{}/store", "--keep-last", "1")),
    Verb("pin", ("pin", "{}/store", "{1}")),
    Verb("image", ("backup", "image:vda={}/vda.qcow2", "{}/imaged", *_SCRATCH)),
    Verb("unpin", ("unpin", "{}/pinned", "{1}")),
    Verb("files", ("files", "{}/filed", "latest", "vda", "cp", "/folder", "{}/out", "--force")),
    Verb("diff", ("diff", "{}/store", "{1}", "{2}")),
    Verb("map", ("map", "{}/store", "latest", "vda", "--svg", "{}/out/map.svg")),
    Verb("salvage", ("salvage", "{}/delta", "-o", "{}/out/salvaged")),
    Verb("restore", (*_RESTORE, "{}/out/raw")),
    Verb("replace", (*_RESTORE, "{}/old", "--force")),
    Verb("partial", (*_RESTORE, "{}/out/partial", "--partial")),
    Verb("qcow2", (*_RESTORE, "{}/out/qcow2", "--format", "qcow2")),
    Verb("chain", (*_RESTORE, "{}/out/chain", "--as-chain")),
)


@dataclass(frozen=True)
class Fault:
    """The nth call of a kind fails with an errno, and so do as many as `times` from there on.

    With 0 for an errno it is killed there.
    """

    kind: str
    nth: int
    error: int
    times: int = 1


@dataclass(frozen=True)
class Trial:
    """A verb that meets a failure."""

    verb: Verb
    fault: Fault

    def __str__(self) -> str:
        fault = self.fault
        where = f"{fault.kind} {fault.nth}" + f" to {fault.nth + fault.times - 1}" * (
            fault.times > 1
        )
        return f"{self.verb}: {where} fails with {os.strerror(fault.error)}"


class Wrong(Exception):
    """What a trial showed that must not be."""


@dataclass(frozen=True)
class Ended:
    """How a run ended, what it printed, and how many calls of each kind it made."""

    code: int
    said: str
    counts: dict[str, int]


class Nursery:
    """A process that makes engines, with the library preloaded.

    Args:
        folder: for the library and what is printed.
        engine: the package.
    """

    def __init__(self, folder: Path, engine: Engine) -> None:
        self._out = folder / "output"
        library = folder / "failing_calls.so"
        command = [find_tool("gcc"), "-O1", "-shared", "-fPIC", "-o", str(library)]
        subprocess.run([*command, Path(__file__).with_suffix(".c"), "-ldl"], check=True)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _NURSERY],
            cwd=engine.root,
            env=os.environ
            | {"PYTHONPATH": str(engine.root)}
            | {"LD_PRELOAD": str(library), "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()

    def run(
        self, words: Sequence[object], fault: Fault | None = None, stdin: str = os.devnull
    ) -> Ended:
        """Run a command line.

        Raises:
            Wrong: it loads modules in the middle, when the system may no longer let it.
        """
        counts = Path(f"{self._out}.counts")
        counts.unlink(missing_ok=True)
        fault = fault or Fault("", 0, 0)
        job = asdict(fault) | {
            "words": [str(word) for word in words],
            "stdin": stdin,
            "out": str(self._out),
            "kinds": [*ERRORS],
            "limit": HANGS,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        said = json.loads(counts.read_text()) if counts.exists() else {"counts": {}, "late": []}
        if said["late"]:
            raise Wrong(f"modules are loaded in the middle: {said['late']}")
        return Ended(code, self._out.read_text(errors="replace"), said["counts"])


def judge(ended: Ended) -> None:
    """Look at how a run ended that met a failure.

    Raises:
        Wrong: as none must.
    """
    said = ended.said
    if ended.code != 0 and ended.code not in FAMILIES:
        raise Wrong(f"exit code {ended.code}\n{said}")
    if "Traceback" in said or "bug in fleece" in said:
        raise Wrong(f"a traceback\n{said}")
    if ended.code != 0 and not said.splitlines()[-1].startswith("fleece: "):
        raise Wrong(f"no clear error\n{said}")


class Bench:
    """A store that is put back for each trial, and engines that run on it.

    Attributes:
        kept: what each trial begins with.
    """

    def __init__(self, folder: Path, engine: Engine) -> None:
        self._folder = folder
        self._work, self.kept = folder / "work", folder / "kept"
        self._delta = folder / "delta"
        self._known: dict[str, dict[str, str]] = {}
        guest = Guest(self.kept / "store")
        guest.holding({"vda": os.urandom(8 * KIB64) + bytes(MIB)})
        for _ in range(3):
            guest.become(vda=os.urandom(2 * KIB64) + guest.disk("vda")[2 * KIB64 :])
        self._points = guest.points
        last = guest.paths["vda"][-1]
        last.rename(self._delta)
        last.parent.rmdir()
        (self.kept / "old").write_bytes(b"what was there")
        (self.kept / "old").chmod(0o600)
        (self.kept / "out").mkdir()
        shutil.copy2(self._delta, self.kept / "delta")
        pinned = shutil.copytree(self.kept / "store", self.kept / "pinned")
        fleece.set_pin(fleece.open_store(pinned), guest.points[1])
        self._make_files(folder)
        # A socket's path must be short.
        self._scratch = tempfile.TemporaryDirectory(prefix="rig-", dir="/tmp")
        self._nursery = Nursery(folder, engine)
        self._make_image()

    def _make_image(self) -> None:
        """A guest at rest with one point, and what it wrote since."""
        image = images.random_image(self.kept / "vda.qcow2", 2 * MIB, seed=1)
        fleece.init(self.kept / "imaged")
        words = ("backup", f"image:vda={image}", self.kept / "imaged", "--guest", "web")
        done = self._nursery.run([*words, "--scratch", self._scratch.name])
        if done.code != 0:
            raise RuntimeError(done.said)
        run_checked("qemu-io", "-f", "qcow2", "-c", "write -P 7 64k 100k", image)

    def _make_files(self, folder: Path) -> None:
        tree = folder / "tree/folder"
        tree.mkdir(parents=True)
        for name in ("one", "two"):
            (tree / name).write_bytes(os.urandom(5000))
        image = filesystems.ext(folder / "ext4", 2 * MIB, tree.parent)
        Guest(self.kept / "filed").holding({"vda": image.read_bytes()})

    def close(self) -> None:
        """End the process that makes engines."""
        self._nursery.close()
        self._scratch.cleanup()

    def trials(self, verb: Verb) -> list[Trial]:
        """Each call of a verb with each error."""
        counts = self._counted(verb)
        return [
            Trial(verb, Fault(kind, nth, error))
            for kind, errors in ERRORS.items()
            for nth in range(1, counts[kind] + 1)
            for error in errors
        ]

    def check(self, trial: Trial) -> bool:
        """Try one; whether the verb succeeded all the same.

        Raises:
            Wrong: what it did must not be.
        """
        after = self._after(trial.verb)
        self._put_back()
        before = self._state()
        ended = self._run(trial.verb, trial.fault)
        judge(ended)
        found = _without_told(self._state(), ended)
        if ended.code == 0 and found != after and "cannot be read" in ended.said:
            # Damage that is told: of a salvage less is left, a backup reads all.
            if trial.verb.name != "salvage" and _roots(found) != _roots(after):
                raise Wrong(f"it says that it succeeded: {_differ(found, after)}\n{ended.said}")
            return True
        if ended.code == 0 and found != after:
            raise Wrong(f"it says that it succeeded: {_differ(found, after)}\n{ended.said}")
        _unharmed(ended, before, after, found)
        if found != after or trial.verb.name in ("list", "status", "verify"):
            again = self._run(trial.verb)
            if again.code != 0:
                raise Wrong(f"the next run fails: {again.said}\nafter: {ended.said}")
        if (then := _without_told(self._state(), ended)) != after:
            raise Wrong(f"after the next run: {_differ(then, after)}\n{ended.said}")
        return ended.code == 0

    def _counted(self, verb: Verb) -> dict[str, int]:
        self._put_back()
        ended = self._run(verb)
        if ended.code != 0:
            raise RuntimeError(f"{verb} fails by itself: {ended}")
        return ended.counts

    def _after(self, verb: Verb) -> dict[str, str]:
        if verb.name not in self._known:
            self._counted(verb)
            self._known[verb.name] = self._state()
        return self._known[verb.name]

    def _put_back(self) -> None:
        shutil.rmtree(self._work, ignore_errors=True)
        shutil.copytree(self.kept, self._work)

    def _run(self, verb: Verb, fault: Fault | None = None) -> Ended:
        place = self._scratch.name
        words = [word.format(self._work, *self._points, scratch=place) for word in verb.words]
        stdin = str(self._delta) if verb.name == "import" else os.devnull
        return self._nursery.run(words, fault, stdin)

    def _state(self) -> dict[str, str]:
        """What is there: points that are sound, and files that were made."""
        found = {}
        for name in ("store", "new", "pinned", "imaged"):
            place = self._work / name
            if (place / "fleece-store.json").exists():
                catalogue = fleece.open_store(place).catalogue()
                errors = fleece.verify_store(catalogue).errors
                if catalogue.damaged or errors:
                    raise Wrong(f"{name} is damaged: {catalogue.damaged} {errors}")
                found[name] = "a store"
                for number, point in enumerate(catalogue.points):
                    for disk, entry in point.disks.items():
                        mode = entry.header.mode.value
                        which = point.id
                        if name == "imaged":  # made by the run: its id and its mode may be others
                            which, mode = str(number), "any"
                        found[f"{name} {which} {disk}"] = f"{entry.root} {mode}"
                for pin in place.rglob("[!.]*.pin.json"):
                    found[f"pin {pin.name}"] = "pinned"
        for path in (self._work / "old", *(self._work / "out").rglob("*")):
            if path.is_file():
                found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found


def _unharmed(
    ended: Ended, before: dict[str, str], after: dict[str, str], found: dict[str, str]
) -> None:
    """See that nothing is gone or in between.

    Raises:
        Wrong: something is.
    """
    for name in before.keys() - found.keys():
        if name in after:
            raise Wrong(f"{name} is gone\n{ended.said}")
    for name in before.keys() & found.keys():
        if found[name] not in (before[name], after.get(name)):
            raise Wrong(f"{name} is neither as before nor as after\n{ended.said}")


def _without_told(found: dict[str, str], ended: Ended) -> dict[str, str]:
    """The state without what a run says that it could not remove."""
    return {
        name: value
        for name, value in found.items()
        if f"/{name}: cannot be removed" not in ended.said
    }


def _roots(found: dict[str, str]) -> dict[str, str]:
    """The state without the modes of deltas."""
    return {name: value.partition(" ")[0] for name, value in found.items()}


def _differ(found: dict[str, str], wanted: dict[str, str]) -> str:
    names = {name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)}
    return "not as it is without a failure: " + ", ".join(sorted(names))


@contextmanager
def bench(folder: Path, engine: Engine = INTACT) -> Iterator[Bench]:
    """A bench in an empty folder."""
    made = Bench(folder, engine)
    try:
        yield made
    finally:
        made.close()


class Place(Protocol):
    """Where trials are made."""

    def trials(self, verb: Verb) -> list[Trial]:
        """Each call of a verb with each error."""

    def check(self, trial: Trial) -> bool:
        """Try one; whether the verb succeeded all the same."""


def sample(here: Place, count: int, seed: int, verbs: Sequence[Verb] = VERBS) -> list[Trial]:
    """That many trials, of all verbs in turn, and of each of all kinds of calls as often."""
    found: list[Trial] = []
    chance = random.Random(seed)
    known: list[dict[str, list[Trial]]] = []
    for verb in verbs:
        kinds: dict[str, list[Trial]] = {}
        for trial in here.trials(verb):
            kinds.setdefault(trial.fault.kind, []).append(trial)
        known.append(kinds)
    while len(found) < count and any(known):
        for kinds in filter(None, known):
            kind = chance.choice(sorted(kinds))
            found.append(kinds[kind].pop(chance.randrange(len(kinds[kind]))))
            if not kinds[kind]:
                del kinds[kind]
    return found[:count]
