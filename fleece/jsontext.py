"""JSON of a stranger's, whose depth is bounded."""

from __future__ import annotations

import json
import re

_DEEPEST = 16
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
_BRACKET = re.compile(rb"[\[\]{}]")


def loads(text: bytes) -> object:
    """What a text says: the parser recurses, and the stack of C has no safe end.

    Raises:
        ValueError: it is no JSON, or is nested too deep.
    """
    if text.count(b"[") + text.count(b"{") <= _DEEPEST:
        return json.loads(text)
    depth = 0
    for bracket in _BRACKET.finditer(_STRING.sub(b"", text)):
        depth += 1 if bracket.group() in b"[{" else -1
        if depth > _DEEPEST:
            raise ValueError(f"it is nested more than {_DEEPEST} deep")
    return json.loads(text)
