"""What servers of S3 answer: XML that may be anything, and pauses between tries."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleece.cancel import CancelToken
from fleece.errors import Interrupted, StoreError
from fleece.store.s3.client.answers import Xml, is_error, refusal_in
from fleece.store.s3.client.exchange import Answer
from fleece.store.s3.client.problems import Again, judged
from fleece.store.s3.client.retry import Clock, Perseverance, Persistent, Tries

_PAGE = b"""<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Contents><Key> a+b </Key>
<Size>12</Size><ETag>&quot;x&quot;</ETag><LastModified>2026-11-30T12:00:00.5Z</LastModified>
</Contents><IsTruncated>false</IsTruncated></ListBucketResult>"""


def test_a_listing_is_read_whatever_its_namespace() -> None:
    page = Xml.of(_PAGE, "here")
    (each,) = page.all("Contents")
    assert each.key("Key", encoded=False) == " a+b "
    assert each.key("Key", encoded=True) == " a b "
    assert (each.number("Size"), each.etag(), page.flag("IsTruncated")) == (12, "x", False)
    assert each.moment("LastModified") == datetime(2026, 11, 30, 12, 0, 0, 500000, UTC)


@pytest.mark.parametrize(
    "text",
    [b"", b"<a>", b"<!DOCTYPE a [<!ENTITY b 'c'>]><a><Size>&d;</Size></a>", b"\xff\xfe<"],
)
def test_what_is_no_document_is_told(text: bytes) -> None:
    with pytest.raises(StoreError, match="here: the server answers what is no XML"):
        Xml.of(text, "here")


@pytest.mark.parametrize("text", ["", "-1", "1.5", "x", "\u0661", "9" * 21])
def test_what_is_no_number_or_moment_is_told(text: str) -> None:
    page = Xml.of(f"<a><b>{text}</b></a>".encode(), "here")
    for read in (page.number, page.moment):
        with pytest.raises(StoreError, match="here: the server answers with b"):
            read("b")
    with pytest.raises(StoreError, match="without c"):
        page.text("c")


def test_entities_do_not_grow_without_bound() -> None:
    levels = "".join(f"<!ENTITY e{n} '{f'&e{n - 1};' * 10}'>" for n in range(1, 10))
    bomb = f"<!DOCTYPE a [<!ENTITY e0 'xxxxxxxxxx'>{levels}]><a><b>&e9;</b></a>"
    with pytest.raises(StoreError, match="what is no XML"):
        Xml.of(bomb.encode(), "here")


_HEADERS = st.dictionaries(
    st.sampled_from(["retry-after", "content-range", "date", "x-amz-bucket-region"]),
    st.text()
    | st.sampled_from(
        ["\u00b2", "1", "bytes */\u00b2", "bytes */1", "Mon, 30 Nov 2020 00:00:00 -0000"]
    ),
)


_BODIES = st.binary(max_size=300) | st.sampled_from(
    [b"<Error><Code>RequestTimeTooSkewed</Code></Error>", b"<Error><Code>SlowDown</Code></Error>"]
)


@given(st.integers(100, 599), _BODIES, _HEADERS)
def test_every_refusal_becomes_an_error(status: int, body: bytes, headers: dict[str, str]) -> None:
    answer = Answer(status, headers, body)
    with contextlib.suppress(StoreError):
        is_error(answer)
    found = judged(refusal_in(answer), "here", "s3:GetObject")
    assert isinstance(found, StoreError | Again)
    assert str(found).startswith("here: ")
    assert len(str(found)) < 1000


class _Time:
    def __init__(self) -> None:
        self.slept: list[float] = []

    def sleep(self, seconds: float, cancel: CancelToken) -> None:
        cancel.check()
        self.slept.append(seconds)


def _persistent(time: _Time) -> Persistent:
    return Persistent(Perseverance(clock=Clock(lambda: sum(time.slept), time.sleep)))


def _failing(times: int, *, lost: bool = False, met: bool = True) -> Callable[[], str]:
    left = [Again(StoreError("fails", where="here"), lost=lost, met=met)] * times

    def call() -> str:
        if left:
            raise left.pop()
        return "done"

    return call


def test_pauses_grow_and_are_bounded() -> None:
    time, tries = _Time(), Tries()
    assert _persistent(time)(_failing(12), CancelToken(), tries) == "done"
    assert (tries.count, tries.lost) == (12, False)
    for number, slept in enumerate(time.slept):
        most = min(10.0, 0.2 * 2.0**number)
        assert most / 2 <= slept <= most


def test_it_is_remembered_that_an_answer_was_lost() -> None:
    tries = Tries()
    _persistent(_Time())(_failing(1, lost=True), CancelToken(), tries)
    assert tries.lost


def test_a_server_that_never_answered_is_given_up_soon_and_one_that_did_late() -> None:
    time = _Time()
    persistent = _persistent(time)
    with pytest.raises(StoreError, match=r"here: fails, \d times in \d+ s"):
        persistent(_failing(1000, met=False), CancelToken(), Tries())
    assert sum(time.slept) <= 10
    persistent(_failing(0), CancelToken(), Tries())
    time.slept.clear()
    with pytest.raises(StoreError):
        persistent(_failing(1000, met=False), CancelToken(), Tries())
    assert 290 <= sum(time.slept) <= 300


def test_a_pause_ends_with_the_run() -> None:
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(Interrupted):
        Clock().sleep(1000, cancel)
