"""The programs that fleece runs: QEMU's tools and nbdkit."""

from __future__ import annotations

import shutil

from fleece.errors import UsageError


def program(name: str, package: str = "qemu-utils") -> str:
    """The path of a program of a package of the distribution.

    Raises:
        UsageError: it is not installed.
    """
    found = shutil.which(name)
    if found is None:
        raise UsageError(f"{name} is missing", hint=f"install the package {package}")
    return found
