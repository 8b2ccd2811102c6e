"""Every error that fleece raises on purpose, one family for each exit code.

A message says what went wrong, where, and what to do. The families are what a program that embeds
fleece catches; the command line turns a family into its exit code (docs/reference/exit-codes.rst).
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the command line, one for each family of failure."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    SOURCE = 3
    POINT = 4
    STORE = 5
    VERIFY = 6
    TARGET = 7
    NOTICE = 8
    INTERRUPTED = 130


class FleeceError(Exception):
    """The base of all families.

    Args:
        what: what went wrong, in one clause.
        where: the file, socket, disk or command that it happened at.
        hint: what the user can do about it.
        busy: somebody else holds what is needed, so the same may succeed later.

    Attributes:
        fields: what machine output adds to the failed result.
    """

    code = ExitCode.INTERNAL

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        hint: str | None = None,
        busy: bool = False,
    ) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.hint = hint
        self.busy = busy
        self.fields: dict[str, object] = {}
        super().__init__(what)

    def __str__(self) -> str:
        text = self.what if self.where is None else f"{self.where}: {self.what}"
        return text if self.hint is None else f"{text}; {self.hint}"


def bug(error: Exception) -> FleeceError:
    """The error for an exception that nobody expected.

    An exception's `repr` can show more than its message: that of a text that cannot be encoded
    shows the whole text, and it may be a secret.
    """
    what = f"a bug in fleece: {type(error).__name__}({str(error)!r})"
    return FleeceError(what, hint="please report it")


class UsageError(FleeceError):
    """The request itself is wrong, whatever the state of the world."""

    code = ExitCode.USAGE


class WrongKey(UsageError):
    """A key is needed, or the one that was given is not the right one."""


class SourceError(FleeceError):
    """The source could not be reached, or it refused."""

    code = ExitCode.SOURCE


class PointError(FleeceError):
    """The point in time that was asked for is impossible, or it was lost while it was read."""

    code = ExitCode.POINT


class StoreError(FleeceError):
    """The store is damaged, full, busy, or no store."""

    code = ExitCode.STORE


class DeltaError(StoreError):
    """A delta file is damaged, incomplete or not a delta."""


class UnreadableError(DeltaError):
    """What a delta file lies on cannot read a part of it."""


class VerifyError(FleeceError):
    """Something that was compared is not the same."""

    code = ExitCode.VERIFY


class TargetError(FleeceError):
    """The target of a restore was refused or could not be written."""

    code = ExitCode.TARGET


class NoticeError(FleeceError):
    """Somebody who must know could not be told. All else was done."""

    code = ExitCode.NOTICE


class Interrupted(FleeceError):
    """The caller cancelled, or a signal did."""

    code = ExitCode.INTERRUPTED

    def __init__(self, what: str = "interrupted") -> None:
        super().__init__(what)


def family_of(code: int) -> type[FleeceError]:
    """The family of errors with an exit code, as another process of fleece's told it."""
    return next((each for each in FleeceError.__subclasses__() if each.code == code), FleeceError)
