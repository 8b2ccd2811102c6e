"""A chain of 2000 points in 1024 open files, by every verb; and that costs follow its length.

Costs are counted, not timed: how often a file is opened, how many of its bytes are read. What it
takes in seconds is for `tools.benchmark`.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fleece
from fleece import events
from fleece.engine.check.verify import verify_store
from fleece.engine.restore import qcow2_chain as backing
from fleece.engine.upkeep.retention import KeepRules
from fleece.fileblob import FileBlob
from fleece.store.catalogue import Catalogue, Entry
from tests.engine.scene import GUEST, INTACT, ROOT, Ran, Scene, daemon, wait_until
from tests.rig import filesystems
from tests.rig.disk import Disk
from tests.unit import long

COUNT = 2000
DISK = "d0"
FILES = 1024


@pytest.fixture(scope="module", autouse=True)
def _few_files() -> Iterator[None]:
    """Of this process and of all that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(FILES, soft), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file system with the file `hello`, as the first point has it."""
    folder = tmp_path_factory.mktemp("start")
    (folder / "tree").mkdir()
    (folder / "tree" / "hello").write_text("hello\n")
    return filesystems.ext(folder / "fs", long.KEPT, folder / "tree", 2).read_bytes()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, start: bytes) -> Path:
    """A store with the long chain, to be read alone."""
    made = fleece.init(tmp_path_factory.mktemp("long") / "store")
    long.fill(made, COUNT, guest=GUEST, disk=DISK, start=start)
    return Path(made.where)


@pytest.fixture
def copy(store: Path, tmp_path: Path) -> Path:
    """The same, to be changed: no file of a store is written in its place."""
    return Path(shutil.copytree(store, tmp_path / "copy", copy_function=os.link))


def _run(*words: object) -> Ran:
    return INTACT.run(*words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("list {}", long.point_id(COUNT)),
        ("status {} --json", f'"depth": {COUNT}'),
        ("prune {} --keep-last 5 --dry-run", f"would remove {COUNT - 5}"),
        ("diff {} {middle} latest --json", f'"changed_bytes": {long.SIZE - long.KEPT}'),
        ("map {} latest d0 --json", long.point_id(COUNT - 7)),
        ("files {} latest d0 cp /hello {target}", ""),
        ("restore {} {middle} d0 {target}", "read back and compared"),
        ("restore {} latest d0 {target} --partial", "nothing is lost"),
    ],
)
def test_a_look_at_a_long_chain(words: str, said: str, store: Path, tmp_path: Path) -> None:
    target, middle = tmp_path / "target", long.point_id(COUNT // 2)
    named = [word.format(store, target=target, middle=middle) for word in words.split()]
    assert said in _run(*named).succeeded().out
    if words.startswith("files"):
        assert target.read_text() == "hello\n"


@pytest.mark.parametrize("options", [(), ("--format", "qcow2"), ("-",)])
def test_a_long_chain_is_restored(
    options: tuple[str, ...], store: Path, start: bytes, tmp_path: Path
) -> None:
    target, image = tmp_path / "target", tmp_path / "image"
    if options == ("-",):
        words = [sys.executable, "-m", "fleece", "restore", str(store), "latest", DISK, "-"]
        with image.open("wb") as file:
            subprocess.run(words, cwd=ROOT, stdout=file, check=True)
    else:
        _run("restore", store, "latest", DISK, target, *options).succeeded()
        subprocess.run(["qemu-img", "convert", "-O", "raw", target, image], check=True)
    assert image.read_bytes() == long.content(COUNT, start)


def test_a_long_chain_is_served(store: Path, start: bytes, tmp_path: Path) -> None:
    socket = tmp_path / "s"
    server = INTACT.command("serve", store, "latest", "--socket", socket, "--json")
    wait_until(socket.exists, "the server")
    image = tmp_path / "image"
    uri = f"nbd+unix:///{DISK}?socket={socket}"
    subprocess.run(["qemu-img", "convert", "-O", "raw", uri, image], check=True)
    server.signal(2)
    server.wait()
    assert image.read_bytes() == long.content(COUNT, start)


def test_backups_go_on_with_a_long_chain(copy: Path, start: bytes, tmp_path: Path) -> None:
    """The first one finds no bitmaps and reads all; then each kind that builds on the chain."""
    image = tmp_path / "d0.raw"
    image.write_bytes(long.content(COUNT, start))
    with daemon(tmp_path, Disk(image, DISK, "raw")) as scene:
        scene.store = copy
        for mode in ("rescan", "incremental", "differential"):
            before = _modes(scene)
            audit = () if mode == "rescan" else ("--audit", "1")
            scene.backup("--mode", mode, *audit).succeeded()
            assert _modes(scene) == [*before, mode]
            scene.writer().write(0, os.urandom(100))
        _run("audit", scene.source, copy, "--guest", GUEST, "--scratch", scene.scratch).succeeded()
        scene.writer().flush()
        scene.backup("--mode", "incremental").succeeded()
        scene.check_exact(DISK)


def _modes(scene: Scene) -> list[str]:
    points = fleece.open_store(scene.store).catalogue().points[COUNT:]
    return [str(point.disks[DISK].header.mode.value) for point in points]


def test_a_long_chain_is_merged_pruned_and_salvaged(
    copy: Path, start: bytes, tmp_path: Path
) -> None:
    newest = fleece.open_store(copy).catalogue().find("latest").disk(DISK).where
    saved = tmp_path / "saved"
    _run("salvage", newest, "-o", saved).succeeded()
    _run("merge", copy, "latest", "--from", long.point_id(3)).succeeded()
    _run("prune", copy, "--keep-last", "2", "--keep-daily", "-1").succeeded()
    catalogue = fleece.open_store(copy).catalogue()
    assert 80 < len(catalogue.points) < 100
    _run("verify", copy).succeeded()
    target = tmp_path / "image"
    _run("restore", copy, "latest", DISK, target).succeeded()
    assert target.read_bytes() == long.content(COUNT, start)


def test_a_delta_of_a_long_chain_is_imported(copy: Path) -> None:
    newest = Path(fleece.open_store(copy).catalogue().find("latest").disk(DISK).where)
    away = newest.rename(copy.parent / "away")
    newest.parent.rmdir()
    words = [sys.executable, "-m", "fleece", "import", str(copy)]
    with away.open("rb") as file:
        subprocess.run(words, cwd=ROOT, stdin=file, check=True, stdout=subprocess.DEVNULL)
    assert fleece.open_store(copy).catalogue().find("latest").id == long.point_id(COUNT)


def test_all_of_a_long_chain_is_verified_and_then_scrubbed_in_part(copy: Path) -> None:
    ran = _run("verify", copy, "--json").succeeded()
    assert ran.result["deltas"] == COUNT
    assert _run("verify", copy, "--fraction", "10%", "--json").succeeded().result["deltas"] >= 100


def test_a_line_longer_than_qemu_opens_has_its_oldest_points_in_one_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: bytes
) -> None:
    monkeypatch.setattr(backing, "MOST_IMAGES", 4)
    store = fleece.init(tmp_path / "store")
    long.fill(store, 10, start=start)
    heard: list[str] = []

    def listen(event: events.Event) -> None:
        if isinstance(event, events.Warned):
            heard.append(event.what)

    fleece.restore_as_chain(store, "latest", "vda", str(tmp_path / "chain"), listener=listen)
    images = sorted((tmp_path / "chain").iterdir())
    assert len(images) == 4
    (warned,) = heard
    assert long.point_id(7) in warned
    assert "the 6 older points have none" in warned
    for number, image in enumerate(images, 7):
        raw = tmp_path / "raw"
        subprocess.run(["qemu-img", "convert", "-O", "raw", image, raw], check=True)
        assert raw.read_bytes() == long.content(number, start)


# ---- what is counted -------------------------------------------------------------------------


class Costs:
    """Counts how often files are opened and which bytes of them are read."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.opened: Counter[str] = Counter()
        self.read: Counter[str] = Counter()
        self.parents = 0
        opening, reading = FileBlob.__init__, FileBlob.read_at
        stepping = Catalogue.parent

        def opened(blob: FileBlob, name: str, *more: Any) -> None:
            self.opened[name] += 1
            opening(blob, name, *more)

        def read(blob: FileBlob, position: int, length: int) -> bytes:
            self.read[blob.name] += length
            return reading(blob, position, length)

        def parent(catalogue: Catalogue, entry: Entry) -> Entry | None:
            self.parents += 1
            return stepping(catalogue, entry)

        patch.setattr(FileBlob, "__init__", opened)
        patch.setattr(FileBlob, "read_at", read)
        patch.setattr(Catalogue, "parent", parent)


def _made(folder: Path, count: int) -> fleece.Store:
    store = fleece.init(folder / str(count))
    long.fill(store, count)
    return store


RULES = {
    "few": KeepRules(last=5),
    "every tenth": KeepRules(daily=-1),
    "most": KeepRules(last=190),
}


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES.keys())
def test_a_prune_reads_each_delta_once_however_many_stay(
    rules: KeepRules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _made(tmp_path, 200)
    sizes = {str(path): path.stat().st_size for path in Path(store.where).rglob("*.fleece")}
    costs = Costs(monkeypatch)
    store.catalogue()
    look = max(costs.read.values())  # header, footer and directory
    costs.read.clear()
    fleece.prune(store, rules, dry_run=True)
    assert max(costs.read[path] for path in sizes) <= 2 * look
    costs.read.clear()
    costs.opened.clear()
    fleece.prune(store, rules)
    for path, size in sizes.items():
        assert costs.read[path] <= 5 * look + size, path
        assert costs.opened[path] <= 4 + 1, path
    verify_store(store.catalogue())


def test_a_verification_opens_each_delta_twice_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _made(tmp_path, 100)
    costs = Costs(monkeypatch)
    catalogue = store.catalogue()
    costs.opened.clear()
    result = verify_store(catalogue)
    assert (result.deltas, result.errors) == (100, ())
    assert max(costs.opened.values()) <= 2


def test_the_steps_of_plans_and_looks_follow_the_number_of_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four times the points: four times the steps, and not sixteen."""
    costs = Costs(monkeypatch)
    found = []
    for count in (100, 400):
        store = _made(tmp_path, count)
        costs.parents = 0
        fleece.prune(store, KeepRules(last=5, daily=-1), dry_run=True)
        fleece.status(store.catalogue())
        found.append(costs.parents)
    assert 0 < found[1] <= 4.5 * found[0]
