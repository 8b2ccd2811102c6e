"""An example of a configuration, written from the schema: every key, its meaning, commented out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

_HEAD = """\
# Which guests fleece looks after. 'fleece config check' shows the plan, 'fleece run' does it.
# Only this file's owner and root may be able to write it.

[store.main]
place = "/backup"
keep = { last = 3, daily = 7 }

[[guest]]
name = "web1"
source = "libvirt:web1"
store = "main"

# Every other key, with an example:
"""

_TABLES = (
    ("store", "[store.NAME]"),
    ("guest", "[[guest]]"),
    ("host", "[host.NAME]"),
    ("limits", "[limits]"),
    ("drill", "[drill]"),
    ("notice", "[notice.NAME]"),
)


def commented(schema: Mapping[str, Any]) -> Iterator[str]:
    """The lines of the example.

    Args:
        schema: of the configuration.
    """
    yield from _HEAD.split("\n")
    shapes = schema["$defs"]
    for name, title in _TABLES:
        yield f"# {title}  {shapes[name]['description']}"
        for key, said in shapes[name]["properties"].items():
            yield from _key(key, said, shapes)
        yield ""


def _key(key: str, said: Mapping[str, Any], shapes: Mapping[str, Any]) -> Iterator[str]:
    shape = _shape(said, shapes)
    yield f"#   {shape['description']}"
    yield f"#   {key} = {_value(shape, shapes)}"


def _shape(said: Mapping[str, Any], shapes: Mapping[str, Any]) -> Mapping[str, Any]:
    name = said.get("$ref", "").rpartition("/")[2]
    return {**shapes[name], **said} if name else said


def _value(shape: Mapping[str, Any], shapes: Mapping[str, Any]) -> str:
    if "properties" in shape:
        inner = (
            f"{key} = {_value(_shape(said, shapes), shapes)}"
            for key, said in shape["properties"].items()
        )
        return f"{{ {', '.join(inner)} }}"
    return _toml(shape["examples"][0])


def _toml(value: Any) -> str:
    """An example, as TOML writes it in one line."""
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {_toml(each)}' for key, each in value.items())} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value)
