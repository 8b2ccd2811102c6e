"""A chain is one guest's: another one of its name is refused, and adopted only if that is asked."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fleece
from fleece.delta.identity import GuestIdentity
from tests.engine.scene import GUEST, KIB64, MIB, MachineScene, Moment, Ran
from tests.rig import images
from tests.rig.disk import Disk
from tests.rig.machine import Machine

SIZE = 8 * MIB
ONE = "11111111-2222-3333-4444-555555555555"
OTHER = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"


def _words(uuid: str | None, name: str | None) -> list[str]:
    return [*(("-uuid", uuid) if uuid else ()), *(("-name", name) if name else ())]


class Guests:
    """Machines with a disk each, all called by the same name in one store."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.folder = folder
        self._stack = stack

    def start(self, image: Path, uuid: str | None = None, name: str | None = None) -> MachineScene:
        """A machine with this image, UUID and name."""
        qemu = self._stack.enter_context(
            Machine([Disk(image, "d0")], monitors=2, extra=_words(uuid, name))
        )
        return MachineScene(qemu, self.folder)

    def image(self, seed: int) -> Path:
        """A new image."""
        path = self.folder / f"{seed}.qcow2"
        return images.random_image(path, SIZE, seed=seed, fill=1.0)


@pytest.fixture
def guests(tmp_path: Path) -> Iterator[Guests]:
    with contextlib.ExitStack() as stack:
        yield Guests(tmp_path, stack)


def _identity(scene: MachineScene) -> GuestIdentity | None:
    """Of the newest point."""
    newest = fleece.open_store(scene.store).catalogue().of_guest(GUEST)[-1]
    return newest.disks["vd-d0"].header.identity


def _mode(ran: Ran) -> str:
    return str(ran.succeeded().result["mode"])


def _write(scene: MachineScene, place: int) -> None:
    scene.writer().write(place * MIB, os.urandom(KIB64))


def test_the_header_has_what_qemu_tells(guests: Guests) -> None:
    scene = guests.start(guests.image(1), ONE, "web")
    scene.backup().succeeded()
    assert _identity(scene) == GuestIdentity(ONE, "web")
    told = {"uuid": ONE, "name": "web"}
    assert scene.engine.run("list", scene.store, "--json").named("point")[0]["identity"] == told
    (delta,) = scene.store.rglob("vd-*.fleece")
    assert scene.engine.run("info", delta, "--json").result["identity"] == told


def test_a_uuid_of_zeros_is_none(guests: Guests) -> None:
    scene = guests.start(guests.image(1))
    assert set(scene.qemu.control.command("query-uuid")["UUID"]) == {"0", "-"}
    scene.backup().succeeded()
    assert _identity(scene) is None


def test_another_guest_of_the_name_is_refused(guests: Guests) -> None:
    first = guests.start(guests.image(1), ONE, "web")
    first.backup().succeeded()
    second = guests.start(guests.image(2), OTHER, "web")
    before = sorted(first.store.rglob("*"))
    said = ("of another guest", ONE, f"this is the guest of UUID {OTHER}", "--guest", "--adopt")
    second.backup().failed(4, *said)
    second.backup("--mode", "full").failed(4, "of another guest")
    second.nothing_left()
    assert second.segments() == []
    assert sorted(first.store.rglob("*")) == before
    scratch = ("--scratch", second.scratch, "--json")
    audit = second.engine.run("audit", second.source, second.store, "--guest", GUEST, *scratch)
    audit.failed(4, "of another guest")
    words = ("backup", second.source, second.store, "--guest", "second", *scratch)
    assert _mode(second.engine.run(*words)) == "full"
    _write(first, 1)
    assert _mode(first.backup()) == "incremental"


def test_a_guest_that_is_renamed_is_the_same(guests: Guests) -> None:
    image = guests.image(1)
    scene = guests.start(image, ONE, "web")
    scene.backup().succeeded()
    scene.qemu.quit()
    renamed = guests.start(image, ONE, "web-of-old")
    _write(renamed, 1)
    assert _mode(renamed.backup()) == "incremental"
    assert _identity(renamed) == GuestIdentity(ONE, "web-of-old")


def test_a_guest_without_uuid_is_known_by_its_name(guests: Guests) -> None:
    image = guests.image(1)
    scene = guests.start(image, name="web")
    scene.backup().succeeded()
    assert _identity(scene) == GuestIdentity(None, "web")
    other = guests.start(guests.image(2), name="db")
    other.backup().failed(4, "a guest named web", "a guest named db")
    scene.qemu.quit()
    nameless = guests.start(image)
    nameless.backup().failed(4, "has neither UUID nor name")
    nameless.qemu.quit()
    now_with_uuid = guests.start(image, ONE, "web")
    assert _mode(now_with_uuid.backup()) == "incremental"
    assert _identity(now_with_uuid) == GuestIdentity(ONE, "web")
    now_with_uuid.qemu.quit()
    again_without = guests.start(image, name="web")
    again_without.backup().failed(4, ONE, "a guest named web")


def test_a_chain_of_no_guest_is_the_next_ones(guests: Guests) -> None:
    image = guests.image(1)
    scene = guests.start(image)
    scene.backup().succeeded()
    scene.qemu.quit()
    known = guests.start(image, ONE)
    _write(known, 1)
    assert _mode(known.backup()) == "incremental"
    assert _identity(known) == GuestIdentity(ONE, None)
    known.check_exact()
    guests.start(guests.image(2), OTHER).backup().failed(4, ONE, OTHER)


def test_a_guest_that_is_adopted_is_read_as_a_whole(guests: Guests) -> None:
    """A clone has bitmaps of the chain, which would make an incremental of it."""
    image = guests.image(1)
    first = guests.start(image, ONE)
    first.backup().succeeded()
    first.qemu.quit()
    copy = guests.folder / "copy.qcow2"
    shutil.copy(image, copy)
    first.qemu.start()
    _write(first, 1)
    clone = guests.start(copy, OTHER)
    _write(clone, 2)
    clone.backup("--mode", "incremental", "--adopt").failed(4, "that of another guest")
    ran = clone.backup("--adopt")
    assert (_mode(ran), ran.result["adopted"]) == ("rescan", True)
    assert "that of another guest: the guest of UUID 1111" in ran.named("plan")[0]["reason"]
    assert _identity(clone) == GuestIdentity(OTHER, None)
    clone.check_exact()
    clone.only_newest_segment()
    _write(clone, 3)
    ran = clone.backup()
    assert (_mode(ran), ran.result["adopted"]) == ("incremental", False)
    clone.check_exact()
    first.backup().failed(4, "of another guest", OTHER)
    assert _mode(first.backup("--adopt")) == "rescan"
    first.check_exact()
    first.verify()


def test_to_adopt_what_is_the_guests_own_is_refused(guests: Guests) -> None:
    scene = guests.start(guests.image(1), ONE)
    scene.backup("--adopt").failed(2, "nothing to adopt", "leave --adopt out")
    scene.backup().succeeded()
    scene.backup("--adopt").failed(2, "nothing to adopt")
    scene.nothing_left()


def test_a_killed_run_is_left_alone_by_another_guest_and_resumed_by_its_own(
    guests: Guests,
) -> None:
    first = guests.start(guests.image(1), ONE)
    first.backup().succeeded()
    first.writer().write(0, os.urandom(4 * MIB))
    first.killed_backup(Moment("in the copy", "fleece.nbd.connection", "Connection.read", nth=2))
    partial = [*first.store.rglob(".partial-*")]
    second = guests.start(guests.image(2), OTHER)
    second.backup().failed(4, "of another guest")
    assert partial == [*first.store.rglob(".partial-*")] != []
    ran = first.backup().succeeded()
    assert ran.result["resumed"]
    first.check_exact()
    first.nothing_left()


def test_a_killed_run_that_adopts_is_resumed_by_one_that_does(guests: Guests) -> None:
    first = guests.start(guests.image(1), ONE)
    first.backup().succeeded()
    second = guests.start(guests.image(2), OTHER)
    moment = Moment("in the copy", "fleece.nbd.connection", "Connection.read", nth=2)
    second.killed_backup(moment, "--adopt")
    second.backup().failed(4, "of another guest")
    ran = second.backup("--adopt").succeeded()
    assert (ran.result["resumed"], ran.result["mode"]) == (True, "rescan")
    second.check_exact()
    second.nothing_left()
    second.backup().succeeded()


def _stream(scene: MachineScene, target: Path, *words: object) -> int:
    """Write the delta of the one disk to a file; gives the exit code."""
    command = scene.words("--output", "-", *words)
    line = [sys.executable, "-m", "fleece", *(str(word) for word in command if word != "--json")]
    with target.open("wb") as output:
        return subprocess.run(line, cwd=scene.engine.root, stdout=output, check=False).returncode


def _import(scene: MachineScene, source: Path, *words: str) -> tuple[int, str]:
    line = [sys.executable, "-m", "fleece", "import", str(scene.store), *words]
    with source.open("rb") as taken:
        done = subprocess.run(
            line,
            cwd=scene.engine.root,
            stdin=taken,
            check=False,
            capture_output=True,
            text=True,
        )
    return done.returncode, done.stderr


def test_a_stream_of_another_guest_is_refused_at_both_ends(guests: Guests) -> None:
    first = guests.start(guests.image(1), ONE)
    first.backup().succeeded()
    second = guests.start(guests.image(2), OTHER)
    piped = guests.folder / "piped.fleece"
    assert _stream(second, piped) == 4
    assert piped.stat().st_size == 0
    assert _stream(second, piped, "--adopt") == 0
    code, said = _import(first, piped)
    assert (code, "of another guest" in said) == (4, True)
    assert _import(first, piped, "--adopt")[0] == 0
    assert _identity(second) == GuestIdentity(OTHER, None)
    second.check_exact()
    assert _import(first, piped)[0] == 0, "it is there already"
    first.backup().failed(4, "of another guest")


def test_a_chain_of_another_guest_is_not_imported_beside_the_own(guests: Guests) -> None:
    """It was backed up into another store, under the same name."""
    first = guests.start(guests.image(1), ONE)
    first.backup().succeeded()
    second = guests.start(guests.image(2), OTHER)
    elsewhere = guests.folder / "elsewhere"
    second.backup(store=elsewhere).succeeded()
    (delta,) = elsewhere.rglob("vd-*.fleece")
    code, said = _import(first, delta)
    assert (code, ONE in said, OTHER in said) == (4, True, True)
    assert _import(first, delta, "--adopt")[0] == 0
    _write(first, 1)
    assert _mode(first.backup()) == "incremental"
    new = Path(fleece.init(guests.folder / "new").where)
    done = subprocess.run(
        [sys.executable, "-m", "fleece", "import", str(new), "--adopt"],
        cwd=first.engine.root,
        input=delta.read_bytes(),
        capture_output=True,
        check=False,
    )
    assert (done.returncode, [*new.rglob("*.fleece")]) == (2, [])


def test_an_encrypted_store_hides_it_and_knows_it(guests: Guests) -> None:
    first = guests.start(guests.image(1), ONE, "a-name-of-its-own")
    key = guests.folder / "key"
    key.write_bytes(os.urandom(32))
    sealed = guests.folder / "sealed"
    words = ("--key-file", key)
    first.init("--encrypt", *words, store=sealed)
    first.backup(*words, store=sealed).succeeded()
    for delta in sealed.rglob("*.fleece"):
        assert ONE.encode() not in delta.read_bytes()
        assert b"a-name-of-its-own" not in delta.read_bytes()
    second = guests.start(guests.image(2), OTHER)
    second.backup(*words, store=sealed).failed(4, "of another guest", ONE)


def test_a_merged_point_is_still_the_guests(guests: Guests) -> None:
    first = guests.start(guests.image(1), ONE)
    for place in range(3):
        _write(first, place)
        first.backup().succeeded()
    first.engine.run("merge", first.store, "latest").succeeded()
    first.engine.run("prune", first.store, "--keep-last", "1").succeeded()
    assert first.points() == 1
    assert _identity(first) == GuestIdentity(ONE, None)
    guests.start(guests.image(2), OTHER).backup().failed(4, "of another guest", ONE)


def test_a_point_of_a_library_user_can_have_an_identity(guests: Guests) -> None:
    scene = guests.start(guests.image(1), ONE, "web")
    with fleece.QemuSource(str(scene.qemu.qmp_socket), scene.scratch) as source:
        assert source.identity() == fleece.GuestIdentity(ONE, "web")
    assert not fleece.GuestIdentity(ONE, "web").is_of(fleece.GuestIdentity(OTHER, "web"))
    assert fleece.GuestIdentity(None, "web").is_of(fleece.GuestIdentity(OTHER, "web"))
