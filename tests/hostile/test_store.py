"""A store that somebody else wrote into: nothing in it leads out of it, or stops a verb for ever.

Each thing that a store opens is replaced by each thing that it must not be, and each verb is tried:
it ends by itself, with success or with an error of fleece's own, and no file outside is changed.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import itertools
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fleece import events
from fleece.cancel import CancelToken
from fleece.cli.main import main
from fleece.engine.check.scrub import ScrubRules, scrub
from fleece.engine.check.status import status
from fleece.engine.check.verify import verify_store
from fleece.engine.restore.stream import restore_stream
from fleece.engine.upkeep.import_delta import import_delta
from fleece.engine.upkeep.merge import merge
from fleece.engine.upkeep.prune import prune, set_pin
from fleece.engine.upkeep.retention import KeepRules
from fleece.errors import FleeceError, Interrupted, StoreError
from fleece.extents import Extents
from fleece.folder import Folder
from fleece.store.backend import Patience
from fleece.store.catalogue import Entry
from fleece.store.init import init
from fleece.store.marker import StoreWishes
from fleece.store.open import open_store
from fleece.store.store import Store
from fleece.tree import BlankDisk, NodeSource
from tests.unit.kit import CHAIN, LEAF, header, write_delta

_ROOT = Path(__file__).parents[2]
_NOBODY = 65534
_SIZE = 2 * LEAF + 7
_NET = 300
"""Seconds after which a verb counts as hung; a slow machine needs few of them."""

GUEST, DISK, MARKER = "web", "vda", "fleece-store.json"
NOTE = f"audit-failed-{CHAIN}-{DISK}"


def _content(sequence: int) -> bytes:
    return bytes([sequence]) * _SIZE


def _id(sequence: int) -> str:
    return f"{sequence:010x}"


def _folder(sequence: int) -> str:
    return f"{GUEST}/{sequence:06d}-{_id(sequence)}"


def _write(sink: object, sequence: int, parent: Entry | None) -> None:
    ref = parent.as_parent() if parent else None
    head = header(_SIZE, sequence, ref, guest=GUEST, disk=DISK, disks=(DISK,))
    base: NodeSource = BlankDisk(head.geometry)
    write_delta(sink, head, base, _content(sequence), Extents.whole(_SIZE))  # type: ignore[arg-type]


def _newest(store: Store) -> Entry | None:
    points = store.catalogue().of_guest(GUEST)
    return points[-1].disks[DISK] if points else None


def _add(store: Store, sequence: int, parent: Entry | None) -> None:
    partial = store.begin(GUEST, _id(sequence), sequence)
    try:
        _write(partial.create(DISK), sequence, parent)
        partial.commit()
    except BaseException:
        partial.discard()
        raise


def _made(path: Path, mode: int = 0o600) -> Store:
    """Three points, with all notes that there are, and what a killed run left of a fourth."""
    store = init(path, None, StoreWishes(mode=mode))
    with store.locked(GUEST):
        for sequence in (1, 2, 3):
            _add(store, sequence, _newest(store))
    verify_store(store.catalogue(), record=True)
    set_pin(store, _id(2))
    store.distrust(CHAIN, DISK, "a test")
    _write(store.begin(GUEST, _id(4), 4).create(DISK), 4, _newest(store))
    return store


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pattern") / "store"
    _made(path)
    return path


@pytest.fixture(scope="module")
def incoming(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A delta to import: the point after the third."""
    store = _made(tmp_path_factory.mktemp("other") / "store")
    sink = io.BytesIO()
    _write(sink, 5, _newest(store))
    return sink.getvalue()


@dataclass
class Victim:
    """What lies outside of the store, and shall stay as it is."""

    folder: Path

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self.file.write_bytes(b"precious")
        self.file.chmod(0o644)
        self.inner.mkdir()
        (self.inner / "kept").write_bytes(b"kept")

    @property
    def file(self) -> Path:
        return self.folder / "victim"

    @property
    def inner(self) -> Path:
        return self.folder / "inner"

    def check(self) -> None:
        assert self.file.read_bytes() == b"precious"
        assert stat.S_IMODE(self.file.stat().st_mode) == 0o644
        assert sorted(item.name for item in self.folder.iterdir()) == ["inner", "victim"]
        assert [item.name for item in self.inner.iterdir()] == ["kept"]
        assert (self.inner / "kept").read_bytes() == b"kept"


@pytest.fixture
def victim(tmp_path: Path) -> Victim:
    return Victim(tmp_path / "outside")


# ---- what is planted -------------------------------------------------------------------------


def _link(place: Path, victim: Victim) -> None:
    place.symlink_to(victim.file)


def _dangling(place: Path, victim: Victim) -> None:
    place.symlink_to(victim.folder / "none")


def _link_to_folder(place: Path, victim: Victim) -> None:
    place.symlink_to(victim.inner)


def _hard_link(place: Path, victim: Victim) -> None:
    os.link(victim.file, place)


def _pipe(place: Path, victim: Victim) -> None:
    os.mkfifo(place)


def _socket(place: Path, victim: Victim) -> None:
    here = os.open(place.parent, os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"/proc/self/fd/{here}/{place.name}"[:107])
    finally:
        os.close(here)


def _device(place: Path, victim: Victim) -> None:
    place.symlink_to("/dev/zero")


def _filled_folder(place: Path, victim: Victim) -> None:
    place.mkdir()
    (place / "something").write_bytes(b"of somebody")
    (place / "deeper").mkdir()


def _huge(place: Path, victim: Victim) -> None:
    place.touch()
    os.truncate(place, 1 << 40)


Plant = Callable[[Path, Victim], None]
PLANTS: dict[str, Plant] = {
    "link": _link,
    "dangling": _dangling,
    "folder-link": _link_to_folder,
    "hard-link": _hard_link,
    "pipe": _pipe,
    "socket": _socket,
    "device": _device,
    "folder": _filled_folder,
    "huge": _huge,
}

PLACES = {
    "marker": MARKER,
    "new marker": f".{MARKER}.new",
    "note": NOTE,
    "new note": f".{NOTE}.new",
    "spool": ".import-0123456789abcdef",
    "guest": GUEST,
    "lock": f"{GUEST}/.lock",
    "newest point": _folder(3),
    "next point": _folder(4),
    "dropped": f"{GUEST}/.dropped-{1:06d}-{_id(1)}",
    "partial": f"{GUEST}/.partial-{_id(4)}",
    "partial of import": f"{GUEST}/.partial-{_id(5)}",
    "partial delta": f"{GUEST}/.partial-{_id(4)}/{DISK}.fleece",
    "beside the partial delta": f"{GUEST}/.partial-{_id(4)}/.x",
    "newest delta": f"{_folder(3)}/{DISK}.fleece",
    "oldest delta": f"{_folder(1)}/{DISK}.fleece",
    "another delta": f"{_folder(3)}/._{DISK}.fleece",
    "merged delta": f"{_folder(3)}/.{DISK}.fleece.merging",
    "pin": f"{_folder(2)}/{_id(2)}.pin.json",
    "new pin": f"{_folder(3)}/.{_id(3)}.pin.json.new",
    "verification": f"{_folder(3)}/{DISK}.fleece.verified.json",
    "new verification": f"{_folder(3)}/.{DISK}.fleece.verified.json.new",
}

NOBODYS = {
    "new marker",
    "new note",
    "spool",
    "dropped",
    "partial of import",
    "beside the partial delta",
    "another delta",
    "merged delta",
    "new pin",
    "new verification",
}
"""What is planted there is nobody's: every verb succeeds all the same."""


def _plant(path: Path, place: str, plant: str, victim: Victim) -> None:
    there = path / PLACES[place]
    if there.is_dir():
        shutil.rmtree(there)
    else:
        there.unlink(missing_ok=True)
    PLANTS[plant](there, victim)


# ---- what is done ----------------------------------------------------------------------------


def _backup(store: Store, incoming: bytes) -> None:
    with store.locked(GUEST):
        store.distrusted(CHAIN, DISK)
        store.unfinished(GUEST)
        store.remove_partial(GUEST)
        number = 1 + max((point.sequence for point in store.catalogue().points), default=8)
        _add(store, number, _newest(store))
        store.trust(CHAIN, DISK)
    _restored(store, number, _id(number))


def _resume(store: Store, incoming: bytes) -> None:
    with store.locked(GUEST):
        for left in store.unfinished(GUEST):
            partial = store.resume(left)
            _, proven = partial.reopen(DISK)
            assert proven.head.disk == DISK


def _import(store: Store, incoming: bytes) -> None:
    import_delta(store, io.BytesIO(incoming).read)
    _restored(store, 5, _id(5))


def _restored(store: Store, sequence: int, point: str = "latest") -> None:
    sink = io.BytesIO()
    restore_stream(store, point, DISK, sink, guest=GUEST)
    assert sink.getvalue() == _content(sequence)


def _restore(store: Store, incoming: bytes) -> None:
    newest = store.catalogue().find("latest", GUEST).sequence
    _restored(store, newest)


def _verify(store: Store, incoming: bytes) -> None:
    result = verify_store(store.catalogue(), record=True)
    if result.errors:
        raise StoreError(result.errors[0])


def _scrub(store: Store, incoming: bytes) -> None:
    result = scrub(store.catalogue(), ScrubRules())
    if result.errors:
        raise StoreError(result.errors[0])


def _status(store: Store, incoming: bytes) -> None:
    result = status(store.catalogue())
    if result.problems:
        raise StoreError(result.problems[0])


def _list(store: Store, incoming: bytes) -> None:
    assert len(store.catalogue().points) <= 3


def _prune(store: Store, incoming: bytes) -> None:
    prune(store, KeepRules(last=1))
    _restore(store, incoming)


def _merge(store: Store, incoming: bytes) -> None:
    merge(store, "latest", guest=GUEST)
    _restore(store, incoming)


def _pin(store: Store, incoming: bytes) -> None:
    set_pin(store, _id(3))
    set_pin(store, _id(2), pinned=False)


def _audit_note(store: Store, incoming: bytes) -> None:
    with store.locked(GUEST):
        store.distrust(CHAIN, DISK, "found out")
        assert store.distrusted(CHAIN, DISK) == "found out"
        store.trust(CHAIN, DISK)
        assert store.distrusted(CHAIN, DISK) is None


Verb = Callable[[Store, bytes], None]
VERBS: dict[str, Verb] = {
    "backup": _backup,
    "resume": _resume,
    "import": _import,
    "restore": _restore,
    "verify": _verify,
    "scrub": _scrub,
    "status": _status,
    "list": _list,
    "prune": _prune,
    "merge": _merge,
    "pin": _pin,
    "audit-note": _audit_note,
}

CASES = [*itertools.product(PLACES, PLANTS, VERBS)]


@contextlib.contextmanager
def _in_bounds() -> Iterator[None]:
    def hung(*_: object) -> None:
        pytest.fail("does not end")

    before = signal.signal(signal.SIGALRM, hung)
    signal.alarm(_NET)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(("place", "plant", "verb"), CASES)
def test_a_planted_thing_harms_nothing_and_stops_nothing(
    place: str,
    plant: str,
    verb: str,
    pattern: Path,
    incoming: bytes,
    victim: Victim,
    tmp_path: Path,
) -> None:
    path = tmp_path / "store"
    shutil.copytree(pattern, path)
    _plant(path, place, plant, victim)
    said: FleeceError | None = None
    with _in_bounds():
        try:
            VERBS[verb](open_store(path), incoming)
        except FleeceError as error:
            said = error
    assert said is None or place not in NOBODYS, str(said)
    assert said is None or said.where is None or str(path) in str(said)
    victim.check()
    shutil.rmtree(path)


def test_the_matrix_is_whole() -> None:
    assert len(CASES) == len(PLACES) * len(PLANTS) * len(VERBS) == 22 * 9 * 12


def test_every_verb_works_in_the_pattern(pattern: Path, incoming: bytes, tmp_path: Path) -> None:
    """So what stops a verb in the matrix is what was planted."""
    for verb, use in VERBS.items():
        shutil.copytree(pattern, tmp_path / verb)
        use(open_store(tmp_path / verb), incoming)


# ---- a guest's folder that is a link ---------------------------------------------------------


def test_a_guests_folder_that_is_a_link_is_refused_both_ways(
    pattern: Path, victim: Victim, tmp_path: Path
) -> None:
    """A backup through it would succeed, and no restore would find it."""
    path = tmp_path / "store"
    shutil.copytree(pattern, path)
    (path / GUEST).rename(tmp_path / "elsewhere")
    (path / GUEST).symlink_to(tmp_path / "elsewhere")
    store = open_store(path)
    with pytest.raises(StoreError, match="web: is a symbolic link: not followed; nothing in a"):
        _backup(store, b"")
    assert store.catalogue().points == ()
    assert status(store.catalogue()).foreign == (str(path / GUEST),)


# ---- what is not fleece's --------------------------------------------------------------------

DROPPINGS: dict[str, str] = {
    "@eaDir": "folder",
    ".snapshot": "folder",
    ".DS_Store": "file",
    "Thumbs.db": "file",
    "lost+found": "folder",
    f"._{DISK}.fleece": "file",
    ".nfs000000000123": "file",
    "#recycle": "folder",
    "photos": "folder",
    "README~": "file",
    f".{DISK}.fleece.swp": "file",
    "x.fleece.d": "folder",
    "linked.fleece": "link",
    "pipe.fleece": "pipe",
}
ROOMS = {
    "store": "",
    "guest": GUEST,
    "point": _folder(3),
    "oldest point": _folder(1),
    "partial": f"{GUEST}/.partial-{_id(4)}",
}


def _lay(there: Path, kind: str) -> None:
    if kind == "folder":
        (there / "deeper").mkdir(parents=True)
        (there / f"{DISK}.fleece@SynoEAStream").write_bytes(b"\0\5\x16\7")
    elif kind == "link":
        there.symlink_to("/etc/passwd")
    elif kind == "pipe":
        os.mkfifo(there)
    else:
        there.write_bytes(b"\0\5\x16\7" * 20)


@pytest.mark.parametrize(
    ("dropping", "room", "verb"), [*itertools.product(DROPPINGS, ROOMS, VERBS)]
)
def test_what_is_not_fleeces_stops_no_verb(
    dropping: str, room: str, verb: str, pattern: Path, incoming: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "store"
    shutil.copytree(pattern, path)
    there = path / ROOMS[room] / dropping
    _lay(there, DROPPINGS[dropping])
    assert str(there) in status(open_store(path).catalogue()).foreign
    assert len(open_store(path).unfinished(GUEST)) == 1, "a killed run can still be resumed"
    VERBS[verb](open_store(path), incoming)
    if room == "store":
        assert os.path.lexists(there)
    shutil.rmtree(path)


def test_status_tells_what_is_not_fleeces(
    pattern: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "store"
    shutil.copytree(pattern, path)
    (path / "@eaDir").mkdir()
    assert main(["status", str(path)]) == 0
    assert f"not fleece's, ignored: {path}/@eaDir\n" in capsys.readouterr().out
    assert main(["status", str(path), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["path"] for line in lines if line["event"] == "foreign"] == [f"{path}/@eaDir"]
    assert main(["metrics", str(path)]) == 0
    assert "eaDir" not in capsys.readouterr().out


def test_a_damaged_delta_is_damaged_and_not_somebody_elses(pattern: Path, tmp_path: Path) -> None:
    path = tmp_path / "store"
    shutil.copytree(pattern, path)
    delta = path / _folder(3) / f"{DISK}.fleece"
    for harmed in (b"", b"\0" * 4096, delta.read_bytes()[100:]):
        delta.write_bytes(harmed)
        catalogue = open_store(path).catalogue()
        assert [f"{_folder(3)}/{DISK}.fleece"] == [damaged.key for damaged in catalogue.damaged]
        assert catalogue.foreign == ()
        with pytest.raises(StoreError, match="which point is the latest is unknown"):
            catalogue.find("latest")
        with pytest.raises(StoreError, match="damaged or unreadable"):
            prune(open_store(path), KeepRules(last=1))


def test_what_is_not_fleeces_stays_where_a_point_was_dropped_and_is_told(
    pattern: Path, tmp_path: Path
) -> None:
    path = tmp_path / "store"
    shutil.copytree(pattern, path)
    set_pin(open_store(path), _id(2), pinned=False)
    for sequence in (1, 2):
        folder = path / _folder(sequence)
        (folder / "@eaDir" / "vda.fleece").mkdir(parents=True)
        (folder / "@eaDir" / "vda.fleece" / "SYNO@x").write_bytes(b"x")
        (folder / ".DS_Store").write_bytes(b"x")
    photos = path / _folder(1) / "photos"
    photos.mkdir()
    (photos / "one.jpg").write_bytes(b"photo")
    heard: list[events.Event] = []
    prune(open_store(path), KeepRules(last=1), listener=heard.append)
    (warned,) = [event.what for event in heard if isinstance(event, events.Warned)]
    assert "that are not fleece's" in warned
    (kept,) = path.glob(f"{GUEST}/foreign-*")
    assert str(kept) in warned
    assert [item.name for item in kept.iterdir()] == ["photos"]
    assert (kept / "photos" / "one.jpg").read_bytes() == b"photo"
    assert [item.name for item in (path / GUEST).iterdir() if item.name.startswith("00")] == [
        Path(_folder(3)).name
    ]
    assert status(open_store(path).catalogue()).foreign == (str(kept),)
    prune(open_store(path), KeepRules(last=1))
    assert kept.is_dir()


def test_a_folder_that_was_not_removed_to_its_end_is_removed_by_the_next_run(
    pattern: Path, tmp_path: Path
) -> None:
    """NFS keeps a file that somebody has open, under another name, until it is closed."""
    path = tmp_path / "store"
    shutil.copytree(pattern, path)
    left = path / GUEST / ".dropped-000001-0000000001-0123456789abcdef"
    left.mkdir()
    (left / ".nfs0000000000000001").write_bytes(b"x")
    merge(open_store(path), "latest", guest=GUEST)
    assert not left.exists()


@pytest.mark.parametrize("name", ["lost+found", ".snapshot", "@eaDir", "System Volume Information"])
def test_a_store_is_made_where_there_is_only_what_a_file_system_has(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / "store" / name).mkdir(parents=True)
    store = init(tmp_path / "store")
    assert store.catalogue().foreign == (str(tmp_path / "store" / name),)
    (tmp_path / "other" / "photos").mkdir(parents=True)
    with pytest.raises(StoreError):
        init(tmp_path / "other")


def _unprivileged(script: str, *arguments: object) -> str:
    """Run a script as a user whom permissions bind; gives what it printed."""
    done = subprocess.run(
        [sys.executable, "-B", "-c", textwrap.dedent(script), *map(str, arguments)],
        user=_NOBODY if os.geteuid() == 0 else None,
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


# ---- modes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0, 0o022, 0o777])
@pytest.mark.parametrize(
    ("mode", "folders", "lock"),
    [
        (0o600, 0o700, 0o600),
        (0o640, 0o750, 0o600),
        (0o644, 0o755, 0o600),
        (0o660, 0o770, 0o660),
        (0o664, 0o775, 0o660),
    ],
)
def test_all_that_is_made_has_the_stores_mode_whatever_the_umask(
    mode: int, folders: int, lock: int, umask: int, incoming: bytes, tmp_path: Path
) -> None:
    """Who may read but not write can hold no lock."""
    path = tmp_path / "store"
    before = os.umask(umask)
    try:
        _made(path, mode)
        for verb in ("import", "verify", "merge", "backup", "audit-note", "pin"):
            VERBS[verb](open_store(path), incoming)
        open_store(path).distrust(CHAIN, DISK, "again")
        left = open_store(path).begin(GUEST, "0123456789", 99)
        left.create(DISK)
    finally:
        os.umask(before)
    found = {path, *path.rglob("*")}
    assert len(found) > 15
    for item in found:
        wanted = folders if item.is_dir() else lock if item.name == ".lock" else mode
        assert stat.S_IMODE(item.stat().st_mode) == wanted, item


def test_what_comes_in_is_private_until_it_is_known(tmp_path: Path) -> None:
    store = _made(tmp_path / "store", 0o644)
    with store.spooled() as draft:
        assert stat.S_IMODE((Path(store.where) / draft.key).stat().st_mode) == 0o600


def test_a_guests_folder_keeps_the_group_of_a_shared_store(tmp_path: Path) -> None:
    store = init(tmp_path / "store")
    Path(store.where).chmod(0o2770)
    with store.locked(GUEST):
        assert (Path(store.where) / GUEST).stat().st_mode & stat.S_ISGID


# ---- the lock --------------------------------------------------------------------------------

_HOLD = """
import fcntl, os, sys
try:
    fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_SH)
    print("held", flush=True)
    sys.stdin.read()
except OSError as error:
    print("refused:", error.strerror)
"""


@pytest.fixture
def readable(pattern: Path) -> Iterator[Path]:
    """A store whose folders all can enter."""
    path = Path(f"/tmp/fleece-readable-{os.getpid()}")
    shutil.copytree(pattern, path)
    for item in (path, path / GUEST):
        item.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_who_cannot_write_into_a_store_cannot_hold_its_locks(readable: Path) -> None:
    assert _unprivileged(_HOLD, readable / GUEST / ".lock") == "refused: Permission denied\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_an_old_lock_that_anybody_can_open_is_mended(readable: Path) -> None:
    lock = readable / GUEST / ".lock"
    lock.chmod(0o644)
    with open_store(readable).locked(GUEST):
        assert stat.S_IMODE(lock.stat().st_mode) == 0o600
    assert _unprivileged(_HOLD, lock) == "refused: Permission denied\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_strangers_lock_that_anybody_can_open_is_refused(readable: Path) -> None:
    lock = readable / GUEST / ".lock"
    os.chown(lock, 12345, 12345)
    lock.chmod(0o666)
    with pytest.raises(
        StoreError, match=r"can be held by users who may not write there .*owner 12"
    ):
        _backup(open_store(readable), b"")
    lock.chmod(0o600)
    with open_store(readable).locked(GUEST):
        pass
    lock.chmod(0o666)
    (readable / GUEST).chmod(0o777)
    with open_store(readable).locked(GUEST):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
@pytest.mark.skipif(shutil.which("bindfs") is None, reason="needs bindfs")
def test_where_the_mount_decides_who_owns_files_locks_work(pattern: Path, tmp_path: Path) -> None:
    """As a share of a NAS that is mounted for one user, and backed up to by root."""
    path, mounted = tmp_path / "store", tmp_path / "mounted"
    shutil.copytree(pattern, path)
    mounted.mkdir()
    options = ("--force-user=1000", "--perms=0755", "--chmod-ignore", "--chown-ignore")
    subprocess.run(["bindfs", *options, path, mounted], check=True)
    try:
        for _ in range(2):
            with open_store(mounted).locked(GUEST):
                assert (mounted / GUEST / ".lock").stat().st_uid == 1000
        assert [item.name for item in path.rglob(".lock*")] == [".lock"]
        _backup(open_store(mounted), b"")
    finally:
        subprocess.run(["umount", mounted], check=True)


def test_a_lock_that_has_another_name_is_not_written_to(
    pattern: Path, victim: Victim, tmp_path: Path
) -> None:
    path = tmp_path / "store"
    shutil.copytree(pattern, path)
    _plant(path, "lock", "hard-link", victim)
    with pytest.raises(StoreError, match="2 names"), open_store(path).locked(GUEST):
        raise AssertionError
    victim.file.chmod(0o600)
    with open_store(path).locked(GUEST):  # as after `cp -al`
        pass
    assert victim.file.read_bytes() == b"precious"


def test_who_holds_the_lock_is_told_only_if_it_is_a_process(pattern: Path, tmp_path: Path) -> None:
    path = tmp_path / "store"
    shutil.copytree(pattern, path)
    store = open_store(path)
    with store.locked(GUEST):
        (path / GUEST / ".lock").write_bytes(b"\x1b]0;owned\x07")
        with pytest.raises(StoreError, match=r"\(process unknown\)"), store.locked(GUEST):
            raise AssertionError


def test_a_lock_that_was_replaced_while_it_was_waited_for_is_taken_again(
    pattern: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store"
    shutil.copytree(pattern, path)
    lock = path / GUEST / ".lock"
    real = fcntl.flock

    def flock(descriptor: int, how: int) -> None:
        real(descriptor, how)
        monkeypatch.setattr(fcntl, "flock", real)
        lock.unlink()
        lock.touch()

    monkeypatch.setattr(fcntl, "flock", flock)
    with (
        open_store(path).locked(GUEST),
        pytest.raises(StoreError, match="another backup"),
        open_store(path).locked(GUEST),
    ):
        raise AssertionError


def test_waiting_for_a_lock_can_be_cancelled(pattern: Path, tmp_path: Path) -> None:
    path = tmp_path / "store"
    shutil.copytree(pattern, path)
    store, cancel = open_store(path), CancelToken()
    cancel.cancel()
    with (
        store.locked(GUEST),
        pytest.raises(Interrupted),
        store.locked(GUEST, Patience(_NET, cancel)),
    ):
        raise AssertionError


def test_of_two_first_backups_at_once_both_find_the_guests_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = init(tmp_path / "store")
    real = Folder.make_folder

    def late(self: Folder, name: str, mode: int) -> Folder:
        real(self, name, mode).close()  # the other one was faster
        return real(self, name, mode)

    monkeypatch.setattr(Folder, "make_folder", late)
    with store.locked(GUEST):
        pass


def test_names_of_any_length_can_be_merged_pinned_and_dropped(
    pattern: Path, tmp_path: Path
) -> None:
    """Whoever renames files and folders may do so: a name is for people."""
    path = tmp_path / "store"
    shutil.copytree(pattern, path)
    for sequence in (1, 2, 3):
        folder = path / _folder(sequence)
        (folder / f"{DISK}.fleece").rename(folder / f"{'𝄞' * 62}.fleece")
        folder.rename(folder.with_name("ä" * 120 + str(sequence)))
    (path / GUEST).rename(path / ("ö" * 127))
    store = open_store(path)
    set_pin(store, _id(2), pinned=False)
    set_pin(store, _id(3))
    prune(store, KeepRules(last=1))
    assert [point.id for point in store.catalogue().points] == [_id(3)]
    _restored(store, 3)
