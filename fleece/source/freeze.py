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


class TellsOfFreeze:
    """The part of a point (`fleece.source.base.Point`) that tells how its freeze went.

    Attributes:
        freeze: how it went.
    """

    def __init__(self) -> None:
        self.freeze = Freeze()
        self._doubt: str | None = None
        self._unknown: str | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know of how the point was taken."""
        trouble = self.freeze.trouble
        loose = None if trouble is None else f"the guest was not frozen: {trouble}"
        told = self._doubt, loose, self.freeze.stuck, self._unknown
        return tuple(text for text in told if text)

    @property
    def frozen(self) -> bool:
        """The guest's file systems stood still when the point was taken."""
        return self.freeze.frozen

    @property
    def stuck(self) -> str | None:
        """Why the guest may still be frozen; None: it is not."""
        return self.freeze.stuck
