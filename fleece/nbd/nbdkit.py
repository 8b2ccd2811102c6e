"""nbdkit with its Python plugin: whether it is there; starting one for a script of ours."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fleece.cancel import CancelToken
from fleece.environment import child_environment
from fleece.errors import FleeceError, UsageError
from fleece.nbd.server import greets
from fleece.programs import finished, program, using

_VERSION = "python_version="
_START_LIMIT = 60.0


def check_nbdkit(cancel: CancelToken | None = None) -> str:
    """See that nbdkit can load its Python plugin; gives the version of the plugin's Python.

    Args:
        cancel: ends the wait for it.

    Raises:
        UsageError: nbdkit or the plugin is missing, or it cannot be run.
    """
    done = finished(
        [program("nbdkit", "nbdkit"), "--dump-plugin", "python"],
        cancel or CancelToken(),
        environment=child_environment(PYTHONDONTWRITEBYTECODE="1"),
    )
    if done.code != 0:
        raise UsageError(f"nbdkit does not run: {why_ended(done.said, done.code)}")
    for line in done.out.decode(errors="replace").splitlines():
        if line.startswith(_VERSION):
            return line.removeprefix(_VERSION)
    return "unknown"


def check_same_python(cancel: CancelToken | None = None) -> None:
    """See that nbdkit's plugin can load what this Python loads: fleece and its packages.

    Args:
        cancel: ends the wait for it.

    Raises:
        UsageError: nbdkit or the plugin is missing, or the plugin is another Python.
    """
    theirs = check_nbdkit(cancel)
    ours = ".".join(map(str, sys.version_info[:2]))
    if theirs != ours and not theirs.startswith(f"{ours}."):
        raise UsageError(
            f"nbdkit's plugin is Python {theirs}, fleece runs on Python {ours}",
            hint="install fleece for the distribution's Python, /usr/bin/python3",
        )


def start(
    plugin: Path,
    place: Path,
    words: Sequence[str],
    environment: Mapping[str, str],
    said: int = subprocess.PIPE,
    inherited: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start an nbdkit that ends with this process, whatever ends that.

    Args:
        plugin: the script that its Python plugin runs; what is said to it goes to standard input.
        place: of the unix socket to make.
        words: more of the command line.
        environment: its own.
        said: takes its standard error.
        inherited: descriptors that it has too.

    Raises:
        UsageError: nbdkit is missing, or cannot be run.
    """
    command = [program("nbdkit", "nbdkit"), "--foreground", "--exit-with-parent", *words]
    # A group of its own: Ctrl-C is for this process, which then ends nbdkit in order.
    with using(command):
        return subprocess.Popen(
            [*command, "--unix", str(place), "python", str(plugin)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=said,
            pass_fds=tuple(inherited),
            process_group=0,
            env=environment,
        )


def wait_for(
    place: Path, check: Callable[[], None], failure: type[FleeceError], cancel: CancelToken
) -> None:
    """Wait until an nbdkit listens.

    Args:
        place: its socket.
        check: raises if it has ended.
        failure: the family of the error if it takes too long.
        cancel: ends the waiting.
    """
    limit = time.monotonic() + _START_LIMIT
    while not greets(place, cancel):
        cancel.check()
        check()
        if time.monotonic() > limit:
            raise failure("nbdkit did not start in time", where=place)
        time.sleep(0.005)


def why_ended(said: str, code: int) -> str:
    """Why an nbdkit has ended, in one line.

    Args:
        said: on its standard error.
        code: its exit code.

    Raises:
        UsageError: because it lacks its Python plugin.
    """
    text = " ".join(said.split())
    if "nbdkit-python-plugin" in text:
        raise UsageError(
            "nbdkit lacks its Python plugin", hint="install the package nbdkit-plugin-python"
        )
    return text or f"exit code {code}"
