"""Child processes that cannot outlive the test run, and running the helper programs.

Every child is started through ``setpriv --pdeathsig KILL``: the kernel kills it when the thread
that started it ends, however that thread ends. So start children from the main thread, or from
one that lives as long as they shall.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

LIMIT = 600.0
"""Seconds: a net under what hangs, far above what the busiest host needs. Nothing waits for it."""


class RigError(RuntimeError):
    """The rig itself did not work: a program is missing, died early or does not answer."""


def find_tool(name: str) -> str:
    """The full path of a program, also where an ordinary user's PATH does not lead.

    Raises:
        RigError: it is not installed.
    """
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        raise RigError(f"{name} is not installed")
    return path


def run(*command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a helper program to its end; the caller judges its exit code.

    Args:
        command: the program's name and its arguments.
        cwd: the directory to run it in.

    Returns:
        Exit code, standard output and standard error (as text).

    Raises:
        RigError: the program is not installed.
    """
    words = [find_tool(str(command[0])), *map(str, command[1:])]
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False)


def run_checked(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a helper program that must succeed; returns its standard output.

    Raises:
        RigError: it is not installed, or its exit code is not 0.
    """
    result = run(*command, cwd=cwd)
    if result.returncode != 0:
        raise RigError(f"{command[0]} failed ({result.returncode}): {result.stdout}{result.stderr}")
    return result.stdout


def doings(pid: int) -> str:
    """What each thread of a process does at this moment, a line each, for a message.

    The state, the kernel's function that it waits in, and the system call with its arguments
    (proc(5)). What this user may not read, or what has just ended, is left out.
    """
    lines = []
    for thread in sorted(Path(f"/proc/{pid}/task").glob("*")):
        words = [thread.name]
        for name in ("comm", "stat", "wchan", "syscall", "stack"):
            with suppress(OSError):
                text = (thread / name).read_text(errors="replace")
                words.append(text.rpartition(")")[2][:3] if name == "stat" else text)
        lines.append(" ".join(" ".join(words).split()))
    return "\n".join(lines)


class Child:
    """One running child process whose output goes to a file.

    Args:
        command: program and arguments.
        log: where its standard output and error are appended.
        prefix: words before the command that change its surroundings and then exec it,
            such as ``unshare --mount``; the process id stays the child's own.
        line_buffered: make the C library write out every line at once.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        *,
        prefix: Sequence[str] = (),
        line_buffered: bool = False,
    ) -> None:
        # setpriv comes after the prefix: a change of credentials clears the death signal.
        words = [*prefix, "setpriv", "--pdeathsig", "KILL"]
        if line_buffered:
            words += ["stdbuf", "-oL"]
        self.log = log
        with log.open("ab") as sink:
            self._process = subprocess.Popen(
                [*words, *command],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
            )

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    @property
    def status(self) -> int | None:
        """Its exit status, negative for a signal; None: it runs."""
        return self._process.poll()

    def output(self) -> str:
        """All that it has printed so far."""
        return self.log.read_text(errors="replace")

    def wait(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds for its end; whether it has ended."""
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone. Harmless when it has ended already."""
        self._process.kill()
        self._process.wait()
