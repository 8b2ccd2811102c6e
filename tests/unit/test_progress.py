"""Progress for people and for programs: what it counts, how often it is told, and how loudly."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import termios
from contextlib import closing
from pathlib import Path

import pytest

from fleece.cli.bar import Rate
from fleece.cli.output import Output, Seldom
from fleece.engine.work.pool import Counter
from fleece.events import Event, Phase, Progress
from tests.engine.history import Guest
from tests.engine.scene import INTACT, LIMIT, ROOT

_WAITING = """
import sys
from fleece.cli.bar import Bar
from fleece.events import Phase, Progress
bar = Bar()
bar.show(Progress(Phase.PROOF, "vda", 1 << 20, 4 << 20))
sys.stdin.read()
bar.end()
"""


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_what_nobody_reads_has_no_rate() -> None:
    told: list[Event] = []
    counter = Counter(told.append, Phase.BACKUP, "web1", 9)
    counter.count(2)
    counter.skip(7)
    assert told == [Progress(Phase.BACKUP, "web1", 9, 9, known=7)]


def test_the_rate_is_that_of_the_last_seconds() -> None:
    clock = _Clock()
    rate = Rate(clock)
    assert rate.at(0) == 0
    clock.now += 1
    assert rate.at(100) == 100
    for _ in range(20):
        clock.now += 1
        last = rate.at(100)
    assert last == 0


def test_a_program_hears_of_progress_once_a_second(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = _Clock()
    monkeypatch.setattr("fleece.cli.output.time.monotonic", clock)
    output = Output(machine=True)
    monkeypatch.setattr(output, "_seldom", Seldom(1.0, clock))
    for done in range(31):
        output.listen(Progress(Phase.ROOT if done < 15 else Phase.PROOF, "x", done, 30))
        clock.now += 0.125
    assert capsys.readouterr().out.count('"progress"') == 4


def _on_terminal(code: str, term: str) -> tuple[int, subprocess.Popen[bytes]]:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    with closing(os.fdopen(theirs)):
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=os.environ | {"TERM": term},
            stdin=subprocess.PIPE,
            stderr=theirs,
        )
    return ours, process


def test_a_bar_goes_on_while_nothing_is_told() -> None:
    ours, process = _on_terminal(_WAITING, "xterm")
    with closing(os.fdopen(ours, "rb", buffering=0)) as reader:
        said = b""
        while b"2 s" not in said:  # of what waits, its time goes on
            assert select.select([reader], [], [], LIMIT)[0], said
            said += reader.read(4096)
        process.communicate()
    assert process.returncode == 0
    assert b"reading back vda  25%" in said


def test_a_terminal_that_only_prints_lines_has_no_bar() -> None:
    code = "from fleece.cli.bar import Bar; print(Bar.wanted(), flush=True)"
    for term, wanted in (("dumb", "False"), ("xterm", "True")):
        ours, process = _on_terminal(f"import sys; sys.stdout = sys.stderr; {code}", term)
        with closing(os.fdopen(ours, "rb", buffering=0)) as reader:
            assert reader.read(4096).decode().strip() == wanted
            process.communicate()


def test_quiet_is_what_was_asked_for_and_verbose_is_each_step(tmp_path: Path) -> None:
    guest = Guest(tmp_path / "store")
    guest.holding({"vda": b"x" * 65536})
    usual = INTACT.run("verify", guest.store).succeeded()
    assert "no damage in 1 point: 1 delta\n" in usual.out
    assert ", took " in usual.out
    assert usual.err == ""
    quiet = INTACT.run("verify", guest.store, "-q").succeeded()
    assert (quiet.out, quiet.err) == ("", "")
    verbose = INTACT.run("verify", guest.store, "--verbose").succeeded()
    assert verbose.out.splitlines()[-1] == usual.out.splitlines()[-1]
    assert f"sound: point {guest.points[0]} disk vda root" in verbose.err
    assert "verifying " in verbose.err
    listed = INTACT.run("list", guest.store, "-q").succeeded()
    assert listed.out.splitlines()[-1].startswith("web ")
    guest.paths["vda"][0].write_bytes(b"")
    INTACT.run("verify", guest.store, "-q").failed(5)
