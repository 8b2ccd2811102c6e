"""Python programs that use the package, in forks of one process that has loaded it.

A process of its own takes 0.2 s of a processor until it does anything, a fork a tenth of that, and
the tests start thousands. A fork has what a process of its own has: arguments, environment, umask,
standard streams, the waits of an interpreter's end. It has no command line of its own, and finds
each module loaded.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_NURSERY = """
import atexit, gc, importlib, json, os, pkgutil, select, socket, sys, threading, time
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
import fleece, fleece.cli.main
names = [module.name for module in pkgutil.walk_packages(fleece.__path__, "fleece.")]
programs = "plugin", "__main__", ".reader", "kvm_probe"
names = [name for name in names if not any(word in name for word in programs)]
names += "nbd", "libvirt", "libvirt_qemu", "botocore.session", "botocore.httpsession"
for name in names:
    try:
        importlib.import_module(name)
    except ImportError:
        pass
gc.freeze()
server = socket.socket(fileno=int(sys.argv[1]))
running = {}
poll = select.poll()
poll.register(server, select.POLLIN)

def born(job, streams, reply):
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    others = [*running, *(known for _, known in running.values())]
    for file in (*streams, reply, server.detach(), *others):
        os.close(file)
    os.environ.clear()
    os.environ.update(job["environment"])
    time.tzset()
    os.umask(job["umask"])
    sys.argv = job["words"]
    code = 0
    try:
        exec(compile(job["program"], "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            code = 120
    os._exit(code)

def bear():
    text, files, _, _ = socket.recv_fds(server, 1 << 20, 4)
    if not text:
        os._exit(0)
    *streams, reply = files
    child = os.fork()
    if child == 0:
        born(json.loads(text), streams, reply)
    for stream in streams:
        os.close(stream)
    os.write(reply, b"%d\\n" % child)
    handle = os.pidfd_open(child)
    running[handle] = child, reply
    poll.register(handle, select.POLLIN)

def bury(handle):
    child, reply = running.pop(handle)
    poll.unregister(handle)
    os.close(handle)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        os.write(reply, b"%d\\n" % code)
    except BrokenPipeError:
        pass
    os.close(reply)

while True:
    for file, _ in poll.poll():
        bear() if file == server.fileno() else bury(file)
"""

_AT_START = ("PYTHON", "LD_", "LC_", "LANG", "MALLOC_", "OPENBLAS_")
"""What the variables are called that an interpreter or its libraries read when they start."""
_SIGNALS = signal.SIGHUP, signal.SIGINT, signal.SIGTERM
_LIMITS = resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_AS


class Fork:
    """A program that runs in a fork: as much of `subprocess.Popen` as is used of one.

    Attributes:
        args: its arguments.
        pid: its process id.
        stdin, stdout, stderr: the other ends of its standard streams; it may have no first.
        returncode: as `subprocess.Popen` has it; None until it was waited for.
    """

    def __init__(self, args: Sequence[str], ends: Sequence[int | None], reply: int) -> None:
        self.args = args
        first, second, third = ends
        assert second is not None
        assert third is not None
        self.stdin = None if first is None else open(first, "w")
        self.stdout = open(second)
        self.stderr = open(third)
        self.returncode: int | None = None
        self._reply = open(reply)
        self.pid = int(self._reply.readline())

    def wait(self) -> int:
        """Wait for its end; gives its exit code, or minus its signal."""
        if self.returncode is None:
            self.returncode = int(self._reply.readline())
            self._reply.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


class Nursery:
    """The process that has the package loaded; it ends with this one.

    Args:
        folder: that holds the package.
        environment: of the process.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._inherited = _inherited(environment)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _NURSERY, str(theirs.fileno())],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,  # as each fork's is: Python looks once what they are
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
            )

    def serves(self, environment: Mapping[str, str]) -> bool:
        """Whether a program with this environment, that is started now, may be a fork."""
        return _inherited(environment) == self._inherited

    def start(
        self, program: str, words: Sequence[str], environment: Mapping[str, str], *, stdin: bool
    ) -> Fork:
        """Start a program in a fork.

        Args:
            program: its text.
            words: its arguments.
            environment: its variables.
            stdin: it gets a pipe as its standard input, else `/dev/null`.
        """
        mine, theirs = zip(*(os.pipe() for _ in range(3)), strict=True)
        umask = os.umask(0o77)
        os.umask(umask)
        job = {
            "program": program,
            "words": ["-c", *words],
            "environment": dict(environment),
            "umask": umask,
        }
        if stdin:
            first, gate = os.pipe()
        else:
            first, gate = os.open(os.devnull, os.O_RDONLY), None
        passed = [first, *theirs]
        try:
            socket.send_fds(self._socket, [json.dumps(job).encode()], passed)
        finally:
            for file in passed:
                os.close(file)
        return Fork(words, (gate, *mine[:2]), mine[2])


def _inherited(environment: Mapping[str, str]) -> list[object]:
    """What a process has from its parent, and a fork of the nursery would have from that."""
    variables = {name: text for name, text in environment.items() if name.startswith(_AT_START)}
    ignored = [number for number in _SIGNALS if signal.getsignal(number) is signal.SIG_IGN]
    return [variables, ignored, *map(resource.getrlimit, _LIMITS)]
