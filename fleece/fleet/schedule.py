"""Put a configuration's service and timer where systemd finds them, and take them away."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fleece.cancel import CancelToken
from fleece.errors import TargetError, UsageError
from fleece.fleet.units import MADE
from fleece.folder import Folder
from fleece.programs import finished_whole, program

_RUNS = Path("/run/systemd/system")
_READABLE = 0o644
_MOST = 1 << 16


class Units:
    """Where units are.

    Args:
        root: of another system, like an image that is being made; None: this one, which is told.
        cancel: of the run.

    Attributes:
        place: the folder of the units.
    """

    def __init__(self, root: Path | None, cancel: CancelToken) -> None:
        self._root, self._cancel = root, cancel
        self.place = Path(root or "/") / "etc/systemd/system"

    def install(self, texts: Mapping[str, str]) -> None:
        """Write units, and have their timers run.

        Args:
            texts: of the units, by their names.

        Raises:
            UsageError: systemd does not run here, or refuses a unit.
            TargetError: they cannot be written, or somebody else's are there.
        """
        self._need()
        with _writing(self.place):
            self.place.mkdir(parents=True, exist_ok=True)
            with Folder.open(self.place) as folder:
                for name in texts:
                    _refuse_foreign(folder, name)
                for name, text in texts.items():
                    folder.put(name, text.encode(), _READABLE)
        timers = [name for name in texts if name.endswith(".timer")]
        self._tell("daemon-reload")
        self._control("enable", *timers)
        self._tell("start", *timers)

    def remove(self, names: Sequence[str]) -> list[str]:
        """Stop units and remove them; gives the names of those that were there.

        Raises:
            UsageError: systemd does not run here.
            TargetError: they cannot be removed, or are somebody else's.
        """
        self._need()
        if not self.place.is_dir():
            return []
        with _writing(self.place), Folder.open(self.place) as folder:
            there = [name for name in names if folder.has(name)]
            for name in there:
                _refuse_foreign(folder, name)
            timers = [name for name in there if name.endswith(".timer")]
            if timers:
                self._tell("stop", *timers)
                self._control("disable", *timers)
            for name in there:
                folder.remove(name)
        self._tell("daemon-reload")
        return there

    def _need(self) -> None:
        if self._root is None and not _RUNS.is_dir():
            raise UsageError(
                "systemd does not run here",
                hint="'fleece schedule show --cron' prints a line for cron; --root DIR is for "
                "another system",
            )

    def _tell(self, *words: str) -> None:
        """Tell the systemd that runs here; that of another root is told when it starts."""
        if self._root is None:
            self._control(*words)

    def _control(self, *words: str) -> None:
        root = () if self._root is None else (f"--root={self._root}",)
        command = [program("systemctl", "systemd"), *root, *words]
        done = finished_whole(command, self._cancel)
        if done.code != 0:
            raise UsageError(f"systemctl {words[0]} failed: {done.said}", where=self.place)


def check_calendar(calendar: str, cancel: CancelToken) -> None:
    """Raise `UsageError` if systemd does not know a time."""
    command = [program("systemd-analyze", "systemd"), "calendar", "--", calendar]
    if finished_whole(command, cancel).code != 0:
        raise UsageError(
            f"{calendar} is no time that systemd knows", hint="see systemd.time(7); like 02:15"
        )


@contextlib.contextmanager
def _writing(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TargetError(
            f"cannot be changed ({error.strerror})", where=error.filename or place
        ) from error


def _refuse_foreign(folder: Folder, name: str) -> None:
    """Refuse to touch a unit that somebody else has written."""
    with contextlib.suppress(FileNotFoundError):
        if not folder.read(name, _MOST).startswith(MADE.encode()):
            raise TargetError(
                "is not of fleece's making", where=folder.path / name, hint="move it away first"
            )
