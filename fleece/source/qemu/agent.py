"""The guest's agent (qemu-ga): hold the guest's file systems still for the moment of a point.

The client is our own: the agent does not greet, and answers that a dead client did not wait for
come first. Both would end a connection of `qemu.qmp`; here `guest-sync-delimited` skips them.
What the agent says comes from the guest, so nothing of it is believed beyond its shape and length.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from fleece.cancel import CancelToken
from fleece.errors import Interrupted, PointError, SourceError
from fleece.reach import connected, obstacle
from fleece.source.freeze import Freeze
from fleece.source.workfolder import Note
from fleece.terminal import shown

T = TypeVar("T")

_MARK = b"\xff"
_LONGEST_LINE = 1 << 16
_LONGEST_REASON = 200
_PAUSE = 0.2
_NOTED_LIMIT = 3.0
_TICK = 0.2
_INTERRUPTED_LIMIT = 15.0
"""Seconds to go on trying to thaw once the run is interrupted; as long as QEMU has then."""


class AgentError(SourceError):
    """The agent cannot be reached, or it does not answer."""


class AgentRefused(AgentError):
    """The agent answered a command with an error."""


@dataclass(frozen=True)
class GuestAgent:
    """A guest's agent, and how long to wait for it.

    Attributes:
        path: of the unix socket of the agent's port. QEMU serves one client at a time.
        required: take no point of a guest that could not be frozen.
        answer_limit: seconds for the connection, and for each answer that is quick.
        freeze_limit: seconds for the freeze; the guest writes out what it holds, and runs hooks.
        thaw_limit: seconds to go on trying to thaw.
        cancel: of the run: once it is set, nothing is waited for but a thaw, and that not for long.
    """

    path: str
    required: bool = False
    answer_limit: float = 5.0
    freeze_limit: float = 30.0
    thaw_limit: float = 30.0
    cancel: CancelToken = field(default_factory=CancelToken)

    def answers(self) -> bool:
        """Whether the agent answers, within the limit for answers."""
        try:
            self._session().close()
        except AgentError:
            return False
        return True

    def thaw_left(self) -> bool:
        """Thaw the guest if somebody left it frozen; whether it was.

        An agent that does not answer says nothing: `frozen` will tell of it.

        Raises:
            AgentError: it is frozen and could not be thawed.
            Interrupted: before that is known.
        """
        try:
            with contextlib.closing(self._session()) as session:
                if _status(session) != "frozen":
                    return False
        except AgentError:
            return False
        self.thaw()
        return True

    def thaw(self) -> None:
        """Thaw the guest, however often that must be tried.

        Raises:
            AgentError: not within the limit.
        """
        self._thaw(None, asked_in_vain=False)

    @contextlib.contextmanager
    def frozen(self, freeze: Freeze, note: Note) -> Iterator[None]:
        """Freeze the guest while the context lasts, if that can be done.

        Args:
            freeze: is told how it goes; what an earlier try left in it is forgotten.
            note: is there for as long as the guest may be frozen, so that the next run can thaw it
                should this one be killed (`thaw_noted`).

        Raises:
            SourceError: it was thawed, but the note cannot be removed.
            PointError: a freeze is required, and the guest was not frozen all the time.
            Interrupted: the run was; the guest was told to thaw.
        """
        freeze.frozen, freeze.trouble = False, None
        try:
            session = self._session()
            _write_note(note, self.path, session)
        except AgentError as error:
            freeze.trouble = str(error)
            self._demand(freeze)
            yield
            return
        refused = False
        try:
            try:
                freeze.frozen = _freeze(session, self.freeze_limit)
            except AgentError as error:
                refused = isinstance(error, AgentRefused)
                freeze.trouble = str(error)
            self._demand(freeze)
            yield
            if freeze.frozen and not _still_frozen(session):
                freeze.frozen = False
                freeze.trouble = f"{self.path}: the guest was thawed before the point was taken"
        finally:
            try:
                self._thaw(session, asked_in_vain=refused)
                freeze.stuck = None
            except AgentError as error:
                freeze.stuck = str(error)
            else:
                note.drop()
        self._demand(freeze)

    def _demand(self, freeze: Freeze) -> None:
        if self.required and not freeze.frozen:
            raise PointError(
                f"the guest could not be frozen: {freeze.trouble}",
                hint="without --require-freeze it is backed up all the same",
            )

    def _thaw(self, session: _Session | None, *, asked_in_vain: bool) -> None:
        """Thaw over an open session or, should that fail, over new ones.

        Args:
            session: if it is open; it is closed in any case.
            asked_in_vain: the agent refused the freeze, so it may refuse the rest as well.
        """
        end = time.monotonic() + self.thaw_limit
        if session is not None:
            session.cancel = None  # a guest that is frozen is let go first
        hurried = False
        while True:
            if self.cancel.cancelled and not hurried:
                end, hurried = min(end, time.monotonic() + _INTERRUPTED_LIMIT), True
            try:
                if session is not None and session.broken:
                    session.close()  # only then is the next one served
                    session = None
                if session is None:
                    session = _Session(self.path, self.answer_limit)
                return _release(session, asked_in_vain=asked_in_vain)
            except AgentError as error:
                if time.monotonic() >= end:
                    raise AgentError(
                        f"the guest could not be thawed, and may still be frozen ({error.what})",
                        where=self.path,
                        hint="thaw it: guest-fsfreeze-thaw to its agent, or reset the guest",
                    ) from error
            finally:
                if session is not None:
                    session.close()
            session = None
            time.sleep(_PAUSE)

    def _session(self) -> _Session:
        return _Session(self.path, self.answer_limit, self.cancel)


def _write_note(note: Note, path: str, session: _Session) -> None:
    try:
        note.write(os.fsencode(Path(path).absolute()))
    except OSError as error:
        session.close()
        raise AgentError(f"cannot be noted ({error.strerror})", where=note.path) from error


def thaw_noted(note: Note, cancel: CancelToken) -> bool:
    """Thaw the guest that an interrupted backup's note names; whether there was one.

    Args:
        note: if there is one.
        cancel: of the run.

    Raises:
        AgentError: it could not be thawed. The note stays.
        SourceError: it was thawed, but the note cannot be removed.
    """
    said = note.read()
    if said is None:
        return False
    path = os.fsdecode(said)
    GuestAgent(path, answer_limit=_NOTED_LIMIT, thaw_limit=_NOTED_LIMIT, cancel=cancel).thaw()
    note.drop()
    return True


def _freeze(session: _Session, limit: float) -> bool:
    try:
        count = session.ask("guest-fsfreeze-freeze", limit)
    except AgentRefused:
        raise
    except (AgentError, Interrupted):
        # It may freeze yet, after the last try to thaw it: have it thaw right after that.
        session.cancel = None
        session.send("guest-fsfreeze-thaw")
        raise
    if not isinstance(count, int) or count < 1:
        raise AgentRefused("the agent froze no file system", where=session.path)
    return True


def _status(session: _Session) -> str:
    return str(session.ask("guest-fsfreeze-status"))


def _still_frozen(session: _Session) -> bool:
    try:
        return _status(session) == "frozen"
    except AgentError:
        return True  # it was, and whether it can be thawed is seen next


def _release(session: _Session, *, asked_in_vain: bool) -> None:
    """Thaw and see that it is so. A guest that was not frozen may refuse: its status decides."""
    refusal: AgentError | None = None
    try:
        session.ask("guest-fsfreeze-thaw")
    except AgentRefused as error:
        refusal = error
    try:
        if _status(session) == "thawed":
            return
    except AgentRefused:
        if asked_in_vain:
            return
        raise
    raise refusal or AgentError("it stays frozen", where=session.path)


class _Session:
    """A connection on which the agent has answered.

    Attributes:
        path: of the socket.
        broken: an answer is missing, so that the next one could be taken for it.
        cancel: ends every wait for it; None: nothing does.

    Raises:
        AgentError: it has not.
        Interrupted: `cancel` was called.
    """

    def __init__(self, path: str, limit: float, cancel: CancelToken | None = None) -> None:
        self.path = path
        self.cancel = cancel
        self.broken = False
        self._limit = limit
        self._buffer = b""
        self._socket = self._connect()
        try:
            self._sync()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Disconnect, so that the next client is heard."""
        self._socket.close()

    def ask(self, command: str, limit: float | None = None) -> object:
        """Run a command without arguments; gives what it returns.

        Raises:
            AgentRefused: it answered with an error.
            AgentError: it did not answer in time, or nonsense.
        """
        self.broken = True
        self._send({"execute": command})
        try:
            answer = self._parse(self._line(self._limit if limit is None else limit))
        except TimeoutError as error:
            raise AgentError(f"the agent did not answer {command}", where=self.path) from error
        self.broken = False
        if "error" in answer:
            raise AgentRefused(
                f"the agent refused {command}: {_reason(answer['error'])}", where=self.path
            )
        if "return" not in answer:
            raise AgentError(f"the agent's answer to {command} is not valid", where=self.path)
        return answer["return"]

    def send(self, command: str) -> None:
        """Send a command whose answer nobody will wait for, if that can be done."""
        with contextlib.suppress(AgentError):
            self._send({"execute": command})

    def _connect(self) -> socket.socket:
        try:
            return connected(self.path, self._limit)
        except OSError as error:
            found = obstacle(self.path, error.errno)
            raise AgentError(
                f"the guest agent cannot be reached: {found.what}",
                where=self.path,
                hint=found.hint,
            ) from error

    def _sync(self) -> None:
        """Skip what was meant for others, up to the answer to a question of our own."""
        number = secrets.randbits(31)
        self._send({"execute": "guest-sync-delimited", "arguments": {"id": number}}, _MARK)
        end = time.monotonic() + self._limit
        try:
            while True:
                while _MARK not in self._buffer:
                    self._buffer = b""
                    self._receive(end)
                self._buffer = self._buffer.partition(_MARK)[2]
                if self._parse(self._line(end - time.monotonic())).get("return") == number:
                    return
        except TimeoutError as error:
            raise AgentError(
                "the guest agent does not answer",
                where=self.path,
                hint="does it run in the guest, and does nobody else hold this socket?",
            ) from error

    def _send(self, message: dict[str, object], before: bytes = b"") -> None:
        left = before + json.dumps(message).encode() + b"\n"
        end = time.monotonic() + self._limit
        try:
            while left:
                left = left[self._try(end, partial(self._socket.send, left)) :]
        except OSError as error:
            raise self._lost(error) from error

    def _line(self, limit: float) -> bytes:
        end = time.monotonic() + limit
        while b"\n" not in self._buffer:
            if len(self._buffer) > _LONGEST_LINE:
                raise AgentError("the agent's answer has no end", where=self.path)
            self._receive(end)
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _receive(self, end: float) -> None:
        try:
            data = self._try(end, lambda: self._socket.recv(4096))
        except TimeoutError:
            raise
        except OSError as error:
            raise self._lost(error) from error
        if not data:
            raise self._lost(None)
        self._buffer += data

    def _try(self, end: float, call: Callable[[], T]) -> T:
        """Call what may have to wait for the agent, until it need not or the time is up."""
        while (left := end - time.monotonic()) > 0:
            if self.cancel is not None:
                self.cancel.check()
            self._socket.settimeout(min(left, _TICK))
            with contextlib.suppress(TimeoutError):
                return call()
        raise TimeoutError

    def _parse(self, line: bytes) -> dict[str, object]:
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise AgentError("the agent's answer is not a JSON object", where=self.path)
        return answer

    def _lost(self, error: OSError | None) -> AgentError:
        text = "" if error is None else f" ({error.strerror or error})"
        return AgentError(f"the connection to the guest agent was lost{text}", where=self.path)


def _reason(error: object) -> str:
    """The agent's own words, in one line."""
    text = str(error.get("desc", "")) if isinstance(error, dict) else ""
    return shown(" ".join(text.split()))[:_LONGEST_REASON] or "it does not say why"
