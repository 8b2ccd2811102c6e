"""Stores on another host, `ssh://HOST/PATH`: a real sshd once, else what stands in for ssh."""

from __future__ import annotations

import getpass
import json
import os
import select
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType

import pytest

import fleece
from fleece import events
from fleece.cancel import CancelToken
from fleece.errors import StoreError, UsageError
from fleece.store.init import init
from fleece.store.open import open_backend
from fleece.store.remote import channel
from fleece.store.remote.backend import SHELL_VARIABLE
from fleece.store.remote.wire import GREETING, LENGTHS, MAX_TEXT, Message, packed
from tests.contract.shell import shell
from tests.engine.scene import INTACT, MIB, ROOT, Ran, daemon, small_tmpfs, wait_until
from tests.rig import images
from tests.rig.disk import Disk
from tests.rig.process import LIMIT, run_checked
from tests.unit.copies import Site


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store on another host, that is not made yet."""
    monkeypatch.setenv(SHELL_VARIABLE, str(shell(tmp_path)))
    return f"ssh://vault{tmp_path}/vault"


@pytest.fixture
def adding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """One that is served append-only."""
    monkeypatch.setenv(SHELL_VARIABLE, str(shell(tmp_path, "--append-only")))
    return f"ssh://vault{tmp_path}/vault"


def _fleece(*words: object) -> Ran:
    return INTACT.run(*words, "--json")


# ---- what it is for ------------------------------------------------------------------------------


def test_a_guest_is_backed_up_to_another_host_and_back(there: str, tmp_path: Path) -> None:
    """Incrementally, and by the other verbs as from a folder."""
    image = images.random_image(tmp_path / "d0.qcow2", 4 * MIB, seed=1)
    init(there)
    with daemon(tmp_path, Disk(image, "d0")) as scene:
        for mode in ("full", "incremental"):
            scene.writer().write(MIB, os.urandom(65536))
            words = ("--guest", "g", "--scratch", scene.scratch)
            ran = _fleece("backup", scene.source, there, *words).succeeded()
            assert ran.result["mode"] == mode
        scene.check_exact("d0", store=tmp_path / "vault")
        _fleece("prune", there, "--keep-last", "1", "--merge", "always").succeeded()
        _fleece("restore", there, "latest", "d0", tmp_path / "back.raw").succeeded()
        scene.same_as_live("d0", tmp_path / "back.raw")
        assert len(fleece.open_store(there).catalogue().points) == 1


def test_points_are_copied_to_another_host_and_nothing_there_is_taken_back(
    adding: str, tmp_path: Path
) -> None:
    site = Site(init(tmp_path / "here"), disks=("vda", "vdb"), size=MIB)
    first = site.back_up()
    target = init(adding)
    assert fleece.copy(site.store, target).had == 0
    site.back_up()
    report = fleece.copy(site.store, target)
    assert (len(report.points), report.had) == (1, 1)
    vault = fleece.open_store(tmp_path / "vault")
    before = {file: file.read_bytes() for file in (tmp_path / "vault").rglob("*.fleece")}
    _fleece("prune", adding, "--keep-last", "1", "--merge", "always").failed(fleece.ExitCode.STORE)
    with pytest.raises(StoreError, match="append-only"):
        fleece.merge(target, "latest")
    fleece.set_pin(target, first)  # adds
    with pytest.raises(StoreError, match="append-only"):
        fleece.set_tags(target, first, add=["a"])
    with pytest.raises(StoreError, match="append-only"):
        fleece.set_pin(target, first, pinned=False)
    assert fleece.verify_store(target.catalogue(), record=True).errors == ()
    opened = target.backend
    for refused in (
        lambda: opened.drop(f"web/000001-{first}"),
        lambda: opened.replace(f"web/000001-{first}/vda.fleece"),
        lambda: opened.put("fleece-store.json", b"{}"),
        lambda: opened.delete("fleece-store.json"),
    ):
        with pytest.raises(StoreError, match="append-only"):
            refused()
    batch = opened.batch("web", "x")
    with pytest.raises(StoreError):
        batch.commit(f"000001-{first}")
    batch.discard()
    assert {file: file.read_bytes() for file in before} == before
    assert site.judge(vault) == [*site.true]
    back = init(tmp_path / "back")
    assert fleece.copy(target, back).errors == ()
    assert site.judge(back) == [*site.true]


def test_a_connection_that_is_cut_leaves_whole_points_and_the_lock_free(
    there: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What runs at the other end is killed when some points have arrived."""
    site = Site(init(tmp_path / "here"), size=MIB)
    for _ in range(4):
        site.back_up()
    fleece.init(tmp_path / "vault")
    target = fleece.open_store(there)
    pid = target.backend._channel._process.pid  # type: ignore[attr-defined]

    def hear(event: events.Event) -> None:
        if isinstance(event, events.Arrived):
            os.kill(pid, 9)

    with pytest.raises(StoreError, match="the connection has ended"):
        fleece.copy(site.store, target, fleece.CopyOptions(workers=1), hear)
    assert len(site.judge(fleece.open_store(tmp_path / "vault"))) in (1, 2)
    assert fleece.copy(site.store, fleece.open_store(there)).errors == ()
    assert site.judge(fleece.open_store(tmp_path / "vault")) == [*site.true]
    assert not [*(tmp_path / "vault").glob("web/.partial*")]


def test_a_copy_that_is_killed_lets_the_lock_there_go(there: str, tmp_path: Path) -> None:
    site = Site(init(tmp_path / "here"), size=MIB)
    for _ in range(3):
        site.back_up()
    init(there)
    words = ("copy", tmp_path / "here", there, "--json", "--rate", "1M", "--jobs", "1")
    started = subprocess.Popen(
        [sys.executable, "-m", "fleece", *map(str, words)], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert started.stdout is not None
    while b'"arrived"' not in (line := started.stdout.readline()):
        assert line, "it ended"
    started.kill()
    started.communicate(timeout=LIMIT)
    report = fleece.copy(site.store, fleece.open_store(there))
    assert report.had > 0
    assert site.judge(fleece.open_store(tmp_path / "vault")) == [*site.true]


def test_a_store_that_is_full_there_is_told(there: str, tmp_path: Path) -> None:
    site = Site(init(tmp_path / "here"), size=8 * MIB)
    site.back_up()
    with small_tmpfs(2) as small:
        fleece.init(small / "vault")
        target = fleece.open_store(f"ssh://vault{small}/vault")
        with pytest.raises(StoreError, match="No space left"):
            fleece.copy(site.store, target)
        assert not [*(small / "vault").glob("web/*/*")]


# ---- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "ssh://",
        "ssh://host",
        "ssh://host/",
        "ssh://-oProxyCommand=x/y",
        "ssh://-a@host/x",
        "ssh://host:port/x",
        "ssh://u:secret@host/x",
        "ssh://host/x?y",
    ],
)
def test_what_names_no_store_is_refused(name: str) -> None:
    with pytest.raises(UsageError) as refused:
        open_backend(name)
    assert "secret" not in str(refused.value)


def test_another_path_than_the_one_that_is_served_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a forced command of sshd's has it: whatever is asked for, one store is served."""
    made = tmp_path / "rsh"
    command = f"cd {ROOT} && exec {sys.executable} -m fleece serve-store {tmp_path}/vault"
    made.write_text(f"#!/bin/sh\n{command}\n")
    made.chmod(0o755)
    monkeypatch.setenv(SHELL_VARIABLE, str(made))
    fleece.init(tmp_path / "vault")
    assert fleece.open_store(f"ssh://host{tmp_path}/vault").id
    with pytest.raises(StoreError, match="serves"):
        fleece.open_store(f"ssh://host{tmp_path}/other")


# ---- the other side is not trusted ---------------------------------------------------------------


def _answering(folder: Path, data: bytes, then: str = "") -> Path:
    """Something that says this, whatever it is asked."""
    (folder / "said").write_bytes(data)
    made = folder / "rsh"
    made.write_text(f"#!/bin/sh\ncat {folder}/said\n{then}\n")
    made.chmod(0o755)
    return made


def _said(**said: object) -> bytes:
    return packed(Message(said))


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "the connection has ended"),
        (b"Welcome to the vault of Example Ltd\n", "no fleece that serves a store"),
        (GREETING, "the connection has ended"),
        (GREETING + LENGTHS.pack(MAX_TEXT + 1, 0), "too long"),
        (GREETING + LENGTHS.pack(2, 1 << 31) + b"{}", "too long"),
        (GREETING + LENGTHS.pack(4, 0) + b"[[[[", "no JSON"),
        (GREETING + LENGTHS.pack(2, 0) + b"[]", "no JSON object"),
        (GREETING + LENGTHS.pack(200_000, 0) + b"[" * 200_000, "no JSON"),
        (GREETING + _said(id=1, error="x"), "an error is none"),
        (GREETING + _said(id=1, error={"kind": "SystemExit", "what": "\x1b[2Jx"}), "x"),
        (GREETING + _said(id=1), "the connection has ended"),
        (GREETING + _said(id=1) + _said(id=2) + _said(id=3), "marker cannot be read"),
    ],
    ids=[str(number) for number in range(12)],
)
def test_an_answer_that_is_none_is_an_error_of_the_store(
    data: bytes, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SHELL_VARIABLE, str(_answering(tmp_path, data)))
    ran = _fleece("list", "ssh://host/vault").failed(fleece.ExitCode.STORE, told)
    assert "\x1b" not in ran.out + ran.err


def test_who_says_nothing_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "SILENCE", 0.5)
    monkeypatch.setenv(SHELL_VARIABLE, str(_answering(tmp_path, GREETING, "cat > /dev/null")))
    with pytest.raises(StoreError, match="does not answer"):
        fleece.open_store("ssh://host/vault")


def _asked(store: Path, *messages: bytes) -> tuple[int, bytes, str]:
    """What the serving side answers to some bytes."""
    done = subprocess.run(
        [sys.executable, "-m", "fleece", "serve-store", str(store), "--append-only"],
        cwd=ROOT,
        input=b"".join(messages),
        capture_output=True,
        check=False,
        timeout=LIMIT,
    )
    return done.returncode, done.stdout, done.stderr.decode()


def test_no_name_leads_out_of_the_store(tmp_path: Path) -> None:
    init(tmp_path / "vault")
    (tmp_path / "secret").write_text("secret")
    bad = [
        "../secret",
        "web/../../secret",
        "/etc/passwd",
        "",
        ".",
        "..",
        "a/b/c/d",
        "a\0b",
        "\ud800",
    ]
    asks = [
        {"do": do, "mode": 0o600, "key": name, "guest": name, "name": name, "most": 100}
        | {"seconds": 0, "points": [name], "handle": 1, "position": 0, "length": 1}
        for name in bad
        for do in ("open", "get", "has", "stamp", "put", "batch", "left", "lock", "drop", "replace")
    ]
    numbered = [_said(id=number, **ask) for number, ask in enumerate(asks, 1)]
    code, out, _ = _asked(tmp_path / "vault", *numbered)
    assert code == 0
    answers = _messages(out)
    assert {answer["id"] for answer in answers if "id" in answer} == set(range(1, len(asks) + 1))
    assert all("error" in answer for answer in answers)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret", "vault"]
    assert [path.name for path in (tmp_path / "vault").iterdir()] == ["fleece-store.json"]


def test_no_name_in_a_point_leads_out_of_it(there: str, tmp_path: Path) -> None:
    backend = init(there).backend
    batch = backend.batch("web", "x")
    batch.create("vda.fleece").write(b"data")
    for name in ("../vda.fleece", "../../../evil", "/evil", "", ".", "..", "a/b"):
        for act in (batch.create, batch.open, batch.commit, lambda name: batch.reopen(name, 0)):
            with pytest.raises(StoreError, match="a name is none"):
                act(name)
        with pytest.raises(StoreError, match="a name is none"):
            backend.batch("web", name)
    found = [path.name for path in (tmp_path / "vault").rglob("*")]
    assert sorted(found) == [".partial-x", "fleece-store.json", "vda.fleece", "web"]


def _messages(out: bytes) -> list[dict[str, object]]:
    assert out.startswith(GREETING)
    found, at = [], len(GREETING)
    while at < len(out):
        text, data = struct.unpack_from("<II", out, at)
        found.append(json.loads(out[at + 8 : at + 8 + text]))
        at += 8 + text + data
    return [one for one in found if one]


@pytest.mark.parametrize(
    "data",
    [LENGTHS.pack(MAX_TEXT + 1, 0), LENGTHS.pack(4, 0) + b"nope", b"GET / HTTP/1.1\r\n\r\n"],
    ids=["long", "no JSON", "HTTP"],
)
def test_who_does_not_speak_the_protocol_is_not_served(data: bytes, tmp_path: Path) -> None:
    code, _, err = _asked(tmp_path / "vault", data)
    assert code == fleece.ExitCode.STORE
    assert "protocol" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "ask",
    [
        {"do": "nothing"},
        {"do": "_error"},
        {"do": 7},
        {"do": "read", "handle": 99, "position": 0, "length": 1},
        {"do": "check", "mode": -1},
        {"do": "check", "mode": 0o4777},
        {"do": "check"},
        {"do": "tidy", "mode": 0o600, "points": "web"},
    ],
    ids=str,
)
def test_what_makes_no_sense_is_answered_by_an_error(
    ask: dict[str, object], tmp_path: Path
) -> None:
    init(tmp_path / "vault")
    code, out, _ = _asked(tmp_path / "vault", _said(id=5, **ask))
    (answer,) = _messages(out)
    assert code == 0
    if ask["do"] != "tidy":
        assert "error" in answer
    assert answer["id"] == 5


_STRAY = f"""
import sys, time
sys.stdout.buffer.write({GREETING!r} + {packed(Message({"id": 1}))!r})
sys.stdout.flush()
sys.stdin.buffer.read()
"""


def test_who_writes_does_not_wait_for_what_another_thread_has_read() -> None:
    """Nothing else would come, and after two minutes the other side would count as gone."""
    there = channel.Channel([sys.executable, "-c", _STRAY], "there", CancelToken())
    assert select.select([there._out], [], [], LIMIT)[0]
    writes = threading.Thread(target=there.write, args=(1, b"data"))
    with there._turn:  # this thread reads; the other one saw that there is something to be read
        writes.start()
        wait_until(lambda: _is_in(writes, there._look.__code__), "the write to look for errors")
        there._read_one()
    writes.join(10)
    waits = writes.is_alive()
    there._end()
    writes.join(LIMIT)
    assert not waits


def _is_in(thread: threading.Thread, code: CodeType) -> bool:
    frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame is not None


# ---- a real sshd ---------------------------------------------------------------------------------


@contextmanager
def _sshd(folder: Path, command: str) -> Iterator[Path]:
    """An sshd on the loopback that lets one key in, to one command; gives what configures ssh."""
    for name in ("host", "user"):
        run_checked("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    public = (folder / "user.pub").read_text()
    (folder / "authorized").write_text(f'restrict,command="{command}" {public}')
    (folder / "sshd_config").write_text(
        f"""Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/authorized
PidFile {folder}/pid
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
"""
    )
    hosts = folder / "known"
    hosts.write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    (folder / "ssh_config").write_text(
        f"""Host vault
HostName 127.0.0.1
Port {port}
User {getpass.getuser()}
IdentityFile {folder}/user
IdentitiesOnly yes
UserKnownHostsFile {hosts}
StrictHostKeyChecking yes
BatchMode yes
"""
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    daemon_path = shutil.which("sshd", path=os.environ["PATH"] + ":/usr/sbin")
    assert daemon_path is not None, "openssh-server is not installed"
    served = subprocess.Popen(
        [daemon_path, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=subprocess.PIPE
    )
    try:
        assert served.stderr is not None
        while b"listening" not in (line := served.stderr.readline()):
            assert line, "sshd has ended"
        yield folder / "ssh_config"
    finally:
        served.terminate()
        served.communicate(timeout=LIMIT)


def test_through_a_real_sshd_with_a_key_that_may_only_add(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(init(tmp_path / "here"), size=MIB)
    first = site.back_up()
    command = f"cd {ROOT} && exec {sys.executable} -m fleece serve-store --append-only"
    with _sshd(tmp_path, f"{command} {tmp_path}/vault") as configured:
        monkeypatch.setenv(SHELL_VARIABLE, f"ssh -F {configured}")
        place = f"ssh://vault{tmp_path}/vault"
        assert fleece.copy(site.store, init(place)).errors == ()
        site.back_up()
        ran = _fleece("copy", tmp_path / "here", place).succeeded()
        assert (len(ran.result["points"]), ran.result["had"]) == (1, 1)
        assert site.judge(fleece.open_store(tmp_path / "vault")) == [*site.true]
        (tmp_path / "known").write_text("")
        ran = _fleece("list", place).failed(fleece.ExitCode.STORE, "Host key verification failed")
    assert first in [*site.true]
