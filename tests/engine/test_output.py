"""Standard output, error and input that are full, closed or left: one line, and nothing is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.scene import MIB, ROOT, Ran, Scene, daemon, fill, small_tmpfs
from tests.rig import images
from tests.rig.disk import Disk
from tests.rig.process import LIMIT, run_checked

PAGE = os.sysconf("SC_PAGESIZE")
FULL = Path("/dev/full")
NO_ROOM = "fleece: standard output takes no more (No space left on device)"
BUFFERING = ["", "1"]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    image = images.random_image(tmp_path / "d0.qcow2", 4 * MIB, seed=1)
    with daemon(tmp_path, Disk(image, "d0")) as made:
        yield made


def _run(*words: object, streams: str = "", unbuffered: str = "") -> Ran:
    """Run `fleece WORDS` with standard streams as the shell's words say."""
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {streams}', "-", sys.executable, "-m", "fleece", *map(str, words)],
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("unbuffered", BUFFERING)
@pytest.mark.parametrize("words", [("--help",), ("--version",), ("list",), ("list", "--json")])
def test_a_full_output_is_one_line_on_standard_error(
    words: tuple[str, ...], unbuffered: str, scene: Scene
) -> None:
    scene.take()
    place = (scene.store,) if "list" in words else ()
    ran = _run(*words, *place, streams=f">{FULL}", unbuffered=unbuffered)
    assert ran.code == 1
    assert ran.err.startswith(NO_ROOM)
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize("unbuffered", BUFFERING)
@pytest.mark.parametrize("streams", [f">{FULL}", f"2>{FULL}", f">{FULL} 2>&1", "2>&-", ">&- 2>&-"])
@pytest.mark.parametrize("option", [(), ("--json",)], ids=["people", "json"])
def test_an_error_keeps_its_code_wherever_it_cannot_be_said(
    option: tuple[str, ...], streams: str, unbuffered: str, tmp_path: Path
) -> None:
    ran = _run("list", tmp_path / "none", *option, streams=streams, unbuffered=unbuffered)
    assert ran.code == 5
    for said in (ran.out, ran.err):
        assert said == "" or "there is no store here" in said
        assert said.count("\n") <= 1


@pytest.mark.parametrize("option", [(), ("--json",)], ids=["people", "json"])
def test_an_error_output_that_is_full_ends_a_backup_in_order(
    option: tuple[str, ...], scene: Scene
) -> None:
    words = [word for word in scene.words() if word != "--json"]
    ran = _run(*words, *option, streams=f">{FULL} 2>&1")
    assert (ran.code, ran.out, ran.err) == (1, "", "")
    scene.nothing_left()
    assert scene.segments() == []
    assert scene.points() == 0


def test_an_output_that_runs_full_ends_a_backup_and_leaves_nothing(tmp_path: Path) -> None:
    image = images.random_image(tmp_path / "d0.qcow2", 16 * MIB, seed=1, fill=1.0)
    with small_tmpfs(1) as small, daemon(tmp_path, Disk(image, "d0")) as scene:
        scene.take()
        scene.writer().write(0, os.urandom(MIB))
        said = small / "said"
        room = 160  # for the first events, and no more: tmpfs counts pages
        said.write_bytes(b"\n" * (2 * PAGE - room))
        fill(small)
        ran = _run(*scene.words("--mode", "full"), streams=f">>{said}")
        assert ran.code == 1
        assert ran.err.startswith(NO_ROOM)
        assert ran.err.count("\n") == 1
        whole = [json.loads(line)["event"] for line in said.read_text().split("\n")[:-1] if line]
        assert whole[:2] == ["plan", "point"]
        assert "committed" not in whole
        scene.nothing_left()
        assert scene.take("incremental").disks[0].dirty_bytes == MIB
        scene.check_exact()


def test_text_for_a_closed_output_goes_nowhere(scene: Scene) -> None:
    ran = _run(*scene.words(), streams=">&-")
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    assert _run("verify", scene.store, streams="<&- >&- 2>&-").code == 0
    scene.check_exact()
    scene.nothing_left()


def test_data_for_a_closed_output_is_refused(scene: Scene) -> None:
    ran = _run(*scene.words("--output", "-"), streams=">&-")
    assert ran.code == 2
    assert "standard output is closed" in json.loads(ran.err)["error"]
    assert scene.segments() == []
    scene.take()
    for streams in (">&-", f"1<{os.devnull}"):
        ran = _run("restore", scene.store, "latest", "d0", "-", streams=streams)
        ran.failed(2, "standard output is closed")


@pytest.mark.parametrize("words", [(), ("--json",)], ids=["people", "json"])
def test_no_text_gets_into_data_when_standard_error_is_closed(
    words: tuple[str, ...], scene: Scene, tmp_path: Path
) -> None:
    delta, other = tmp_path / "delta", tmp_path / "other"
    taken = [word for word in scene.words("--output", "-") if word != "--json"]
    assert _run(*taken, *words, streams=f"2>&- >{delta}").code == 0
    scene.place(other)
    assert _run("import", other, streams=f"<{delta}").code == 0
    scene.check_exact("d0", store=other)
    disk = tmp_path / "disk"
    words = ("restore", str(other), "latest", "d0", "-", *words)
    assert _run(*words, streams=f"2>&- >{disk}").code == 0
    scene.same_as_live("d0", disk)


def test_a_closed_input_holds_no_delta(tmp_path: Path) -> None:
    store = tmp_path / "store"
    _run("import", store, streams="<&-").failed(2, "is read from standard input", "< FILE")
    assert not store.exists()


def test_tools_that_inherit_closed_streams_do_no_harm(scene: Scene, tmp_path: Path) -> None:
    """What they open must not get the number of what they print to."""
    scene.take()
    target = tmp_path / "target.qcow2"
    words = ("restore", scene.store, "latest", "d0", target)
    assert _run(*words, streams="<&- >&- 2>&-").code == 0
    run_checked("qemu-img", "check", "-q", target)
