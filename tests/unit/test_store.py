"""The folder store: what is committed is durable, what is not is invisible, names mean nothing."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleece import events
from fleece.delta.header import Mode
from fleece.engine.check.verify import verify_store
from fleece.engine.upkeep.prune import set_pin
from fleece.errors import StoreError, UsageError
from fleece.extents import Extents
from fleece.keys import Secret
from fleece.store.catalogue import Access, Catalogue, Entry
from fleece.store.folder import sink as store_sink
from fleece.store.init import init
from fleece.store.marker import StoreWishes
from fleece.store.names import LOCK, MARKER, safe_name
from fleece.store.open import open_store
from fleece.store.partial_point import PartialPoint
from fleece.store.store import Store
from fleece.tree import BlankDisk, NodeSource
from tests.unit.kit import CHAIN, LEAF, header, naive_root, read_back, write_delta

_ROOT = Path(__file__).parents[2]
_NOBODY = 65534


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return init(tmp_path / "store")


def _disk(sequence: int, size: int = 2 * LEAF + 7) -> bytes:
    return bytes([sequence]) * size


def _begin(store: Store, sequence: int, guest: str = "web") -> PartialPoint:
    return store.begin(guest, f"{sequence:010x}", sequence)


def _add(
    store: Store,
    sequence: int,
    parent: Entry | None = None,
    *,
    guest: str = "web",
    disks: tuple[str, ...] = ("vda",),
    written: tuple[str, ...] | None = None,
    commit: bool = True,
    **fields: Any,
) -> PartialPoint:
    """Put a point into a store: a full, or one that changed everything since `parent`."""
    partial = _begin(store, sequence, guest)
    content = _disk(sequence)
    for disk in disks if written is None else written:
        ref = parent.as_parent() if parent else None
        head = header(len(content), sequence, ref, guest=guest, disk=disk, disks=disks)
        head = dataclasses.replace(head, **fields)
        base: NodeSource = BlankDisk(head.geometry)
        write_delta(partial.create(disk), head, base, content, Extents.whole(len(content)))
    if commit:
        partial.commit()
    return partial


def _only_file(partial: PartialPoint) -> Path:
    (found,) = Path(partial.where).iterdir()
    return found


def _fill(store: Store, count: int, guest: str = "web") -> list[Entry]:
    """A chain of points, each of one disk; gives their entries, oldest first."""
    made: list[Entry] = []
    with store.locked(guest):
        for sequence in range(1, count + 1):
            _add(store, sequence, made[-1] if made else None, guest=guest)
            made = [point.disks["vda"] for point in store.catalogue().of_guest(guest)]
    return made


def test_a_delta_is_described_once_for_as_long_as_it_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replaced one is read again, a damaged one each time."""
    store, other = init(tmp_path / "store"), init(tmp_path / "other")
    _fill(store, 3)
    _fill(other, 2)
    read: list[str] = []
    whole = Access.read_entry

    def noted(access: Access, key: str) -> Entry:
        read.append(key)
        return whole(access, key)

    monkeypatch.setattr(Access, "read_entry", noted)
    keys = [entry.key for entry in store.catalogue().entries]
    read.clear()
    assert [entry.key for entry in store.catalogue().entries] == keys
    assert read == []
    (path,) = (tmp_path / "store" / "web").glob("000002-*/vda.fleece")
    (another,) = (tmp_path / "other" / "web").glob("000002-*/vda.fleece")
    another.rename(path)
    assert len(store.catalogue().entries) == 3
    assert read == [keys[1]]
    path.write_bytes(path.read_bytes()[:-1])
    for _ in range(2):
        read.clear()
        assert len(store.catalogue().damaged) == 1
        assert {*read} == {keys[1]}


def _problems(store: Store) -> tuple[str, ...]:
    catalogue = store.catalogue()
    return verify_store(catalogue).errors


def _ids(catalogue: Catalogue) -> list[str]:
    return [point.id for point in catalogue.points]


# ---- making and opening ----------------------------------------------------------------------


def test_a_store_is_made_where_nothing_is_and_opened_again(tmp_path: Path) -> None:
    made = init(tmp_path / "a" / "b")
    assert open_store(tmp_path / "a" / "b").id == made.id
    assert made.catalogue().points == ()


def test_a_store_is_not_made_twice(tmp_path: Path) -> None:
    init(tmp_path / "store")
    before = (tmp_path / "store" / MARKER).read_bytes()
    with pytest.raises(StoreError, match="is a store already"):
        init(tmp_path / "store")
    assert (tmp_path / "store" / MARKER).read_bytes() == before


@pytest.mark.parametrize("umask", [0o000, 0o077])
@pytest.mark.parametrize(
    ("mode", "file", "folder"),
    [(None, 0o600, 0o700), (0o640, 0o640, 0o750), (0o770, 0o660, 0o770), (0o644, 0o644, 0o755)],
)
def test_a_store_has_the_mode_that_was_asked_for_whatever_the_umask(
    mode: int | None, file: int, folder: int, umask: int, tmp_path: Path
) -> None:
    before = os.umask(umask)
    try:
        made = init(
            tmp_path / "store", None, StoreWishes() if mode is None else StoreWishes(mode=mode)
        )
    finally:
        os.umask(before)
    assert (made.marker.mode, made.marker.folder_mode) == (file, folder)
    assert stat.S_IMODE(Path(made.where).stat().st_mode) == folder
    assert stat.S_IMODE((Path(made.where) / MARKER).stat().st_mode) == file


def test_all_that_is_made_in_a_store_has_its_mode(tmp_path: Path) -> None:
    """But what nobody else may hold or see: locks, and what is not known yet."""
    store = init(tmp_path / "store", None, StoreWishes(mode=0o640))
    _fill(store, 2)
    verify_store(store.catalogue(), record=True)
    set_pin(store, "latest")
    store.distrust(CHAIN, "vda", "a test")
    found = {path: stat.S_IMODE(path.stat().st_mode) for path in Path(store.where).rglob("*")}
    assert len(found) >= 10
    for path, mode in found.items():
        private = 0o600 if path.name == LOCK else 0o640
        assert mode == (0o750 if path.is_dir() else private), path


@pytest.mark.parametrize("mode", [0o000, 0o400, 0o666, 0o620, 0o700 - 1, 0o4600, 0o711, 0o777])
def test_a_mode_that_lets_others_write_or_its_owner_not_is_refused(
    mode: int, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="cannot have the mode"):
        init(tmp_path / "store", None, StoreWishes(mode=mode))
    assert not [*tmp_path.iterdir()]


def test_a_store_is_made_in_an_empty_folder(tmp_path: Path) -> None:
    init(tmp_path)
    assert [item.name for item in tmp_path.iterdir()] == [MARKER]


def test_a_folder_with_something_in_it_does_not_become_a_store(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"")
    with pytest.raises(StoreError, match="is not an empty folder"):
        init(tmp_path)
    assert [item.name for item in tmp_path.iterdir()] == ["photo.jpg"]


def test_a_folder_that_a_killed_first_run_left_half_made_becomes_a_store(tmp_path: Path) -> None:
    (tmp_path / f".{MARKER}.new").write_text('{"form')
    init(tmp_path)
    assert [item.name for item in tmp_path.iterdir()] == [MARKER]


_MAKER = """
import sys
from fleece.keys import Secret
from fleece.errors import StoreError
from fleece.store.init import init
from fleece.store.marker import StoreWishes
from fleece.store.marker import StoreWishes
print(flush=True)
sys.stdin.readline()
secret = Secret.of_passphrase("x") if sys.argv[2] == "encrypted" else None
try:
    print(init(sys.argv[1], secret, StoreWishes(encrypt=secret is not None)).id)
except StoreError as error:
    print("refused:", error)
"""


@pytest.mark.parametrize("kind", ["plain", "encrypted"])
def test_of_processes_that_make_a_store_at_once_one_makes_it(kind: str, tmp_path: Path) -> None:
    for number in range(8):
        path = tmp_path / str(number)
        words = [sys.executable, "-c", _MAKER, str(path), kind]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        makers = [subprocess.Popen(words, **pipes) for _ in range(4)]
        for maker in makers:
            assert maker.stdout is not None
            maker.stdout.readline()
        for maker in makers:
            assert maker.stdin is not None
            maker.stdin.write("\n")
            maker.stdin.flush()
        said = [maker.communicate()[0] for maker in makers]
        refused = [line for line in said if "is a store already" in line]
        assert len(refused) == len(makers) - 1
        (made,) = {*said} - {*refused}
        secret = Secret.of_passphrase("x") if kind == "encrypted" else None
        assert open_store(path, secret).id == made.strip()
        assert {maker.returncode for maker in makers} == {0}
        assert [item.name for item in path.iterdir()] == [MARKER]


_BROKEN_MAKER = """
import errno, os, signal, sys
from fleece.errors import StoreError
from fleece.store.init import init
at, fault, steps = int(sys.argv[2]), sys.argv[3], 0
def wrap(name):
    real = getattr(os, name)
    def step(*arguments, **named):
        global steps
        steps += 1
        if steps == at and fault == "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        if steps == at:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(*arguments, **named)
    setattr(os, name, step)
for name in ("mkdir", "open", "write", "fsync", "link", "unlink", "fchmod", "scandir"):
    wrap(name)
try:
    init(sys.argv[1])
except StoreError:
    sys.exit(5)
sys.exit(0 if steps < at else 3)
"""


@pytest.mark.parametrize("fault", ["SIGKILL", "EIO"])
def test_an_init_that_stops_at_any_step_leaves_a_store_or_nothing_in_the_way(
    fault: str, tmp_path: Path
) -> None:
    for step in range(1, 100):
        path = tmp_path / str(step) / "store"
        words = [sys.executable, "-c", _BROKEN_MAKER, str(path), str(step), fault]
        code = subprocess.run(words, cwd=_ROOT, check=False).returncode
        if code == 0:
            break
        assert code in (-signal.SIGKILL, 5, 3)
        made = (path / MARKER).exists()
        if not made and fault == "EIO":
            assert not (tmp_path / str(step)).exists()
        store = open_store(path) if made else init(path)
        assert store.catalogue().points == ()
    assert code == 0
    assert step > 10


def test_what_is_not_there_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no store here"):
        open_store(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="there is no store here"):
        open_store(tmp_path / "file")
    with pytest.raises(StoreError, match="is not an empty folder"):
        init(tmp_path / "file")


@pytest.mark.parametrize(
    "marker",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"{}",
        b"[" * 100_000,
        b'{"format": "other", "version": 1, "id": "x"}',
        b'{"format": "fleece store", "version": 2, "id": "x"}',
        b'{"format": "fleece store", "version": 1}',
        b'{"format": "fleece store", "version": 1, "id": 5}',
    ],
    ids=lambda marker: repr(marker[-20:]),
)
def test_a_marker_that_makes_no_sense_is_refused(marker: bytes, tmp_path: Path) -> None:
    (tmp_path / MARKER).write_bytes(marker)
    with pytest.raises(StoreError, match="marker cannot be read"):
        open_store(tmp_path)


def test_two_stores_have_chains_of_their_own(tmp_path: Path) -> None:
    one, other = (init(tmp_path / name) for name in "ab")
    assert one.chain_id("web") == open_store(tmp_path / "a").chain_id("web")
    assert len({one.chain_id("web"), other.chain_id("web"), one.chain_id("db")}) == 3
    assert re.fullmatch("[0-9a-f]{8}", one.chain_id("web"))


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user can reach, which `tmp_path` is not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def _unprivileged(script: str, *arguments: object) -> str:
    """Run a script as a user whom permissions bind; gives what it printed."""
    user = _NOBODY if os.geteuid() == 0 else None
    done = subprocess.run(
        [sys.executable, "-B", "-c", textwrap.dedent(script), *map(str, arguments)],
        user=user,
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def test_a_store_that_may_not_be_made_is_a_store_error(public: Path) -> None:
    said = _unprivileged(
        """
        import sys
        from fleece.errors import StoreError
        from fleece.store.init import init
        try:
            init(sys.argv[1])
        except StoreError as error:
            print("refused:", error)
        """,
        _closed(public, 0o555) / "store",
    )
    assert said.startswith("refused: ")
    assert "Permission denied; the user that runs fleece must be able to write there" in said


def test_a_store_behind_a_closed_door_is_a_store_error(public: Path) -> None:
    said = _unprivileged(
        """
        import sys
        from fleece.errors import StoreError
        from fleece.store.open import open_store
        from fleece.store.store import Store
        from fleece.store.init import init
        for make in open_store, init:
            try:
                make(sys.argv[1])
            except StoreError as error:
                print("refused:", error)
        """,
        _closed(public, 0o000) / "store",
    )
    assert said.count("refused: ") == 2
    assert said.count("Permission denied") == 2


def test_a_guests_folder_that_may_not_be_listed_is_an_error_and_not_empty(public: Path) -> None:
    store = init(public / "store", None, StoreWishes(mode=0o644))
    _fill(store, 1)
    (public / "store" / "web").chmod(0o000)
    said = _unprivileged(
        """
        import sys
        from fleece.errors import StoreError
        from fleece.store.open import open_store
        from fleece.store.store import Store
        try:
            print(open_store(sys.argv[1]).catalogue().points)
        except StoreError as error:
            print("refused:", error)
        """,
        public / "store",
    )
    (public / "store" / "web").chmod(0o700)
    assert said.startswith("refused: ")
    assert "web: Permission denied" in said


def test_a_delta_that_may_not_be_opened_is_an_error_and_not_damaged(public: Path) -> None:
    """A backup that took it for damaged would begin the chain anew."""
    store = init(public / "store", None, StoreWishes(mode=0o644))
    _fill(store, 1)
    (delta,) = (public / "store").glob("web/*/vda.fleece")
    delta.chmod(0o000)
    said = _unprivileged(
        """
        import sys
        from fleece.errors import DeltaError, StoreError
        from fleece.store.open import open_store
        try:
            print(open_store(sys.argv[1]).catalogue().damaged)
        except DeltaError as error:
            print("damaged:", error)
        except StoreError as error:
            print("refused:", error)
        """,
        public / "store",
    )
    assert said.startswith("refused: ")
    assert f"{delta}: cannot be read (Permission denied); run fleece as a user who may" in said


def _closed(folder: Path, mode: int) -> Path:
    closed = folder / "closed"
    closed.mkdir()
    closed.chmod(mode)
    return closed


# ---- names -----------------------------------------------------------------------------------

_short = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=15)


@given(_short, _short)
def test_different_short_names_have_different_file_names(one: str, other: str) -> None:
    assert (one == other) == (safe_name(one) == safe_name(other))


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_a_file_name_is_never_hidden_never_a_path_and_never_too_long(name: str) -> None:
    safe = safe_name(name)
    assert not safe.startswith(".")
    assert "/" not in safe
    assert "\0" not in safe
    assert safe.isascii()
    assert safe.isprintable()
    assert 0 < len(safe + ".fleece") <= 255


@given(st.text("abc.-_ 0", min_size=190, max_size=210), st.text("abc", min_size=1, max_size=3))
def test_long_names_that_begin_alike_have_different_file_names(name: str, end: str) -> None:
    assert safe_name(name + end) != safe_name(name)


@pytest.mark.parametrize("name", ["..", ".", "../../etc", "a/b", ".lock", "a\0b", "%2E"])
def test_names_that_would_be_paths_are_not(name: str, tmp_path: Path) -> None:
    path = tmp_path / safe_name(name)
    path.mkdir()
    assert path.resolve().parent == tmp_path.resolve()


def test_ordinary_names_stay_readable() -> None:
    assert safe_name("web-1_a.b (old)") == "web-1_a.b (old)"


@pytest.mark.parametrize("guest", ["../evil", ".hidden", "a/b", "ä" * 100, "x" * 500])
def test_a_guest_of_any_name_is_kept_within_the_store(guest: str, store: Store) -> None:
    with store.locked(guest):
        _add(store, 1, guest=guest, disks=("../disk",))
    assert _ids(store.catalogue()) == [f"{1:010x}"]
    assert store.catalogue().points[0].guest == guest
    assert {item.name for item in Path(store.where).parent.iterdir()} == {"store"}


# ---- the lock --------------------------------------------------------------------------------

_HOLD = """
import sys
from fleece.store.open import open_store
from fleece.store.store import Store
with open_store(sys.argv[1]).locked("web"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(store: Store) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until its stdin ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(Path(store.where))],
        cwd=_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_guest_that_another_process_backs_up_is_refused(
    store: Store, holder: subprocess.Popen[str]
) -> None:
    expected = rf"another backup of web into this store is running \(process {holder.pid}\)"
    with pytest.raises(StoreError, match=expected), store.locked("web"):
        raise AssertionError


def test_another_guest_of_the_same_store_is_not_locked(
    store: Store, holder: subprocess.Popen[str]
) -> None:
    with store.locked("db"):
        pass


def test_the_lock_dies_with_its_holder(store: Store, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    with store.locked("web"):
        pass


def test_the_lock_is_given_back_after_an_error(store: Store) -> None:
    with pytest.raises(ValueError, match="boom"), store.locked("web"):
        raise ValueError("boom")
    with store.locked("web"):
        pass


def test_the_lock_is_not_held_twice_by_one_process(store: Store) -> None:
    with (
        store.locked("web"),
        pytest.raises(StoreError, match="another backup"),
        store.locked("web"),
    ):
        raise AssertionError


# ---- points that are not committed -----------------------------------------------------------


def test_a_point_that_is_being_written_is_not_in_the_store(store: Store) -> None:
    partial = _add(store, 1, commit=False)
    assert store.catalogue().entries == ()
    assert store.catalogue().damaged == ()
    partial.commit()
    assert _ids(store.catalogue()) == [f"{1:010x}"]


def test_what_interrupted_backups_left_of_points_is_removed_and_told(store: Store) -> None:
    _fill(store, 1)
    left = _add(store, 2, commit=False)
    assert store.remove_partial("web") == [left.where]
    assert not Path(left.where).exists()
    assert store.remove_partial("web") == []
    assert _ids(store.catalogue()) == [f"{1:010x}"]


def test_other_guests_partial_points_are_left_alone(store: Store) -> None:
    other = _add(store, 1, guest="db", commit=False)
    assert store.remove_partial("web") == []
    assert Path(other.where).is_dir()


def test_a_discarded_point_leaves_nothing(store: Store) -> None:
    partial = _add(store, 1, commit=False)
    partial.discard()
    assert not Path(partial.where).exists()
    assert not Path(partial.place("vda")).parent.exists()


def test_a_delta_that_was_not_finished_is_not_committed(store: Store) -> None:
    partial = _begin(store, 1)
    partial.create("vda").write(b"half a delta")
    with pytest.raises(StoreError, match="not a fleece delta"):
        partial.commit()
    assert not Path(partial.place("vda")).parent.exists()


def test_a_point_never_replaces_another(store: Store) -> None:
    _fill(store, 1)
    twin = _add(store, 1, commit=False)
    with pytest.raises(StoreError):
        twin.commit()
    assert _problems(store) == ()


def test_the_same_disk_cannot_be_written_twice_into_a_point(store: Store) -> None:
    partial = _begin(store, 1)
    partial.create("vda")
    with pytest.raises(StoreError, match="exists"):
        partial.create("vda")


def test_a_full_file_system_is_a_store_error_with_advice(store: Store) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    partial = _begin(store, 1)
    sink = partial.create("vda")
    assert isinstance(sink, store_sink.DeltaFile)
    sink._file.close()
    sink._file = io.BufferedWriter(io.FileIO("/dev/full", "w"))
    for use in (lambda: sink.write(b"x"), sink.sync, lambda: sink.write(bytes(1 << 20))):
        with pytest.raises(StoreError, match="No space left on device; make room in the store"):
            use()
    partial.discard()
    sink.abandon()


def test_the_header_is_in_the_file_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says whose the partial delta is that a killed run leaves."""
    monkeypatch.setattr(store_sink, "GATHERED_FOR", 3600)
    partial = _begin(store, 1)
    sink = partial.create("vda")
    sink.write(b"header")
    sink.write(b"gathered")
    assert _only_file(partial).read_bytes() == b"header"
    partial.discard()


def test_what_is_gathered_does_not_wait_long(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed run loses no more than what it wrote in the last moment."""
    partial = _begin(store, 1)
    sink = partial.create("vda")
    sink.write(b"header")
    sink.write(b"gathered")
    monkeypatch.setattr(store_sink, "GATHERED_FOR", 0)
    sink.write(b"later")
    assert _only_file(partial).read_bytes() == b"headergatheredlater"
    partial.discard()


@pytest.mark.parametrize("sizes", [(1,), (1, 300 * 1024, 2), (70_000,) * 9])
def test_what_was_synced_is_in_the_file(store: Store, sizes: tuple[int, ...]) -> None:
    """A scratch gives up what is durable here: nothing of it may wait in this process."""
    partial = _begin(store, 1)
    sink = partial.create("vda")
    written = b""
    for number, size in enumerate(sizes):
        data = bytes([number + 1]) * size
        assert sink.write(data) == size
        written += data
        sink.sync()
        assert _only_file(partial).read_bytes() == written
    partial.discard()


# ---- durability ------------------------------------------------------------------------------

_COMMIT = """
import sys
from pathlib import Path
from fleece.store.init import init
from tests.unit.test_store import _add
_add(init(sys.argv[1]), 1, disks=("vda", "vdb"))
"""


def _strace_works() -> bool:
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-o", "/dev/null", "true"], check=False).returncode == 0


@pytest.mark.skipif(not _strace_works(), reason="no strace that may trace here")
def test_everything_is_synced_before_the_rename_and_the_name_after_it(tmp_path: Path) -> None:
    """A rename that outlives a power cut while the data does not would be a hollow backup."""
    calls = "trace=write,fsync,link,linkat,rename,renameat,renameat2"
    strace = ["strace", "-f", "-y", "-s", "0", "-e", calls, "-o", str(tmp_path / "trace")]
    traced = subprocess.run(
        [*strace, sys.executable, "-c", _COMMIT, str(tmp_path / "store")],
        cwd=_ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert traced.returncode == 0, traced.stderr
    where = re.escape(str(tmp_path / "store"))
    done = []
    for line in (tmp_path / "trace").read_text().splitlines():
        if found := re.search(rf" (write|fsync)\(\d+<{where}(.*?)>", line):
            done.append((found[1], found[2]))
        elif found := re.search(rf" (rename|link)at2?\(.*<{where}(.*?)>, \"(.*?)\"", line):
            done.append((found[1], f"{found[2]}/{found[3]}"))
    point, final = "/web/.partial-0000000001", "/web/000001-0000000001"
    renamed = done.index(("rename", final))
    before, after = done[:renamed], done[renamed + 1 :]
    for name in ("vda", "vdb"):
        writes = [at for at, did in enumerate(before) if did == ("write", f"{point}/{name}.fleece")]
        assert writes
        assert before.index(("fsync", f"{point}/{name}.fleece")) > max(writes)
    assert before.index(("fsync", point)) > max(
        at for at, did in enumerate(before) if did[1].startswith(f"{point}/")
    )
    assert ("fsync", "") in before, "the guest's new folder is in the store's"
    assert ("fsync", "/web") in after
    marked = done.index(("link", f"/{MARKER}"))
    assert any(did == "fsync" and name.startswith(f"/.{MARKER}.") for did, name in done[:marked])
    assert ("fsync", "") in done[marked:]


def test_a_file_that_cannot_be_synced_is_not_committed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = _add(store, 1, commit=False)

    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError, match="Input/output error"):
        partial.commit()
    monkeypatch.undo()
    assert not Path(partial.place("vda")).parent.exists()
    assert store.catalogue().points == ()


# ---- the catalogue ---------------------------------------------------------------------------


def test_the_chain_of_a_point_is_found_by_its_headers(store: Store) -> None:
    entries = _fill(store, 3)
    catalogue = store.catalogue()
    assert catalogue.line(entries[2]) == [entries[2], entries[1], entries[0]]
    with catalogue.chain(entries[2]) as chain:
        assert read_back(chain) == _disk(3)
        assert chain.root.hex() == entries[2].root == naive_root(_disk(3), 2).hex()


def test_names_and_times_of_files_mean_nothing(store: Store) -> None:
    before = _fill(store, 3)
    folders = sorted(path for path in (Path(store.where) / "web").iterdir() if path.is_dir())
    for at, path in enumerate(folders):
        (file,) = path.iterdir()
        file.rename(path / f"{9 - at} renamed.fleece")
        os.utime(path / f"{9 - at} renamed.fleece", (10**9 - at, 10**9 - at))
        path.rename(path.with_name(f"{9 - at} renamed"))
    (Path(store.where) / "web").rename(Path(store.where) / "no name of a guest")
    catalogue = store.catalogue()
    assert [(p.guest, p.id, p.sequence) for p in catalogue.points] == [
        ("web", f"{n:010x}", n) for n in (1, 2, 3)
    ]
    newest = catalogue.find("latest").disk("vda")
    assert [entry.root for entry in catalogue.line(newest)] == [e.root for e in reversed(before)]
    with catalogue.chain(newest) as chain:
        assert read_back(chain) == _disk(3)
    assert _problems(store) == ()


def test_two_files_that_exchanged_their_names_change_nothing(store: Store) -> None:
    _fill(store, 2)
    one, other = sorted((Path(store.where) / "web").glob("*/*.fleece"))
    keep = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(keep)
    catalogue = store.catalogue()
    assert _ids(catalogue) == [f"{1:010x}", f"{2:010x}"]
    with catalogue.chain(catalogue.find("latest").disk("vda")) as chain:
        assert read_back(chain) == _disk(2)
    assert _problems(store) == ()


def test_a_copy_of_a_point_does_not_double_it(store: Store) -> None:
    _fill(store, 2)
    first = Path(store.where) / "web" / "000001-0000000001"
    shutil.copytree(first, first.with_name("a copy"))
    catalogue = store.catalogue()
    assert _ids(catalogue) == [f"{1:010x}", f"{2:010x}"]
    assert len(catalogue.line(catalogue.find("latest").disk("vda"))) == 2
    assert _problems(store) == ()


def test_files_that_are_no_deltas_by_their_ending_are_nobodys(store: Store) -> None:
    _fill(store, 1)
    for path in (
        Path(store.where),
        Path(store.where) / "web",
        Path(store.where) / "web" / "000001-0000000001",
    ):
        (path / "README").write_text("hello")
    (Path(store.where) / "web" / "000001-0000000001" / "folder.fleece").mkdir()
    assert _problems(store) == ()


def test_a_point_without_one_of_its_disks_is_incomplete_and_does_not_count(
    store: Store,
) -> None:
    _add(store, 1, disks=("vda", "vdb"))
    _add(store, 2, disks=("vda", "vdb"), written=("vda",))
    catalogue = store.catalogue()
    assert [point.missing for point in catalogue.points] == [(), ("vdb",)]
    assert [point.id for point in catalogue.of_guest("web")] == [f"{1:010x}"]
    assert catalogue.find("latest").id == f"{1:010x}"
    with pytest.raises(StoreError, match="is incomplete: no delta for vdb"):
        catalogue.find(f"{2:010x}")
    assert any("is incomplete: no delta for vdb" in line for line in _problems(store))


def test_a_missing_parent_is_named_and_never_passed_over(store: Store) -> None:
    _fill(store, 3)
    shutil.rmtree(Path(store.where) / "web" / "000002-0000000002")
    catalogue = store.catalogue()
    newest = catalogue.find("latest").disk("vda")
    with pytest.raises(StoreError, match="point 0000000002 of disk vda, is not in the store"):
        catalogue.line(newest)
    assert len(_problems(store)) == 1


def test_a_damaged_parent_is_named_where_its_absence_is_told(store: Store) -> None:
    _fill(store, 2)
    harmed = next((Path(store.where) / "web").glob("000001-*/*.fleece"))
    harmed.write_bytes(harmed.read_bytes()[:-1])
    catalogue = store.catalogue()
    with pytest.raises(StoreError, match=r"is not in the store \(1 damaged: .*incomplete or cut"):
        catalogue.line(catalogue.find("latest").disk("vda"))


def test_a_parent_of_another_root_is_not_taken(store: Store) -> None:
    (first,) = _fill(store, 1)
    lie = dataclasses.replace(first, root="00" * 16)
    _add(store, 2, lie)
    catalogue = store.catalogue()
    with pytest.raises(StoreError, match="is there with another root"):
        catalogue.line(catalogue.find("latest").disk("vda"))


def test_deltas_that_name_each_other_as_parents_are_no_endless_line(store: Store) -> None:
    """A parent is older by its own header, so no circle closes, whatever roots are claimed."""
    (first,) = _fill(store, 1)
    roots = {n: naive_root(_disk(n), 2).hex() for n in (2, 3)}
    for mine, other in ((2, 3), (3, 2)):
        head = header(first.header.size, other)
        _add(store, mine, dataclasses.replace(first, header=head, root=roots[other]))
    catalogue = store.catalogue()
    entries = {n: catalogue.find(f"{n:010x}").disk("vda") for n in (2, 3)}
    assert entries[2].header.parent == entries[3].as_parent()
    assert entries[3].header.parent == entries[2].as_parent()
    for entry in entries.values():
        with pytest.raises(StoreError, match="is not in the store"):
            catalogue.line(entry)


@pytest.mark.parametrize("text", ["000000001", "0000000011"])
def test_a_prefix_that_only_one_point_has_names_it(text: str, store: Store) -> None:
    for sequence in (0x11, 0x21):
        _add(store, sequence)
    assert store.catalogue().find(text).sequence == 0x11


def test_a_prefix_of_several_points_is_refused(store: Store) -> None:
    _fill(store, 2)
    with pytest.raises(UsageError, match="matches 2 points; give more digits"):
        store.catalogue().find("00000000")


def test_a_whole_id_that_begins_another_one_names_its_own_point(store: Store) -> None:
    for sequence, name in ((1, "0123456789"), (2, "0123456789ab")):
        point = dataclasses.replace(header(1, sequence).point, id=name)
        _add(store, sequence, point=point)
    catalogue = store.catalogue()
    assert catalogue.find("0123456789").sequence == 1
    assert catalogue.find("0123456789a").sequence == 2


def test_an_id_that_no_point_has_is_refused(store: Store) -> None:
    _fill(store, 1)
    for text in ("ffff", "vda", "000001-0000000001", "*"):
        with pytest.raises(StoreError, match="no such point"):
            store.catalogue().find(text)


def test_latest_is_the_point_of_the_highest_sequence_whatever_its_time(store: Store) -> None:
    for sequence, time in ((2, "2001-01-01T00:00:00Z"), (1, "2030-01-01T00:00:00Z")):
        point = dataclasses.replace(header(1, sequence).point, time=time)
        _add(store, sequence, point=point)
    assert store.catalogue().find("latest").sequence == 2


def test_latest_of_several_guests_needs_a_name(store: Store) -> None:
    _fill(store, 1, "web")
    _fill(store, 2, "db")
    catalogue = store.catalogue()
    with pytest.raises(UsageError, match="several guests; name one with --guest"):
        catalogue.find("latest")
    assert catalogue.find("latest", "web").sequence == 1
    assert catalogue.find("latest", "db").sequence == 2


def test_latest_of_an_empty_store_is_no_point(store: Store) -> None:
    with pytest.raises(StoreError, match="no such point: latest"):
        store.catalogue().find("latest")


def test_a_disk_that_a_point_does_not_have_is_refused_with_those_it_has(
    store: Store,
) -> None:
    _add(store, 1, disks=("vda", "vdb"))
    with pytest.raises(UsageError, match="has no disk vdc; its disks are: vda, vdb"):
        store.catalogue().find("latest").disk("vdc")


def test_symbolic_links_are_not_followed(store: Store, tmp_path: Path) -> None:
    outside = init(tmp_path / "outside")
    _fill(outside, 1, "db")
    _fill(store, 1)
    (Path(store.where) / "db").symlink_to(Path(outside.where) / "db")
    (Path(store.where) / "web" / "linked").symlink_to(
        Path(outside.where) / "db" / "000001-0000000001"
    )
    (file,) = Path(outside.where).glob("db/*/*.fleece")
    (Path(store.where) / "web" / "000001-0000000001" / "vdb.fleece").symlink_to(file)
    assert [point.guest for point in store.catalogue().points] == ["web"]


def test_removing_a_partial_point_removes_no_links_target(store: Store, tmp_path: Path) -> None:
    partial = _add(store, 1, commit=False)
    (tmp_path / "precious").write_text("keep")
    (Path(partial.where) / "link").symlink_to(tmp_path / "precious")
    store.remove_partial("web")
    assert (tmp_path / "precious").read_text() == "keep"


def test_a_listing_that_fails_is_an_error_and_not_an_empty_store(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fill(store, 1)
    real = os.scandir
    for broken in (
        Path(store.where),
        Path(store.where) / "web",
        Path(store.where) / "web" / "000001-0000000001",
    ):

        def fail(folder: int, broken: Path = broken) -> Any:
            if os.readlink(f"/proc/self/fd/{folder}") == str(broken):
                raise OSError(5, "Input/output error")
            return real(folder)

        monkeypatch.setattr(os, "scandir", fail)
        with pytest.raises(StoreError, match="Input/output error"):
            store.catalogue()
        monkeypatch.undo()


def test_of_several_deltas_of_one_point_the_one_with_the_shortest_whole_line_is_used(
    store: Store,
) -> None:
    first, second, third = (_fill(store, 3), store.catalogue().entries)[1]
    merged = Path(store.where) / "web" / "aaa" / "merged.fleece"
    merged.parent.mkdir()
    head = dataclasses.replace(third.header, parent=None, mode=Mode.FULL)
    with merged.open("wb") as sink:
        content = _disk(3)
        write_delta(sink, head, BlankDisk(head.geometry), content, Extents.whole(len(content)))
    for _ in range(2):
        assert store.catalogue().find("latest").disk("vda").where == str(merged)
        assert _problems(store) == ()
        merged = merged.rename(merged.with_name("renamed.fleece"))
    merged.unlink()
    assert store.catalogue().find("latest").disk("vda").where == third.where
    copy = shutil.copy(second.where, Path(first.where).with_name("copy.fleece"))
    assert {str(copy), second.where} >= {store.catalogue().line(third)[1].where}
    assert _problems(store) == ()


# ---- harm ------------------------------------------------------------------------------------


def test_a_sound_store_is_proven_whole(store: Store) -> None:
    _fill(store, 3)
    catalogue = store.catalogue()
    heard: list[events.Event] = []
    result = verify_store(catalogue, None, heard.append)
    assert result.errors == ()
    assert result.points == tuple(f"{n:010x}" for n in (1, 2, 3))
    assert result.deltas == 3
    checked = [event for event in heard if isinstance(event, events.DeltaChecked)]
    assert [event.root for event in checked] == [naive_root(_disk(n), 2).hex() for n in (1, 2, 3)]


def test_harm_anywhere_in_a_store_is_found_and_proves_no_point_that_needs_it(
    store: Store,
) -> None:
    """Every seventh byte; `test_delta` does them all, a delta at a time."""
    _fill(store, 2)
    files = sorted((Path(store.where) / "web").glob("*/*.fleece"))
    for number, path in enumerate(files):
        raw = path.read_bytes()
        for at in range(0, len(raw), 7):
            path.write_bytes(raw[:at] + bytes([raw[at] ^ 0x20]) + raw[at + 1 :])
            catalogue = store.catalogue()
            result = verify_store(catalogue)
            assert result.errors, f"{path.name}, byte {at}"
            assert set(result.points) <= {f"{n:010x}" for n in range(1, number + 1)}
        path.write_bytes(raw)
    assert _problems(store) == ()


def test_every_problem_of_a_store_is_told_and_not_only_the_first(store: Store) -> None:
    _fill(store, 1, "web")
    _fill(store, 1, "db")
    for path in Path(store.where).glob("*/*/*.fleece"):
        path.write_bytes(b"garbage")
    assert len(_problems(store)) == 2


def test_a_damaged_file_fails_the_verification_of_each_guest(store: Store) -> None:
    """Nobody knows whose it was."""
    _fill(store, 2, "web")
    _fill(store, 1, "db")
    newest = Path(store.catalogue().find("latest", "web").disk("vda").where)
    newest.write_bytes(newest.read_bytes()[:-50])
    for guest in ("web", "db"):
        result = verify_store(store.catalogue(), guest=guest)
        assert len(result.errors) == 1
        assert result.points == ("0000000001",)


def test_a_guest_without_points_is_not_proven_whole(store: Store) -> None:
    _fill(store, 1, "web")
    with pytest.raises(StoreError, match="there is no point of guest wbe"):
        verify_store(store.catalogue(), guest="wbe")


def test_a_marker_of_the_first_stores_named_no_hash(store: Store) -> None:
    first = {"format": "fleece store", "version": 1, "id": store.id}
    (Path(store.where) / MARKER).write_text(json.dumps(first))
    _fill(open_store(Path(store.where)), 1)
    assert open_store(Path(store.where)).algorithm.name == "xxh3-128"


def test_the_marker_is_json_that_names_itself(store: Store) -> None:
    said = json.loads((Path(store.where) / MARKER).read_text())
    assert said == {
        "format": "fleece store",
        "version": 1,
        "id": store.id,
        "hash": "xxh3-128",
        "encryption": None,
    }
    assert CHAIN not in store.id


def test_a_store_is_opened_by_its_path_or_by_a_uri_of_that(store: Store) -> None:
    for text in (
        str(Path(store.where)),
        f"file:{Path(store.where)}",
        f"file://{Path(store.where)}",
    ):
        assert open_store(text).id == store.id


@pytest.mark.parametrize("text", ["swift://bucket/vms", "FTP://host/x", "x+y://", "file://host/x"])
def test_a_store_of_a_kind_that_is_not_known_is_refused(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for make in open_store, init:
        with pytest.raises(UsageError, match="file:"):
            make(text)
    assert list(tmp_path.iterdir()) == []
