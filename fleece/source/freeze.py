"""How the freeze of a guest's file systems for a point went."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Freeze:
    """How a freeze went.

    Attributes:
        frozen: the file systems stood still when the point was taken.
        trouble: why they did not; None: they did, or nobody asked for it.
        stuck: why the guest may still be frozen; None: it is not.
    """

    frozen: bool = field(default=False)
    trouble: str | None = field(default=None)
    stuck: str | None = field(default=None)
