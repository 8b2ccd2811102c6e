"""The programs that fleece runs: QEMU's tools and nbdkit."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fleece.cancel import CancelToken
from fleece.environment import child_environment
from fleece.errors import Interrupted, UsageError

SIGKILL = 9
"""By its number (signal(7)): nothing here handles a signal."""

_TICK = 0.2
_END_LIMIT = 10.0
"""Seconds that a program has to end when it is told to, once the run is interrupted."""


def program(name: str, package: str = "qemu-utils") -> str:
    """The path of a program of a package of the distribution.

    Raises:
        UsageError: it is not installed.
    """
    found = shutil.which(name)
    if found is None:
        raise UsageError(f"{name} is missing", hint=f"install the package {package}")
    return found


def file_name(path: str) -> str:
    """A path as QEMU's programs take it for one.

    A word with a colon before its first slash is the name of a protocol to them, and what comes
    after it the name of a host or of another file (`nbd:`, `ssh:`, `fat:`, `json:`).
    """
    return path if path.startswith("/") else f"./{path}"


@functools.cache
def _shielded() -> tuple[str, ...]:
    """A prefix for what must not be ended half-way by the signals that end a run, if `env` has one.

    A terminal and systemd send these to every process of the run.
    """
    words = ("env", "--block-signal=HUP,INT,TERM")
    with contextlib.suppress(OSError):
        tried = subprocess.run(
            [*words, "true"], env=child_environment(), capture_output=True, check=False
        )
        if tried.returncode == 0:
            return words
    return ()


@dataclass(frozen=True)
class Finished:
    """How a program ended.

    Attributes:
        code: its exit code.
        out: what it printed.
        said: its errors, in one line.
    """

    code: int
    out: bytes
    said: str


@contextlib.contextmanager
def using(words: Sequence[str]) -> Iterator[None]:
    """A context in which a program is started, or listened to.

    Args:
        words: of its command line, the program first.

    Raises:
        UsageError: the system refuses.
    """
    try:
        yield
    except OSError as error:
        too_many = error.errno in (errno.EMFILE, errno.ENFILE)
        raise UsageError(
            f"{os.path.basename(words[0])} cannot be run ({error.strerror})",
            hint="raise the limit of open files (ulimit -n)" if too_many else None,
        ) from error


class Overdue(Exception):
    """A program took longer than it may; it was killed."""


def finished(
    words: Sequence[str],
    cancel: CancelToken,
    *,
    given: bytes = b"",
    limit: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> Finished:
    """Run a program to its end, or to that of the run.

    Args:
        words: of its command line, the program first.
        cancel: ends it.
        given: what it can read from its standard input.
        limit: seconds that it may take; None: any.
        environment: None: that of every child.

    Raises:
        Interrupted: `cancel` was called; the program has ended, unless the kernel keeps it.
        Overdue: the time is up.
        UsageError: it cannot be run.
    """
    with using(words):
        process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=child_environment() if environment is None else environment,
        )
        try:
            return _heard(process, cancel, given, limit)
        except BaseException:
            process.kill()
            ended(process, cancel)
            raise


def _heard(
    process: subprocess.Popen[bytes], cancel: CancelToken, given: bytes, limit: float | None
) -> Finished:
    """Wait for a program's end."""
    until = None if limit is None else time.monotonic() + limit
    told: bytes | None = given
    while True:
        try:
            out, errors = process.communicate(told, timeout=_TICK)
        except subprocess.TimeoutExpired:
            told = None
            cancel.check()
            if until is not None and time.monotonic() > until:
                raise Overdue from None
        else:
            return Finished(process.returncode, out, one_line(errors))


def finished_whole(words: Sequence[str], cancel: CancelToken) -> Finished:
    """Run a program that must not be ended half-way: it ends by itself, also when the run does.

    Args:
        words: of its command line, the program first.
        cancel: ends the wait for it, after `_END_LIMIT`.

    Raises:
        Interrupted: it was left running, because its storage hangs.
        UsageError: it cannot be run.
    """
    with using(words):
        process = subprocess.Popen(
            [*_shielded(), *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=child_environment(),
        )
    until: float | None = None
    while until is None or time.monotonic() < until:
        try:
            out, errors = process.communicate(timeout=_TICK)
        except subprocess.TimeoutExpired:
            if until is None and cancel.cancelled:
                until = time.monotonic() + _END_LIMIT
        else:
            return Finished(process.returncode, out, one_line(errors))
    raise Interrupted(
        f"interrupted; {process.args!r} does not end (process {process.pid}): its storage hangs"
    )


def ended(process: subprocess.Popen[bytes], cancel: CancelToken) -> str:
    """Wait for a process that was told to end; gives what is on its standard error, in one line.

    It has all the time that it needs, and `_END_LIMIT` once the run is interrupted: it is killed
    then. One that even this does not end, because a file system never answers it, is left.

    Raises:
        Interrupted: it is left.
    """
    until: float | None = None
    for kill in (True, False):
        while until is None or time.monotonic() < until:
            try:
                _, errors = process.communicate(timeout=_TICK)
            except subprocess.TimeoutExpired:
                if until is None and cancel.cancelled:
                    until = time.monotonic() + _END_LIMIT
            else:
                return one_line(errors)
        if kill:
            process.kill()
            until = time.monotonic() + _END_LIMIT
    raise Interrupted(
        f"interrupted; {process.args!r} cannot be ended (process {process.pid}): its storage hangs"
    )


def one_line(said: bytes | None) -> str:
    """What a program has said, in one line, as it is: nothing of it is made harmless."""
    return " ".join((said or b"").decode(errors="replace").split())


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a program and what it started in its process group.

    It leads the group, and nobody has waited for it yet: no other group can have its number.
    """
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, SIGKILL)
