"""Make calls about one bucket: sign, send, try again, count, and judge the answer."""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from http import HTTPStatus

from fleece.cancel import CancelToken
from fleece.hashing import Buffer
from fleece.store.backend import Usage
from fleece.store.s3.client.address import Address
from fleece.store.s3.client.answers import (
    Xml,
    is_encoded,
    is_error,
    refusal_in,
    strange,
    wants_check,
)
from fleece.store.s3.client.clock import Clock
from fleece.store.s3.client.exchange import Answer, Ask, exchange
from fleece.store.s3.client.pool import Pool
from fleece.store.s3.client.problems import judged
from fleece.store.s3.client.retry import Perseverance, Persistent, Tries
from fleece.store.s3.client.settings import Settings, settings_for
from fleece.store.s3.client.signing import UNSIGNED, Signer

_MOST = 16 << 20
"""Bytes of an answer that is no object's content: 1000 entries of 4 KiB, and more."""

_SMALL = 64 << 10
"""Bytes of a body that is signed also where TLS protects it."""

_GOOD = (HTTPStatus.OK, HTTPStatus.NO_CONTENT, HTTPStatus.PARTIAL_CONTENT)


@dataclass(frozen=True)
class Call:
    """What is asked of the server.

    Attributes:
        action: the right that it needs, as policies name it.
        method: of HTTP.
        key: the object's; None: it is about the bucket.
        query: names and values of the URL.
        headers: beside those that every request has.
        body: what is sent.
        checked: its MD5 goes along, which some calls must have.
        most: bytes of the answer.
        patience: times the usual silence that is borne.
        late: an error may come in an answer that calls itself good, because it had to begin early.
    """

    action: str
    method: str
    key: str | None = None
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Buffer = b""
    checked: bool = False
    most: int = _MOST
    patience: float = 1.0
    late: bool = False


@dataclass
class Traffic:
    """What was asked so far.

    Attributes:
        usage: by action; bytes of bodies.
    """

    usage: dict[str, Usage] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def count(self, action: str, sent: int, received: int) -> None:
        """Add a try."""
        with self._lock:
            known = self.usage.get(action, Usage())
            self.usage[action] = Usage(
                known.requests + 1, known.sent + sent, known.received + received
            )


class Caller:
    """What makes calls about one bucket, for any number of threads.

    Args:
        address: the bucket.
        settings: how it is reached; None: as the environment says.
        perseverance: how long a call is tried.
        cancel: ends every call at once.

    Attributes:
        address: as above.
        traffic: what was asked.
        cancel: as above; may be replaced between calls.

    Raises:
        UsageError: the settings are wrong.
    """

    def __init__(
        self,
        address: Address,
        settings: Settings | None = None,
        perseverance: Perseverance | None = None,
        cancel: CancelToken | None = None,
    ) -> None:
        self.address = address
        self.traffic = Traffic()
        self.cancel = cancel or CancelToken()
        self._settings = settings or settings_for(address.bucket)
        self._pool = Pool(self._settings)
        self._how = perseverance or Perseverance()
        self._persistent = Persistent(self._how)
        self._must_check = False
        self._clock = Clock()

    @property
    def where(self) -> str:
        """The bucket, for messages."""
        return f"s3://{self.address.bucket}"

    def now(self) -> datetime:
        """What the server's clock shows, by its last answer; this host's, before the first."""
        return self._clock.now()

    def close(self) -> None:
        """Close the connections; safe to repeat, and a later call opens new ones."""
        self._pool.close()

    @cached_property
    def _signer(self) -> Signer:
        return Signer(self._settings, self.where)

    def call(self, call: Call, tries: Tries | None = None) -> Answer:
        """Make a call, again while that may help.

        Args:
            call: it.
            tries: becomes how the tries before the last one went, also if it raises.

        Raises:
            Interrupted: the run was cancelled.
            StoreError: it failed.
        """
        digest = self._digest(call.body)
        return self._persistent(lambda: self._once(call, digest), self.cancel, tries or Tries())

    def pages(self, call: Call, marker: str, following: str) -> Iterator[Xml]:
        """The pages of a listing that goes on after a key and another marker.

        Args:
            call: for the first page.
            marker: the name of the other marker in a call.
            following: its name in a page.

        Raises:
            StoreError: a page cannot be had, or they do not end.
        """
        query = {**call.query, "encoding-type": "url"}
        while True:
            page = Xml.of(self.call(replace(call, query=dict(query))).body, self.where)
            yield page
            if not page.flag("IsTruncated"):
                return
            then = {
                "key-marker": page.key("NextKeyMarker", encoded=is_encoded(page)),
                marker: page.text(following, ""),
            }
            if then.items() <= query.items():
                raise strange(self.where, "a listing that does not end")
            query |= then

    def _once(self, call: Call, digest: str) -> Answer:
        """One try.

        Raises:
            Again: another one may succeed.
            StoreError: none can.
        """
        where = self.where if call.key is None else self.address.named(call.key)
        path = self._settings.endpoint.path(call.key, call.query)
        headers = dict(call.headers)
        if call.checked or self._must_check:
            headers["Content-MD5"] = _md5(call.body)
        signed = self._signer.signed(call.method, path, headers, digest)
        silence = call.patience * self._how.silence
        ask = Ask(call.method, path, signed, call.body, call.most, silence)
        received = 0
        try:
            answer = exchange(self._pool, ask, self.cancel, where)
            received = len(answer.body)
            self._clock.heard(answer.headers.get("date"))
        finally:
            self.traffic.count(call.action, len(memoryview(call.body)), received)
        if answer.status in _GOOD and not (call.late and is_error(answer)):
            return answer
        refusal = refusal_in(answer)
        if wants_check(refusal) and "Content-MD5" not in headers:
            self._must_check = True  # the bucket locks its objects
            return self._once(call, digest)
        raise judged(refusal, where, call.action)

    def _digest(self, body: Buffer) -> str:
        """What a body is signed by. Without TLS nothing else would notice that it was changed."""
        if self._settings.endpoint.server.secure and len(memoryview(body)) > _SMALL:
            return UNSIGNED
        return hashlib.sha256(body).hexdigest()


def _md5(body: Buffer) -> str:
    return base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
