"""Targets: nobody else reads what is made, nothing in use is replaced or overwritten, no name in a
folder that somebody else writes into is believed, and no option is passed over."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest

import fleece
from fleece.engine.work import new_file as target_module
from fleece.events import Event, Warned
from tests.engine.history import Guest
from tests.engine.scene import INTACT, KIB64, MIB, ROOT, Ran, Scene, daemon, wait_until
from tests.engine.test_boot import bootable
from tests.engine.test_restore import loop_device, nbd_server
from tests.rig import images
from tests.rig.disk import Disk
from tests.rig.process import LIMIT, run, run_checked

SIZE = MIB
NOBODY = 0xFFFFFFFF
CONTENT = os.urandom(3 * KIB64) + bytes(SIZE - 3 * KIB64)
OTHER = os.urandom(SIZE)
ACCESS_LIST = struct.pack(
    "<I" + "HHI" * 5, 2, *(1, 6, NOBODY, 2, 4, 1234, 4, 0, NOBODY, 16, 4, NOBODY, 32, 0, NOBODY)
)
"""That user 1234 may read, and the owner read and write (linux/posix_acl_xattr.h)."""


@contextmanager
def umask(mask: int) -> Iterator[None]:
    old = os.umask(mask)
    try:
        yield
    finally:
        os.umask(old)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    """Two points of a disk `vda`; the second's first leaf is another."""
    made = Guest(tmp_path / "store")
    made.holding({"vda": CONTENT})
    made.become(vda=os.urandom(KIB64) + CONTENT[KIB64:])
    return made


def restore(guest: Guest, *words: object) -> Ran:
    return INTACT.run("restore", guest.store, "latest", "vda", *words, "--json")


@contextmanager
def used(disk: Disk, folder: Path) -> Iterator[Scene]:
    """A QEMU that has a disk open."""
    folder.mkdir()
    with daemon(folder, disk) as scene:
        yield scene


# ---- who may read what is made -----------------------------------------------------------------


@pytest.mark.parametrize("words", [(), ("--format", "qcow2"), ("--partial",)])
def test_a_restored_image_is_private_from_the_first_byte(
    guest: Guest, tmp_path: Path, words: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    seen: set[int] = set()

    def look(event: Event) -> None:
        seen.update(mode_of(path) for path in out.iterdir())

    store = fleece.open_store(guest.store)
    with umask(0):
        if "--partial" in words:
            fleece.restore_partial(store, "latest", "vda", str(out / "x"), listener=look)
        else:
            wanted = fleece.ImageFormat.QCOW2 if words else None
            fleece.restore(
                store,
                "latest",
                "vda",
                str(out / "x"),
                options=fleece.RestoreOptions(target_format=wanted),
                listener=look,
            )
    assert seen == {0o600}
    assert mode_of(out / "x") == 0o600


def test_a_backing_chain_is_private(guest: Guest, tmp_path: Path) -> None:
    seen: set[tuple[bool, int]] = set()

    def look(event: Event) -> None:
        for path in tmp_path.rglob("*"):
            if guest.store not in (path, *path.parents):
                seen.add((path.is_dir(), mode_of(path)))

    with umask(0):
        store, chain = fleece.open_store(guest.store), tmp_path / "chain"
        fleece.restore_as_chain(store, "latest", "vda", str(chain), listener=look)
    assert seen == {(True, 0o700), (False, 0o600)}
    assert mode_of(chain) == 0o700
    assert {mode_of(path) for path in chain.iterdir()} == {0o600}


def test_what_is_salvaged_is_private(guest: Guest, tmp_path: Path) -> None:
    new = tmp_path / "new"
    with umask(0):
        INTACT.run("salvage", guest.paths["vda"][0], "-o", new).succeeded()
    assert mode_of(new) == 0o600
    INTACT.run("salvage", guest.paths["vda"][0], "-o", tmp_path / "b", "--mode", 440).succeeded()
    assert mode_of(tmp_path / "b") == 0o440


def test_console_and_screen_are_private_and_lead_nowhere(tmp_path: Path) -> None:
    made = Guest(tmp_path / "store")
    made.holding({"vda": bootable()})
    log, screen = tmp_path / "log", tmp_path / "screen"
    screen.touch()
    screen.chmod(0o640)
    machine = ("boot-test", made.store, "latest", "--emulated", "--memory", 64, "--timeout", LIMIT)
    words = (*machine, "--console-text", "BOOTED", "--console-log", log, "--screenshot", screen)
    with umask(0):
        INTACT.run(*words).succeeded()
    assert (mode_of(log), mode_of(screen)) == (0o600, 0o640)
    assert "BOOTED" in log.read_text()
    assert screen.read_bytes().startswith(b"\x89PNG")
    INTACT.run(*words, "--mode", "604").succeeded()
    assert (mode_of(log), mode_of(screen)) == (0o604, 0o604)


def test_only_its_user_may_connect_to_a_socket_that_is_served(guest: Guest) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root becomes another user")
    connect = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o777)
        place = Path(name) / "sock"
        with umask(0):
            running = INTACT.command("serve", guest.store, "latest", "--socket", place, "--json")
        running.wait_event("serving")
        try:
            for user, denied in ((0, False), (1111, True)):
                become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
                done = run(*become, "python3", "-c", connect, place)
                assert ("PermissionError" in done.stderr) == (done.returncode != 0) == denied
        finally:
            running.signal(2)
            running.wait().succeeded()


@pytest.mark.parametrize("words", [(), ("--format", "qcow2"), ("--partial",)])
def test_a_mode_that_is_asked_for(guest: Guest, tmp_path: Path, words: tuple[str, ...]) -> None:
    target = tmp_path / "x"
    with umask(0o077):
        restore(guest, target, *words, "--mode", "0664").succeeded()
    assert mode_of(target) == 0o664
    restore(guest, target, *words, "--mode", "440", "--force").succeeded()
    assert mode_of(target) == 0o440


def test_a_mode_for_a_backing_chain(guest: Guest, tmp_path: Path) -> None:
    chain = tmp_path / "chain"
    restore(guest, chain, "--as-chain", "--mode", "640").succeeded()
    assert mode_of(chain) == 0o750
    assert {mode_of(path) for path in chain.iterdir()} == {0o640}


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_what_is_replaced_keeps_whose_it_is(guest: Guest, tmp_path: Path, fmt: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    target = tmp_path / "x"
    target.write_bytes(b"old")
    os.chown(target, 1234, 2345)
    os.setxattr(target, "user.rig", b"kept")
    target.chmod(0o640)
    os.setxattr(target, "system.posix_acl_access", ACCESS_LIST)
    ran = restore(guest, target, "--force", "--format", fmt).succeeded()
    found = target.stat()
    assert (found.st_uid, found.st_gid, mode_of(target)) == (1234, 2345, 0o640)
    assert os.getxattr(target, "user.rig") == b"kept"
    assert os.getxattr(target, "system.posix_acl_access") == ACCESS_LIST
    assert ran.named("warning") == []
    assert images.virtual_size(target, fmt) == SIZE
    restore(guest, target, "--force", "--format", fmt, "--mode", "600").succeeded()
    assert os.listxattr(target) == ["user.rig"]


def test_what_a_user_cannot_keep_is_told_and_gives_no_group_rights(tmp_path: Path) -> None:
    """Another user's file in a folder of one's own: its group is not one's own group."""
    if os.geteuid() != 0:
        pytest.skip("only root becomes another user")
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        made = Guest(folder / "store")
        made.holding({"vda": CONTENT})
        for path in (folder, *folder.rglob("*")):
            os.chown(path, 1111, 1111)
        target = folder / "x"
        target.write_bytes(b"old")
        target.chmod(0o644)
        os.setxattr(target, "security.rig", b"x")
        become = ["setpriv", "--reuid=1111", "--regid=1111", "--clear-groups"]
        words = [sys.executable, "-m", "fleece", "restore", made.store, "latest", "vda", target]
        command = [*become, *map(str, words), "--force"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "not kept of the file that it replaces: owner, group, security.rig" in done.stderr
        assert (target.stat().st_uid, mode_of(target)) == (1111, 0o604)


# ---- what is in use ----------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
@pytest.mark.parametrize("word", ["--force", "--in-place"])
def test_an_image_that_a_qemu_uses_is_refused(
    guest: Guest, tmp_path: Path, fmt: str, word: str
) -> None:
    image = images.random_image(tmp_path / "live", SIZE, seed=3, fmt=fmt)
    with used(Disk(image, "d0", fmt), tmp_path / "scene") as scene:
        before = image.stat().st_ino, image.read_bytes()
        ran = restore(guest, image, word, "--format", fmt)
        ran.failed(7, "live: is in use (qemu", f"process {scene.qemu.pid}")
        assert (image.stat().st_ino, image.read_bytes()) == before
        if word == "--force":
            restore(guest, image, word, "--partial").failed(7, "is in use")
    restore(guest, image, word, "--format", fmt).succeeded()
    (tmp_path / "want").write_bytes(guest.disk("vda"))
    images.compare(image, tmp_path / "want", fmt, "raw")


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
@pytest.mark.parametrize("word", ["--force", "--in-place"])
def test_what_an_image_in_use_is_backed_by_is_refused(
    guest: Guest, tmp_path: Path, fmt: str, word: str
) -> None:
    base = images.random_image(tmp_path / "base", SIZE, seed=3, fmt=fmt)
    top = images.make_overlay(tmp_path / "top", base, fmt)
    with used(Disk(top, "d0"), tmp_path / "scene"):
        before = base.read_bytes()
        restore(guest, base, word, "--format", fmt).failed(7, "base: is in use (qemu")
        assert base.read_bytes() == before


def test_what_a_program_writes_that_locks_nothing_is_refused(guest: Guest, tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.write_bytes(OTHER)
    writer = "import sys; f = open(sys.argv[1], 'r+b'); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", writer, str(target)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as held:
        assert held.stdout is not None
        held.stdout.readline()
        for word in ("--force", "--in-place"):
            restore(guest, target, word, "--format", "raw").failed(7, f"process {held.pid}")
        held.kill()
    assert target.read_bytes() == OTHER
    restore(guest, target, "--force").succeeded()


def test_a_file_behind_a_loop_device_is_refused(guest: Guest, tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.write_bytes(OTHER)
    with loop_device(target) as device:
        for word in ("--force", "--in-place"):
            restore(guest, target, word, "--format", "raw").failed(7, f"is in use ({device})")
    assert target.read_bytes() == OTHER


def test_a_file_that_is_salvaged_over_is_looked_at_too(guest: Guest, tmp_path: Path) -> None:
    image = images.random_image(tmp_path / "live", SIZE, seed=3, fmt="raw")
    with used(Disk(image, "d0", "raw"), tmp_path / "scene"):
        ran = INTACT.run("salvage", guest.paths["vda"][0], "-o", image, "--force")
        ran.failed(7, "live: is in use (qemu")


@pytest.mark.parametrize("word", ["--force", "--in-place"])
@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_a_block_device_that_a_qemu_uses_is_refused(
    guest: Guest, tmp_path: Path, word: str, fmt: str
) -> None:
    (tmp_path / "backing").write_bytes(OTHER + OTHER)
    with loop_device(tmp_path / "backing") as device, nbd_server(device, tmp_path / "s"):
        restore(guest, device, word, "--format", fmt).failed(7, "is in use (qemu-nbd, process ")
    assert (tmp_path / "backing").read_bytes() == OTHER + OTHER


def onto(file: Path, guest: Guest) -> subprocess.CompletedProcess[str]:
    """Restore to a file or a device that is standard output."""
    words = [sys.executable, "-m", "fleece", "restore", guest.store, "latest", "vda", "-"]
    with file.open("r+b") as stream:
        return subprocess.run(
            [*map(str, words)], cwd=ROOT, stdout=stream, stderr=subprocess.PIPE, text=True
        )


def test_standard_output_that_a_qemu_uses_is_refused(guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "backing").write_bytes(OTHER)
    with loop_device(tmp_path / "backing") as device:
        with nbd_server(device, tmp_path / "s"):
            done = onto(device, guest)
            assert done.returncode == 7, done.stderr
            assert f"{device}: the output is in use (qemu-nbd, process" in done.stderr
            assert (tmp_path / "backing").read_bytes() == OTHER
        assert onto(device, guest).returncode == 0
    assert (tmp_path / "backing").read_bytes() == guest.disk("vda")


def opens_writable(path: Path, fmt: str, folder: Path) -> str:
    """What qemu-nbd says when it opens an image to write; empty: nothing, it serves it."""
    place = folder / "probe.sock"
    place.unlink(missing_ok=True)
    words = ["qemu-nbd", "-f", fmt, "-k", str(place), str(path)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as server:
        wait_until(
            lambda: server.poll() is not None or place.exists(), "qemu-nbd to listen or to refuse"
        )
        greeted = False
        # It listens before it opens the image, and greets after that.
        with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
            client.connect(str(place))
            greeted = client.recv(1) != b""
        server.kill()
        said = server.communicate()[1].decode()
    return "" if greeted else said


def probing(path: Path, fmt: str, folder: Path) -> tuple[Callable[[Event], None], list[str]]:
    """A listener that, once, tries to open an image as a guest would; and what came of it."""
    said: list[str] = []

    def listen(event: Event) -> None:
        if not said:
            said.append(opens_writable(path, fmt, folder))

    return listen, said


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("fmt", [None, "qcow2"])
def test_no_guest_starts_on_a_device_that_is_being_written(
    guest: Guest, tmp_path: Path, in_place: bool, fmt: str | None
) -> None:
    (tmp_path / "backing").write_bytes(OTHER + OTHER)
    wanted = None if fmt is None else fleece.ImageFormat(fmt)
    with loop_device(tmp_path / "backing") as device:
        if fmt and in_place:
            run_checked("qemu-img", "create", "-q", "-f", fmt, device, str(SIZE))
        listen, said = probing(device, fmt or "raw", tmp_path)
        store = fleece.open_store(guest.store)
        fleece.restore(
            store,
            "latest",
            "vda",
            str(device),
            options=fleece.RestoreOptions(
                target_format=wanted, force=not in_place, in_place=in_place
            ),
            listener=listen,
        )
        assert said
        assert "lock" in said[0]
        assert opens_writable(device, fmt or "raw", tmp_path) == ""


def test_no_guest_starts_on_a_file_that_is_being_replaced(guest: Guest, tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.write_bytes(OTHER)
    listen, said = probing(target, "raw", tmp_path)
    store = fleece.open_store(guest.store)
    fleece.restore(
        store,
        "latest",
        "vda",
        str(target),
        options=fleece.RestoreOptions(force=True),
        listener=listen,
    )
    assert said
    assert "lock" in said[0]
    assert opens_writable(target, "raw", tmp_path) == ""
    assert target.read_bytes() == guest.disk("vda")


def test_a_reader_that_comes_meanwhile_keeps_its_file(guest: Guest, tmp_path: Path) -> None:
    """A guest whose image has this one as its backing file starts during the restore."""
    target = tmp_path / "x"
    target.write_bytes(OTHER)
    with contextlib.ExitStack() as stack:

        def listen(event: Event) -> None:
            if not started:
                started.append(stack.enter_context(nbd_server(target, tmp_path / "s", "-r")))

        started: list[str] = []
        store = fleece.open_store(guest.store)
        with pytest.raises(fleece.TargetError, match="is in use"):
            fleece.restore(
                store,
                "latest",
                "vda",
                str(target),
                options=fleece.RestoreOptions(force=True),
                listener=listen,
            )
    assert started
    assert target.read_bytes() == OTHER
    assert sorted(item.name for item in tmp_path.iterdir() if item.is_file()) == ["x"]


# ---- images that are read while they are written -----------------------------------------------


def test_a_raw_image_that_a_guest_writes_is_read_with_a_warning(
    guest: Guest, tmp_path: Path
) -> None:
    image = tmp_path / "live"
    image.write_bytes(guest.disk("vda"))
    verify = ("verify", guest.store, "latest", "--against", image)
    with used(Disk(image, "d0", "raw"), tmp_path / "scene") as scene:
        for words in (("root", image), verify):
            ran = INTACT.run(*words, "--json").succeeded()
            (said,) = [event["what"] for event in ran.named("warning")]
            assert f"{image} is being written by a running program (qemu" in said
            assert f"process {scene.qemu.pid}): what is read may be no single point" in said
    for words in (("root", image), verify):
        assert INTACT.run(*words, "--json").succeeded().named("warning") == []


def test_a_reader_is_no_writer(tmp_path: Path) -> None:
    image = tmp_path / "still"
    image.write_bytes(OTHER)
    with nbd_server(image, tmp_path / "s", "-r"):
        assert INTACT.run("root", image, "--json").succeeded().named("warning") == []


def test_a_writer_that_comes_later_is_told_in_the_end(tmp_path: Path) -> None:
    image = tmp_path / "still"
    image.write_bytes(OTHER)
    heard: list[Event] = []
    with contextlib.ExitStack() as stack:
        with fleece.open_image(str(image), "raw", listener=heard.append):
            stack.enter_context(nbd_server(image, tmp_path / "s"))
            assert heard == []
        (said,) = heard
        assert isinstance(said, Warned)
        assert "qemu-nbd, process" in said.what


def test_a_qcow2_image_that_a_guest_writes_is_not_read(guest: Guest, tmp_path: Path) -> None:
    image = images.random_image(tmp_path / "live", SIZE, seed=3)
    with used(Disk(image, "d0"), tmp_path / "scene"):
        INTACT.run("root", image).failed(3, str(image), "lock", "another process")


def test_what_is_mounted_is_read_with_a_warning(tmp_path: Path) -> None:
    image, place = tmp_path / "image", tmp_path / "mnt"
    image.write_bytes(bytes(16 * MIB))
    run_checked("mkfs.ext4", "-q", image)
    place.mkdir()
    with loop_device(image) as device:
        if run("mount", device, place).returncode != 0:
            pytest.skip("cannot mount here")
        try:
            (said,) = INTACT.run("root", device, "--json").succeeded().named("warning")
            assert f"is being written by a running program (the file system at {place})" in str(
                said
            )
            (said,) = INTACT.run("root", image, "--json").succeeded().named("warning")
            assert f"({device})" in said["what"]
        finally:
            run_checked("umount", place)
        assert INTACT.run("root", device, "--json").succeeded().named("warning") == []
    assert INTACT.run("root", image, "--json").succeeded().named("warning") == []


def test_an_image_is_called_by_its_name(guest: Guest, tmp_path: Path) -> None:
    """And not by the socket of the qemu-nbd that serves it."""
    image = tmp_path / "x.qcow2"
    restore = ("restore", guest.store, "latest", "vda", image)
    for words, name in ((restore, "vda"), (("root", image), str(image))):
        told = INTACT.run(*words, "--json").succeeded().named("progress")
        assert {event["subject"] for event in told} == {name}


# ---- what is no image, or is called as something else ------------------------------------------


@pytest.mark.parametrize("kind", ["pipe", "socket", "character device", "folder"])
def test_what_is_no_image_is_not_waited_for(guest: Guest, tmp_path: Path, kind: str) -> None:
    place = tmp_path / "place"
    with contextlib.ExitStack() as stack:
        if kind == "pipe":
            os.mkfifo(place)
        elif kind == "folder":
            place.mkdir()
        elif kind == "socket":
            stack.enter_context(socket.socket(socket.AF_UNIX)).bind(str(place))
        else:
            place = Path("/dev/zero")
        verify = ("verify", guest.store, "latest", "--against", place, "--format", "raw")
        for code, words in (
            (3, ("root", place, "--format", "raw")),
            (3, verify),
            (7, ("restore", guest.store, "latest", "vda", place, "--in-place", "--format", "raw")),
        ):
            ran = INTACT.run(*words)
            ran.failed(code, str(place))
            assert "neither a file nor" in ran.err or "No such device" in ran.err


@pytest.mark.parametrize("name", ["nbd:localhost:1", "json:{}", "fat:rw:x", "-x", "a,b=c"])
def test_a_name_of_a_file_is_no_name_of_a_protocol(
    guest: Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    store = fleece.open_store(guest.store)
    wanted = fleece.ImageFormat.QCOW2
    fleece.restore(
        store, "latest", "vda", name, options=fleece.RestoreOptions(target_format=wanted)
    )
    result = fleece.restore(
        store,
        "latest",
        "vda",
        name,
        options=fleece.RestoreOptions(target_format=wanted, in_place=True),
    )
    assert result.written_bytes == 0
    with fleece.open_image(name) as image, image.reader() as reader:
        assert reader.read(0, SIZE) == guest.disk("vda")
    images.check(tmp_path / name)
    assert sorted(os.listdir()) == sorted([name, "store"])


# ---- qcow2 on block devices --------------------------------------------------------------------


@pytest.mark.parametrize("garbage", [False, True])
def test_qcow2_goes_onto_a_block_device(guest: Guest, tmp_path: Path, garbage: bool) -> None:
    backing = tmp_path / "backing"
    backing.write_bytes(OTHER * 3 if garbage else bytes(3 * SIZE))
    with loop_device(backing) as device:
        words = (device, "--force", "--format", "qcow2")
        ran = restore(guest, *words).succeeded()
        assert ran.named("warning") == []
        images.check(device)
        (tmp_path / "want").write_bytes(guest.disk("vda"))
        images.compare(device, tmp_path / "want", "qcow2", "raw")
        against = ("--against", device, "--format", "qcow2")
        INTACT.run("verify", guest.store, "latest", *against).succeeded()
        restore(guest, device, "--in-place", "--format", "qcow2").succeeded()
        restore(guest, device, "--format", "qcow2").failed(7, "exists already")


def test_a_device_of_qcow2_goes_back_in_place(guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "backing").write_bytes(bytes(3 * SIZE))
    with loop_device(tmp_path / "backing") as device:
        restore(guest, device, "--force", "--format", "qcow2").succeeded()
        store = fleece.open_store(guest.store)
        result = fleece.restore(
            store,
            guest.points[0],
            "vda",
            str(device),
            options=fleece.RestoreOptions(target_format=fleece.ImageFormat.QCOW2, in_place=True),
        )
        assert result.written_bytes == KIB64
        images.check(device)
        (tmp_path / "want").write_bytes(guest.disk("vda", 0))
        images.compare(device, tmp_path / "want", "qcow2", "raw")


def test_what_is_on_a_device_is_not_guessed(guest: Guest, tmp_path: Path) -> None:
    """A guest can write any header into its raw disk; only --format makes it another's."""
    backing = tmp_path / "backing"
    backing.write_bytes(bytes(3 * SIZE))
    with loop_device(backing) as device:
        run_checked("qemu-img", "create", "-q", "-f", "qcow2", device, str(SIZE))
        restore(guest, device, "--in-place").succeeded()
        assert device.read_bytes()[:SIZE] == guest.disk("vda")
        ran = restore(guest, device, "--in-place", "--format", "qcow2")
        ran.failed(7, str(device), "not in qcow2 format")


@pytest.mark.parametrize("room", [512, SIZE // 4])
def test_a_device_that_is_too_small_for_qcow2_is_not_touched(
    guest: Guest, tmp_path: Path, room: int
) -> None:
    backing = tmp_path / "backing"
    backing.write_bytes(OTHER[:room])
    with loop_device(backing) as device:
        ran = restore(guest, device, "--force", "--format", "qcow2")
        ran.failed(7, f"has {room} bytes, and as qcow2 the disk needs ")
    assert backing.read_bytes() == OTHER[:room]


def test_a_device_that_is_just_large_enough_for_the_point(guest: Guest, tmp_path: Path) -> None:
    """It holds the point, and not all that the guest may write: that is told."""
    backing = tmp_path / "backing"
    backing.write_bytes(bytes(SIZE))
    with loop_device(backing) as device:
        ran = restore(guest, device, "--force", "--format", "qcow2").succeeded()
        (said,) = ran.named("warning")
        assert "enlarge the device" in said["what"]
        images.check(device)
        full = json_needed(guest, device, tmp_path)
    backing.write_bytes(bytes(full))
    with loop_device(backing) as device:
        restore(guest, device, "--force", "--format", "qcow2").succeeded()
        images.check(device)


def json_needed(guest: Guest, device: Path, folder: Path) -> int:
    """What a device needs for the point as fleece says it, in whole sectors of 512 bytes."""
    (folder / "small").write_bytes(bytes(512))
    with loop_device(folder / "small") as small:
        said = restore(guest, small, "--force", "--format", "qcow2").result["error"]
    needed = int(said.partition("needs ")[2].partition(";")[0])
    return -(-needed // 512) * 512


# ---- folders that somebody else writes into ----------------------------------------------------


def swapped(folder: Path, victim: Path) -> int:
    """Put a link to the victim in place of every partial file; gives how many."""
    count = 0
    for path in folder.glob(".*partial"):
        path.unlink()
        path.symlink_to(victim)
        count += 1
    return count


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
@pytest.mark.parametrize("force", [False, True])
def test_a_name_that_is_swapped_leads_to_no_other_file(
    guest: Guest, tmp_path: Path, fmt: str, force: bool
) -> None:
    out, victim = tmp_path / "out", tmp_path / "victim"
    out.mkdir()
    victim.write_bytes(b"precious")
    target = out / "x"
    if force:
        target.write_bytes(b"old")
    swaps = []
    blank = target_module._blank

    def late(*words: object, **named: object) -> object:
        swaps.append(swapped(out, victim))
        return blank(*words, **named)  # type: ignore[arg-type]

    with (
        mock.patch.object(target_module, "_blank", late),
        pytest.raises(fleece.TargetError, match="somebody put another file there"),
    ):
        fleece.restore(
            fleece.open_store(guest.store),
            "latest",
            "vda",
            str(target),
            options=fleece.RestoreOptions(target_format=fleece.ImageFormat(fmt), force=force),
        )
    assert swaps == [1]
    assert victim.read_bytes() == b"precious"
    assert mode_of(victim) != 0o600


def test_a_link_is_neither_followed_nor_replaced(guest: Guest, tmp_path: Path) -> None:
    victim, link = tmp_path / "victim", tmp_path / "link"
    victim.write_bytes(b"precious")
    link.symlink_to(victim)
    restore(guest, link, "--force").failed(7, "link: is a symbolic link", "name the file")
    ran = INTACT.run("salvage", guest.paths["vda"][0], "-o", link, "--force")
    ran.failed(7, "link: is a symbolic link")
    assert link.is_symlink()
    assert victim.read_bytes() == b"precious"


def test_long_names_that_are_no_ascii(guest: Guest, tmp_path: Path) -> None:
    """A name may have 255 bytes, however few letters they are."""
    for name in ("ä" * 127, "x" * 255):
        restore(guest, tmp_path / name).succeeded()
        assert (tmp_path / name).read_bytes() == guest.disk("vda")
        restore(guest, tmp_path / name, "--force", "--format", "qcow2").succeeded()
    restore(guest, tmp_path / ("ö" * 127), "--as-chain").succeeded()


# ---- options without effect --------------------------------------------------------------------

IDLE: tuple[tuple[tuple[object, ...], str], ...] = (
    (("restore", "{store}", "latest", "vda", "-", "--force"), "stream"),
    (("restore", "{store}", "latest", "vda", "-", "--in-place"), "stream"),
    (("restore", "{store}", "latest", "vda", "-", "--mode", "600"), "stream"),
    (("restore", "{store}", "latest", "vda", "-", "--format", "qcow2"), "stream"),
    (("restore", "{store}", "latest", "vda", "{new}", "--mode", "888"), "octal"),
    (("restore", "{store}", "latest", "vda", "{new}", "--mode", "4755"), "octal"),
    (
        ("restore", "{store}", "latest", "vda", "{old}", "--force", "--in-place"),
        "exclude each other",
    ),
    (("restore", "{store}", "latest", "vda", "{old}", "--in-place", "--mode", "600"), "--mode"),
    (("restore", "{store}", "latest", "vda", "{uri}", "--force", "--mode", "600"), "--mode"),
    (("restore", "{store}", "latest", "vda", "{uri}", "--force", "--format", "qcow2"), "raw"),
    (("restore", "{store}", "latest", "vda", "{uri}", "--in-place", "--format", "qcow2"), "raw"),
    (("restore", "{store}", "latest", "vda", "{uri}", "--partial"), "new image"),
    (("restore", "{store}", "latest", "vda", "-", "--partial"), "new image"),
    (("restore", "{store}", "latest", "vda", "{old}", "--partial", "--in-place"), "new image"),
    (("restore", "{store}", "latest", "vda", "{new}", "--as-chain", "--force"), "--force"),
    (("restore", "{store}", "latest", "vda", "{new}", "--as-chain", "--in-place"), "--in-place"),
    (("restore", "{store}", "latest", "vda", "{new}", "--as-chain", "--format", "raw"), "--format"),
    (("restore", "{store}", "latest", "vda", "-", "--as-chain"), "folder"),
    (("restore", "{store}", "latest", "vda", "{new}", "--as-chain", "--partial"), "not allowed"),
    (("salvage", "{delta}", "-o", "-"), "name of a file"),
    (("salvage", "{delta}", "-o", "{new}", "--key-file", "{key}"), "delta has none"),
    (("info", "{delta}", "--key-file", "{key}"), "delta has none"),
    (("restore", "{store}", "latest", "vda", "{new}", "--key-file", "{key}"), "store has none"),
    (("map", "{store}", "latest", "vda", "--svg", "-"), "name of a file"),
    (("boot-test", "{store}", "latest", "--screenshot", "-"), "name of a file"),
    (("boot-test", "{store}", "latest", "--console-log", "-"), "name of a file"),
    (("boot-test", "{store}", "latest", "--mode", "600"), "--mode needs"),
    (("boot-test", "{store}", "latest", "--memory", "0"), "at least 1"),
    (("boot-test", "{store}", "latest", "--cpus", "0"), "at least 1"),
    (("boot-test", "{store}", "latest", "--initrd", "{old}"), "--kernel"),
    (("boot-test", "{store}", "latest", "--append", "x"), "--kernel"),
    (("serve", "{store}", "latest", "--scratch", "/tmp"), "--writable"),
    (("root", "{uri}", "--format", "qcow2"), "raw"),
    (("verify", "{store}", "latest", "--against", "{uri}", "--format", "qcow2"), "raw"),
    (("verify", "{store}", "latest", "--disk", "vda"), "--against"),
    (("verify", "{store}", "latest", "--format", "raw"), "--against"),
    (("verify", "{store}", "--against", "{old}"), "POINT"),
    (("verify", "{store}", "--max-age", "1d", "--disk", "vda"), "--max-age"),
    (("verify", "{store}", "--fraction", "10%", "--format", "raw"), "--fraction"),
    (("verify", "{store}", "latest", "--max-age", "1d"), "--max-age"),
    (("verify", "{store}", "latest", "--fraction", "10%", "--against", "{old}"), "--fraction"),
    (("files", "{store}", "latest", "vda", "ls", "-l"), "PATH"),
    (("files", "{store}", "latest", "vda", "ls", "-r"), "PATH"),
    (("files", "{store}", "latest", "vda", "ls", "--volume", "1"), "PATH"),
    (("files", "{store}", "latest", "vda", "cp", "/a", "-", "--force"), "--force"),
    (("files", "{store}", "latest", "vda", "cp", "/a", "/b", "-"), "one file"),
)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What the words of `IDLE` stand for."""
    folder = tmp_path_factory.mktemp("idle")
    made = Guest(folder / "store")
    made.holding({"vda": CONTENT})
    old = folder / "old"
    old.write_bytes(OTHER)
    key = folder / "key"
    key.write_bytes(os.urandom(32))
    with nbd_server(old, folder / "s") as uri:
        yield {
            "key": str(key),
            "store": str(made.store),
            "delta": str(made.paths["vda"][0]),
            "old": str(old),
            "uri": uri,
        }


@pytest.mark.parametrize(
    ("words", "reason"), IDLE, ids=[" ".join(map(str, words)) for words, _ in IDLE]
)
def test_an_option_without_effect_is_refused(
    places: dict[str, str], tmp_path: Path, words: tuple[object, ...], reason: str
) -> None:
    new = tmp_path / "new"
    INTACT.run(*(str(word).format(**places, new=new) for word in words)).failed(2, reason)
    assert not new.exists()
    assert Path(places["old"]).read_bytes() == OTHER


def test_a_mode_for_a_device_is_refused(guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "backing").write_bytes(OTHER)
    with loop_device(tmp_path / "backing") as device:
        restore(guest, device, "--force", "--mode", "600").failed(2, "--mode")
        restore(guest, device, "--force", "--partial").failed(2, "new image")
    assert (tmp_path / "backing").read_bytes() == OTHER


def test_a_name_in_qcow2_says_nothing_of_what_is_no_file(guest: Guest, tmp_path: Path) -> None:
    """A device is raw unless --format says otherwise, and so is an export, whatever its name."""
    (tmp_path / "backing").write_bytes(OTHER * 2)
    with loop_device(tmp_path / "backing") as device:
        link = tmp_path / "device.qcow2"
        link.symlink_to(device)
        restore(guest, link, "--force").succeeded()
        assert device.read_bytes()[:SIZE] == guest.disk("vda")
    with nbd_server(tmp_path / "backing", tmp_path / "export.qcow2") as uri:
        restore(guest, uri, "--in-place").succeeded()
