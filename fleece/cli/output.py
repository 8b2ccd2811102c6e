"""What the command line prints: lines for people, or one JSON object a line.

All of it goes through here, so that no name of a guest, a store or a source reaches a terminal as
something that it obeys. JSON escapes by itself.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import TextIO, TypeAlias

from fleece import events
from fleece.cli.bar import Bar, named
from fleece.cli.journal import Journal, Priority
from fleece.cli.telling import text_of
from fleece.errors import FleeceError
from fleece.terminal import counted, human, shown, span

_PROGRESS_EVERY = 1.0
"""Seconds between two lines of progress for a program, at least."""

_TROUBLE = (events.Warned, events.Problem, events.DiskGone)
"""What people are told however quiet it shall be."""

_STEPS = (events.DeltaChecked, events.Merged, events.Dropped)
"""What only those are told who want to hear of each."""

_Usage: TypeAlias = Mapping[str, tuple[int, int, int]]
"""Count, bytes sent and bytes received of requests, by kind."""


class OutputError(FleeceError):
    """Standard output or standard error takes no more.

    Attributes:
        unread: because nobody reads it any more.
    """

    def __init__(self, stream: TextIO, error: OSError) -> None:
        name = "error" if stream is sys.stderr else "output"
        self.unread = isinstance(error, BrokenPipeError)
        super().__init__(
            f"standard {name} takes no more ({error.strerror})",
            hint="the run ended there; make room where it goes to",
        )


@contextlib.contextmanager
def printing(stream: TextIO) -> Iterator[None]:
    """A context in which something is printed; it is out afterwards.

    Raises:
        OutputError: it cannot be.
    """
    try:
        try:
            yield
        finally:
            stream.flush()
    except OSError as error:
        failed = OutputError(stream, error)
        _let_go(stream)
        raise failed from error


def _let_go(stream: TextIO) -> None:
    """Have all else that a stream is given vanish: Python tries once more when it ends, aloud."""
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


class ShownStream(io.TextIOWrapper):
    """A stream for what others print than `Output`: what a terminal would obey is escaped.

    Libraries log and warn on standard error, and Python prints the errors of threads there.

    Args:
        stream: what it stands for. It is kept: a stream that nobody holds closes what is below.
    """

    def __init__(self, stream: io.TextIOWrapper) -> None:
        super().__init__(stream.buffer, stream.encoding, "backslashreplace", line_buffering=True)
        self._stream = stream

    def write(self, text: str) -> int:
        """Write lines."""
        super().write("\n".join(map(shown, text.split("\n"))))
        return len(text)


class Tone(Enum):
    """How much people are told.

    Attributes:
        QUIET: what they asked for, and trouble.
        USUAL: what is done, and what came of it.
        VERBOSE: each step, too.
    """

    QUIET = -1
    USUAL = 0
    VERBOSE = 1


class Seldom:
    """Lets one thing through in so many seconds.

    Args:
        seconds: between two of them, at least.
        clock: seconds, of no matter which moment.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._last: float | None = None

    def now(self) -> bool:
        """Whether this one goes through."""
        now = self._clock()
        if self._last is not None and now - self._last < self._seconds:
            return False
        self._last = now
        return True


class Output:
    """Prints events, then one result. Results and listings go to stdout, the rest to stderr.

    Args:
        machine: print JSON lines instead of text.
        spare_stdout: print all of it to stderr: stdout takes data.
        tone: how much people are told.
    """

    def __init__(self, machine: bool, spare_stdout: bool = False, tone: Tone = Tone.USUAL) -> None:
        self.machine = machine
        self._tone = tone
        self._bar: Bar | None = None
        self._stream = sys.stderr if spare_stdout else sys.stdout
        self._lost = False
        self._barless = machine or tone is Tone.QUIET or not Bar.wanted()
        self._meters: list[Callable[[], _Usage]] = []
        self._begun = time.monotonic()
        self._seldom = Seldom(_PROGRESS_EVERY)
        self._phase: tuple[events.Progress, float] | None = None

    @staticmethod
    def of_words(words: Sequence[str]) -> Output:
        """For a command line that is not understood, or not yet: what it may ask for."""
        return Output("--json" in words, any(f"={word}".endswith("=-") for word in words))

    @staticmethod
    def of_options(options: Mapping[str, object]) -> Output:
        """As the options of a verb ask for it."""
        takes_data = "-" in (options.get("stream"), options.get("target"))
        tone = Tone(bool(options.get("verbose")) - bool(options.get("quiet")))
        return Output(bool(options["machine"]), takes_data, tone)

    def width(self) -> int | None:
        """Of the terminal that listings go to, in cells; None: they go elsewhere."""
        size = self.size()
        return None if size is None else size.columns or None

    def size(self) -> os.terminal_size | None:
        """Of the terminal that listings go to; None: they go elsewhere."""
        try:
            return os.get_terminal_size(self._stream.fileno())
        except OSError:
            return None

    def listen(self, event: events.Event) -> None:
        """A listener for the library's events."""
        if isinstance(event, events.Progress):
            self._progress(event)
        elif self.machine:
            self.emit(event.to_json())
        elif self._is_told(event) and (text := text_of(event)) is not None:
            self.say(text)

    def listen_of(self, guest: str, event: events.Event) -> None:
        """A listener for one of several guests: people hear of trouble, or of all they ask for."""
        if isinstance(event, events.Progress):
            return
        if self.machine:
            self.emit(event.to_json() | {"guest": guest})
            return
        wanted = self._tone is Tone.VERBOSE or isinstance(event, _TROUBLE)
        if wanted and (text := text_of(event)) is not None:
            matters = Priority.WARNING if isinstance(event, _TROUBLE) else Priority.TOLD
            self.note(f"{guest}: {text}", matters, FLEECE_GUEST=guest)

    def _is_told(self, event: events.Event) -> bool:
        if self._tone is Tone.QUIET:
            return isinstance(event, _TROUBLE)
        return self._tone is Tone.VERBOSE or not isinstance(event, _STEPS)

    def emit(self, data: dict[str, object]) -> None:
        """One JSON line."""
        self._print([json.dumps(data)], self._stream)

    def row(self, event: str, text: str | Iterable[str], **fields: object) -> None:
        """One line of a listing, or some that belong together."""
        if self.machine:
            self.emit({"event": event} | fields)
        else:
            self._print(_lines(text), self._stream)

    def listing(self, lines: Iterable[str]) -> None:
        """The lines of a table, for people."""
        self._print(_lines(lines), self._stream)

    def drawn(self, line: str) -> None:
        """One line of a picture, as it is: its colours are escape codes."""
        self._print([line], self._stream)

    def say(self, text: str) -> None:
        """One line for people, beside the results."""
        self._end_bar()
        self._print([shown(text)], sys.stderr)

    @property
    def in_journal(self) -> bool:
        """Whether what is said for people goes to systemd's journal, which takes fields."""
        return not self.machine and Journal.behind(sys.stderr) is not None

    def note(self, text: str, priority: Priority, **fields: object) -> None:
        """One line for people, beside the results; in systemd's journal, with fields.

        Args:
            text: the line.
            priority: how much it matters; who wants quiet hears of trouble alone.
            fields: by names of capitals.
        """
        if self._tone is Tone.QUIET and priority > Priority.WARNING:
            return
        journal = Journal.behind(sys.stderr)
        if journal is None or not journal.tell(shown(text), priority, **fields):
            self.say(text)

    def charge(self, meter: Callable[[], _Usage]) -> None:
        """Tell in the end what was asked of a store, if that is counted.

        Args:
            meter: gives it.
        """
        self._meters.append(meter)

    def _asked(self) -> _Usage:
        """Of all stores."""
        total: dict[str, tuple[int, int, int]] = {}
        for meter in self._meters:
            for kind, (count, sent, received) in meter().items():
                known = total.get(kind, (0, 0, 0))
                total[kind] = known[0] + count, known[1] + sent, known[2] + received
        return total

    def _cost(self) -> dict[str, object]:
        """The same as a field of a result; none, if nobody counts."""
        kinds = {
            kind: {"count": count, "sent_bytes": sent, "received_bytes": received}
            for kind, (count, sent, received) in self._asked().items()
        }
        return {"requests": kinds} if kinds else {}

    def work(self, what: str, count: int) -> str:
        """How long the run took by now, and how fast it was, for people.

        Args:
            what: was done, like `read 1.2 GiB, stored 300.0 MiB`.
            count: bytes that the rate is of.
        """
        seconds = time.monotonic() - self._begun
        took = f"{what}, took {span(seconds) if seconds >= 10 else f'{seconds:.1f} s'}"
        return f"{took}, {human(round(count / seconds))}/s" if count else took

    def answer(self, text: str | Iterable[str]) -> None:
        """What was asked for, for people: quiet or not. A program has it in the result."""
        if not self.machine:
            self._end_bar()
            self._print(_lines(text), self._stream)

    def succeed(self, text: str | Iterable[str], **fields: object) -> None:
        """The last line, or lines, of a run that did what it was asked; an empty one is none."""
        self._end_bar()
        self._end_phase()
        if self.machine:
            took = {"seconds": round(time.monotonic() - self._begun, 3)}
            self.emit({"event": "result", "ok": True} | took | fields | self._cost())
        elif self._tone is not Tone.QUIET:
            if asked := self._asked():
                self.say(_requests(asked))
            self._print(_lines(text) if text else [], self._stream)

    def fail(self, error: FleeceError, **fields: object) -> None:
        """The last line of a run that did not; on stderr if stdout takes no more."""
        if isinstance(error, OutputError) and error.unread:
            return
        result = {"event": "result", "ok": False, "error": str(error), "exit_code": int(error.code)}
        with contextlib.suppress(OutputError):
            self._end_bar()
        with contextlib.suppress(OutputError):
            if self.machine and not self._lost:
                self.emit(result | fields | self._cost())
                return
        with contextlib.suppress(OutputError):
            self._print([shown(f"fleece: {error}")], sys.stderr)

    def _print(self, lines: Iterable[str], stream: TextIO) -> None:
        try:
            with printing(stream):
                for line in lines:
                    print(line, file=stream)
        except OutputError:
            self._lost = True
            raise

    def _progress(self, event: events.Progress) -> None:
        if self.machine:
            if self._seldom.now():
                self.emit(event.to_json())
            return
        if self._tone is Tone.VERBOSE:
            self._follow(event)
        if self._barless:
            return
        try:
            self._bar = self._bar or Bar()
        except (ImportError, OSError) as error:  # no reason to end what is underway
            self._barless = True
            self.say(f"warning: no progress is shown: {error}")
            return
        with printing(sys.stderr):
            self._bar.show(event)

    def _follow(self, event: events.Progress) -> None:
        """Keep what a phase came to; tell of the one before."""
        if self._phase is None or named(self._phase[0]) != named(event):
            self._end_phase()
            self._phase = event, time.monotonic()
        self._phase = event, self._phase[1]

    def _end_phase(self) -> None:
        if self._phase is not None:
            (last, begun), self._phase = self._phase, None
            took = span(time.monotonic() - begun)
            self.say(f"{named(last)}: {human(last.done - last.known)} in {took}")

    def _end_bar(self) -> None:
        if self._bar is not None:
            with printing(sys.stderr):
                self._bar.end()


def _requests(asked: _Usage) -> str:
    """A line of them."""
    kinds = ", ".join(f"{count} {kind}" for kind, (count, _, _) in asked.items())
    count, sent, received = (sum(numbers) for numbers in zip(*asked.values(), strict=True))
    return f"{counted(count, 'request')}: {kinds}; {human(sent)} sent, {human(received)} received"


def _lines(text: str | Iterable[str]) -> list[str]:
    return [shown(line) for line in ([text] if isinstance(text, str) else text)]
