"""The calls about single objects and about what there is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from itertools import islice
from xml.sax.saxutils import escape

from fleece.errors import StoreError
from fleece.hashing import Buffer
from fleece.store.s3.client.answers import Listed, Xml, bare_etag, is_encoded, moment_of, strange
from fleece.store.s3.client.caller import Call, Caller
from fleece.store.s3.client.exchange import Answer
from fleece.store.s3.client.locks import Lock, lock_headers
from fleece.store.s3.client.problems import Changed, OutOfRange, Taken
from fleece.store.s3.client.retry import Tries

NAMESPACE = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'

_AT_ONCE = 1000
"""Keys that one request deletes or lists."""

_MOST = 1 << 30
"""Bytes of an object that is asked for as a whole."""

_RANGE = re.compile(r"bytes (?:(\d{1,20})-(\d{1,20})|\*)/(\d{1,20})")


@dataclass(frozen=True)
class Got:
    """What was read of an object.

    Attributes:
        data: the bytes that were asked for, as far as the object has them.
        etag: without quotes.
        total: bytes of the whole object.
    """

    data: bytes
    etag: str
    total: int


@dataclass(frozen=True)
class Head:
    """What is known of an object.

    Attributes:
        length: in bytes.
        etag: without quotes.
        modified: when it was written, by the server's clock.
    """

    length: int
    etag: str
    modified: datetime


class Objects(Caller):
    """The calls about objects. All may raise what `Caller.call` does; keys are whole ones."""

    def get(
        self, key: str, start: int | None = None, length: int | None = None, etag: str | None = None
    ) -> Got:
        """Read an object, or a range of it.

        Args:
            key: its key.
            start: of the range; None: the whole object.
            length: of the range; None: to the end. What is behind the end is left out.
            etag: it must still have.

        Raises:
            Changed: it has another ETag.
            Gone: it is not there.
        """
        headers = {} if etag is None else {"If-Match": f'"{etag}"'}
        if start is None and length is None:
            answer = self.call(Call("s3:GetObject", "GET", key, headers=headers, most=_MOST))
            return Got(answer.body, _etag(answer), len(answer.body))
        first = start or 0
        headers["Range"] = f"bytes={first}-" + ("" if length is None else f"{first + length - 1}")
        most = _MOST if length is None else length
        try:
            # An error's answer has a body too.
            answer = self.call(
                Call("s3:GetObject", "GET", key, headers=headers, most=max(most, 64 << 10))
            )
        except OutOfRange as error:
            total = self.head(key).length if error.total is None else error.total
            return Got(b"", etag or "", total)
        return _ranged(answer, first, length, self.address.named(key))

    def head(self, key: str) -> Head:
        """What is known of an object.

        Raises:
            Gone: it is not there.
        """
        where = self.address.named(key)
        try:
            answer = self.call(Call("s3:GetObject", "HEAD", key))
        except StoreError:
            # A HEAD's answer has no room for the reason, such as that there is no such bucket.
            self.get(key, 0, 1)
            answer = self.call(Call("s3:GetObject", "HEAD", key))
        length = answer.headers.get("content-length", "")
        if not length.isdecimal():
            raise strange(where, "without Content-Length")
        return Head(int(length), _etag(answer), moment_of(answer, where))

    def put(self, key: str, data: Buffer, *, new: bool = False, lock: Lock | None = None) -> str:
        """Write an object, at once: readers see the old one or the new one.

        Args:
            key: its key.
            data: its content. It is not kept.
            new: only if nothing has the key.
            lock: keeps this version from being deleted.

        Returns:
            Its ETag.

        Raises:
            Taken: it should be new, and something has the key: perhaps what an earlier try of this
                call has written. So write what nobody else would, and read it back.
        """
        headers = _if_new(new=new) | lock_headers(lock)
        call = Call("s3:PutObject", "PUT", key, {}, headers, data, checked=lock is not None)
        tries = Tries()
        try:
            answer = self.call(call, tries)
        except Changed as error:
            raise taken(error, tries) from error
        return _etag(answer)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects. That there is none of a key is no error.

        In a bucket with versions they are only hidden.

        Raises:
            StoreError: some cannot be deleted; the others are.
        """
        self.delete_versions((key, None) for key in keys)

    def delete_versions(self, versions: Iterable[tuple[str, str | None]]) -> None:
        """Delete versions of objects, each a key and what `Version.version` names.

        Raises:
            StoreError: some cannot be deleted, because they are locked perhaps; the others are.
        """
        left = iter(versions)
        failures: list[tuple[str, str]] = []
        while batch := list(islice(left, _AT_ONCE)):
            failures += self._delete(batch)
        if failures:
            key, why = failures[0]
            more = f", and {len(failures) - 1} more" if len(failures) > 1 else ""
            what = f"cannot be deleted ({why}){more}"
            hint = "the key needs the right s3:DeleteObject there, and no lock may hold it"
            raise StoreError(what, where=self.address.named(key), hint=hint)

    def _delete(self, batch: Sequence[tuple[str, str | None]]) -> Sequence[tuple[str, str]]:
        """Delete some; gives those that could not be, each with the reason."""
        names = "".join(
            f"<Object><Key>{escape(key)}</Key>"
            + (f"<VersionId>{escape(version)}</VersionId>" if version else "")
            + "</Object>"
            for key, version in batch
        )
        body = f"<Delete {NAMESPACE}>{names}<Quiet>true</Quiet></Delete>".encode()
        call = Call("s3:DeleteObject", "POST", None, {"delete": ""}, {}, body, checked=True)
        answer = self.call(call)
        if not answer.body:
            return []
        found = Xml.of(answer.body, self.where)
        errors = list(found.all("Error"))
        return [
            (error.key("Key", encoded=False), " ".join(error.text("Code", "?").split())[:80])
            for error in errors
            if error.text("Code", "") not in {"NoSuchKey", "NoSuchVersion"}
        ]

    def list(self, prefix: str = "", after: str = "") -> Iterator[Listed]:
        """All objects whose keys begin so, by key.

        Args:
            prefix: that they begin with.
            after: only keys behind this one.
        """
        for page in self._pages(prefix, {"start-after": after} if after else {}):
            encoded = is_encoded(page)
            for each in page.all("Contents"):
                key = each.key("Key", encoded=encoded)
                self._within(key, prefix)
                length, moment = each.number("Size"), each.moment("LastModified")
                yield Listed(key, length, each.etag(), moment)

    def folders(self, prefix: str = "") -> Iterator[str]:
        """What such keys have up to the next slash behind the prefix, each once, with the slash."""
        for page in self._pages(prefix, {"delimiter": "/"}):
            encoded = is_encoded(page)
            for each in page.all("CommonPrefixes"):
                found = each.key("Prefix", encoded=encoded)
                self._within(found, prefix)
                yield found

    def check(self) -> None:
        """Raise a `StoreError` if the bucket cannot be listed, or is not there."""
        query = {"list-type": "2", "max-keys": "1", "prefix": self.address.prefix}
        Xml.of(self.call(Call("s3:ListBucket", "GET", None, query)).body, self.where)

    def _pages(self, prefix: str, more: Mapping[str, str]) -> Iterator[Xml]:
        query = {"list-type": "2", "encoding-type": "url", "prefix": prefix, **more}
        seen: set[str] = set()
        while True:
            answer = self.call(Call("s3:ListBucket", "GET", None, query))
            page = Xml.of(answer.body, self.where)
            if page.name != "ListBucketResult":
                raise strange(self.where, f"a listing with {page.name[:40]}")
            yield page
            if not page.flag("IsTruncated"):
                return
            token = page.text("NextContinuationToken")
            if not token or token in seen:
                raise strange(self.where, "a listing that does not end")
            seen.add(token)
            query["continuation-token"] = token

    def _within(self, key: str, prefix: str) -> None:
        if not key.startswith(prefix):
            raise strange(self.where, f"a listing with {key[:80]!r}, which was not asked for")


def taken(error: Changed, tries: Tries) -> Taken:
    """The error for a precondition of a new object that did not hold."""
    found = Taken("is there already", where=error.where)
    found.unsure = tries.lost
    return found


def _if_new(*, new: bool) -> dict[str, str]:
    return {"If-None-Match": "*"} if new else {}


def _etag(answer: Answer) -> str:
    return bare_etag(answer.headers.get("etag", ""))


def _ranged(answer: Answer, first: int, length: int | None, where: str) -> Got:
    """What an answer has of a range.

    Raises:
        StoreError: it has another one than was asked for, or the server knows no ranges.
    """
    told = _RANGE.fullmatch(answer.headers.get("content-range", ""))
    if told is None or told[1] is None:
        if answer.status == HTTPStatus.OK and first == 0:
            data = answer.body if length is None else answer.body[:length]
            return Got(data, _etag(answer), len(answer.body))
        raise strange(where, "without the range that was asked for")
    begin, end, total = int(told[1]), int(told[2]), int(told[3])
    last = total - 1 if length is None else min(total, first + length) - 1
    if (begin, end) != (first, last) or len(answer.body) != last - first + 1:
        raise strange(where, f"with {told[0]} and {len(answer.body)} bytes instead of the range")
    return Got(answer.body, _etag(answer), total)
