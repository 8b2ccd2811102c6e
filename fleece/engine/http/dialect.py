"""The requests of oVirt's imageio that read, and their answers.

They are those of the handlers `images` and `extents` of ovirt-imageio 2.5.1:
`OPTIONS /images/TICKET`, `GET /images/TICKET` with or without a range, and
`GET /images/TICKET/extents?context=zero|dirty`. A wrong ticket is 403, a range that is not there
416, and errors are plain text, as there. More than there: `HEAD`, ranges of the last bytes.
"""

from __future__ import annotations

import hmac
import json
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeAlias
from urllib.parse import parse_qs

from fleece.disk.base import ReadableDisk
from fleece.engine.http.extents import Context, HttpDisk, extents_json
from fleece.engine.work.reads import OneReader

_READERS = 8
"""Connections that a client is told to read by, as imageio does."""

_PIECE = 1024 * 1024
"""Bytes that are read for a client at a time."""

_METHODS = ("GET", "HEAD", "OPTIONS")
_TARGET = re.compile(r"/images/([^/?]+)(/extents)?(?:\?(.*))?")
_RANGE = re.compile(r"bytes=([0-9]{0,19})-([0-9]{0,19})")

_ALLOW = (("Allow", ", ".join(_METHODS)),)

Headers: TypeAlias = tuple[tuple[str, str], ...]
Piece: TypeAlias = bytes | bytearray | memoryview


@dataclass(frozen=True)
class Question:
    """A request.

    Attributes:
        method: as it was sent.
        target: path and query.
        range: what of it is wanted; None: all.
    """

    method: str
    target: str
    range: str | None


@dataclass(frozen=True)
class Answer:
    """What is said to it.

    Attributes:
        status: of HTTP.
        headers: beside those of the body's length.
        body: read piece by piece while it is sent; a piece is valid until the next one.
        length: of the body; None: it tells its end itself.
    """

    status: HTTPStatus
    headers: Headers
    body: Iterable[Piece]
    length: int | None


class Refusal(Exception):
    """A request is not answered; the connection ends if its client may be a stranger."""

    def __init__(
        self, status: HTTPStatus, what: str, headers: Headers = (), *, final: bool = False
    ) -> None:
        super().__init__(what)
        self.final = final
        self.answer = _whole(status, "text/plain; charset=UTF-8", f"{what}\n", headers)


def _whole(status: HTTPStatus, kind: str, text: str, headers: Headers = ()) -> Answer:
    raw = text.encode()
    return Answer(status, (("Content-Type", kind), *headers), [raw], len(raw))


class Tickets:
    """Secrets that stand for disks.

    Args:
        disks: each gets one.
    """

    def __init__(self, disks: Sequence[HttpDisk]) -> None:
        self._all = [(secrets.token_urlsafe(32), disk) for disk in disks]

    @property
    def paths(self) -> dict[str, str]:
        """Where each disk is, by its name."""
        return {disk.name: f"/images/{ticket}" for ticket, disk in self._all}

    def find(self, said: str) -> HttpDisk:
        """The disk of a ticket. How long it takes tells nothing of the others.

        Raises:
            Refusal: there is none.
        """
        raw = said.encode(errors="replace")
        found = [disk for ticket, disk in self._all if hmac.compare_digest(ticket.encode(), raw)]
        if not found:
            raise Refusal(HTTPStatus.FORBIDDEN, "No such ticket", final=True)
        return found[0]

    def answer(self, question: Question, one: OneReader) -> Answer:
        """Answer a request; what is read is read while the body is taken.

        Raises:
            Refusal: it is not answered.
        """
        if question.method not in _METHODS:
            what = "Disks are read-only here"
            raise Refusal(HTTPStatus.METHOD_NOT_ALLOWED, what, _ALLOW, final=True)
        found = _TARGET.fullmatch(question.target)
        if found is None:
            raise Refusal(HTTPStatus.NOT_FOUND, "Not found", final=True)
        shown = self.find(found[1])
        if question.method == "OPTIONS":
            return _options()
        if found[2] is None:
            return _bytes(shown.disk, question.range, one)
        return _extents(shown, found[3] or "")


def _options() -> Answer:
    told = json.dumps({"features": ["extents"], "max_readers": _READERS})
    return _whole(HTTPStatus.OK, "application/json", f"{told}\n", _ALLOW)


def _extents(shown: HttpDisk, query: str) -> Answer:
    words = parse_qs(query, keep_blank_values=True).get("context", [Context.ZERO])
    if words[-1] not in tuple(Context):
        raise Refusal(HTTPStatus.BAD_REQUEST, "context is zero or dirty")
    context = Context(words[-1])
    if context is Context.DIRTY and shown.changed is None:
        raise Refusal(HTTPStatus.NOT_FOUND, "It is not known what changed: read all of it")
    headers = (("Content-Type", "application/json"),)
    return Answer(HTTPStatus.OK, headers, extents_json(shown, context), None)


def _bytes(disk: ReadableDisk, wanted: str | None, one: OneReader) -> Answer:
    headers = ("Content-Type", "application/octet-stream"), ("Accept-Ranges", "bytes")
    if wanted is None:
        return Answer(HTTPStatus.OK, headers, _read(disk, 0, disk.size, one), disk.size)
    start, end = _range(wanted, disk.size)
    place = ("Content-Range", f"bytes {start}-{end - 1}/{disk.size}")
    body = _read(disk, start, end, one)
    return Answer(HTTPStatus.PARTIAL_CONTENT, (*headers, place), body, end - start)


def _range(text: str, size: int) -> tuple[int, int]:
    """Where a range begins and ends.

    One that reaches past the end is refused, as imageio does: who asks for it is wrong about the
    disk. So is whatever is no range: who asked for a part must not take the whole for it.

    Raises:
        Refusal: it is not there.
    """
    found = _RANGE.fullmatch(text)
    if found is not None and found[1]:
        start, end = int(found[1]), int(found[2]) + 1 if found[2] else size
    else:
        last = int(found[2]) if found is not None and found[2] else 0
        start, end = size - last, size
    if not 0 <= start < end <= size:
        what = "This range is not there, or is no single range"
        headers = (("Content-Range", f"bytes */{size}"),)
        raise Refusal(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, what, headers)
    return start, end


def _read(disk: ReadableDisk, start: int, end: int, one: OneReader) -> Iterator[Piece]:
    while start < end:
        # The first piece ends where the others begin to be aligned.
        stop = min(end, (start // _PIECE + 1) * _PIECE)
        yield one.of(disk).read(start, stop - start)
        start = stop
