"""Who is told of a run: of its begin, and of what it found out."""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from fleece.cancel import CancelToken
from fleece.errors import FleeceError, Interrupted, NoticeError, bug
from fleece.fleet.alone import name_of
from fleece.fleet.notices.choice import chosen, remembered
from fleece.fleet.notices.errand import Errand, carry
from fleece.fleet.notices.kinds import Kind
from fleece.fleet.notices.letter import Letter, News
from fleece.fleet.notices.memory import Memory, Told, keep, recalled
from fleece.fleet.notices.settings import Notice, Ping
from fleece.fleet.notices.trouble import Findings, Matter
from fleece.fleet.notices.ways import Way, errand, ping
from fleece.terminal import shown

_AT_ONCE = 8

_Sent = Future[NoticeError | None]


class Desk:
    """Tells of one run, all at once. Use it as a context manager.

    Args:
        path: of the configuration.
        notices: who is told.
        cancel: of the run. One that was cancelled tells nobody: it says nothing about the guests,
            and a dead man's switch notices by itself.
        part: of the guests; each remembers for itself what it told.
    """

    def __init__(
        self, path: Path, notices: Mapping[str, Notice], cancel: CancelToken, part: str = ""
    ) -> None:
        self._path, self._cancel = path, cancel
        self._name = name_of(path, part)
        self._switches: dict[str, tuple[Notice, Ping]] = {}
        self._readers: dict[str, tuple[Notice, Way]] = {}
        for name, notice in notices.items():
            if isinstance(notice.way, Ping):
                self._switches[name] = notice, notice.way
            else:
                self._readers[name] = notice, notice.way
        self._pool = ThreadPoolExecutor(_AT_ONCE, "fleece-notice")
        self._begun: dict[str, _Sent] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()

    def begin(self) -> None:
        """Tell the dead man's switches that a run begins which looks after everything."""
        for name, (notice, way) in self._switches.items():
            self._begun[name] = self._send(notice, functools.partial(ping, way, "/start", ""))

    def end(self, findings: Findings, error: FleeceError | None) -> list[NoticeError]:
        """Tell what a run found out; gives what could not be told.

        Args:
            findings: what it found.
            error: the worst that happened in it.
        """
        if self._cancel.cancelled:
            return []
        failed: list[NoticeError] = []
        pings = self._pinged(error, failed)
        if self._readers:
            self._tell(findings, failed)
        for future in pings:
            _note(future, failed)
        return failed

    def _pinged(self, error: FleeceError | None, failed: list[NoticeError]) -> list[_Sent]:
        """Tell the switches that heard of the begin; what they hear stays in its order."""
        sign, text = ("", "all is well") if error is None else ("/fail", shown(str(error)))
        sent = []
        for name, begun in self._begun.items():
            _note(begun, failed)
            notice, way = self._switches[name]
            sent.append(self._send(notice, functools.partial(ping, way, sign, text)))
        return sent

    def _tell(self, findings: Findings, failed: list[NoticeError]) -> None:
        now, known = datetime.now(UTC), self._recalled(failed)
        news = {
            name: chosen(notice, known.get(name, {}), findings, now)
            for name, (notice, _) in self._readers.items()
        }
        sent = {
            name: self._send(notice, functools.partial(errand, way, self._letter(news[name])))
            for name, (notice, way) in self._readers.items()
            if news[name]
        }
        memory: Memory = {}
        for name, (notice, _) in self._readers.items():
            untold = name in sent and _note(sent[name], failed)
            owed = untold and Kind.RECOVERY in notice.kinds
            said: Sequence[News] = () if untold else news[name]
            memory[name] = remembered(known.get(name, {}), findings, said, owed, now)
        if memory != known:
            try:
                keep(self._name, memory)
            except NoticeError as error:
                failed.append(error)

    def _letter(self, news: Sequence[News]) -> Letter:
        return Letter(socket.gethostname(), str(self._path), news)

    def _recalled(self, failed: list[NoticeError]) -> Mapping[str, Mapping[Matter, Told]]:
        try:
            return recalled(self._name)
        except NoticeError as error:
            failed.append(error)
            return {}

    def _send(self, notice: Notice, make: Callable[[], Errand]) -> _Sent:
        return self._pool.submit(_sent, notice, make, self._cancel)


def _sent(notice: Notice, make: Callable[[], Errand], cancel: CancelToken) -> NoticeError | None:
    """Send one; gives why it could not be sent."""
    where = f"notice '{notice.name}'"
    try:
        carry(make(), notice.limit, cancel)
    except Interrupted:
        return NoticeError("was not sent: interrupted", where=where)
    except Exception as error:  # a notice fails nothing else, whatever is wrong with it
        failed = error if isinstance(error, FleeceError) else bug(error)
        return NoticeError(str(failed), where=where)
    return None


def _note(sent: _Sent, failed: list[NoticeError]) -> bool:
    """Wait for one, and note why it could not be sent; gives whether there is such a reason."""
    error = sent.result()
    if error is not None:
        failed.append(error)
    return error is not None
