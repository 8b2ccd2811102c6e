"""Import libnbd's Python bindings, and refuse the unrelated PyPI package of the same name."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

from fleece.errors import UsageError

_PARTS = ("nbd", "libnbdmod")
"""The modules of libnbd's bindings."""


def libnbd() -> ModuleType:
    """The module `nbd` of libnbd.

    Raises:
        UsageError: it is missing, or it is the notebook tool that PyPI calls `nbd`.
    """
    try:
        import nbd
    except ImportError as error:
        if error.name not in _PARTS:
            raise _wrong(f"cannot be imported ({error})") from error
        raise UsageError(
            f"libnbd's Python bindings are missing ({error})", hint=_how_to_install()
        ) from error
    except OSError as error:
        raise UsageError(
            f"libnbd's Python bindings cannot be loaded ({error.strerror})", where=error.filename
        ) from error
    except Exception as error:
        raise _wrong(f"cannot be imported ({type(error).__name__}: {error})") from error
    if not hasattr(getattr(nbd, "NBD", None), "add_meta_context"):
        raise _wrong(getattr(nbd, "__file__", None) or "nbd")
    module: ModuleType = nbd
    return module


def _wrong(where: str) -> UsageError:
    return UsageError(
        "this module is PyPI's notebook tool 'nbd', not libnbd",
        where=where,
        hint=f"run 'pip uninstall nbd'; then {_how_to_install()}",
    )


def _how_to_install() -> str:
    """What to do so that this Python finds the bindings. They are not on PyPI."""
    install = "install the distribution's package python3-libnbd"
    if sys.prefix == sys.base_prefix:
        return f"{install}, and run fleece with the distribution's Python, /usr/bin/python3"
    remade = "/usr/bin/python3 -m venv --system-site-packages"
    if _sees_system_packages():
        return f"{install}; the environment must be of the distribution's Python: {remade}"
    return f"{install}, and recreate the virtual environment so that it sees it: {remade}"


def _sees_system_packages() -> bool:
    """Whether this virtual environment was made with `--system-site-packages`."""
    try:
        lines = Path(sys.prefix, "pyvenv.cfg").read_text(errors="replace").lower().split("\n")
    except OSError:
        return False
    return "include-system-site-packages=true" in (line.replace(" ", "") for line in lines)
