"""Import libnbd's Python bindings, and refuse the unrelated PyPI package of the same name."""

from __future__ import annotations

from types import ModuleType

from fleece.errors import UsageError

_HINT = "install the distribution's package python3-libnbd and use /usr/bin/python3"


def libnbd() -> ModuleType:
    """The module `nbd` of libnbd.

    Raises:
        UsageError: it is missing, or it is the notebook tool that PyPI calls `nbd`.
    """
    try:
        import nbd
    except ImportError as error:
        raise UsageError(f"libnbd's Python bindings are missing ({error})", hint=_HINT) from error
    if not hasattr(getattr(nbd, "NBD", None), "add_meta_context"):
        where = getattr(nbd, "__file__", "nbd")
        raise UsageError(
            "this module is PyPI's notebook tool 'nbd', not libnbd",
            where=where,
            hint=f"pip uninstall nbd, then {_HINT}",
        )
    module: ModuleType = nbd
    return module
