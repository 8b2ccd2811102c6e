"""Steps of which each is tried, whatever became of those before."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from fleece.errors import FleeceError, bug


class Attempts:
    """What failed of several steps.

    Attributes:
        failures: in order. What stops the program itself is none of them: it goes through.
    """

    def __init__(self) -> None:
        self.failures: list[Exception] = []

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """A step: its error is kept, and the next one is tried."""
        try:
            yield
        except Exception as error:
            self.failures.append(error)

    @property
    def texts(self) -> tuple[str, ...]:
        """What failed, a line each, each once."""
        return tuple(dict.fromkeys(_text(error) for error in self.failures))

    def settle(self, family: type[FleeceError]) -> None:
        """Raise what failed: the error itself if it is one of ours and the only one.

        Args:
            family: of the error that stands for several, or for what the system says.
        """
        texts = self.texts
        if not texts:
            return
        first = self.failures[0]
        if len(texts) == 1 and isinstance(first, FleeceError):
            raise first
        raise family("; moreover, ".join(texts)) from first


def _text(error: Exception) -> str:
    if isinstance(error, FleeceError):
        return str(error)
    if isinstance(error, OSError):
        place = "" if error.filename is None else f"{error.filename}: "
        return f"{place}{error.strerror or error}"
    return str(bug(error))
