"""nbdkit with its Python plugin: whether it is there, before anything depends on it."""

from __future__ import annotations

import subprocess
import sys

from fleece.errors import UsageError
from fleece.programs import child_environment, program

_VERSION = "python_version="


def check_nbdkit() -> str:
    """See that nbdkit can load its Python plugin; gives the version of the plugin's Python.

    Raises:
        UsageError: nbdkit or the plugin is missing.
    """
    done = subprocess.run(
        [program("nbdkit", "nbdkit"), "--dump-plugin", "python"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        env=child_environment(PYTHONDONTWRITEBYTECODE="1"),
    )
    if done.returncode != 0:
        text = " ".join(done.stderr.decode(errors="replace").split())
        if "nbdkit-python-plugin" in text:
            raise lacks_plugin()
        raise UsageError(f"nbdkit does not run: {text or f'exit code {done.returncode}'}")
    for line in done.stdout.decode(errors="replace").splitlines():
        if line.startswith(_VERSION):
            return line.removeprefix(_VERSION)
    return "unknown"


def check_same_python() -> None:
    """See that nbdkit's plugin can load what this Python loads: fleece and its packages.

    Raises:
        UsageError: nbdkit or the plugin is missing, or the plugin is another Python.
    """
    theirs = check_nbdkit()
    ours = ".".join(map(str, sys.version_info[:2]))
    if theirs != ours and not theirs.startswith(f"{ours}."):
        raise UsageError(
            f"nbdkit's plugin is Python {theirs}, fleece runs on Python {ours}",
            hint="install fleece for the distribution's Python, /usr/bin/python3",
        )


def lacks_plugin() -> UsageError:
    """The error for an nbdkit without its Python plugin."""
    return UsageError(
        "nbdkit lacks its Python plugin", hint="install the package nbdkit-plugin-python"
    )
