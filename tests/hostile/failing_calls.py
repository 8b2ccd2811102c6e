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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EACCES, EIO, EMFILE, ENOMEM, ENOSPC
from pathlib import Path
from typing import Any

import fleece
from tests.engine.history import Guest
from tests.engine.scene import INTACT, KIB64, MIB, Engine
from tests.rig.process import find_tool

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
}
"""What each kind of call may fail with."""

FAMILIES = frozenset({2, 3, 4, 5, 6, 7})
"""The exit codes of failures; 1 would be a fault of fleece's own."""

_NURSERY = """
import ctypes, importlib, json, os, pkgutil, signal, sys, time, traceback
shim = ctypes.CDLL(None)
for name in ("LD_PRELOAD",):
    os.environ.pop(name, None)
import fleece
for module in pkgutil.walk_packages(fleece.__path__, "fleece."):
    if not any(word in module.name for word in ("plugin", "__main__", ".reader", "kvm_probe")):
        importlib.import_module(module.name)
import fleece.cli.main, fleece.nbd.binding
fleece.nbd.binding.libnbd()
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
class Trial:
    """One failure: the nth call of a kind, with an errno, and as many as `times` from there on."""

    verb: Verb
    kind: str
    nth: int
    error: int
    times: int = 1

    def __str__(self) -> str:
        return f"{self.verb}: {self.kind} {self.nth} fails with {os.strerror(self.error)}"


class Wrong(Exception):
    """What a trial showed that must not be."""


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    code: int
    said: str


class Bench:
    """A store that is put back for each trial, and engines that run on it.

    Attributes:
        kept: what each trial begins with.
    """

    def __init__(self, folder: Path, engine: Engine) -> None:
        self._folder = folder
        self._work, self.kept = folder / "work", folder / "kept"
        self._delta = folder / "delta"
        self._out = folder / "output"
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
        library = folder / "failing_calls.so"
        source = Path(__file__).with_suffix(".c")
        command: list[str | Path] = [
            find_tool("gcc"),
            "-O1",
            "-shared",
            "-fPIC",
            "-o",
            library,
            source,
            "-ldl",
        ]
        subprocess.run(command, check=True)
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
        """End the process that makes engines."""
        self._process.kill()
        self._process.communicate()

    def trials(self, verb: Verb) -> list[Trial]:
        """Each call of a verb with each error."""
        counts = self._counted(verb)
        return [
            Trial(verb, kind, nth, error)
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
        ended = self._run(trial.verb, trial)
        self._judge(ended)
        found = _without_told(self._state(), ended)
        if ended.code == 0 and found != after and "cannot be read, the first" in ended.said:
            return True
        if ended.code == 0 and found != after:
            raise Wrong(f"it says that it succeeded: {_differ(found, after)}\n{ended.said}")
        for name in before.keys() - found.keys():
            if name in after:
                raise Wrong(f"{name} is gone\n{ended.said}")
        for name in before.keys() & found.keys():
            if found[name] not in (before[name], after.get(name)):
                raise Wrong(f"{name} is neither as before nor as after\n{ended.said}")
        if found != after or trial.verb.name in ("list", "status", "verify"):
            again = self._run(trial.verb)
            if again.code != 0:
                raise Wrong(f"the next run fails: {again.said}\nafter: {ended.said}")
        if (then := _without_told(self._state(), ended)) != after:
            raise Wrong(f"after the next run: {_differ(then, after)}\n{ended.said}")
        return ended.code == 0

    def _judge(self, ended: Ended) -> None:
        said = ended.said
        if ended.code != 0 and ended.code not in FAMILIES:
            raise Wrong(f"exit code {ended.code}\n{said}")
        if "Traceback" in said or "bug in fleece" in said:
            raise Wrong(f"a traceback\n{said}")
        if ended.code != 0 and not said.splitlines()[-1].startswith("fleece: "):
            raise Wrong(f"no clear error\n{said}")

    def _counted(self, verb: Verb) -> dict[str, int]:
        self._put_back()
        ended = self._run(verb)
        if ended.code != 0:
            raise RuntimeError(f"{verb} fails by itself: {ended}")
        said: dict[str, Any] = json.loads(Path(f"{self._out}.counts").read_text())
        if said["late"]:
            raise Wrong(f"{verb} loads modules in the middle: {said['late']}")
        counts: dict[str, int] = said["counts"]
        return counts

    def _after(self, verb: Verb) -> dict[str, str]:
        if verb.name not in self._known:
            self._counted(verb)
            self._known[verb.name] = self._state()
        return self._known[verb.name]

    def _put_back(self) -> None:
        shutil.rmtree(self._work, ignore_errors=True)
        shutil.copytree(self.kept, self._work)

    def _run(self, verb: Verb, trial: Trial | None = None) -> Ended:
        job = {
            "words": [word.format(self._work, *self._points) for word in verb.words],
            "stdin": str(self._delta) if verb.name == "import" else "/dev/null",
            "out": str(self._out),
            "kind": "" if trial is None else trial.kind,
            "nth": 0 if trial is None else trial.nth,
            "times": 1 if trial is None else trial.times,
            "error": 0 if trial is None else trial.error,
            "kinds": [*ERRORS],
            "limit": HANGS,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        return Ended(code, self._out.read_text(errors="replace"))

    def _state(self) -> dict[str, str]:
        """What is there: points that are sound, and files that were made."""
        found = {}
        for name in ("store", "new"):
            place = self._work / name
            if (place / "fleece-store.json").exists():
                catalogue = fleece.open_store(place).catalogue()
                errors = fleece.verify_store(catalogue).errors
                if catalogue.damaged or errors:
                    raise Wrong(f"{name} is damaged: {catalogue.damaged} {errors}")
                found[name] = "a store"
                for point in catalogue.points:
                    for disk, entry in point.disks.items():
                        mode = entry.header.mode.value
                        found[f"{name} {point.id} {disk}"] = f"{entry.root} {mode}"
                for pin in place.rglob("[!.]*.pin.json"):
                    found[f"pin {pin.name}"] = "pinned"
        for path in (self._work / "old", *(self._work / "out").rglob("*")):
            if path.is_file():
                found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found


def _without_told(found: dict[str, str], ended: Ended) -> dict[str, str]:
    """The state without what a run says that it could not remove."""
    return {
        name: value
        for name, value in found.items()
        if f"{name}: cannot be removed" not in ended.said
    }


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


def sample(here: Bench, count: int, seed: int, verbs: tuple[Verb, ...] = VERBS) -> list[Trial]:
    """That many trials, of all verbs in turn."""
    found: list[Trial] = []
    chance = random.Random(seed)
    trials = {verb: here.trials(verb) for verb in verbs}
    while len(found) < count and any(trials.values()):
        for left in trials.values():
            if left:
                found.append(left.pop(chance.randrange(len(left))))
    return found[:count]
