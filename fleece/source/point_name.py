"""The name that stands for a point at somebody else's: a checkpoint's, a provider's token."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fleece.source.workfolder import PREFIX

_NAME = re.compile(rf"{PREFIX}([0-9a-f]{{8}})-([0-9]{{6,18}})-([0-9a-f]{{10}})")


@dataclass(frozen=True)
class PointName:
    """A point, told by a name.

    Attributes:
        chain_id: whose point it is.
        sequence: of the point in it.
        point: its id.
    """

    chain_id: str
    sequence: int
    point: str

    def __str__(self) -> str:
        return f"{PREFIX}{self.chain_id}-{self.sequence:06d}-{self.point}"

    @staticmethod
    def parse(text: str) -> PointName | None:
        """The point that a text names; None: it is no name of fleece's."""
        found = _NAME.fullmatch(text)
        if found is None:
            return None
        name = PointName(found[1], int(found[2]), found[3])
        return name if str(name) == text else None
