"""The two ends of a source that is served elsewhere do not trust each other, and neither waits."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fleece
from fleece.source.far.line import Place
from fleece.source.far.messages import LONGEST, PROTOCOL
from fleece.source.far.source import FarSource
from tests.engine.served import request, served
from tests.rig import images

_REQUEST = request("d0")


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A scratch folder whose path is short."""
    with tempfile.TemporaryDirectory(prefix="rig-") as made:
        yield Path(made)


@pytest.fixture
def opened(tmp_path: Path, scratch: Path) -> Callable[[], fleece.Source]:
    """Opens an image at rest."""
    path = images.random_image(tmp_path / "d0.qcow2", images.MIB, seed=1)
    return lambda: fleece.open_source(f"image:d0={path}", fleece.SourceOptions(scratch))


def test_who_falls_silent_loses_the_point_and_nothing_stays_held(
    opened: Callable[[], fleece.Source], scratch: Path
) -> None:
    """The line may be cut though its pipes stand: no end of them is ever seen then."""
    with served(opened, silence=0.5) as end:
        assert end.ask("hello", protocol=PROTOCOL)["result"]["producer"]
        (socket,) = end.ask("take", request=_REQUEST)["result"]["point"]["sockets"]
        assert end.rest() == ""
        with pytest.raises(fleece.SourceError, match="the other host is silent"):
            end.end.result()
    assert os.listdir(scratch) == []
    assert not os.path.exists(socket)


def test_once_the_exports_have_ended_what_may_be_committed_is_kept(
    opened: Callable[[], fleece.Source],
) -> None:
    """The other side makes its point durable then, and may be killed before it can say so."""
    with served(opened) as end:
        end.ask("hello", protocol=PROTOCOL)
        number = end.ask("take", request=_REQUEST)["result"]["number"]
        assert end.ask("close", point=number) == {"id": 1, "result": None}
        assert end.ask("check", point=7)["failed"]["what"] == "the point has ended"
        end.close()
        end.end.result()
    with opened() as source:
        assert source.highest_sequence("c0ffee00", source.inventory().disks) == 1


def test_what_is_no_request_is_an_error_and_no_more(
    opened: Callable[[], fleece.Source], scratch: Path
) -> None:
    with served(opened) as end:
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
            told = end.ask(do, **more)
            assert why in told.get("failed", {"what": ""})["what"], told
        end.said(b"[")
        assert "no JSON" in end.heard()["failed"]["what"]
        assert os.listdir(scratch) == []
        end.said(b"x" * (LONGEST + (1 << 17)))
        with pytest.raises(fleece.SourceError, match="no request of fleece's"):
            end.end.result()


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
