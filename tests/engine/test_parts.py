"""A point holds the machine too: parts that every verb of a store takes along as it takes disks."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import fleece
from fleece.store.names import PARTIAL
from tests.contract.nbd_source import NbdSource
from tests.engine.scene import INTACT, wait_until
from tests.rig import images
from tests.rig.process import run

GUEST = "web"
XML = b"<domain><name>web</name></domain>\n"
NVRAM = b"variables" + bytes(3 * 65536)


def _machine(xml: bytes = XML, nvram: bytes = NVRAM) -> fleece.Machine:
    return fleece.Machine(
        [
            fleece.Part(fleece.PartKind.LIBVIRT_XML, xml),
            fleece.Part(fleece.PartKind.NVRAM, nvram),
        ]
    )


class _Guest:
    """A guest of one disk, whose machine is what a test says, and a store."""

    def __init__(self, uri: str, folder: Path) -> None:
        self.source = NbdSource(GUEST, {"d0": uri}, _machine())
        self.folder = folder
        self.place = folder / "store"
        self.store = fleece.init(str(self.place))

    def backup(self, machine: fleece.Machine | None = None, **how: object) -> str:
        """One point; gives its id."""
        self.source.machine = machine or self.source.machine
        options = fleece.BackupOptions(**how)  # type: ignore[arg-type]
        return fleece.backup(self.source, self.store, options).point

    def point(self, name: str = "latest") -> fleece.StoredPoint:
        """Of the store."""
        return self.store.catalogue().find(name)

    def kinds(self, name: str = "latest") -> dict[str, bytes]:
        """The parts at a point."""
        return {part.kind: part.data for part in fleece.parts(self.store, name)}

    def run(self, *words: object) -> list[dict[str, object]]:
        """A verb's lines; it must succeed."""
        done = INTACT.run(*words, "--json").succeeded()
        return done.events


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[_Guest]:
    image = images.random_image(tmp_path / "d0.raw", 1 << 20, seed=1, fmt="raw")
    with tempfile.TemporaryDirectory(prefix="rig-") as folder:
        socket = Path(folder, "nbd.sock")
        command = ["nbdkit", "-f", "-r", "--exit-with-parent", "-U", str(socket), "file"]
        with subprocess.Popen([*command, str(image)]) as server:
            try:
                uri = f"nbd+unix:///?socket={socket}"
                wait_until(lambda: run("nbdinfo", "--size", uri).returncode == 0, "nbdkit")
                yield _Guest(uri, tmp_path)
            finally:
                server.terminate()


def test_what_changed_of_the_machine_is_stored_and_given_back(guest: _Guest) -> None:
    """Larger, smaller, and as before; a full stands alone."""
    first = guest.backup()
    longer = XML * 3000
    second = guest.backup(_machine(longer))
    third = guest.backup(_machine(XML, NVRAM[:-9] + b"otherwise"))
    full = guest.backup(mode=fleece.ModeWish.FULL)
    assert guest.kinds(first) == {"libvirt-xml": XML, "nvram": NVRAM}
    assert guest.kinds(second) == {"libvirt-xml": longer, "nvram": NVRAM}
    assert guest.kinds(third)["libvirt-xml"] == XML
    assert guest.kinds(third)["nvram"].endswith(b"otherwise")
    assert guest.kinds(full) == guest.kinds(third)
    held = {p: guest.point(p).parts["@nvram"] for p in (first, second, third, full)}
    assert held[second].data_bytes == held[second].zero_bytes == 0
    assert 0 < held[third].data_bytes < 65536
    assert [held[p].header.parent is None for p in held] == [True, False, False, True]


def test_a_part_is_no_disk(guest: _Guest) -> None:
    """No verb that is about disks takes it for one, nor for one that is gone."""
    guest.backup()
    guest.backup()
    point = guest.point()
    assert sorted(point.disks) == ["d0"]
    assert sorted(point.parts) == ["@libvirt-xml", "@nvram"]
    with fleece.serve(guest.store, "latest") as serving:
        assert [disk.disk for disk in serving.disks] == ["d0"]
    assert point.disks["d0"].header.gone == ()
    for words in (
        ("map", guest.place, "latest", "@nvram"),
        ("serve", guest.place, "latest", "--disk", "@nvram"),
        ("verify", guest.place, "latest", "--against", guest.folder / "d0.raw", "--disk", "@nvram"),
        ("restore", guest.place, "latest", "@tpm", guest.folder / "tpm"),
    ):
        done = INTACT.run(*words)
        assert done.code == fleece.ExitCode.USAGE, done
        assert "has no" in done.err


def test_list_info_and_restore_show_it(guest: _Guest) -> None:
    """By its name; what is restored is exactly as long."""
    point = guest.backup()
    *rows, result = guest.run("list", guest.place)
    assert [(row["event"], row.get("disk"), row.get("part"), row.get("name")) for row in rows] == [
        ("point", "d0", None, None),
        ("part", None, "libvirt-xml", "@libvirt-xml"),
        ("part", None, "nvram", "@nvram"),
    ]
    assert result["points"] == 1
    told = guest.run("info", rows[1]["path"])[-1]
    assert (told["part"], told["parts"]) == ("libvirt-xml", ["@libvirt-xml", "@nvram"])
    target = guest.folder / "definition.xml"
    guest.run("restore", guest.place, point, "@libvirt-xml", target)
    assert target.read_bytes() == XML
    assert target.stat().st_mode & 0o777 == 0o600
    shown = INTACT.run("restore", guest.place, point, "@libvirt-xml", "-").succeeded()
    assert shown.out == XML.decode()


def test_a_part_is_no_image_and_no_disk_has_its_name(guest: _Guest) -> None:
    """Both are refused before anything is made."""
    guest.backup()
    target = guest.folder / "nvram.qcow2"
    done = INTACT.run("restore", guest.place, "latest", "@nvram", target)
    assert (done.code, target.exists()) == (fleece.ExitCode.USAGE, False)
    assert "no image" in done.err
    source = f"image:@nvram={guest.folder / 'd0.raw'}"
    done = INTACT.run("backup", source, guest.place, "--guest", "other")
    assert done.code == fleece.ExitCode.USAGE
    assert "begin with @" in done.err


def test_a_lost_or_damaged_part_is_found(guest: _Guest) -> None:
    """The point does not count then, and the disk alone can still be had."""
    guest.backup()
    point = guest.backup(_machine(XML, NVRAM[:-1] + b"x"))
    assert guest.run("verify", guest.place)[-1]["deltas"] == 6
    delta = Path(guest.point().parts["@nvram"].where)
    raw = bytearray(delta.read_bytes())
    raw[len(raw) // 3] ^= 1
    kept, whole = guest.folder / "kept", delta.read_bytes()
    delta.write_bytes(raw)
    assert INTACT.run("verify", guest.place).code == fleece.ExitCode.STORE
    assert INTACT.run("restore", guest.place, point, "@nvram", kept).code == fleece.ExitCode.STORE
    assert not kept.exists()
    delta.unlink()
    assert guest.store.catalogue().points[-1].missing == ("@nvram",)
    guest.run("restore", guest.place, point, "d0", guest.folder / "disk", "--partial")
    delta.write_bytes(whole)
    assert guest.run("status", guest.place)[0]["point"] == point


def test_a_damaged_part_is_salvaged_as_a_part(guest: _Guest) -> None:
    """What is left of it is given back as a part."""
    guest.backup()
    delta = Path(guest.point().parts["@nvram"].where)
    raw = bytearray(delta.read_bytes())
    raw[-40] ^= 1
    delta.write_bytes(raw)
    saved = guest.folder / "saved.fleece"
    guest.run("salvage", delta, "--output", saved)
    assert b'"part": "nvram"' in saved.read_bytes()
    shutil.copy(saved, delta)
    target = guest.folder / "nvram"
    guest.run("restore", guest.place, "latest", "@nvram", target, "--partial")
    assert target.read_bytes() == NVRAM


def test_prune_merge_and_import_take_it_along(guest: _Guest) -> None:
    """Each part goes with its point; a merged delta gives the same bytes."""
    for number in range(3):
        guest.backup(_machine(XML, bytes([number]) + NVRAM[1:]))
    guest.run("merge", guest.place, "latest")
    assert guest.point().parts["@nvram"].header.parent is None
    guest.backup(_machine(XML, b"\x09" + NVRAM[1:]))
    guest.run("prune", guest.place, "--keep-last", 1)
    assert len(guest.store.catalogue().points) == 1
    assert guest.kinds() == {"libvirt-xml": XML, "nvram": b"\x09" + NVRAM[1:]}
    assert guest.run("verify", guest.place)[-1]["deltas"] == 3
    other = guest.folder / "other"
    fleece.init(str(other))
    missing = []
    for entry in guest.point().deltas.values():
        with Path(entry.where).open("rb") as file:
            taken = fleece.import_delta(fleece.open_store(str(other)), file.read)
        missing.append(taken.missing)
    assert missing == [("@libvirt-xml", "@nvram"), ("@nvram",), ()]
    assert {*fleece.parts(fleece.open_store(str(other)), "latest")} == {
        *fleece.parts(guest.store, "latest")
    }


def test_what_cannot_be_told_is_a_warning(guest: _Guest) -> None:
    """And what is absurdly large is not stored; the disks are, all the same."""
    heard: list[object] = []
    huge = fleece.Part(fleece.PartKind.TPM, bytes((64 << 20) + 1))
    guest.source.machine = fleece.Machine([*_machine().parts, huge], ["NVRAM: it is gone"])
    result = fleece.backup(guest.source, guest.store, listener=heard.append)
    assert result.parts == ("@libvirt-xml", "@nvram")
    told = [text for text in map(str, heard) if "lacks a part" in text]
    assert len(told) == 2
    assert guest.point().complete


def test_an_encrypted_store_hides_what_parts_there_are(guest: _Guest) -> None:
    """Neither names nor contents are in it."""
    secret = fleece.Secret.of_passphrase("correct horse battery staple")
    guest.place = guest.folder / "sealed"
    wishes = fleece.StoreWishes(encrypt=True)
    guest.store = fleece.init(str(guest.place), secret, wishes)
    guest.backup()
    assert guest.kinds() == {"libvirt-xml": XML, "nvram": NVRAM}
    files = [path for path in guest.place.rglob("*") if path.is_file()]
    assert len([path for path in files if path.suffix == ".fleece"]) == 3
    assert not [path for path in files if "@" in path.name or "nvram" in path.name]
    assert not any(b"domain" in p.read_bytes() or b"nvram" in p.read_bytes() for p in files)


def test_a_stream_has_no_machine_beside_it(guest: _Guest) -> None:
    """Its one delta says so, and the store that takes it has a complete point."""
    sink = guest.folder / "stream"
    with sink.open("wb") as file:
        result = fleece.backup(guest.source, guest.store, output=file)
    assert result.parts == ()
    with fleece.open_delta(str(sink)) as delta:
        assert delta.header.parts == ()


def test_a_failed_backup_leaves_no_part(guest: _Guest) -> None:
    """All of a point or nothing."""
    cancel = fleece.CancelToken()

    def stop(event: object) -> None:
        if type(event).__name__ == "Progress":
            cancel.cancel()

    with pytest.raises(fleece.FleeceError):
        fleece.backup(guest.source, guest.store, listener=stop, cancel=cancel)
    assert not guest.store.catalogue().points
    assert not [*guest.place.rglob(f"{PARTIAL}*")]
    assert not [*guest.place.rglob("*.fleece")]
