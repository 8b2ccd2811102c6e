"""A point boots in a throw-away machine, or it is said that it does not."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

import pytest

import fleece
from tests.engine.history import Guest
from tests.engine.scene import (
    INTACT,
    MIB,
    Engine,
    Mutation,
    Ran,
    Running,
    fill,
    flip,
    small_tmpfs,
    wait_until,
)
from tests.engine.test_guest import Load, load
from tests.rig.initramfs import KERNEL_WORDS, GuestFiles
from tests.rig.process import LIMIT, run_checked

__all__ = ("load",)

APPEND = f"{KERNEL_WORDS} rig.mode=none"


def boot(
    store: Path, files: GuestFiles, *words: object, append: str = APPEND, engine: Engine = INTACT
) -> Ran:
    """Boot the newest point with the rig's kernel."""
    kernel = ("--kernel", files.kernel, "--initrd", files.initramfs, "--append", append)
    machine = ("--emulated", "--memory", 256, "--cpus", 1, "--timeout", LIMIT, *kernel)
    return engine.run("boot-test", store, "latest", *machine, *words)


def content(store: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def machines(parent: int) -> list[Path]:
    """The QEMUs that a process has started, as folders of /proc."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name, _, rest = (process / "stat").read_text().rpartition(") ")
            if "(qemu-system" in name and int(rest.split()[1]) == parent:
                found.append(process)
    return found


def test_a_point_boots_until_its_agent_answers(
    load: Load, files: GuestFiles, tmp_path: Path
) -> None:
    before = content(load.store)
    shot, log = tmp_path / "screen.png", tmp_path / "console.log"
    ran = boot(load.store, files, "--json", "--screenshot", shot, "--console-log", log).succeeded()
    assert ran.result["sign"] == "agent"
    newest = {disk.disk: disk.root for disk in load.taken[-1].result.disks}
    assert {disk["disk"]: disk["root"] for disk in ran.result["disks"]} == newest
    assert ran.result["point"] == load.taken[-1].result.point
    assert shot.read_bytes().startswith(b"\x89PNG")
    console = log.read_text()
    assert "RIG mounted /dev/vda" in console
    assert "RIG mounted /dev/vdb" in console
    assert content(load.store) == before


def bootable(size: int = MIB) -> bytes:
    """A disk whose boot sector says BOOTED on the serial console, and stops."""
    code = bytes.fromhex("31c0 8ed8 fc be167c ac 84c0 7406 baf803 ee ebf5 f4 ebfd")
    return (code + b"BOOTED\n\0").ljust(510, b"\0") + b"\x55\xaa" + bytes(size - 512)


@pytest.mark.parametrize("bus", ["virtio", "sata", "scsi", "nvme"])
def test_the_bios_boots_the_first_disk_on_any_bus(bus: str, tmp_path: Path) -> None:
    guest = Guest(tmp_path / "store")
    guest.holding({"empty": bytes(MIB), "system": bootable()})
    words = ("boot-test", guest.store, "latest", "--emulated", "--memory", 64, "--bus", bus)
    wanted = ("--console-text", "BOOTED", "--timeout", LIMIT)
    ran = INTACT.run(*words, *wanted, "--disk", "system", "--disk", "empty", "--json").succeeded()
    assert [disk["disk"] for disk in ran.result["disks"]] == ["system", "empty"]
    assert ran.result["sign"] == "console"


def test_what_does_not_boot_is_said(tmp_path: Path) -> None:
    """Disks without anything to boot."""
    guest = Guest(tmp_path / "store")
    guest.full({"vda": MIB})
    shot = tmp_path / "screen.png"
    words = ("boot-test", guest.store, "latest", "--timeout", 2, "--memory", 64, "--emulated")
    INTACT.run(*words, "--screenshot", shot).failed(6, "agent did not come in 2 s", "console")
    assert shot.read_bytes().startswith(b"\x89PNG")
    said = INTACT.run(*words, "--console-text", "login:", "--json")
    said.failed(6, "'login:' on the console did not come")
    assert said.result["point"] == guest.points[0]
    shot.unlink()
    INTACT.run(*words, "--firmware", "/nothing").failed(7, "QEMU does not start")
    INTACT.run(*words, "--append", "x").failed(2, "--kernel")
    INTACT.run(*words, "--timeout", 0).failed(2, "--timeout")


@pytest.mark.parametrize("option", ["--screenshot", "--console-log"])
def test_a_file_that_cannot_be_kept_is_told_before_the_machine_starts(
    option: str, tmp_path: Path
) -> None:
    guest = Guest(tmp_path / "store")
    guest.full({"vda": MIB})
    (tmp_path / "file").touch()
    words = ("boot-test", guest.store, "latest", "--timeout", 1000, "--emulated", option)
    INTACT.run(*words, tmp_path / "no" / "such").failed(7, "no: the folder does not exist")
    INTACT.run(*words, tmp_path / "file" / "x").failed(7, "the folder does not exist")
    INTACT.run(*words, tmp_path).failed(7, "is a folder")
    INTACT.run(*words, "").failed(7, "is a folder")
    INTACT.run(*words, tmp_path / ("n" * 300)).failed(7, "name too long")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    INTACT.run(*words, tmp_path / "link").failed(7, "link: is a symbolic link")
    INTACT.run(*words, "/dev/null").failed(7, "is not a regular file")
    with small_tmpfs(1) as place:
        run_checked("mount", "-o", "remount,ro", place)
        INTACT.run(*words, place / "x").failed(7, "cannot be written")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["file", "link", "store"]


def started(folder: Path, *words: object) -> Running:
    """A boot-test whose machine runs, and whose folder for what it keeps is gone."""
    guest, kept = Guest(folder / "store"), folder / "kept"
    guest.full({"vda": MIB})
    kept.mkdir()
    files = ("--screenshot", kept / "x.png", "--console-log", kept / "x")
    machine = ("--memory", 64, "--emulated", "--json")
    running = INTACT.command("boot-test", guest.store, "latest", *machine, *files, *words)
    wait_until(lambda: bool(machines(running.pid)), "a machine")
    kept.rmdir()
    return running


def warnings(ran: Ran) -> list[str]:
    return [event["what"] for event in ran.named("warning")]


def test_what_cannot_be_kept_hides_no_signal(tmp_path: Path) -> None:
    running = started(tmp_path)
    running.signal(signal.SIGTERM)
    console, screen = warnings(running.wait().failed(130, "interrupted"))
    assert f"{tmp_path / 'kept'}: the folder does not exist" in console
    assert "no screenshot" in screen


def test_what_cannot_be_kept_hides_no_failure(tmp_path: Path) -> None:
    ran = started(tmp_path, "--timeout", 5).wait().failed(6, "agent did not come in 5 s")
    assert len(warnings(ran)) == 2


def test_what_cannot_be_kept_is_an_error_of_a_point_that_has_booted(tmp_path: Path) -> None:
    guest, kept = Guest(tmp_path / "store"), tmp_path / "kept"
    guest.holding({"vda": bootable()})
    words = ("boot-test", guest.store, "latest", "--emulated", "--memory", 64, "--timeout", LIMIT)
    with small_tmpfs(1) as place:
        fill(place)
        log = place / "log"
        wanted = ("--console-text", "BOOTED", "--console-log", log, "--screenshot", kept)
        INTACT.run(*words, *wanted).failed(7, f"{log}: No space left")
        assert [item.name for item in place.iterdir()] == ["fill"]
    assert kept.read_bytes().startswith(b"\x89PNG")


def test_an_empty_text_is_no_sign(tmp_path: Path) -> None:
    with pytest.raises(fleece.UsageError, match="is empty"):
        fleece.BootWish("")


def test_a_machine_that_ends_has_not_booted(load: Load, files: GuestFiles) -> None:
    ran = boot(load.store, files, append="console=ttyS0 panic=-1 rdinit=/nothing")
    ran.failed(6, "the machine ended")


def reads_of_damage_fail(engine: Engine, folder: Path, limit: float = LIMIT) -> None:
    """The boot sector comes, but what the machine read of it is not what was backed up."""
    guest = Guest(folder / "store")
    guest.holding({"vda": bootable()})
    path = guest.paths["vda"][0]
    with fleece.open_delta(str(path)) as delta:
        (row,) = delta.rows()[:1]
    flip(path, int(row["position"]) + int(row["frame_length"]) + 40)
    words = ("boot-test", guest.store, "latest", "--emulated", "--memory", 64, "--timeout", limit)
    engine.run(*words, "--console-text", "BOOTED").failed(6, "met damage")


def test_damage_that_the_guest_reads_is_no_success(tmp_path: Path) -> None:
    reads_of_damage_fail(INTACT, tmp_path)


FAULT = Mutation(
    "problems are not looked at", (("engine/serve/boot.py", "if serving.problems:", "if False:"),)
)


def test_a_fault_in_boot_test_is_noticed(tmp_path: Path) -> None:
    engine = FAULT.engine(tmp_path)
    with pytest.raises(AssertionError):
        reads_of_damage_fail(engine, tmp_path, limit=5)


def test_a_killed_boot_test_leaves_no_machine_and_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = Guest(tmp_path / "store")
    guest.full({"vda": MIB})
    scratch, temporary = tmp_path / "scratch", tmp_path / "t"
    scratch.mkdir()
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    words = ("boot-test", guest.store, "latest", "--memory", 64, "--screenshot", tmp_path / "x")
    # Not the QEMU that is asked first whether KVM works.
    running = INTACT.command(*words, "--scratch", scratch, "--emulated")
    wait_until(lambda: bool(machines(running.pid)), "a machine")
    (machine,) = machines(running.pid)
    running.kill()
    wait_until(lambda: not machine.exists(), "the machine's end")
    wait_until(lambda: [*scratch.iterdir()] == [], "the end of what is in the scratch")
    wait_until(
        lambda: all(item.is_dir() for item in temporary.rglob("*")),
        "the end of what is in the temporary folder",
    )
