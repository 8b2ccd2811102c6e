"""Point-in-time copies of QEMU's disks: taken over NBD, stored as deltas, proven by hash.

The public API is what `fleece.api` names; docs/api.rst shows it at work. It is loaded when a name
is first used, so that `import fleece` costs nothing. Nothing in it prints, parses arguments,
installs signal handlers or keeps global state.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING

from fleece.version import VERSION as __version__

if TYPE_CHECKING:
    from fleece.api import *  # noqa: F403


def __getattr__(name: str) -> object:
    """Load a public name. A module of the package is none: the import that asks finds it itself."""
    if not name.startswith("_") and importlib.util.find_spec(f"fleece.{name}") is None:
        api = importlib.import_module("fleece.api")
        if name in api.__all__:
            found: object = getattr(api, name)
            globals()[name] = found
            return found
    raise AttributeError(f"module 'fleece' has no attribute {name!r}")


__all__ = ("__version__",)
