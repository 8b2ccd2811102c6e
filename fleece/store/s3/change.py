"""One change of a guest's points: a small object that is made once, under the next free number.

A point is what the last change that names it says it is. So a change is seen at once or not at all,
and of two that were made up from the same state one alone can be put.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

_FORMAT = {"format": "fleece change", "version": 1}
LONGEST = 1 << 20
"""Bytes of one."""


@dataclass(frozen=True)
class Change:
    """A change.

    Attributes:
        point: name of the point that it is about; empty: it only takes its number, so that whoever
            made another up from the state before gives up.
        objects: keys of the point's deltas, below the store's prefix, by their names in the point;
            empty: the point is dropped.
        nonce: no other change has it.
        by: who made it, for messages.
    """

    point: str = ""
    objects: Mapping[str, str] = field(default_factory=dict)
    nonce: str = field(default_factory=lambda: secrets.token_hex(16))
    by: str = field(
        default_factory=lambda: f"process {os.getpid()} on {socket.gethostname()}", compare=False
    )

    def to_bytes(self) -> bytes:
        """As it is stored."""
        said = {
            **_FORMAT,
            "nonce": self.nonce,
            "by": self.by,
            "point": self.point,
            "objects": {**self.objects},
        }
        return json.dumps(said).encode() + b"\n"

    @staticmethod
    def parse(raw: bytes) -> Change:
        """One that was stored.

        Raises:
            ValueError: it is none.
        """
        said = json.loads(raw)
        if not isinstance(said, dict) or not _FORMAT.items() <= said.items():
            raise ValueError("not a change of version 1")
        point, objects = said.get("point"), said.get("objects")
        texts = [point, said.get("nonce"), said.get("by")]
        if not isinstance(objects, dict) or not all(isinstance(text, str) for text in texts):
            raise ValueError("something is missing in it")
        for name, key in objects.items():
            if not isinstance(key, str) or "/" in name or not name or not key:
                raise ValueError("it names an object that cannot be")
        if "/" in said["point"]:
            raise ValueError("it names a point that cannot be")
        return Change(said["point"], objects, said["nonce"], said["by"])
