"""Point-in-time copies of QEMU's disks: taken over NBD, stored as deltas, proven by hash.

The public API is what `fleece.api` names; docs/reference/library.rst shows it at work. Each name
is loaded when it is first used, so that `import fleece` costs nothing. Nothing in it prints, parses
arguments, installs signal handlers or keeps global state.
"""

from __future__ import annotations

import ast
import functools
import importlib
import os
from typing import TYPE_CHECKING

from fleece.version import VERSION as __version__

if TYPE_CHECKING:
    from fleece.api import *  # noqa: F403


def __getattr__(name: str) -> object:
    """Load a public name, from the module that `fleece.api` says, and nothing else.

    `fleece.api` is read, not run: it imports everything, which takes longer than many a command.
    A module of the package is no name: the import that asks finds it itself.
    """
    if not name.startswith("_") and (module := _modules().get(name)) is not None:
        value: object = getattr(importlib.import_module(module), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'fleece' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted({*globals(), *_modules()})


@functools.cache
def _modules() -> dict[str, str]:
    """Where each public name is defined."""
    with open(os.path.join(os.path.dirname(__file__), "api.py"), encoding="utf-8") as file:
        source = file.read()
    return {
        alias.name: node.module
        for node in ast.parse(source).body
        if isinstance(node, ast.ImportFrom) and node.module is not None
        for alias in node.names
        if node.module != "__future__"
    }


__all__ = ("__version__",)
