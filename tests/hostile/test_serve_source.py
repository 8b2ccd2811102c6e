"""The two ends of a source that is served elsewhere do not trust each other, and neither waits."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import fleece
from fleece.source.far.line import Place
from fleece.source.far.messages import LONGEST, PROTOCOL, SILENCE
from fleece.source.far.server import serve
from fleece.source.far.source import FarSource
from tests.rig import images

_REQUEST = {
    "chain_id": "c0ffee00",
    "sequence": 1,
    "point": "0123456789",
    "wanted": [{"disk": "d0", "since": None}],
    "rotate": True,
}


class _Served:
    """Images of this host, served, and what asks."""

    def __init__(self, path: Path, scratch: Path, pool: ThreadPoolExecutor, silence: float) -> None:
        self.scratch = scratch
        options = fleece.SourceOptions(self.scratch)
        asked, self._to = os.pipe()
        of, told = os.pipe()
        self._of = os.fdopen(of)

        def served() -> None:
            try:
                source = f"image:d0={path}"
                serve(lambda: fleece.open_source(source, options), asked, told, None, silence)
            finally:
                os.close(told)
                os.close(asked)

        self.end: Future[None] = pool.submit(served)

    def said(self, line: bytes) -> None:
        """Write a line to it."""
        os.write(self._to, line + b"\n")

    def ask(self, do: object, **more: object) -> Any:
        """What it answers."""
        self.said(json.dumps({"id": 1, "do": do, **more}).encode())
        return json.loads(self._of.readline())

    def rest(self) -> str:
        """All that it says until it ends."""
        return self._of.read()

    def close(self) -> None:
        """End it."""
        os.close(self._to)
        self._of.close()


@contextmanager
def _served(place: Path, silence: float = SILENCE) -> Iterator[_Served]:
    path = images.random_image(place / "d0.qcow2", images.MIB, seed=1)
    with ThreadPoolExecutor(1) as pool, tempfile.TemporaryDirectory(prefix="rig-") as scratch:
        made = _Served(path, Path(scratch), pool, silence)
        try:
            yield made
        finally:
            made.close()


def test_who_falls_silent_loses_the_point_and_nothing_stays_held(tmp_path: Path) -> None:
    """The line may be cut though its pipes stand: no end of them is ever seen then."""
    with _served(tmp_path, silence=0.5) as served:
        assert served.ask("hello", protocol=PROTOCOL)["result"]["producer"]
        taken = served.ask("take", request=_REQUEST)["result"]
        (socket,) = taken["point"]["sockets"]
        assert served.rest() == ""
        with pytest.raises(fleece.SourceError, match="the other host is silent"):
            served.end.result()
        assert os.listdir(served.scratch) == []
        assert not os.path.exists(socket)


def test_once_the_exports_have_ended_what_may_be_committed_is_kept(tmp_path: Path) -> None:
    """The other side makes its point durable then, and may be killed before it can say so."""
    with _served(tmp_path) as served:
        served.ask("hello", protocol=PROTOCOL)
        number = served.ask("take", request=_REQUEST)["result"]["number"]
        assert served.ask("close", point=number) == {"id": 1, "result": None}
        assert served.ask("check", point=7)["failed"]["what"] == "the point has ended"
        os.close(served._to)
        served._to = os.open(os.devnull, os.O_WRONLY)
        served.end.result()
    with fleece.open_source(f"image:d0={tmp_path / 'd0.qcow2'}") as source:
        assert source.highest_sequence("c0ffee00", source.inventory().disks) == 1


def test_what_is_no_request_is_an_error_and_no_more(tmp_path: Path) -> None:
    with _served(tmp_path) as served:
        for do, more, why in (
            ("inventory", {}, "did not say hello"),
            ("hello", {"protocol": PROTOCOL + 1}, f"speaks version {PROTOCOL}"),
            ("hello", {"protocol": PROTOCOL}, ""),
            ("rm", {}, "asks for what is not known"),
            (7, {}, "belongs"),
            ("since", {"disk": "d9"}, "no disk d9"),
            ("take", {"request": {**_REQUEST, "sequence": "1"}}, "belongs"),
            ("take", {"request": {**_REQUEST, "wanted": [{"disk": "d9"}]}}, "no disk d9"),
            ("take", {"request": {}}, "has no chain_id"),
            ("piece", {"point": 1, "part": 0, "offset": 0}, "the point has ended"),
        ):
            told = served.ask(do, **more)
            assert why in told.get("failed", {"what": ""})["what"], told
        served.said(b"[")
        assert "no JSON" in json.loads(served._of.readline())["failed"]["what"]
        assert os.listdir(served.scratch) == []
        os.write(served._to, b"x" * (LONGEST + (1 << 17)) + b"\n")
        with pytest.raises(fleece.SourceError, match="no request of fleece's"):
            served.end.result()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("echo nonsense", "no JSON"),
        ("""echo '{"id": 1, "result": {}}'""", "has no protocol"),
        ("""echo '{"id": 1, "result": {"protocol": "1"}}'""", "where a number belongs"),
        ("""echo '{"id": 1, "failed": {"code": 5, "what": "no", "busy": false}}'""", "no"),
        ("exit 9", "exit code 9"),
    ],
)
def test_who_answers_as_no_fleece_does_is_an_error_of_the_source(
    tmp_path: Path, answer: str, why: str
) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text(f"#!/bin/sh\nread line\n{answer}\nread line\n")
    ssh.chmod(0o755)
    with pytest.raises(fleece.SourceError, match=why):
        FarSource("libvirt:web1", Place("there", (str(ssh),), "there", sys.executable))
