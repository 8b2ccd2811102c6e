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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO, TypeAlias

from fleece import events
from fleece.errors import FleeceError
from fleece.terminal import counted, local_time, shown

if TYPE_CHECKING:
    from tqdm import tqdm


def human(count: int) -> str:
    """A number of bytes for people."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} TiB"


def span(seconds: float) -> str:
    """A length of time for people, in the largest unit that it has two of."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds:.0f} s"


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


class Output:
    """Prints events, then one result. Results and listings go to stdout, the rest to stderr.

    Args:
        machine: print JSON lines instead of text.
        spare_stdout: print all of it to stderr: stdout takes data.
    """

    def __init__(self, machine: bool, spare_stdout: bool = False) -> None:
        self.machine = machine
        self._bar: tqdm[Any] | None = None
        self._phase: tuple[str, str] | None = None
        self._stream = sys.stderr if spare_stdout else sys.stdout
        self._lost = False
        self._barless = False
        self._meters: list[Callable[[], _Usage]] = []

    @staticmethod
    def of_words(words: Sequence[str]) -> Output:
        """For a command line that is not understood, or not yet: what it may ask for."""
        return Output("--json" in words, any(f"={word}".endswith("=-") for word in words))

    @staticmethod
    def of_options(options: Mapping[str, object]) -> Output:
        """As the options of a verb ask for it."""
        takes_data = "-" in (options.get("stream"), options.get("target"))
        return Output(bool(options["machine"]), takes_data)

    def width(self) -> int | None:
        """Of the terminal that listings go to, in cells; None: they go elsewhere."""
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or None
        except OSError:
            return None

    def listen(self, event: events.Event) -> None:
        """A listener for the library's events."""
        if self.machine:
            self.emit(event.to_json())
        elif isinstance(event, events.Progress):
            self._progress(event)
        elif (text := _text(event)) is not None:
            self.say(text)

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

    def succeed(self, text: str | Iterable[str], **fields: object) -> None:
        """The last line, or lines, of a run that did what it was asked; an empty one is none."""
        self._end_bar()
        if self.machine:
            self.emit({"event": "result", "ok": True} | fields | self._cost())
        else:
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
        if self._barless or not sys.stderr.isatty():
            return
        phase = (event.phase, event.subject)
        if self._bar is None or self._phase != phase:
            try:
                from tqdm import tqdm
            except (ImportError, OSError) as error:  # no reason to end what is underway
                self._barless = True
                self.say(f"warning: no progress is shown: {error}")
                return
            self._end_bar()
            self._phase = phase
            with printing(sys.stderr):
                self._bar = tqdm(
                    total=event.total,
                    desc=shown(f"{event.phase} {event.subject}"),
                    file=sys.__stderr__,
                    unit="B",
                    unit_scale=True,
                    unit_divisor=1024,
                    leave=False,
                )
        with printing(sys.stderr):
            self._bar.update(event.done - self._bar.n)

    def _end_bar(self) -> None:
        if self._bar is not None:
            bar, self._bar = self._bar, None
            with printing(sys.stderr):
                bar.close()


def _requests(asked: _Usage) -> str:
    """A line of them."""
    kinds = ", ".join(f"{count} {kind}" for kind, (count, _, _) in asked.items())
    count, sent, received = (sum(numbers) for numbers in zip(*asked.values(), strict=True))
    return f"{counted(count, 'request')}: {kinds}; {human(sent)} sent, {human(received)} received"


def _lines(text: str | Iterable[str]) -> list[str]:
    return [shown(line) for line in ([text] if isinstance(text, str) else text)]


def _text(event: events.Event) -> str | None:
    """The line for people that an event is worth, if it is."""
    match event:
        case events.Leftover():
            return f"removed, left by an interrupted run: {event.kind} {event.item}"
        case events.DiskPlanned():
            return f"{event.disk}: {event.mode}: {event.reason}"
        case events.DiskGone():
            return f"{event.disk}: the guest no longer has it; its newest point is {event.point}"
        case events.PointTaken():
            return f"point {event.point} taken of {', '.join(event.disks)}"
        case events.Resumed():
            return (
                f"resuming point {event.point} of {local_time(event.time)}: "
                f"{human(event.done)} already stored"
            )
        case events.Streamed():
            return f"point {event.point} is written to the output"
        case events.Warned():
            return f"warning: {event.what}"
    return _text_of_store(event)


def _text_of_store(event: events.Event) -> str | None:
    match event:
        case events.DeltaChecked():
            return f"sound: point {event.point} disk {event.disk} root {event.root}"
        case events.Problem():
            return f"PROBLEM: {event.where}: {event.what}"
        case events.Merged():
            return (
                f"point {event.point} disk {event.disk} stands for {counted(event.deltas, 'delta')}"
            )
        case events.Arrived():
            return f"arrived: point {event.point} of {event.guest}, {human(event.stored_bytes)}"
        case events.Dropped():
            return f"dropped: point {event.point} of {event.guest}"
    return None
