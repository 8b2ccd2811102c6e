"""An NBD server of our own that takes writes and hands them on to this process: nbdkit."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from fleece.cancel import CancelToken
from fleece.environment import child_environment
from fleece.errors import PointError
from fleece.nbd.handover import Channel, HandOver
from fleece.nbd.nbdkit import start, wait_for, why_ended
from fleece.programs import using
from fleece.temporary import temporary_file

_PLUGIN = Path(__file__).with_name("sink_plugin.py")


class NbdSink:
    """A running sink. `end` it from any thread.

    Args:
        place: the unix socket to make.
        sizes: of its exports, in bytes. They are named `0`, `1` and so on.
        channels: requests that can be handed on at a time.

    Attributes:
        channels: take what is written; a thread for each must.

    Raises:
        UsageError: nbdkit is missing.
    """

    def __init__(self, place: Path, sizes: Sequence[int], channels: int) -> None:
        self._place = place
        with using(("nbdkit",)):
            self._hand_over = HandOver(channels)
            self._life, far = socket.socketpair()
        self.channels: Sequence[Channel] = self._hand_over.channels
        self._said = temporary_file()
        with far:
            ends = [self._hand_over.memory, *self._hand_over.far_ends, far.fileno()]
            # One thread more than channels reads the next request meanwhile.
            words = [f"--threads={channels + 1}"]
            own = child_environment(PYTHONDONTWRITEBYTECODE="1")
            self._process = start(_PLUGIN, place, words, own, self._said.fileno(), ends)
            said = {
                "path": str(_PLUGIN.parents[2]),
                "sizes": [*sizes],
                "memory": self._hand_over.memory,
                "far_ends": self._hand_over.far_ends,
                "life": far.fileno(),
            }
            _tell(self._process, said)
            self._hand_over.inherited()

    def wait(self, cancel: CancelToken) -> None:
        """Wait until it listens.

        Raises:
            PointError: it does not start.
        """
        wait_for(self._place, self.check, PointError, cancel)

    def check(self, patience: float = 0) -> None:
        """Raise if nbdkit has ended by itself.

        Args:
            patience: seconds to wait for its end. Who is connected to a process that dies hears of
                it before the process has ended.

        Raises:
            PointError: it has.
            UsageError: because it lacks its plugin.
        """
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            return
        self._said.seek(0)
        said = self._said.read(4096).decode(errors="replace")
        reason = why_ended(said, self._process.returncode)
        raise PointError(f"the sink of the push ended: {reason}", where=self._place)

    def shut(self) -> None:
        """Fail every request from now on."""
        self._hand_over.shut()

    def end(self) -> None:
        """End it at once, and what is connected to it, and its channels. Safe to repeat."""
        self.shut()
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Let go of all, when no thread uses a channel any more."""
        self.end()
        self._hand_over.close()
        self._life.close()
        self._said.close()


def _tell(process: subprocess.Popen[bytes], said: dict[str, object]) -> None:
    """Tell the plugin what it must know. If it is gone, `check` says why."""
    assert process.stdin is not None
    try:
        with process.stdin as pipe:
            pipe.write(json.dumps(said).encode())
    except BrokenPipeError:
        pass
