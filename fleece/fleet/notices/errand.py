"""A program that carries a notice out of the house: some tries, of bounded time each."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fleece.cancel import CancelToken
from fleece.environment import child_environment
from fleece.errors import NoticeError
from fleece.programs import kill_group, one_line, using
from fleece.terminal import shown
from fleece.writing import taken

LATER = 75
"""The exit code of a program that may have more luck later: EX_TEMPFAIL of sysexits.h."""

_PAUSES = (1.0, 5.0)
"""Seconds after the first try, and after the second one."""

_TICK = 0.02

_MOST_SAID = 500
"""Bytes of what a program says that are told."""


@dataclass(frozen=True)
class Errand:
    """A program to run.

    Attributes:
        words: of its command line, the program first.
        given: what it reads from its standard input.
        more: of its environment.
    """

    words: Sequence[str]
    given: bytes = b""
    more: Mapping[str, str] = field(default_factory=dict)


def carry(errand: Errand, limit: float, cancel: CancelToken) -> None:
    """Run a program until it succeeds, as often as that makes sense.

    Args:
        errand: the program.
        limit: seconds that one try may take. It and what it started in its group are killed then.
        cancel: ends it.

    Raises:
        NoticeError: it failed.
        Interrupted: it was cancelled.
    """
    for pause in (*_PAUSES, None):
        code, said = _tried(errand, limit, cancel)
        if code == 0:
            return
        if pause is None or code not in (None, LATER):
            break
        end = time.monotonic() + pause
        while time.monotonic() < end:
            cancel.check()
            time.sleep(_TICK)
    what = f"took longer than {limit:g} s" if code is None else said or f"exit code {code}"
    raise NoticeError(f"could not be sent: {what}")


def _tried(errand: Errand, limit: float, cancel: CancelToken) -> tuple[int | None, str]:
    """The exit code, None if it took too long; and the beginning of what it said."""
    end = time.monotonic() + limit
    with _running(errand) as process:
        assert process.stderr is not None
        heard, said = [process.stderr.fileno()], b""
        while not (ended := _has_ended(process)) and time.monotonic() < end:
            cancel.check()
            if not heard:
                time.sleep(_TICK)
            elif select.select(heard, [], [], _TICK)[0]:
                part = os.read(heard[0], _MOST_SAID)
                said = (said + part)[:_MOST_SAID]
                heard = heard if part else []
        if heard and select.select(heard, [], [], 0)[0]:
            said = (said + os.read(heard[0], _MOST_SAID))[:_MOST_SAID]
    text = shown(one_line(said))
    return process.returncode if ended else None, text


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has. It keeps its number, and so that of its group, until it is waited for."""
    options = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, process.pid, options) is not None


@contextlib.contextmanager
def _running(errand: Errand) -> Iterator[subprocess.Popen[bytes]]:
    """A program that runs in a group of its own; nothing of the group is left afterwards.

    What it reads is in memory: no secret is on a disk, and nobody waits for who reads nothing.
    """
    with contextlib.ExitStack() as stack:
        with using(errand.words):
            descriptor = os.memfd_create("notice")
            stack.callback(os.close, descriptor)
            view = memoryview(errand.given)
            while len(view):
                view = view[taken(os.write(descriptor, view)) :]
            os.lseek(descriptor, 0, os.SEEK_SET)
            process = stack.enter_context(
                subprocess.Popen(
                    errand.words,
                    stdin=descriptor,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    env=child_environment(**errand.more),
                    process_group=0,
                )
            )
        try:
            yield process
        finally:
            kill_group(process)
