"""The programs that fleece runs: QEMU's tools and nbdkit."""

from __future__ import annotations

import os
import shutil

from fleece.errors import UsageError

SECRET_VARIABLES = ("FLEECE_KEY_FILE", "FLEECE_PASSPHRASE_FILE", "FLEECE_PASSPHRASE")
"""Where the command line looks for a secret: names of a key file and of a passphrase's file, and a
passphrase itself."""

_KEEP_BUFFERS = {
    "MALLOC_MMAP_THRESHOLD_": str(4 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
}


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


def child_environment(**more: str) -> dict[str, str]:
    """The environment of every program that is started: this process's own, less its secrets.

    A child parses what a guest has written, or is the guest's machine: it must not find there what
    opens the store. One that needs a key is told it through a pipe.

    Args:
        more: variables to add, or to replace.
    """
    kept = {name: text for name, text in os.environ.items() if name not in SECRET_VARIABLES}
    return kept | more


def server_environment() -> dict[str, str]:
    """The environment of an NBD server: that of any child, and glibc keeps its freed buffers.

    A server has a buffer of up to 1 MiB for each request; `cli.process` says what that costs else.
    What the user set of mallopt(3) stays.
    """
    return _KEEP_BUFFERS | child_environment()
