"""Read what a server answers: XML that it made, so trusted no further than it is checked."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple
from urllib.parse import unquote_plus
from xml.etree import ElementTree

from fleece.errors import StoreError
from fleece.store.s3.client.exchange import Answer
from fleece.store.s3.client.problems import Refusal, moment_in


class Listed(NamedTuple):
    """An object, as a listing has it.

    Attributes:
        key: the whole of it.
        length: in bytes.
        etag: changes when the content does; without quotes.
        modified: when it was written, by the server's clock.
    """

    key: str
    length: int
    etag: str
    modified: datetime


@dataclass(frozen=True)
class Version:
    """One of the versions of an object.

    Attributes:
        key: the object's.
        version: names it.
        latest: it is what the key stands for.
        deleted: it is the mark of a deletion, and has no content.
        length: in bytes.
        etag: without quotes.
        modified: when it was written.
    """

    key: str
    version: str
    latest: bool
    deleted: bool
    length: int
    etag: str
    modified: datetime


@dataclass(frozen=True)
class Upload:
    """An object that is uploaded in parts, and that nobody sees before it is complete.

    Attributes:
        key: that it will have.
        id: the server's name for it.
    """

    key: str
    id: str


@dataclass(frozen=True)
class Part:
    """A part of an upload.

    Attributes:
        number: from 1; the order of the parts.
        etag: without quotes; mostly the MD5 of its bytes.
        length: in bytes.
    """

    number: int
    etag: str
    length: int


class Xml:
    """A document, or an element of one, whose namespaces do not matter.

    Args:
        element: it.
        where: the answer is from, for messages.
    """

    def __init__(self, element: ElementTree.Element, where: str) -> None:
        self._element = element
        self._where = where
        # The first of each name; a listing asks each of its elements for many.
        self._named = {_bare(child.tag): child for child in reversed(element)}

    @classmethod
    def of(cls, body: bytes, where: str) -> Xml:
        """Read a document.

        Raises:
            StoreError: it is none.
        """
        try:
            return cls(ElementTree.fromstring(body), where)
        except (ElementTree.ParseError, ValueError, LookupError) as error:
            raise strange(where, f"what is no XML: {error}") from error

    @property
    def name(self) -> str:
        """Of the element."""
        return _bare(self._element.tag)

    def all(self, name: str) -> Iterator[Xml]:
        """The elements of a name that are right in it, in order."""
        for child in self._element:
            if _bare(child.tag) == name:
                yield Xml(child, self._where)

    def children(self) -> Iterator[Xml]:
        """All elements that are right in it, in order."""
        for child in self._element:
            yield Xml(child, self._where)

    def text(self, name: str, default: str | None = None) -> str:
        """The text of an element that is right in it.

        Raises:
            StoreError: there is none, and no default.
        """
        found = self._named.get(name)
        if found is not None:
            return (found.text or "").strip()
        if default is None:
            raise strange(self._where, f"without {name}")
        return default

    def key(self, name: str, *, encoded: bool) -> str:
        """A key, which may have any characters: it is not stripped."""
        found = self._named.get(name)
        if found is None:
            raise strange(self._where, f"without {name}")
        text = found.text or ""
        return unquote_plus(text) if encoded else text

    def number(self, name: str) -> int:
        """A number that is not negative."""
        text = self.text(name)
        if not (text.isascii() and text.isdigit()) or len(text) > 20:
            raise strange(self._where, f"with {name} {text[:40]!r}")
        return int(text)

    def flag(self, name: str) -> bool:
        """Whether something is true; what is not there is not."""
        return self.text(name, "false").lower() == "true"

    def moment(self, name: str) -> datetime:
        """A moment."""
        text = self.text(name)
        try:
            found = datetime.fromisoformat(text)
        except ValueError as error:
            raise strange(self._where, f"with {name} {text[:40]!r}") from error
        return found if found.tzinfo is not None else found.replace(tzinfo=UTC)

    def etag(self) -> str:
        """The ETag of what it describes; empty: it says none."""
        return bare_etag(self.text("ETag", ""))


def is_encoded(page: Xml) -> bool:
    """Whether the keys of a listing are encoded, as they were asked to be: not all servers do."""
    return page.text("EncodingType", "") == "url"


def bare_etag(text: str) -> str:
    """An ETag without its quotes."""
    return text.strip().strip('"')


def moment_of(answer: Answer, where: str) -> datetime:
    """When an object was written, of a HEAD's answer."""
    found = moment_in(answer.headers.get("last-modified", ""))
    if found is None:
        raise strange(where, "without Last-Modified")
    return found


def refusal_in(answer: Answer) -> Refusal:
    """What a server says against a request, as far as it does: a proxy's pages are no XML."""
    code = message = ""
    region = answer.headers.get("x-amz-bucket-region", "")
    try:
        said = Xml(ElementTree.fromstring(answer.body), "")
    except (ElementTree.ParseError, ValueError, LookupError):
        message = answer.body[:200].decode(errors="replace")
    else:
        code, message = said.text("Code", ""), said.text("Message", "")
        region = region or said.text("Region", "")
    return Refusal(answer.status, code, message, region, answer.headers)


def is_error(answer: Answer) -> bool:
    """Whether an answer that calls itself good is an error: a long call's begins before it ends."""
    start = answer.body[:1024].lstrip()
    return b"<Error" in start[:200] and refusal_in(answer).code != ""


def wants_check(refusal: Refusal) -> bool:
    """Whether the server wants to be told a hash of the body."""
    return refusal.status == 400 and "Content-MD5" in refusal.message


@functools.lru_cache
def _bare(tag: str) -> str:
    return tag.rpartition("}")[2]


def strange(where: str, how: str) -> StoreError:
    """An answer that no server of S3 gives."""
    return StoreError(f"the server answers {how}", where=where)
