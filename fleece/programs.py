"""The programs that fleece runs: QEMU's tools and nbdkit."""

from __future__ import annotations

import os
import shutil

from fleece.errors import UsageError

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


def server_environment() -> dict[str, str]:
    """The environment of an NBD server: this process's own, and glibc keeps its freed buffers.

    A server has a buffer of up to 1 MiB for each request; `cli.process` says what that costs else.
    What the user set of mallopt(3) stays.
    """
    return _KEEP_BUFFERS | os.environ
