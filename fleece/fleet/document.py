"""The configuration as it is written: TOML files, checked against the published schema."""

from __future__ import annotations

import importlib.resources
import json
import os
import re
import stat
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleece.errors import UsageError
from fleece.likely import meant

Key = str | int
_MORE = "conf.d"
_MOST = 16 << 20
"""Bytes of one file."""


@dataclass(frozen=True)
class Document:
    """One file, whole and of the right shape.

    Attributes:
        path: of the file.
        text: what is in it.
        data: the same, as TOML means it.
    """

    path: Path
    text: str
    data: Mapping[str, Any]

    def where(self, *keys: Key) -> Place:
        """Where a key is: the innermost one on the way to it that is there."""
        return Place(self, keys)


@dataclass(frozen=True)
class Place:
    """A place in a file. As a text it is the file and the line, which is looked for only then."""

    document: Document
    keys: tuple[Key, ...]

    def __str__(self) -> str:
        return f"{self.document.path}:{line_of(self.document.text, self.keys)}"


def schema() -> dict[str, Any]:
    """The schema that each file is checked against, which editors know how to use."""
    text = importlib.resources.files("fleece.fleet").joinpath("schema.json").read_text("utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def read(path: Path) -> list[Document]:
    """A configuration: the file, then those named `*.toml` in the folder `conf.d` beside it.

    Raises:
        UsageError: one cannot be read, is no TOML, or says what the schema does not know; or
            others than its owner and root could write it.
    """
    more = path.parent / _MORE
    try:
        others = sorted(each for each in more.iterdir() if each.suffix == ".toml")
    except (FileNotFoundError, NotADirectoryError):
        others = []
    except OSError as error:
        raise UsageError(f"cannot be read ({error.strerror})", where=more) from error
    return [_read(each) for each in (path, *others)]


def _read(path: Path) -> Document:
    text = _text(path)
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.fullmatch(r"(.*) \(at line ([0-9]+), column [0-9]+\)", str(error))
        what, line = (found[1], found[2]) if found else (str(error), str(text.count("\n") + 1))
        raise UsageError(f"is no TOML: {what}", where=f"{path}:{line}") from error
    document = Document(path, text, data)
    faults = [(line_of(text, fault.keys), fault) for fault in _faults(data)]
    for line, fault in sorted(faults, key=lambda pair: pair[0]):
        raise UsageError(fault.what, where=f"{path}:{line}", hint=fault.hint)
    return document


def _text(path: Path) -> str:
    """What is in a file that its owner and root alone could have written."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise UsageError("is no regular file", where=path)
            if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
                raise UsageError(
                    "could be written by somebody else, and says what is run here",
                    where=path,
                    hint="make it yours, and 'chmod go-w' it",
                )
            data = file.read(_MOST + 1)
    except OSError as error:
        raise UsageError(f"cannot be read ({error.strerror})", where=path) from error
    if len(data) > _MOST:
        raise UsageError(f"is longer than {_MOST} bytes", where=path)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError("is not UTF-8, as TOML must be", where=f"{path}:{line}") from error


@dataclass(frozen=True)
class _Fault:
    keys: tuple[Key, ...]
    what: str
    hint: str | None = None


_KINDS = {
    "string": "a text",
    "integer": "a whole number",
    "object": "a table",
    "array": "a list",
    "boolean": "true or false",
}


def _faults(data: Mapping[str, Any]) -> Iterator[_Fault]:
    """What is not as the schema says."""
    try:
        from jsonschema import Draft202012Validator
    except ImportError as error:
        raise UsageError(
            "a configuration is checked with the Python package jsonschema, which is missing",
            hint="install python3-jsonschema, or 'pip install fleece-backup[fleet]'",
        ) from error
    for found in Draft202012Validator(schema()).iter_errors(data):
        keys = tuple(found.absolute_path)
        if found.validator == "additionalProperties":
            known = found.schema["properties"]
            for key in found.instance.keys() - known.keys():
                yield _Fault((*keys, key), f"there is no key '{key}' here", _meant(key, [*known]))
        elif found.validator == "required":
            missing = [key for key in found.validator_value if key not in found.instance]
            yield _Fault(keys, f"'{missing[0]}' is missing")
        else:
            yield _Fault(keys, f"{_named(keys)} {_expected(found)}")


def _expected(error: Any) -> str:
    rule, value = error.validator, error.validator_value
    if rule == "type":
        return f"must be {_KINDS[value]}"
    if rule == "enum":
        return f"must be one of: {', '.join(value)}"
    if rule in ("minimum", "maximum"):
        return f"must be {value} or {'more' if rule == 'minimum' else 'less'}"
    if rule == "uniqueItems":
        return "names something twice"
    if rule in ("minLength", "minItems", "minProperties"):
        return "is empty" if value == 1 else "is too short"
    examples = error.schema.get("examples", ())
    return f"must be written like {' or '.join(map(repr, examples))}, and is {error.instance!r}"


def _named(keys: Sequence[Key]) -> str:
    """What a value is called: the key that has it, and which one of a list."""
    *_, last = keys or ("the file",)
    if isinstance(last, int):
        return f"item {last + 1} of '{keys[-2]}'" if len(keys) > 1 else f"item {last + 1}"
    return f"'{last}'" if keys else last


def _meant(word: str, known: Sequence[str]) -> str:
    near = meant(word, known)
    return f"known are: {', '.join(sorted(known))}" if near is None else f"did you mean '{near}'?"


def unknown(word: str, known: Sequence[str]) -> str:
    """The advice about a name that is not among those that are known."""
    return _meant(word, known) if known else "there is none in this file"


def line_of(text: str, keys: Sequence[Key]) -> int:
    """The line of a key in a text that is TOML; of a key that is not there, that of its table.

    The beginnings of the text that are TOML tell it: the key is in the line after the longest one
    that lacks it.
    """
    lines = text.split("\n")

    def begun(end: int) -> tuple[int, Mapping[str, Any]]:
        """The longest beginning of at most so many lines that is TOML."""
        while end:
            try:
                return end, tomllib.loads("\n".join(lines[:end]))
            except tomllib.TOMLDecodeError:
                end -= 1
        return 0, {}

    whole = tomllib.loads(text)
    while keys and not _holds(whole, keys):
        keys = keys[:-1]
    if not keys:
        return 1
    lacking, holding = 0, len(lines)
    while holding - lacking > 1:
        middle = (lacking + holding) // 2
        end, data = begun(middle)
        if _holds(data, keys):
            holding = end
        else:
            lacking = middle
    return begun(lacking)[0] + 1


def _holds(data: Any, keys: Sequence[Key]) -> bool:
    for key in keys:
        if isinstance(key, int):
            if not isinstance(data, list) or len(data) <= key:
                return False
        elif not isinstance(data, dict) or key not in data:
            return False
        data = data[key]
    return True
