"""What can be wrong with what `fleece` is given: a clear message, its exit code, nothing left."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from qemu.qmp import QMPClient
from qemu.qmp.models import Greeting

import fleece
from fleece.events import Event
from fleece.store.names import MARKER
from tests.engine.scene import (
    GUEST,
    INTACT,
    KIB64,
    MIB,
    Mutation,
    Scene,
    daemon,
    fill,
    flip,
    is_nbd_server,
    reasons,
    small_tmpfs,
)
from tests.rig import images
from tests.rig.daemon import StorageDaemon
from tests.rig.disk import Disk
from tests.rig.machine import Machine
from tests.rig.process import run_checked

# ---- sources ------------------------------------------------------------------------------------


@contextmanager
def _server(path: Path, serve: Callable[[socket.socket], None]) -> Iterator[None]:
    """A unix socket whose every client is served by a function."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                with client:
                    serve(client)

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def _backup_from(source: str, folder: Path) -> None:
    """Fail to back up from a source, in text and in JSON; the store stays as it was."""
    store = folder / "store"
    if not store.exists():
        fleece.init(store)
    for words in ((), ("--json",)):
        ran = INTACT.run("backup", source, store, "--scratch", folder, *words)
        ran.failed(3, source.removeprefix("qmp:"))
        assert [path.name for path in store.iterdir()] == [MARKER]


_GREETING = (
    b'{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, '
    b'"capabilities": []}}\n'
)


def test_there_is_no_socket(tmp_path: Path) -> None:
    _backup_from(f"qmp:{tmp_path}/none.sock", tmp_path)
    (tmp_path / "file").write_text("no socket")
    _backup_from(f"qmp:{tmp_path}/file", tmp_path)


@pytest.mark.parametrize(
    "greeting",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x00" * 5000,
        b"{}\n",
        b'{"QMP": 7}\n',
        b'{"QMP": {"version": {"qemu": {"major": 7}}, "capabilities": []}}\n',
        b"[" * 100_000 + b"\n",
        _GREETING + b'{"error": {"class": "GenericError", "desc": "no"}}\n',
        b"",
    ],
    ids=["ssh", "zeros", "empty", "number", "half a version", "deep", "refuses", "closes"],
)
def test_the_socket_is_no_monitor(greeting: bytes, tmp_path: Path) -> None:
    path = Path(f"/tmp/rig-{os.getpid()}.sock")
    path.unlink(missing_ok=True)

    def serve(client: socket.socket) -> None:
        with suppress(OSError):
            client.sendall(greeting)
            client.recv(1000) if greeting else None

    with _server(path, serve):
        _backup_from(f"qmp:{path}", tmp_path)
    path.unlink()


def test_the_socket_is_silent(tmp_path: Path) -> None:
    path = Path(f"/tmp/rig-{os.getpid()}.sock")
    path.unlink(missing_ok=True)

    def say_nothing(client: socket.socket) -> None:
        client.recv(1)

    with _server(path, say_nothing):
        ran = INTACT.run("doctor", f"qmp:{path}", "--json")
        ran.failed(3, "does not greet", "another client holds it")
    path.unlink()


def test_another_client_holds_the_monitor(scene: Scene) -> None:
    scene.take()
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(str(scene.qemu.qmp_socket))
        other.recv(1000)
        scene.backup().failed(3, "does not greet", "another client holds it")
    scene.nothing_left()
    scene.take("incremental")
    scene.check_exact()


@contextmanager
def _left_waiting(scene: Scene) -> Iterator[socket.socket]:
    """A client of the monitor died while QEMU did its command; gives what that waits for."""
    place = str(scene.qemu.folder / "mute")
    with socket.socket(socket.AF_UNIX) as mute, socket.socket(socket.AF_UNIX) as dead:
        mute.bind(place)
        mute.listen()
        server = {"type": "unix", "path": place}
        node = {"driver": "nbd", "node-name": "n", "read-only": True, "server": server}
        dead.connect(str(scene.qemu.qmp_socket))
        for command, arguments in (("qmp_capabilities", {}), ("blockdev-add", node)):
            dead.recv(4096)
            said = {"execute": command, "arguments": arguments, "id": "__qmp#00001"}
            dead.sendall(json.dumps(said).encode())
        select.select([mute], [], [])
        dead.close()
        yield mute


def _fail(mute: socket.socket, stack: ExitStack) -> None:
    mute.accept()[0].close()


def _succeed(mute: socket.socket, stack: ExitStack) -> None:
    """By an NBD server that takes the socket over, as systemd passes one on (sd_listen_fds(3))."""
    serve = "LISTEN_PID=$$ LISTEN_FDS=1 exec nbdkit --foreground --exit-with-parent null 1M"
    command = ["bash", "-c", f"{serve} 3<&{mute.fileno()}"]
    server = stack.enter_context(subprocess.Popen(command, pass_fds=[mute.fileno()]))
    stack.callback(server.kill)


@pytest.mark.parametrize("answer", [_fail, _succeed])
def test_the_monitors_last_client_died_before_its_answer_came(
    answer: Callable[[socket.socket, ExitStack], None],
    scene: Scene,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """QEMU gives that answer to the next client, which is us."""
    scene.take()
    greet = QMPClient._get_greeting
    answers = iter([answer])
    with _left_waiting(scene) as mute, ExitStack() as stack:

        async def greeted(self: QMPClient) -> Greeting:
            greeting = await greet(self)
            for answer in answers:
                answer(mute, stack)
            return greeting

        monkeypatch.setattr(QMPClient, "_get_greeting", greeted)
        scene.take("incremental")
    scene.check_exact()
    scene.nothing_left()


@pytest.mark.parametrize("source", ["d0", "qmp:", "http://x", "/run/qmp.sock"])
def test_a_source_is_written_wrongly(source: str, tmp_path: Path) -> None:
    store = Path(fleece.init(tmp_path / "store").where)
    INTACT.run("backup", source, store, "--json").failed(2, "qmp:SOCKET")


def test_there_is_no_such_disk(scene: Scene) -> None:
    scene.backup("--disk", "vda").failed(4, "no disk vda", "the disks are: d0")
    scene.backup("--disk", "d0", "--disk", "d0").failed(2, "twice")
    scene.nothing_left()
    assert scene.segments() == []


def test_a_read_only_disk_is_left_out_or_refused(scene: Scene) -> None:
    path = images.random_image(scene.folder / "ro", MIB, seed=3, fmt="raw")
    file = {"driver": "file", "filename": str(path), "read-only": True}
    node = {"driver": "raw", "node-name": "ro", "read-only": True, "file": file}
    scene.qemu.control.command("blockdev-add", node)
    scene.backup("--disk", "ro").failed(4, "ro is read-only")
    result = scene.backup().succeeded().result
    assert [disk["disk"] for disk in result["disks"]] == ["d0"]
    scene.check_exact()
    scene.nothing_left()


def test_a_disk_with_an_iothread_is_refused_where_it_would_kill_the_guest(tmp_path: Path) -> None:
    image = images.random_image(tmp_path / "d0.qcow2", 2 * MIB, seed=1)
    with Machine([Disk(image, "d0")], iothreads=True) as qemu:
        if qemu.version >= (8, 2, 3):
            pytest.skip("this QEMU is not affected")
        scene = Scene(qemu, tmp_path)
        qemu.control.command("cont")
        scene.backup("--transport", "pull").failed(4, "vd-d0", "iothread")
        exported = INTACT.run("export", scene.source, "--scratch", scene.scratch)
        exported.failed(4, "vd-d0", "iothread", "a backup")
        (disk,) = INTACT.run("doctor", scene.source, "--json").succeeded().named("disk")
        assert not disk["pull"]
        assert "iothread" in disk["obstacle"]
        assert qemu.alive
        assert scene.segments() == []
        scene.nothing_left()


def test_a_foreign_nbd_server_is_left_alone(scene: Scene) -> None:
    scene.take()
    scene.writer().write(MIB, os.urandom(KIB64))
    address = {"type": "unix", "data": {"path": str(scene.qemu.folder / "foreign.sock")}}
    scene.qemu.control.command("nbd-server-start", {"addr": address})
    scene.backup().failed(3, "NBD server")
    scene.nothing_left(foreign_server=True)
    assert is_nbd_server(address["data"]["path"])  # type: ignore[index]
    scene.qemu.control.command("nbd-server-stop")
    assert scene.take("incremental").disks[0].dirty_bytes == KIB64
    scene.check_exact()
    scene.nothing_left()
    scene.only_newest_segment()


@pytest.mark.parametrize("scratch", ["none", "file", "long", "loop"])
def test_a_scratch_folder_that_does_not_serve(scratch: str, scene: Scene) -> None:
    scene.take()
    place = scene.folder / ("x" * 100 if scratch == "long" else scratch)
    if scratch == "file":
        place.write_text("")
    if scratch == "long":
        place.mkdir()
    if scratch == "loop":
        place.symlink_to(place)
    scene.backup("--scratch", place).failed(3, "--scratch")
    assert not place.is_dir() or not [*place.iterdir()]
    scene.nothing_left()
    scene.take("incremental")
    scene.check_exact()


def test_a_scratch_folder_that_is_full_to_the_last_byte(tmp_path: Path) -> None:
    """Where not even the lock's few bytes find room."""
    image = images.make_disk(tmp_path / "d0.qcow2", MIB)
    with small_tmpfs(1) as small, daemon(tmp_path, Disk(image, "d0")) as scene:
        full = small / "full"
        with full.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(KIB64)):
                pass
        scene.backup("--scratch", small).failed(4, str(small), "No space left", "--scratch")
        assert [*small.iterdir()] == [full]
        scene.nothing_left()
        assert scene.segments() == []


def test_a_scratch_folder_that_qemu_cannot_be_told_of(scene: Scene) -> None:
    place = scene.folder / os.fsdecode(b"sc\xff")
    place.mkdir()
    link = scene.folder / "link"
    link.symlink_to(place)
    for scratch in (place, link):
        scene.backup("--scratch", scratch).failed(2, "sc\\xff", "not UTF-8", "--scratch")
        scene.engine.run("clean", scene.source, "--scratch", scratch).failed(2, "not UTF-8")
    assert [*place.iterdir()] == []
    scene.nothing_left()
    assert scene.segments() == []


@pytest.mark.parametrize("what", ["name == QEMU_FOLDER", "name.endswith('.qcow2')"])
def test_a_scratch_that_cannot_be_given_to_qemus_user(
    what: str, scene: Scene, tmp_path: Path
) -> None:
    """The folder or the file in it: the test has the kernel refuse it."""
    module = "source/workfolder.py"
    edits = (
        (module, "if os.geteuid() != 0 or owner.uid == 0:", f"if not {what}:"),
        (
            module,
            "                name,\n                owner.uid,",
            '"none", owner.uid,',
        ),
    )
    scene.engine = Mutation("nothing is given away", edits).engine(tmp_path)
    scene.backup().failed(3, "cannot be given to QEMU's user", "--scratch")
    scene.nothing_left()
    assert scene.segments() == []


def test_without_qemu_img_there_is_one_clear_message(scene: Scene) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "/nonexistent")
        with pytest.raises(fleece.UsageError, match="qemu-img is missing; install"):
            scene.take()
    scene.nothing_left()
    assert scene.points() == 0


# ---- bitmaps ------------------------------------------------------------------------------------


def _refused_then_rescanned(scene: Scene, reason: str) -> None:
    """Incremental and differential are refused, auto says why it reads all, and is exact."""
    points = scene.points()
    scene.backup("--mode", "incremental").failed(4, "no incremental", reason, "--mode auto")
    with pytest.raises(fleece.PointError, match="no differential"):
        scene.take("differential")
    assert scene.points() == points
    scene.nothing_left()
    heard: list[Event] = []
    assert scene.take(listener=heard.append).mode == "rescan"
    mode, why = reasons(heard)["d0"]
    assert mode == "rescan"
    assert reason in why
    scene.check_exact()
    scene.nothing_left()
    scene.only_newest_segment()
    scene.writer().write(0, os.urandom(1000))
    scene.take("incremental")
    scene.check_exact()


def test_a_bitmap_that_qemu_left_inconsistent(scene: Scene) -> None:
    scene.take()
    scene.qemu.restart()
    scene.writer().write(MIB, os.urandom(KIB64))
    scene.writer().flush()
    scene.qemu.kill()
    scene.qemu.start()
    (bitmap,) = scene.bitmaps()
    assert bitmap["inconsistent"]
    _refused_then_rescanned(scene, "is inconsistent: QEMU did not end cleanly")


def test_a_bitmap_that_died_with_qemu(scene: Scene) -> None:
    scene.take()
    scene.writer().write(MIB, os.urandom(KIB64))
    scene.writer().flush()
    scene.qemu.kill()
    scene.qemu.start()
    assert scene.bitmaps() == []
    _refused_then_rescanned(scene, "there is no bitmap")


def test_a_bitmap_that_someone_removed(scene: Scene) -> None:
    scene.take()
    _change_bitmap(scene, "remove", scene.segments()[0])
    _refused_then_rescanned(scene, "there is no bitmap")


def _change_bitmap(scene: Scene, verb: str, name: str) -> None:
    arguments = {"node": "d0", "name": name}
    scene.qemu.control.command(f"block-dirty-bitmap-{verb}", arguments)


def _fail_once(scene: Scene) -> None:
    """Leave one more segment behind."""
    cancel = fleece.CancelToken()

    def stop(event: Event) -> None:
        if event.name == "point":
            cancel.cancel()

    with pytest.raises(fleece.Interrupted):
        scene.take(listener=stop, cancel=cancel)


def test_a_bitmap_that_someone_removed_from_the_middle(scene: Scene) -> None:
    scene.take()
    for _ in range(2):
        _fail_once(scene)
        scene.writer().write(MIB, os.urandom(1000))
    _change_bitmap(scene, "remove", sorted(scene.segments())[1])
    _refused_then_rescanned(scene, "is gone")


def test_the_newest_bitmap_that_someone_removed(scene: Scene) -> None:
    scene.take()
    _fail_once(scene)
    scene.writer().write(MIB, os.urandom(1000))
    _change_bitmap(scene, "remove", sorted(scene.segments())[1])
    _refused_then_rescanned(scene, "no bitmap has recorded")


def test_a_bitmap_that_someone_disabled(scene: Scene) -> None:
    scene.take()
    _change_bitmap(scene, "disable", scene.segments()[0])
    scene.writer().write(MIB, os.urandom(1000))
    _refused_then_rescanned(scene, "no bitmap has recorded")


def test_a_bitmap_that_another_operation_holds(scene: Scene) -> None:
    scene.take()
    command = scene.qemu.control.command
    command("blockdev-add", {"driver": "null-co", "node-name": "null", "size": 8 * MIB})
    scene.writer().write(0, os.urandom(4 * MIB))
    job = {"job-id": "other", "device": "d0", "target": "null", "sync": "bitmap"}
    bitmap = {"bitmap": scene.segments()[0], "bitmap-mode": "never", "speed": 1}
    command("blockdev-backup", {**job, **bitmap})
    (held,) = scene.bitmaps()
    assert held["busy"]
    scene.backup("--mode", "incremental").failed(4, "in use by another operation")
    ran = scene.backup("--disk", "d0").succeeded()
    assert ran.named("plan")[0]["reason"].endswith("is in use by another operation")
    assert ran.result["mode"] == "rescan"
    (warning,) = ran.named("warning")
    assert "d0 keeps an old bitmap" in warning["what"]
    assert len(scene.segments()) == 2
    assert [item["id"] for item in command("query-jobs")] == ["other"]
    command("block-job-cancel", {"device": "other", "force": True})
    scene.qemu.control.wait_event("BLOCK_JOB_CANCELLED", 10.0)
    command("job-dismiss", {"id": "other"}) if command("query-jobs") else None
    command("blockdev-del", {"node-name": "null"})
    scene.check_exact()
    scene.take("incremental")
    scene.check_exact()
    scene.nothing_left()
    scene.only_newest_segment()


def test_foreign_bitmaps_are_left_alone(scene: Scene) -> None:
    foreign = {"fleece", "fleece-", "fleece-0123", "backup-1"}
    for name in foreign:
        _change_bitmap(scene, "add", name)
    scene.take()
    scene.take("incremental")
    names = {bitmap["name"] for bitmap in scene.bitmaps()}
    assert foreign < names
    assert len(names) == len(foreign) + 1
    scene.check_exact()


# ---- stores -------------------------------------------------------------------------------------


def test_a_store_on_a_full_disk(tmp_path: Path) -> None:
    image = images.make_disk(tmp_path / "d0.qcow2", 16 * MIB)
    with small_tmpfs(4) as small, daemon(tmp_path, Disk(image, "d0")) as scene:
        scene.store = small / "store"
        scene.take()
        scene.writer().write(0, os.urandom(8 * MIB))
        scene.backup().failed(5, "No space left", "make room")
        assert [*small.rglob("*.fleece")] == [Path(entry) for entry in _entries(scene)]
        assert scene.points() == 1
        scene.nothing_left()
        run_checked("mount", "-o", "remount,size=64m", small)
        assert scene.take("incremental").disks[0].dirty_bytes == 8 * MIB
        scene.check_exact()
        scene.only_newest_segment()


NO_MEMORY = Mutation("no memory", (("delta/spool.py", "MEMORY = 16 * 1024 * 1024", "MEMORY = 0"),))
"""Rows and hashes go to the temporary file at once, and not from 16 MiB on."""


@pytest.fixture
def full_tmpdir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A TMPDIR that takes one page more, which is enough to be chosen."""
    with small_tmpfs(1) as small:
        fill(small, leave=1)
        monkeypatch.setenv("TMPDIR", str(small))
        yield small


def test_a_full_temporary_folder_costs_a_backup(
    full_tmpdir: Path, scene: Scene, tmp_path: Path
) -> None:
    scene.take()
    scene.writer().write(0, os.urandom(MIB))
    scene.engine = NO_MEMORY.engine(tmp_path)
    told = f"{full_tmpdir}: no temporary file", "No space left on device", "TMPDIR"
    scene.backup().failed(5, *told)
    scene.nothing_left()
    assert scene.points() == 1
    assert scene.take("incremental").disks[0].dirty_bytes == MIB
    merged = scene.engine.run("merge", scene.store, "latest", "--json")
    merged.failed(5, *told)
    scene.check_exact()
    scene.verify()


def test_a_full_temporary_folder_makes_no_delta_a_damaged_one(
    full_tmpdir: Path, scene: Scene, tmp_path: Path
) -> None:
    scene.take()
    engine = NO_MEMORY.engine(tmp_path)
    for words in (("--json",), ("--max-age", "1d", "--json")):
        ran = engine.run("verify", scene.store, *words).failed(5, "TMPDIR")
        assert ran.named("problem") == []
    assert [*tmp_path.rglob("*.verified.json")] == []
    INTACT.run("status", scene.store).succeeded()


def _entries(scene: Scene) -> list[str]:
    return [entry.where for entry in fleece.open_store(scene.store).catalogue().entries]


def test_a_store_that_cannot_even_be_made(tmp_path: Path, scene: Scene) -> None:
    (tmp_path / "file").write_text("")
    for store in (tmp_path / "file", tmp_path / "file" / "store", Path("/proc/store")):
        INTACT.run("init", store).failed(5, str(store))
        INTACT.run("backup", scene.source, store, "--guest", GUEST).failed(5, str(store))
    scene.nothing_left()
    assert scene.segments() == []


def test_a_folder_that_is_no_store(scene: Scene) -> None:
    folder = scene.folder / "photos"
    folder.mkdir()
    (folder / "cat.jpg").write_text("a cat")
    scene.backup(store=folder).failed(5, "not a fleece store")
    assert [path.name for path in folder.iterdir()] == ["cat.jpg"]
    for verb in ("list", "verify"):
        INTACT.run(verb, folder, "--json").failed(5, "not a fleece store")
        INTACT.run(verb, scene.folder / "none", "--json").failed(5, "no store")
    (folder / "fleece-store.json").write_text("{nonsense")
    scene.backup(store=folder).failed(5, "marker")
    scene.nothing_left()


def test_two_backups_at_once_into_one_store(tmp_path: Path) -> None:
    image = images.random_image(tmp_path / "d0.qcow2", 8 * MIB, seed=1)
    with StorageDaemon([Disk(image, "d0")], monitors=2) as qemu:
        scene = Scene(qemu, tmp_path)
        running = scene.slow_backup()
        running.wait_event("progress")
        running.signal(signal.SIGSTOP)
        words = (tmp_path / "store", "--guest", GUEST, "--scratch", scene.scratch, "--json")
        other = INTACT.run("backup", f"qmp:{qemu.qmp_sockets[1]}", *words)
        other.failed(5, "another backup of g", f"process {running.pid}")
        running.signal(signal.SIGCONT)
        running.wait().succeeded()
        assert scene.points() == 1
        scene.check_exact()
        scene.nothing_left()
        scene.only_newest_segment()


# ---- deltas -------------------------------------------------------------------------------------


def _chain_of_three(scene: Scene) -> list[Path]:
    """The deltas of three points, oldest first."""
    deltas = []
    for number in range(3):
        scene.writer().write(number * MIB, os.urandom(3 * KIB64))
        deltas.append(Path(scene.take().disks[0].delta))
    return deltas


def _places(delta: Path) -> dict[str, int]:
    """A position within each part of a delta."""
    with fleece.open_delta(delta) as reader:
        row = reader.rows()[0]
        record = int(row["position"])
        pages = {page.tag.name.lower(): page.position + page.length // 2 for page in reader.pages}
        return {
            "greeting": 14,
            "header": reader.records_start // 2,
            "record": record + 30,
            "data": record + 300,
            **pages,
            "directory": reader.footer.directory_position + 40,
            "footer": reader.length - 20,
            "last byte": reader.length - 1,
        }


PARTS = (
    "greeting",
    "header",
    "record",
    "data",
    "tree",
    "index",
    "directory",
    "footer",
    "last byte",
)


@pytest.mark.parametrize("which", [0, 2], ids=["the full", "the newest"])
@pytest.mark.parametrize("part", PARTS)
def test_a_flipped_bit_is_found_and_told(part: str, which: int, scene: Scene) -> None:
    deltas = _chain_of_three(scene)
    last = deltas[2].parent.name[-10:]
    flip(deltas[which], _places(deltas[which])[part])
    damaged = str(deltas[which])

    catalogue = fleece.open_store(scene.store).catalogue()
    errors = fleece.verify_store(catalogue).errors
    assert any(damaged in line for line in errors)
    with pytest.raises(fleece.StoreError):
        scene.restore(point=last)
    scene.nothing_left()

    # A backup that succeeds is exact, unless it builds on the damage: then a restore says so.
    scene.writer().write(5 * MIB, os.urandom(1000))
    mode, refusal = _take_or_refuse(scene)
    if refusal is not None:
        assert damaged in refusal
        assert part in ("tree", "index")
    elif mode == "incremental":
        with pytest.raises(fleece.StoreError):
            scene.restore()
    else:  # a delta that cannot be opened is not built on
        assert part == "tree" or mode in ("full", "rescan")
        scene.check_exact()
    scene.nothing_left()
    scene.take("full")
    scene.check_exact()
    scene.only_newest_segment()


def test_a_damaged_chain_is_told_on_the_command_line(scene: Scene) -> None:
    deltas = _chain_of_three(scene)
    flip(deltas[0], _places(deltas[0])["data"])
    verified = INTACT.run("verify", scene.store, "--json").failed(5, str(scene.store))
    assert verified.result["points"] == []
    assert str(deltas[0]) in verified.result["errors"][0]
    out = scene.folder / "out"
    INTACT.run("restore", scene.store, "latest", "d0", out).failed(5, str(deltas[0]), "byte")
    assert not out.exists()


@pytest.mark.parametrize("part", ["nothing", "header", "data", "last byte"])
def test_a_cut_delta_is_no_delta(part: str, scene: Scene) -> None:
    deltas = _chain_of_three(scene)
    position = 0 if part == "nothing" else _places(deltas[2])[part]
    os.truncate(deltas[2], position)
    listed = INTACT.run("list", scene.store, "--json").failed(5, "damaged")
    assert len(listed.named("point")) == 2
    assert listed.named("damaged")[0]["where"] == str(deltas[2])
    INTACT.run("info", deltas[2], "--json").failed(5, str(deltas[2]))
    INTACT.run("verify", scene.store, "--json").failed(5)
    heard: list[Event] = []
    result = scene.take(listener=heard.append)
    assert [event.name for event in heard].count("warning") == 1
    assert result.mode == "rescan"
    scene.check_exact()
    scene.only_newest_segment()


def test_a_delta_of_another_disk_in_its_place(tmp_path: Path) -> None:
    names = ("d0", "d1")
    disks = [Disk(images.random_image(tmp_path / n, 4 * MIB, seed=1), n) for n in names]
    with daemon(tmp_path, *disks) as scene:
        full = scene.take()
        scene.writer("d0").write(0, os.urandom(1000))
        scene.take()
        first, second = (Path(disk.delta) for disk in full.disks)
        shutil.copy(second, first)
        INTACT.run("verify", scene.store, "--json").failed(5, "errors")
        words = ("latest", "d0", scene.folder / "out", "--json")
        INTACT.run("restore", scene.store, *words).failed(5, "builds on")
        heard: list[Event] = []
        scene.take(listener=heard.append)
        assert [reasons(heard)[name][0] for name in names] == ["full", "incremental"]
        scene.check_exact()


def test_a_missing_parent_is_named(scene: Scene) -> None:
    deltas = _chain_of_three(scene)
    missing = deltas[1].parent.name[-10:]
    moved = deltas[1].parent.rename(scene.folder / "aside")
    INTACT.run("verify", scene.store, "--json").failed(5)
    out = scene.folder / "out"
    INTACT.run("restore", scene.store, "latest", "d0", out, "--json").failed(5, missing)
    assert not out.exists()
    oldest = deltas[0].parent.name[-10:]
    INTACT.run("restore", scene.store, oldest, "d0", out, "--json").succeeded()
    _refused_then_rescanned(scene, "broken")
    moved.rename(deltas[1].parent)
    scene.verify()


def test_points_that_are_asked_for_wrongly(scene: Scene) -> None:
    _chain_of_three(scene)
    out = scene.folder / "out"

    def restore(*words: object, code: int, text: str) -> None:
        INTACT.run("restore", scene.store, *words, "--json").failed(code, text)
        assert not out.exists()

    restore("ffffffffffff", "d0", out, code=5, text="no such point")
    restore("latest", "d7", out, code=2, text="d7")
    restore("", "d0", out, code=2, text="POINT: is empty")
    store = fleece.open_store(scene.store)
    with pytest.raises(fleece.UsageError, match="name of a point is empty"):
        store.catalogue().find("")
    with pytest.raises(fleece.UsageError, match="name of a point is empty"):
        fleece.restore_partial(store, "", "d0", str(out))
    restore("latest", "d0", out, "--guest", "other", code=5, text="no point of guest other")


@pytest.mark.parametrize("name", ["../../evil", ".hidden", "a/b", "ö ü", "x" * 300, "%41"])
def test_any_name_of_a_guest_is_a_name(name: str, scene: Scene) -> None:
    before = sorted(path.name for path in scene.folder.iterdir())
    for mode in ("full", "incremental"):
        with fleece.QemuSource(str(scene.qemu.qmp_socket), scene.scratch) as source:
            result = fleece.backup(source, scene.opened(), fleece.BackupOptions(guest=name))
        assert (result.guest, result.mode) == (name, mode)
    assert sorted(path.name for path in scene.folder.iterdir()) == sorted([*before, "store"])
    line = INTACT.run("list", scene.store, "--json").succeeded().named("point")
    assert {point["guest"] for point in line} == {name}
    scene.check_exact()


def test_a_name_that_no_header_can_hold_is_refused_before_the_point(scene: Scene) -> None:
    scene.take()
    with fleece.QemuSource(str(scene.qemu.qmp_socket), scene.scratch) as source:
        store = fleece.open_store(scene.store)
        with pytest.raises(fleece.UsageError, match="printable, of 1 to"):
            fleece.backup(source, store, fleece.BackupOptions(guest=""))
    for name in ("two\nlines", "x" * 1025, os.fsdecode(b"\xff")):
        words = (scene.source, scene.store, "--guest", name, "--json")
        for verb in ("backup", "audit"):
            ran = INTACT.run(verb, *words, "--scratch", scene.scratch).failed(2, "printable")
            assert ran.named("point") == []
            scene.nothing_left()
        INTACT.run("bitmap", *words).failed(2, "printable")
        INTACT.run("bitmap", *words, "--drop", "0" * 8).failed(2, "printable")
    assert len(scene.segments()) == 1


def _take_or_refuse(scene: Scene) -> tuple[str | None, str | None]:
    """Back up: the mode that it took, or why the store made it impossible."""
    try:
        return scene.take().mode, None
    except fleece.StoreError as error:
        return None, str(error)
