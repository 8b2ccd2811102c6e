"""What is closed when its context ends."""

from __future__ import annotations

from typing import Self


class Closing:
    """A base for what has a `close` and is used as a context manager."""

    def close(self) -> None:
        """Let go of what it holds."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
