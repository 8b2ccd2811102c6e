"""The way to a fleece on another host: a connection of ssh, and sockets that lead through it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fleece.cancel import CancelToken
from fleece.errors import SourceError, UsageError
from fleece.programs import Overdue, finished
from fleece.source.provider.text import Command
from fleece.terminal import shown

_FORWARD_LIMIT = 60.0
_OPTIONS = (
    "BatchMode=yes",
    "ServerAliveInterval=15",  # a cut line ends the program here after three of them
    "ControlMaster=yes",
    "ControlPersist=no",
)


@dataclass(frozen=True)
class Place:
    """Where a source is served.

    Attributes:
        host: its name, for messages.
        shell: how ssh is called, with the options that lead there.
        login: the word of ssh's that names host and user.
        words: the command line there.
    """

    host: str
    shell: tuple[str, ...]
    login: str
    words: str


class Line:
    """A connection that the program of `command` holds: it ends with that.

    Args:
        place: where it leads.
        folder: for its sockets, this user's alone.
    """

    def __init__(self, place: Place, folder: Path) -> None:
        self._place = place
        self._folder = folder
        self._control = str(folder / "ssh")
        if ":" in self._control:  # which ssh takes for the end of a path
            raise UsageError(
                "the path of the temporary folder has a colon", where=folder, hint="set TMPDIR"
            )

    def command(self, where: str) -> Command:
        """What leads there, and runs the fleece that serves."""
        control = self._control.replace("%", "%%")
        options = [f"-o{option}" for option in (f"ControlPath={control}", *_OPTIONS)]
        place = self._place
        words = (*place.shell, *options, "-T", "--", place.login, place.words)
        return Command(where, words, noun=f"the fleece on {shown(place.host)}")

    def led(self, sockets: Sequence[str], cancel: CancelToken) -> list[Path]:
        """Sockets here that lead to sockets there.

        Raises:
            SourceError: ssh makes none.
        """
        made = [self._folder / f"{number}.sock" for number in range(len(sockets))]
        words = []
        for here, there in zip(made, sockets, strict=True):
            here.unlink(missing_ok=True)
            words += ["-L", f"{here}:{there}"]
        self._ask("forward", words, cancel)
        return made

    def let_go(self, sockets: Sequence[str], made: Sequence[Path], cancel: CancelToken) -> None:
        """Lead there no more.

        Raises:
            SourceError: ssh does not.
        """
        pairs = zip(made, sockets, strict=True)
        self._ask("cancel", [w for pair in pairs for w in ("-L", f"{pair[0]}:{pair[1]}")], cancel)

    def _ask(self, order: str, more: Sequence[str], cancel: CancelToken) -> None:
        place = self._place
        control = self._control.replace("%", "%%")
        words = [*place.shell, "-S", control, "-O", order, *more, "--", place.login]
        try:
            done = finished(words, cancel, limit=_FORWARD_LIMIT)
        except Overdue:
            raise SourceError("ssh does not answer", where=place.host) from None
        if done.code != 0:
            raise SourceError(
                f"ssh cannot lead to a socket there: {shown(done.said)[-500:]}",
                where=place.host,
                hint="sshd must allow it (AllowStreamLocalForwarding)",
            )
