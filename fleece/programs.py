"""The programs of QEMU's that fleece runs."""

from __future__ import annotations

import shutil

from fleece.errors import UsageError


def program(name: str) -> str:
    """The path of a program of the package qemu-utils.

    Raises:
        UsageError: it is not installed.
    """
    found = shutil.which(name)
    if found is None:
        raise UsageError(f"{name} is missing", hint="install the package qemu-utils")
    return found
