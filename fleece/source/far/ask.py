"""Ask a fleece on another host, and raise what it says went wrong there as if it were here."""

from __future__ import annotations

from fleece.cancel import CancelToken
from fleece.closing import Closing
from fleece.errors import SourceError
from fleece.source.far.line import Line
from fleece.source.far.messages import ENDING, LIMITS, PROTOCOL, Failure, Greeting, Heard
from fleece.source.provider.program import Program


class Asker(Closing):
    """A fleece elsewhere that answers.

    Args:
        line: that leads there.
        where: the source, for messages.
        host: of it, for messages.
        cancel: of the run.

    Attributes:
        greeting: what it said first.

    Raises:
        UsageError: ssh cannot be run, or the source is refused there.
        SourceError: nobody answers there, or not as a fleece does.
    """

    def __init__(self, line: Line, where: str, host: str, cancel: CancelToken) -> None:
        self._host = host
        self._program = Program(line.command(where), cancel, LIMITS, ENDING)
        try:
            self.greeting = self.ask("hello", protocol=PROTOCOL).as_a(Greeting)
        except BaseException as error:
            lived = self._program.lives
            self.close()
            if isinstance(error, SourceError) and not lived and error.hint is None:
                error.hint = (
                    "try the same with ssh itself; fleece must be installed on both hosts, in "
                    "versions that know 'serve-source'"
                )
            raise

    def ask(self, word: str, **more: object) -> Heard:
        """Ask for something, and wait for the answer.

        Raises:
            FleeceError: of the family that it was there.
            SourceError: the other side is gone.
        """
        said = Heard.of(self._program.ask(word, **more))
        failed = said.maybe("failed")
        if failed is not None:
            raise failed.as_a(Failure).error(self._host)
        return said.member("result")

    @property
    def lives(self) -> bool:
        """It has not ended."""
        return self._program.lives

    def close(self) -> None:
        """Let it end. Safe to repeat."""
        self._program.close()
