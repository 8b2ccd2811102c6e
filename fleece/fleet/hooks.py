"""Programs of the user's that run before and after a guest's backup."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import fleece
from fleece import events
from fleece.cancel import CancelToken
from fleece.environment import child_environment
from fleece.errors import FleeceError, SourceError
from fleece.programs import kill_group, one_line, using
from fleece.terminal import shown

_TICK = 0.05
_MOST_SAID = 500
"""Bytes of what a program says last that are told."""


@dataclass(frozen=True)
class Hooks:
    """What runs around a backup.

    Attributes:
        before, after: words of the command lines; empty: nothing.
        limit: seconds that each may take.
        environment: variables for both.
    """

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    limit: int = 60
    environment: Mapping[str, str] = field(default_factory=dict)


def around(
    hooks: Hooks,
    told: Mapping[str, str],
    backup: Callable[[], fleece.BackupResult],
    listener: events.Listener,
    cancel: CancelToken,
) -> fleece.BackupResult:
    """Back up between two hooks.

    The second one runs if the first was started, whatever became of it and of the backup, also
    when the run is interrupted: it undoes what the first has done.

    Args:
        hooks: both.
        told: what they find in their environment.
        backup: does it.
        listener: hears `Warned` of a second one that fails after a backup that failed.
        cancel: of the run.

    Raises:
        FleeceError: the backup failed.
        SourceError: a hook failed. After the second one the point is stored all the same.
    """
    try:
        _run("before", hooks.before, hooks, told, cancel)
        result = backup()
    except BaseException as error:
        outcome = {"FLEECE_RESULT": "failed", "FLEECE_ERROR": str(error)}
        try:
            _run("after", hooks.after, hooks, {**told, **outcome}, CancelToken())
        except FleeceError as second:
            listener(events.Warned(str(second)))
        raise
    outcome = {"FLEECE_RESULT": "ok", "FLEECE_POINT": result.point}
    try:
        _run("after", hooks.after, hooks, {**told, **outcome}, CancelToken())
    except FleeceError as error:
        error.what = f"{error.what}; point {result.point} is stored"
        raise
    return result


def _run(
    which: str,
    words: Sequence[str],
    hooks: Hooks,
    told: Mapping[str, str],
    cancel: CancelToken,
) -> None:
    """Run a hook in a process group of its own, of which nothing is left if it takes too long."""
    if not words:
        return
    environment = child_environment(**hooks.environment, **told)
    end = time.monotonic() + hooks.limit
    # A file, not a pipe: what a hook leaves running in the background must not be waited for.
    with tempfile.TemporaryFile() as said, contextlib.ExitStack() as stack:
        with using(words):
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env=environment,
                process_group=0,
            )
        stack.callback(process.wait)
        stack.callback(kill_group, process)
        while process.poll() is None:
            cancel.check()
            if time.monotonic() > end:
                raise SourceError(f"took longer than {hooks.limit} s", where=_named(which, words))
            time.sleep(_TICK)
        stack.pop_all()
        if process.returncode != 0:
            raise SourceError(_said(said.fileno(), process.returncode), where=_named(which, words))


def _named(which: str, words: Sequence[str]) -> str:
    return f"the hook '{which}', {words[0]}"


def _said(file: int, code: int) -> str:
    size = os.fstat(file).st_size
    said = shown(one_line(os.pread(file, _MOST_SAID, max(0, size - _MOST_SAID))))
    return f"failed (exit code {code}){': ' if said else ''}{said}"
