"""One HTTP server over some disks. h11 knows the protocol, and this is between it and a socket.

A body that cannot be read to its end is cut off, and so is everybody in the end: no client can take
a part for the whole, nor hold anything up.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING

from fleece import events
from fleece.cancel import CancelToken
from fleece.closing import Closing
from fleece.engine.clients.crowd import Crowd
from fleece.engine.clients.peer import Peer
from fleece.engine.http.dialect import Answer, Piece, Question, Refusal, Tickets
from fleece.engine.http.door import HttpListening
from fleece.engine.http.extents import HttpDisk
from fleece.engine.work.reads import OneReader
from fleece.errors import FleeceError, Interrupted

if TYPE_CHECKING:
    import h11

IDLE = 300.0
"""Seconds that one who knows a ticket may say nothing, or take nothing of what it asked for."""

_LONGEST = 16 * 1024
"""Bytes of a request with all its headers."""

_CHUNK = 16 * 1024
_MOST_TOLD = 1000


class HttpServer(Closing):
    """Shows disks to who knows their tickets, from threads of its own.

    Args:
        door: where clients come in.
        disks: that are shown; their reads end when `ending` is cancelled.
        ending: is cancelled in the end.
        listener: hears what reads have met, each error once.
    """

    def __init__(
        self,
        door: HttpListening,
        disks: Sequence[HttpDisk],
        ending: CancelToken,
        listener: events.Listener = events.ignore,
    ) -> None:
        self._tls = door.tls
        self._ending = ending
        self._listener = events.in_turn(listener)
        self._told: set[str] = set()
        self._tickets = Tickets(disks)
        self.urls = {name: f"{door.root}{path}" for name, path in self._tickets.paths.items()}
        self._crowd = Crowd(door.socket, self._serve)

    def close(self) -> None:
        """Cut off everybody. Nothing reads the disks any more. Safe to repeat."""
        self._ending.cancel()
        self._crowd.close()

    def _serve(self, client: Peer, known: Callable[[], None]) -> None:
        with contextlib.suppress(OSError):
            client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is not None:
            client.secure(self._tls)
        with contextlib.closing(OneReader()) as one:
            try:
                _Talk(client, self._tickets, one, known).run()
            except Interrupted:
                return
            except FleeceError as error:
                self._tell(error)

    def _tell(self, error: FleeceError) -> None:
        if str(error) not in self._told and len(self._told) < _MOST_TOLD:
            self._told.add(str(error))
            self._listener(events.Problem(error.where or "", error.what))


class _Talk:
    """One client's requests, one after the other."""

    def __init__(
        self, client: Peer, tickets: Tickets, one: OneReader, known: Callable[[], None]
    ) -> None:
        import h11

        self._h11 = h11
        self._client = client
        self._tickets = tickets
        self._one = one
        self._known = known
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_LONGEST)

    def run(self) -> None:
        """Answer until the client leaves.

        Raises:
            Gone: it left in the middle, or has to leave.
            FleeceError: a disk cannot be read, as the client has seen.
        """
        try:
            while (request := self._request()) is not None:
                self._reply(request)
                both = {self._http.our_state, self._http.their_state}
                if both != {self._h11.DONE}:
                    break
                self._http.start_next_cycle()
        except self._h11.RemoteProtocolError as error:
            if self._http.our_state in (self._h11.IDLE, self._h11.SEND_RESPONSE):
                status = HTTPStatus(error.error_status_hint)
                self._send(Refusal(status, status.phrase, final=True).answer, final=True)

    def _request(self) -> h11.Request | None:
        """The next one; None: there is none."""
        while True:
            event = self._http.next_event()
            if event is self._h11.NEED_DATA:
                self._http.receive_data(self._client.some(_CHUNK))
            else:
                return event if isinstance(event, self._h11.Request) else None

    def _reply(self, request: h11.Request) -> None:
        headers = dict(request.headers)
        method, target = request.method.decode(), request.target.decode("latin-1")
        wanted = headers.get(b"range")
        asked = Question(method, target, None if wanted is None else wanted.decode("latin-1"))
        # A body is for what this does not do: who sends one has to leave.
        final = not isinstance(self._http.next_event(), self._h11.EndOfMessage)
        try:
            answer, stranger = self._tickets.answer(asked, self._one), False
        except Refusal as refused:
            answer, stranger = refused.answer, refused.final
        if not stranger:
            self._known()
            self._client.allow(IDLE)
        self._send(answer, final=final or stranger, bodiless=method == "HEAD")
        if not stranger:
            self._client.allow(IDLE)

    def _send(self, answer: Answer, *, final: bool, bodiless: bool = False) -> None:
        body = iter(() if bodiless else answer.body)
        trouble: FleeceError | None = None
        try:
            first = next(body, b"")
        except Interrupted:
            raise
        except FleeceError as error:
            trouble = error
            what = "The disk cannot be read"
            answer = Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, what).answer
            body = iter(answer.body)
            first, final = next(body), True
        status, headers = answer.status, _headers(answer, final)
        self._say(self._h11.Response(status_code=status, headers=headers, reason=status.phrase))
        piece: Piece | None = first
        while piece is not None:
            self._say(self._h11.Data(data=piece))  # type: ignore[arg-type]  # passed through
            piece = next(body, None)
            if piece is not None:
                self._client.allow(IDLE)
        self._say(self._h11.EndOfMessage())
        if trouble is not None:
            raise trouble

    def _say(self, event: h11.Event) -> None:
        for data in self._http.send_with_data_passthrough(event) or ():
            self._client.write(data)


def _headers(answer: Answer, final: bool) -> list[tuple[str, str]]:
    found = [("Cache-Control", "no-store"), *answer.headers]
    if answer.length is not None:
        found.append(("Content-Length", str(answer.length)))
    return [*found, ("Connection", "close")] if final else found
