"""Whoever must know is told how a run went, by real programs and servers."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import fleece
from tests.engine.test_fleet import Fleet
from tests.rig.s3_script import Asked, Deed, Say, ScriptedS3

_KEEP = "import sys; open(sys.argv[1], 'a').write(sys.stdin.read() + '\\n')"


class Web:
    """A server that takes what it is sent.

    Attributes:
        says: what it does, by the beginnings of paths; else: 200.
    """

    def __init__(self) -> None:
        self.says: dict[str, Deed] = {}
        self._server = ScriptedS3(None, self._said)
        self.url = f"http://127.0.0.1:{self._server.port}"

    def _said(self, asked: Asked) -> Deed:
        found = [deed for start, deed in self.says.items() if asked.path.startswith(start)]
        return found[0] if found else Say(200)

    def asked(self, start: str = "/") -> list[Asked]:
        """What came to paths."""
        return [asked for asked in self._server.asked if asked.path.startswith(start)]

    def forget(self) -> None:
        """What came."""
        self._server.asked.clear()

    def close(self) -> None:
        """End it."""
        self._server.__exit__()


@pytest.fixture
def web() -> Iterator[Web]:
    """A server."""
    made = Web()
    yield made
    made.close()


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    """One guest, whose runs remember in a folder of the test's."""
    (tmp_path / "state").mkdir(mode=0o755)
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    made = Fleet(tmp_path)
    made.add("a")
    return made


def _kept(fleet: Fleet, name: str = "kept") -> str:
    """A command that keeps what it is told."""
    return f"command = {json.dumps([sys.executable, '-c', _KEEP, str(fleet.folder / name)])}\n"


def _read(fleet: Fleet, name: str = "kept") -> list[dict[str, Any]]:
    """What it was told."""
    path = fleet.folder / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _news(letter: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(one["kind"], one["guest"], one["step"]) for one in letter["news"]]


def _hide(fleet: Fleet) -> None:
    fleet.image["a"].rename(fleet.folder / "elsewhere")


def _show(fleet: Fleet) -> None:
    (fleet.folder / "elsewhere").rename(fleet.image["a"])


def test_failure_and_recovery_are_told_in_every_form(fleet: Fleet, web: Web) -> None:
    (fleet.folder / "url").write_text(f"{web.url}/secret/slack\n")
    (fleet.folder / "token").write_text("t0ken\n")
    token = f'token-file = "{fleet.folder}/token"'
    fleet.after = f"""
[notice.own]
{_kept(fleet)}
[notice.json]
web-hook = {{ url = "{web.url}/json" }}
[notice.slack]
web-hook = {{ url-file = "{fleet.folder}/url", form = "slack" }}
[notice.matrix]
web-hook = {{ url = "{web.url}/rooms/!r:h/send/m.room.message", form = "matrix", {token} }}
[notice.ntfy]
web-hook = {{ url = "{web.url}/topic?x=1", form = "ntfy", {token} }}
[notice.hush]
on = ["damage"]
{_kept(fleet, "hushed")}
"""
    fleet.run().succeeded()
    assert not web.asked()
    _hide(fleet)
    fleet.run().failed(fleece.ExitCode.SOURCE, "a.qcow2: No such file")
    (own,) = _read(fleet)
    assert _news(own) == [("failure", "a", "backup")]
    assert "a in store main: backup failed" in own["title"]
    assert "a.qcow2: No such file" in own["text"]
    (said,) = web.asked("/json")
    assert json.loads(said.body) == own
    (said,) = web.asked("/secret/slack")
    assert own["title"] in json.loads(said.body)["text"]
    (said,) = web.asked("/rooms/!r:h/send/m.room.message/")
    assert said.method == "PUT"
    assert said.headers["authorization"] == "Bearer t0ken"
    assert own["text"] in json.loads(said.body)["body"]
    (said,) = web.asked("/topic?x=1")
    assert (said.headers["title"], said.headers["priority"]) == (own["title"], "high")
    assert said.body.decode() == own["text"]
    fleet.run().failed(fleece.ExitCode.SOURCE)
    web.forget()
    _show(fleet)
    for _ in range(2):
        fleet.run().succeeded()
    failed, again, well = _read(fleet)
    assert _news(failed) == _news(again)
    assert failed["news"][0]["since"] == again["news"][0]["since"] == well["news"][0]["since"]
    assert _news(well) == [("recovery", "a", "backup")]
    assert len(web.asked()) == 4
    assert web.asked("/topic")[0].headers["priority"] == "default"
    assert not _read(fleet, "hushed")


def test_what_goes_on_is_told_again_after_a_while(fleet: Fleet) -> None:
    fleet.after = f'[notice.own]\nagain = "1d"\n{_kept(fleet)}'
    _hide(fleet)
    for _ in range(2):
        fleet.run().failed(fleece.ExitCode.SOURCE)
    assert [_news(letter) for letter in _read(fleet)] == [[("failure", "a", "backup")]]
    fleet.run("--dry-run", "--only", "verify").succeeded()
    fleet.run("--only", "copy").succeeded()
    far = datetime.now() + timedelta(days=3)
    fleet.limits = f'windows = ["{far:%a} 00:00-01:00"]'
    fleet.run("--only", "backup").succeeded()
    fleet.limits = ""
    assert len(_read(fleet)) == 1, "a backup that was not tried is not well again"
    _show(fleet)
    fleet.run("--dry-run").succeeded()
    assert len(_read(fleet)) == 1
    fleet.run("a").succeeded()
    assert _news(_read(fleet)[1]) == [("recovery", "a", "backup")]


def test_damage_and_age_are_told(fleet: Fleet) -> None:
    fleet.more, fleet.last = "verify = {}", 'stale-after = "1h"'
    fleet.after = f"[notice.own]\n{_kept(fleet)}"
    fleet.run().succeeded()
    assert not _read(fleet)
    (delta,) = (fleet.folder / "store").rglob("*.fleece")
    data = bytearray(delta.read_bytes())
    data[len(data) // 2] ^= 1
    delta.chmod(0o600)
    delta.write_bytes(data)
    fleet.run("--only", "verify").failed(fleece.ExitCode.STORE)
    (letter,) = _read(fleet)
    assert _news(letter) == [("damage", "a", "verify"), ("stale", "a", "age")]
    assert "there is no good point" in letter["text"]


def test_a_run_that_cannot_begin_is_told(fleet: Fleet) -> None:
    fleet.more = f'key-file = "{fleet.folder}/nokey"'
    fleet.after = f"[notice.own]\n{_kept(fleet)}"
    fleet.run().failed(fleece.ExitCode.USAGE, "nokey")
    fleet.more = ""
    fleet.run().succeeded()
    assert [_news(letter)[0] for letter in _read(fleet)] == [
        ("failure", "", "run"),
        ("recovery", "", "run"),
    ]


def test_a_dead_mans_switch_hears_of_whole_runs(fleet: Fleet, web: Web) -> None:
    """And of none that is not whole, or changes nothing."""
    (fleet.folder / "url").write_text(f"{web.url}/ping/uuid\n")
    fleet.after = f'[notice.switch]\nping = {{ url-file = "{fleet.folder}/url" }}\n'
    fleet.run().succeeded()
    for words in (("a",), ("--only", "verify"), ("--dry-run",)):
        fleet.run(*words).succeeded()
    _hide(fleet)
    fleet.run().failed(fleece.ExitCode.SOURCE)
    paths = [asked.path for asked in web.asked()]
    assert paths == ["/ping/uuid/start", "/ping/uuid", "/ping/uuid/start", "/ping/uuid/fail"]
    assert b"a.qcow2: No such file" in web.asked()[-1].body


def test_what_cannot_be_told_is_told_by_the_exit_code_and_owed(fleet: Fleet, web: Web) -> None:
    """The backup is there. Nobody sees the address, and nobody is led elsewhere."""
    fleet.after = f"""
[notice.own]
{_kept(fleet)}
[notice.hook]
web-hook = {{ url = "{web.url}/s3cret" }}
"""
    _hide(fleet)
    fleet.run().failed(fleece.ExitCode.SOURCE)
    _show(fleet)
    web.forget()
    web.says["/s3cret"] = Say(302, headers={"Location": f"{web.url}/elsewhere"})
    why = "notice 'hook': could not be sent: HTTP status 302 Found; redirects are not followed"
    ran = fleet.run().failed(fleece.ExitCode.NOTICE, why)
    assert ran.result["untold"] == [ran.result["error"]]
    assert ran.result["failed"] == 0
    assert ran.named("guest")[0]["steps"][0]["ok"]
    assert "s3cret" not in ran.out
    assert len(web.asked()) == 1
    web.says.clear()
    web.forget()
    fleet.run().succeeded()
    assert _news(json.loads(web.asked()[0].body)) == [("recovery", "a", "backup")]
    assert [_news(letter)[0][0] for letter in _read(fleet)] == ["failure", "recovery"]


def test_what_was_told_is_not_needed(fleet: Fleet, web: Web) -> None:
    """All is told anew then."""
    fleet.after = f'[notice.own]\nagain = "1d"\n{_kept(fleet)}'
    _hide(fleet)
    fleet.run().failed(fleece.ExitCode.SOURCE)
    (told,) = (fleet.folder / "state/told").iterdir()
    told.write_text("[]")
    ran = fleet.run().failed(fleece.ExitCode.SOURCE)
    assert "is not readable; all is told anew" in ran.result["untold"][0]
    (fleet.folder / "state").rename(fleet.folder / "gone")
    (fleet.folder / "state").write_text("")
    ran = fleet.run().failed(fleece.ExitCode.SOURCE)
    assert "what was told cannot be kept" in ran.result["untold"][0]
    assert len(_read(fleet)) == 3
