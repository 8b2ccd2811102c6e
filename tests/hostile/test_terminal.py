"""Names and texts that somebody else chose reach a terminal escaped, whatever verb shows them."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest

from fleece.terminal import shown
from tests.engine.scene import MIB, ROOT, MachineScene, Scene, daemon
from tests.rig import images
from tests.rig.agent import Answer, ScriptedAgent
from tests.rig.disk import Disk
from tests.rig.machine import Machine
from tests.rig.process import LIMIT, run_checked

EVIL = (
    "x\x1b]0;owned\x07\x1b[2J\b\r\x7f\x85\x9b31m"
    "\u202e\u2066\u200b\u200f\u2028\u2029\ufeff\t\v\nforged"
)
"""What a terminal obeys, what turns text around, what has no width, and a line of its own."""

ODD = os.fsdecode(EVIL.encode() + b"\x9b31m\xff")
"""The same as a file's name, with bytes that are no UTF-8."""

PLAIN = "gäst 日本 🙂"


# ---- the function -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("web-1.example", "web-1.example"),
        (PLAIN, PLAIN),
        ("a b\\c'd\"e", "a b\\c'd\"e"),
        ("\x1b[2J", r"\x1b[2J"),
        ("a\nb\r\tc", r"a\x0ab\x0d\x09c"),
        ("\x7f\x9b", r"\x7f\xc2\x9b"),
        ("\u202e\u2066", r"\xe2\x80\xae\xe2\x81\xa6"),
        ("\u200b\u2028\ufeff", r"\xe2\x80\x8b\xe2\x80\xa8\xef\xbb\xbf"),
        (os.fsdecode(b"\xff\x9b"), r"\xff\x9b"),
        ("\ud800", r"\xed\xa0\x80"),
        ("", ""),
    ],
)
def test_what_is_not_printable_is_shown_as_its_bytes(text: str, expected: str) -> None:
    assert shown(text) == expected
    assert shown(expected) == expected


@pytest.mark.parametrize("code", [*range(0x20), *range(0x7F, 0xA0), *range(0x200B, 0x2010)])
def test_no_control_character_of_either_kind_stays(code: int) -> None:
    assert shown(chr(code)).isprintable()


# ---- the verbs ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    """What a command printed, as bytes."""

    code: int
    out: bytes
    err: bytes

    def harmless(self, code: int | None = None, *, told: bool = False) -> Said:
        """Check that a terminal obeys nothing of it.

        Args:
            code: that it ended with; None: any but a bug's.
            told: it must show the odd name.
        """
        both = self.out + self.err
        assert b"Traceback" not in both, both
        assert self.code == code if code is not None else self.code != 1, both
        for stream in (self.out, self.err):
            for line in stream.decode().split("\n"):
                assert line.isprintable(), repr(line)
                assert not line.startswith("forged"), repr(stream)
        assert not told or rb"\x1b]0;owned\x07" in both, both
        return self


def _start(
    *words: object,
    env: dict[str, str] | None = None,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int = subprocess.PIPE,
    stderr: int = subprocess.PIPE,
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "fleece", *map(str, words)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | (env or {}),
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
    )


def _run(*words: object, **more: Any) -> Said:
    process = _start(*words, **more)
    out, err = process.communicate(timeout=LIMIT)
    return Said(process.returncode, out or b"", err or b"")


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of two points, a guest of which has an ordinary name in Unicode."""
    folder = tmp_path_factory.mktemp("origin")
    image = images.random_image(folder / "d0.qcow2", 4 * MIB, seed=1)
    with daemon(folder, Disk(image, "d0")) as scene:
        for _ in range(2):
            _run(*scene.words("--guest", PLAIN)).harmless(0)
            scene.writer().write(MIB, os.urandom(MIB))
    return folder


@pytest.fixture
def store(origin: Path, tmp_path: Path) -> Path:
    """The store under odd names: itself, its folders and files; and files that are no deltas."""
    place = tmp_path / ODD / "store"
    run_checked("cp", "-r", "--reflink=auto", origin / "store", tmp_path)
    (tmp_path / ODD).mkdir()
    (tmp_path / "store").rename(place)
    for number, file in enumerate(sorted(place.rglob("*.fleece"))):
        folder = file.parent
        file.rename(folder / f"{ODD}{number}.fleece")
        folder.rename(folder.with_name(f"{ODD}{number}"))
    return place


def _points(store: Path) -> list[str]:
    said = _run("list", store, "--json")
    rows = [json.loads(line) for line in said.out.splitlines()]
    return [row["point"] for row in rows if row["event"] == "point"]


def _damaged(store: Path) -> None:
    """Put something that is no delta among them, and damage one."""
    deltas = sorted(store.rglob("*.fleece"))
    (deltas[0].parent / f"{ODD}-.fleece").write_bytes(os.urandom(4096))
    with deltas[-1].open("r+b") as file:
        file.seek(-20000, os.SEEK_END)
        file.write(os.urandom(5000))


def test_ordinary_unicode_stays(store: Path) -> None:
    assert PLAIN.encode() in _run("list", store).harmless(0).out


@pytest.mark.parametrize(
    "words",
    [
        ("list",),
        ("status",),
        ("metrics",),
        ("verify",),
        ("verify", "latest"),
        ("verify", "--max-age", "0d"),
        ("prune", "--keep-last", "1", "--dry-run"),
        ("prune", "--keep-last", "1"),
        ("merge", "latest"),
        ("pin", "latest"),
        ("unpin", "latest"),
        ("pin", ODD),
        ("map", "latest", "d0"),
        ("map", "latest", ODD),
        ("diff", "latest", ODD),
        ("files", "latest", "d0", "ls"),
        ("files", "latest", "d0", "ls", ODD),
        ("verify", "--guest", ODD),
        ("verify", "latest", "--against", ODD),
        ("restore", "latest", ODD, "x"),
        ("list", ODD),
        (ODD,),
    ],
    ids=lambda words: ascii(" ".join(words))[:50],
)
@pytest.mark.parametrize("damaged", [False, True], ids=["sound", "damaged"])
def test_no_verb_of_a_store_shows_what_a_terminal_obeys(
    words: tuple[str, ...], damaged: bool, store: Path
) -> None:
    if damaged:
        _damaged(store)
    verb, *rest = words
    _run(verb, store, *rest).harmless()


@pytest.mark.parametrize("verb", ["list", "verify", "status"])
def test_a_damaged_files_name_is_told_escaped(verb: str, store: Path) -> None:
    _damaged(store)
    _run(verb, store).harmless(5, told=True)


def test_no_verb_of_a_file_shows_what_a_terminal_obeys(store: Path, tmp_path: Path) -> None:
    (newest, *_) = sorted(store.rglob("*1.fleece"))
    _run("info", newest).harmless(0, told=True)
    raw = tmp_path / f"{ODD}.raw"
    _run("restore", store, "latest", "d0", raw).harmless(0, told=True)
    _run("restore", store, "latest", "d0", raw).harmless(7, told=True)
    _run("verify", store, "latest", "--against", raw, "--format", "raw").harmless(0, told=True)
    _run("root", f"{raw}x").harmless(told=True)
    _run("restore", store, "latest", "d0", tmp_path / f"{ODD}.d", "--as-chain").harmless(0)
    _run("map", store, "latest", "d0", "--svg", tmp_path / f"{ODD}.svg").harmless(0)
    _damaged(store)
    _run("info", newest).harmless()
    partial = tmp_path / f"{ODD}.part"
    _run("restore", store, "latest", "d0", partial, "--partial").harmless(6, told=True)
    saved = tmp_path / f"{ODD}.new"
    (oldest, *_) = sorted(store.rglob("*0.fleece"))
    os.truncate(oldest, oldest.stat().st_size - 1000)
    _run("salvage", oldest, "-o", saved).harmless(0, told=True)
    _run("info", saved).harmless(0)


def test_an_imported_delta_and_a_served_one(store: Path, tmp_path: Path) -> None:
    (oldest, *_) = sorted(store.rglob("*0.fleece"))
    with oldest.open("rb") as file:
        _run("import", tmp_path / ODD / "other", stdin=file).harmless(told=True)
        file.seek(0)
        _run("init", tmp_path / ODD / "new", "--like", oldest).harmless()
        _run("import", tmp_path / ODD / "new", stdin=file).harmless()
    process = _start("serve", store, "latest", "--socket", tmp_path / ODD[:30])
    assert process.stdout is not None
    line = process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=LIMIT)
    Said(process.returncode, line + out, err).harmless()


def test_the_picture_has_no_more_than_its_own_colours(store: Path, tmp_path: Path) -> None:
    words = "map", store, "latest", "d0"
    shown_on_tty = _on_terminal(*words, stream="stdout")
    assert b"\x1b[38;2;" in shown_on_tty
    svg = tmp_path / "picture.svg"
    _run(*words, "--svg", svg).harmless(0)
    assert all(line.isprintable() for line in svg.read_text().split("\n"))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_the_terminals_encoding_lacks_is_escaped_too(encoding: str, store: Path) -> None:
    said = _run("list", store, env={"PYTHONIOENCODING": encoding})
    assert said.code == 0, said
    assert rb"\u65e5" in said.out
    _damaged(store)
    said = _run("list", store, env={"PYTHONIOENCODING": encoding})
    assert said.code == 5, said
    assert all(line.isprintable() for line in said.err.decode(encoding).split("\n"))


def _on_terminal(*words: object, stream: str) -> bytes:
    """What a command prints on a stream that is a terminal."""
    ours, theirs = pty.openpty()
    with closing(os.fdopen(ours, "rb", buffering=0)) as reader:
        process = _start(*words, env={"TERM": "xterm"}, **{stream: theirs})
        os.close(theirs)
        said = b""
        with suppress(OSError):  # EIO: nobody has the other end any more
            while data := reader.read(65536):
                said += data
        process.communicate(timeout=LIMIT)
    return said


def test_a_progress_bar_shows_no_name_that_a_terminal_obeys(tmp_path: Path) -> None:
    image = tmp_path / f"{ODD}.raw"
    images.random_image(tmp_path / "plain", 4 * MIB, seed=3, fmt="raw").rename(image)
    said = _on_terminal("root", image, stream="stderr")
    assert b"root" in said
    assert b"\r" in said
    for wrong in (
        b"\x1b]",
        b"\x07",
        b"\x1b[2J",
        b"\b",
        b"\xc2\x9b",
        "\u202e".encode(),
        b"\nforged",
    ):
        assert wrong not in said, said


# ---- QEMU and the agent -------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[MachineScene]:
    image = images.random_image(tmp_path / f"{EVIL}.qcow2", MIB, seed=1)
    name = ("-name", "guest=x\x1b]0;owned\x07\x9b\u202e\nforged")
    with Machine([Disk(image, "d0")], extra=name) as qemu:
        yield MachineScene(qemu, tmp_path)


def test_a_machines_and_a_bitmaps_names(machine: MachineScene, tmp_path: Path) -> None:
    ask = machine.qemu.control.command
    ask("block-dirty-bitmap-add", {"node": "d0", "name": EVIL})
    _run("doctor", machine.source).harmless(0, told=True)
    _run("bitmap", machine.source).harmless()
    _run("clean", machine.source, "--scratch", tmp_path / ODD[:60]).harmless()
    _run("init", tmp_path / "s").harmless(0)
    words = "backup", machine.source, tmp_path / "s", "--scratch", machine.scratch
    _run(*words).harmless(2)
    _run(*words, "--guest", "g", "--disk", EVIL).harmless(told=True)
    _run(*words, "--guest", "g").harmless(0)
    _run("doctor", machine.source, "--json").harmless(0)


def test_what_the_agent_says(scene: Scene) -> None:
    def refuse(agent: ScriptedAgent, command: str) -> Answer | None:
        if command == "guest-fsfreeze-freeze":
            return {"error": {"class": "GenericError", "desc": f"hook {EVIL} failed"}}
        return None

    agent = ScriptedAgent(scene.qemu.folder / "agent.sock", refuse)
    try:
        words = [word for word in scene.words() if word != "--json"]
        said = _run(*words, "--guest-agent", agent.path).harmless(0, told=True)
        assert b"warning: the guest was not frozen" in said.err
    finally:
        agent.close()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """One disk without a machine."""
    image = images.random_image(tmp_path / "d0.qcow2", MIB, seed=1)
    with daemon(tmp_path, Disk(image, "d0")) as made:
        yield made


@contextmanager
def _monitor(path: Path, greeting: bytes) -> Iterator[None]:
    """A QMP monitor that greets so, and refuses every command in words of its own."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            with suppress(OSError):
                client, _ = listener.accept()
                with client, client.makefile("rb") as lines:
                    client.sendall(greeting)
                    for line in lines:
                        asked = json.loads(line)
                        answer = {"id": asked.get("id"), "return": {}}
                        if asked["execute"] != "qmp_capabilities":
                            del answer["return"]
                            answer["error"] = {"class": "GenericError", "desc": EVIL}
                        client.sendall(json.dumps(answer, ensure_ascii=False).encode() + b"\n")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join()


_GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": EVIL}}}


@pytest.mark.parametrize(
    "greeting",
    [
        json.dumps({"QMP": _GREETING["QMP"] | {"capabilities": []}}).encode() + b"\n",
        EVIL.encode() + b"\n",
        b"{" + EVIL.encode() + b"}\n",
        b'{"QMP": "' + EVIL.partition("\n")[0].encode() + b'"}\n',
    ],
    ids=["refuses", "text", "broken", "odd"],
)
def test_what_a_monitor_says(greeting: bytes, tmp_path: Path) -> None:
    path = Path(f"/tmp/fleece-test-{os.getpid()}.sock")
    path.unlink(missing_ok=True)
    try:
        with _monitor(path, greeting):
            _run("doctor", f"qmp:{path}").harmless(3)
    finally:
        path.unlink()


_OTHERS = """
import logging, sys, threading, warnings
from fleece.cli.process import guard_terminal
guard_terminal()
logging.getLogger("somebody").error(sys.argv[1])
warnings.warn(sys.argv[1])
thread = threading.Thread(target=lambda: 1 / 0, name=sys.argv[1])
thread.start()
thread.join()
print(sys.argv[1], file=sys.stderr)
raise ValueError(sys.argv[1])
"""


def test_what_libraries_and_python_itself_print() -> None:
    text = EVIL.replace("\n", "")
    done = subprocess.run(
        [sys.executable, "-c", _OTHERS, text], cwd=ROOT, capture_output=True, check=False
    )
    said = done.stderr.decode()
    assert all(line.isprintable() for line in said.split("\n")), said
    assert said.count(r"x\x1b]0;owned\x07") >= 5
