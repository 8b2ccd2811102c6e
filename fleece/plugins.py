"""Kinds of sources and stores that other packages bring, found by their entry points."""

from __future__ import annotations

from typing import Any

from fleece.errors import UsageError

SOURCES = "fleece.sources"
STORES = "fleece.stores"
"""The groups of entry points. A name in one is a scheme."""


def installed(group: str, scheme: str) -> Any:
    """What an installed package opens a scheme with; None: there is no such package.

    Raises:
        UsageError: it cannot be loaded, or several packages bring the scheme.
    """
    import importlib.metadata  # much to load, and needed for no scheme of fleece's own

    found = [*importlib.metadata.entry_points(group=group, name=scheme)]
    if not found:
        return None
    if len({point.value for point in found}) > 1:
        packages = sorted(point.dist.name for point in found if point.dist is not None)
        raise UsageError(f"several packages bring {scheme}: {', '.join(packages)}")
    try:
        return found[0].load()
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"{found[0].value}, which opens {scheme}:, cannot be loaded: {error}"
        ) from error
