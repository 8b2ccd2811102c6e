"""A program that answers: asked one thing at a time, and ended with all that it has started.

A provider, or what leads to a fleece on another host (`fleece.source.far`).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import subprocess
import time
from collections.abc import Collection, Mapping

from fleece.cancel import CancelToken
from fleece.closing import Closing
from fleece.environment import child_environment
from fleece.errors import SourceError
from fleece.jsontext import loads
from fleece.programs import kill_group, using
from fleece.source.provider.answers import Said
from fleece.source.provider.pipes import Closed, Errors, Lines, Overdue, TooLong
from fleece.source.provider.text import Command
from fleece.source.provider.words import ENDING, LIMITS, LONGEST
from fleece.temporary import temporary_folder

_TICK = 200
"""Milliseconds."""
_END_LIMIT = 30.0
"""Seconds that a program has to end once its standard input has ended."""
_INTERRUPTED_LIMIT = 15.0
"""Seconds that it has for anything once the run is interrupted."""
_KILL_LIMIT = 10.0


class Refused(SourceError):
    """The provider answered that it cannot do what it was asked to do."""


class Program(Closing):
    """A program that was started, in a session of its own, and speaks by lines.

    Its temporary files are in a folder that is removed when it is closed, or by a later run.

    Args:
        command: how it is started.
        cancel: of the run: it ends every wait, but those for what ends a point soon.
        limits: seconds that it has for each thing that it can be asked to do.
        ending: what is asked although the run is interrupted.

    Raises:
        UsageError: it cannot be run.
    """

    def __init__(
        self,
        command: Command,
        cancel: CancelToken,
        limits: Mapping[str, float] = LIMITS,
        ending: Collection[str] = ENDING,
    ) -> None:
        self.name = command.name
        self.limits = limits
        self._ending = ending
        self._noun = command.noun
        self._cancel = cancel
        self._numbers = itertools.count(1)
        self._over: SourceError | None = None
        with contextlib.ExitStack() as stack:
            place = stack.enter_context(temporary_folder())
            stack.enter_context(using(command.words))
            self._process = subprocess.Popen(
                command.words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=child_environment(**command.environment, TMPDIR=str(place)),
                start_new_session=True,  # Ctrl-C is for this process
                bufsize=0,
            )
            self._left = stack.pop_all()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._pid = os.pidfd_open(self._process.pid)
        self._pipes = self._process.stdin, self._process.stdout
        self._lines = Lines(self._pipes[0].fileno(), self._pipes[1].fileno(), LONGEST)
        self._errors = Errors(os.dup(self._process.stderr.fileno()))
        self._process.stderr.close()
        self._open = True

    def ask(self, word: str, **more: object) -> Said:
        """Ask it to do something, and wait until it has.

        Raises:
            Refused: it says that it cannot.
            SourceError: it has ended, takes too long, or what it says is no answer; it is ended.
            Interrupted: the run is, and this is nothing that must still be done.
        """
        if self._over is not None:
            raise self._over
        if self._lines.unasked:
            raise self._unasked()
        number = next(self._numbers)
        line = json.dumps({"id": number, "do": word, **more}).encode()
        try:
            said = self._exchanged(line, word)
        except Overdue:
            raise self._failed(f"did not answer '{word}' in time") from None
        except Closed:
            raise self._failed(f"ended before it answered '{word}'") from None
        except TooLong:
            what = f"answered '{word}' by a line of more than {LONGEST} bytes"
            raise self._failed(what) from None
        except (ValueError, RecursionError):
            raise self._failed(f"answered '{word}' by what is no JSON") from None
        except BaseException:
            self._over = SourceError(f"{self._noun} was interrupted", where=self.name)
            raise
        return self._answer(Said(said, f"the answer to '{word}'", self.name), number)

    def _exchanged(self, line: bytes, word: str) -> object:
        def patience(begun: float) -> bool:
            limit = self.limits[word]
            if self._cancel.cancelled:
                if word not in self._ending:
                    self._cancel.check()
                limit = min(limit, _INTERRUPTED_LIMIT)
            return time.monotonic() - begun < limit

        self._lines.write(line, patience)
        return loads(self._lines.read(patience))

    def _unasked(self) -> SourceError:
        if self.lives:
            return self._failed("said something that it was not asked")
        return self._failed("ended by itself")

    def _answer(self, said: Said, number: int) -> Said:
        """The answer, if it is one to this."""
        try:
            if said.number("id") != number:
                raise said.bad("is not to what was asked last")
            error = said.maybe("error")
            if error is None:
                return said
            what, hint = error.line("what"), error.maybe("hint")
            told = Refused(what, where=self.name, hint=None if hint is None else hint.line())
        except SourceError as error:
            raise self.lied(error) from error
        raise told

    def lied(self, error: SourceError) -> SourceError:
        """End it because of what it said; gives the error to raise."""
        self.close()
        self._over = error
        return error

    def _failed(self, what: str) -> SourceError:
        """End it, and give the error that says why, with the last that it said itself."""
        self.close()
        code = self._process.returncode
        if code is not None and what.startswith("ended"):
            how = f"was killed by signal {-code}" if code < 0 else f"exit code {code}"
            what = f"{what} ({how})"
        said = self.said()
        told = f": {said[-1]}" if said else ""
        self._over = SourceError(f"{self._noun} {what}{told}", where=self.name)
        return self._over

    def said(self) -> tuple[str, ...]:
        """What it has said on its standard error since this was last asked, a line each."""
        return self._errors.taken()

    @property
    def lives(self) -> bool:
        """It has not ended."""
        return self._open and not self._waited()

    @property
    def pid(self) -> int:
        """Its process id, which is that of its session too."""
        return self._process.pid

    def finish(self) -> bool:
        """End its standard input, which tells it to end, and wait; gives whether it has ended."""
        self._over = self._over or SourceError(f"{self._noun} was ended", where=self.name)
        self._pipes[0].close()
        end, out = time.monotonic() + _END_LIMIT, self._pipes[1].fileno()
        poll = select.poll()
        poll.register(self._pid, select.POLLIN)
        poll.register(out, select.POLLIN)
        while not self._waited() and time.monotonic() < end:
            if self._cancel.cancelled:
                end = min(end, time.monotonic() + _INTERRUPTED_LIMIT)
            if out in dict(poll.poll(_TICK)) and not self._lines.skip():
                poll.unregister(out)
        return self._waited()

    def close(self) -> None:
        """End it, and kill what is left of it then. Safe to repeat."""
        if not self._open:
            return
        self.finish()
        self._open = False
        # It is not waited for yet, so that no other process can have its number.
        kill_group(self._process)
        with contextlib.suppress(subprocess.TimeoutExpired):  # its storage hangs
            self._process.wait(_KILL_LIMIT)
        self._pipes[1].close()
        os.close(self._pid)
        self._left.close()
        self._errors.wait(1)

    def _waited(self) -> bool:
        """Whether it has ended."""
        poll = select.poll()
        poll.register(self._pid, select.POLLIN)
        return bool(poll.poll(0))
