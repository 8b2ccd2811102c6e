"""What QEMU answers, taken apart by type: nothing in it is believed to be what it should be.

QEMU's answers are shaped as its schema says. Another program behind the socket, or a QEMU with a
fault, may answer anything, and that is the source's error, not a bug of ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Self, TypeVar

from fleece.errors import SourceError

LARGEST: Final = (1 << 63) - 1
"""The largest number that QEMU has for sizes and counts (QAPI `int`)."""

_LONGEST = 1 << 16
_SHOWN = 60

T = TypeVar("T")


class BadAnswer(SourceError):
    """An answer is not what QEMU's schema promises."""


class Answer:
    """An answer of QEMU or a part of one.

    Args:
        value: as JSON has it.
        name: of the part, in messages.
        where: the monitor.
    """

    __slots__ = ("_name", "_value", "_where")

    def __init__(self, value: object, name: str, where: str) -> None:
        self._value = value
        self._name = name
        self._where = where

    def bad(self, what: str) -> SourceError:
        """The error that something is wrong with this part."""
        return BadAnswer(
            f"QEMU's answer is not valid: {self._name} {what}",
            where=self._where,
            hint="is it QEMU that listens there?",
        )

    def maybe(self, key: str) -> Self | None:
        """A member of this object; None: it has none of this name, or a null.

        Raises:
            BadAnswer: this is no object.
        """
        members: Mapping[str, object] = self._typed(dict, "an object")
        value = members.get(key)
        return None if value is None else type(self)(value, self._within(key), self._where)

    def part(self, key: str) -> Self:
        """A member that this object must have.

        Raises:
            BadAnswer: it has not.
        """
        found = self.maybe(key)
        if found is None:
            raise self.bad(f"has no {key}")
        return found

    def list(self, key: str | None = None) -> list[Self]:
        """The elements of this list, or of a member that must be one.

        Raises:
            BadAnswer: it is none.
        """
        at = self if key is None else self.part(key)
        elements: list[object] = at._typed(list, "a list")
        return [
            type(self)(element, f"{at._name}[{number}]", at._where)
            for number, element in enumerate(elements)
        ]

    def text(self, key: str | None = None) -> str:
        """This text, or a member that must be one.

        Raises:
            BadAnswer: it is none, or one that no name or path can be.
        """
        at = self if key is None else self.part(key)
        text: str = at._typed(str, "a text")
        if len(text) > _LONGEST:
            raise at.bad(f"is a text of {len(text)} characters")
        if "\0" in text or not _is_unicode(text):
            raise at.bad("is a text with characters that no name has")
        return text

    def number(self, key: str | None = None, most: int = LARGEST) -> int:
        """This number, or a member that must be one: whole, not negative, at most `most`.

        Raises:
            BadAnswer: it is none.
        """
        at = self if key is None else self.part(key)
        number: int = at._typed(int, "a number")
        if not 0 <= number <= most:
            raise at.bad("is a number that cannot be")
        return number

    def flag(self, key: str | None = None) -> bool:
        """Whether this is true, or a member that must be true or false.

        Raises:
            BadAnswer: it is neither.
        """
        at = self if key is None else self.part(key)
        flag: bool = at._typed(bool, "true or false")
        return flag

    def simple(self) -> str | int | bool:
        """This text, number (of either sign), or truth value.

        Raises:
            BadAnswer: it is none of them.
        """
        if isinstance(self._value, str):
            return self.text()
        if isinstance(self._value, bool) or (
            isinstance(self._value, int) and abs(self._value) <= LARGEST
        ):
            return self._value
        raise self.bad("is neither a text, nor a number, nor true or false")

    def by(self, key: str) -> dict[str, Self]:
        """The elements of this list by a member that is a text in each.

        Raises:
            BadAnswer: it is no such list.
        """
        return {element.text(key): element for element in self.list()}

    def _typed(self, kind: type[T], wanted: str) -> T:
        value = self._value
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.bad(f"is {_shown(value)} where {wanted} belongs")
        return value

    def _within(self, key: str) -> str:
        return f"{self._name}.{key}"


def known(found: Mapping[str, T], key: str, where: str) -> T:
    """What one answer says of a thing that another one names.

    Raises:
        BadAnswer: it says nothing of it.
    """
    if key not in found:
        raise BadAnswer(f"QEMU's answers do not fit together: {key[:_SHOWN]}", where=where)
    return found[key]


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", type(None): "null"}
    return kinds.get(type(value)) or ascii(value)[:_SHOWN]
