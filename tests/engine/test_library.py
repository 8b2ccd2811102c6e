"""The library as a program embeds it: typed, silent, cancellable, writing to any stream."""

from __future__ import annotations

import io
import json
import os
import shutil
import threading
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import fleece
from fleece.events import Event
from fleece.source.base import Point
from tests.engine.scene import GUEST, INTACT, KIB64, MIB, Scene, wait_until
from tests.rig import images

CHAIN = "01234567"


def _header(
    export: fleece.Export, sequence: int, parent: fleece.DeltaReader | None
) -> fleece.Header:
    """A delta's header, as an embedding program makes it."""
    said = None
    if parent is not None:
        said = fleece.ParentRef(
            parent.header.point.id, parent.footer.root.hex(), parent.header.size
        )
    return fleece.Header(
        file_id=uuid.uuid4(),
        chain=CHAIN,
        guest=GUEST,
        disk=export.disk,
        size=export.size,
        point=fleece.PointRef(f"{sequence:010x}", sequence, "2026-01-01T00:00:00Z"),
        parent=said,
        mode=fleece.Mode.FULL if parent is None else fleece.Mode.INCREMENTAL,
        disks=(export.disk,),
        level=1,
        granularity=export.granularity,
        producer={"test": "1"},
    )


def test_points_are_taken_and_written_without_a_store(
    scene: Scene, capfd: pytest.CaptureFixture[str]
) -> None:
    """A full to memory, then an incremental to a pipe; both on one chain of segments."""
    heard: list[Event] = []
    full, second = scene.folder / "full.fleece", scene.folder / "second.fleece"
    with fleece.QemuSource(str(scene.qemu.qmp_socket), scene.scratch) as source:
        (disk,) = source.inventory().disks
        with source.take(
            fleece.Request(CHAIN, 1, f"{1:010x}", [fleece.Wanted(disk, None)])
        ) as point:
            (export,) = point.exports
            assert (export.disk, export.size, export.dirty_context) == ("d0", 8 * MIB, None)
            memory = io.BytesIO()
            summary = fleece.write_delta(
                point, export, _header(export, 1, None), memory, listener=heard.append
            )
            point.check()
            full.write_bytes(memory.getvalue())
            point.close()
            point.committed()
    scene.nothing_left()
    assert summary.stored_bytes == full.stat().st_size
    assert {event.name for event in heard} == {"progress"}

    scene.writer().write(MIB, os.urandom(KIB64))
    scene.writer().zero(4 * MIB, 2 * MIB, unmap=True)
    with (
        fleece.QemuSource(str(scene.qemu.qmp_socket), scene.scratch) as source,
        ExitStack() as stack,
    ):
        (disk,) = source.inventory().disks
        since = source.known_since(disk, CHAIN, 1, f"{1:010x}")
        assert isinstance(since, fleece.Since)
        point = stack.enter_context(
            source.take(fleece.Request(CHAIN, 2, f"{2:010x}", [fleece.Wanted(disk, since)]))
        )
        (export,) = point.exports
        assert list(fleece.dirty_extents(export)) == [
            (MIB, MIB + KIB64, False),
            (4 * MIB, 6 * MIB, True),
        ]
        parent = stack.enter_context(fleece.open_delta(full))
        _write_to_pipe(point, export, _header(export, 2, parent), fleece.Chain([parent]), second)
        point.check()
        point.close()
        point.committed()
    scene.nothing_left()

    with fleece.open_delta(second) as newest, fleece.open_delta(full) as oldest:
        chain = fleece.Chain([newest, oldest])
        live = scene.folder / "d0.qcow2"
        scene.writer().flush()
        scene.qemu.quit()
        with fleece.open_image(str(live)) as image:
            comparison = fleece.compare_image(chain, image)
    assert len(comparison.differing) == 0
    assert comparison.root == newest.footer.root.hex()
    assert capfd.readouterr() == ("", "")


def _write_to_pipe(
    point: Point,
    export: fleece.Export,
    head: fleece.Header,
    parent: fleece.Chain,
    target: Path,
) -> None:
    """Write a delta into a pipe whose other end goes to a file."""
    read_end, write_end = os.pipe()

    def drain() -> None:
        with os.fdopen(read_end, "rb") as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink)

    thread = threading.Thread(target=drain)
    thread.start()
    with os.fdopen(write_end, "wb", buffering=0) as sink:
        fleece.write_delta(point, export, head, sink, parent)
    thread.join()


def test_a_delta_to_a_stream_is_the_one_in_a_store(scene: Scene) -> None:
    stored = scene.take().disks[0]
    with fleece.QemuSource(str(scene.qemu.qmp_socket), scene.scratch) as source:
        (disk,) = source.inventory().disks
        with source.take(
            fleece.Request(CHAIN, 1, f"{1:010x}", [fleece.Wanted(disk, None)])
        ) as point:
            (export,) = point.exports
            summary = fleece.write_delta(point, export, _header(export, 1, None), io.BytesIO())
    assert summary.root.hex() == stored.root
    # A point that was not committed and that nothing builds on leaves no segment of its chain.
    assert len(scene.segments()) == 1
    scene.take("incremental")
    scene.check_exact()


def test_events_are_heard_in_order(pair: Scene) -> None:
    heard: list[Event] = []
    result = pair.take(listener=heard.append)
    names = [event.name for event in heard if event.name != "progress"]
    assert names == ["plan", "plan", "point", "committed"]
    progress = [event.to_json() for event in heard if event.name == "progress"]
    done = [event["done"] for event in progress]
    assert done == sorted(done, key=lambda count: int(str(count)))
    assert done[-1] == progress[-1]["total"] == sum(disk.size for disk in result.disks)
    assert all(json.dumps(event.to_json()) for event in heard)


@pytest.mark.parametrize("when", ["plan", "point", "progress"])
def test_cancellation_takes_everything_down(when: str, pair: Scene) -> None:
    pair.take()
    pair.writer("d0").write(0, os.urandom(2 * MIB))
    cancel = fleece.CancelToken()

    def listen(event: Event) -> None:
        if event.name == when:
            cancel.cancel()

    with pytest.raises(fleece.Interrupted) as caught:
        pair.take(listener=listen, cancel=cancel)
    assert caught.value.code == 130
    pair.nothing_left()
    assert pair.points() == 1
    assert pair.take("incremental").disks[0].dirty_bytes == 2 * MIB
    pair.check_exact()


@pytest.mark.parametrize("when", ["plan", "point", "progress", "committed"])
def test_a_listener_that_raises_takes_everything_down(when: str, scene: Scene) -> None:
    scene.take()
    scene.writer().write(0, os.urandom(KIB64))

    def listen(event: Event) -> None:
        if event.name == when:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        scene.take(listener=listen)
    scene.nothing_left()
    assert scene.points() == (2 if when == "committed" else 1)
    scene.take("incremental")
    scene.check_exact()
    scene.only_newest_segment()


def test_a_body_that_raises_takes_its_point_down(scene: Scene) -> None:
    with fleece.QemuSource(str(scene.qemu.qmp_socket), scene.scratch) as source:
        (disk,) = source.inventory().disks
        for error in (ZeroDivisionError, KeyboardInterrupt):
            with (
                pytest.raises(error),
                source.take(fleece.Request(CHAIN, 1, f"{1:010x}", [fleece.Wanted(disk, None)])),
            ):
                raise error
            scene.nothing_left()
            assert scene.segments() == []


def test_a_sink_that_fails_fails_the_delta(scene: Scene) -> None:
    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(28, "No space left on device")

    with fleece.QemuSource(str(scene.qemu.qmp_socket), scene.scratch) as source:
        (disk,) = source.inventory().disks
        with source.take(
            fleece.Request(CHAIN, 1, f"{1:010x}", [fleece.Wanted(disk, None)])
        ) as point:
            (export,) = point.exports
            with pytest.raises(OSError, match="No space left"):
                fleece.write_delta(point, export, _header(export, 1, None), Full())
    scene.nothing_left()


def test_a_delta_on_a_disk_that_was_cut_is_refused(scene: Scene) -> None:
    """QEMU's bitmaps do not tell that what was cut off reads as zeros now."""
    full = scene.folder / "full.fleece"
    with fleece.QemuSource(str(scene.qemu.qmp_socket), scene.scratch) as source:
        (disk,) = source.inventory().disks
        with source.take(
            fleece.Request(CHAIN, 1, f"{1:010x}", [fleece.Wanted(disk, None)])
        ) as point:
            (export,) = point.exports
            with full.open("wb") as sink:
                fleece.write_delta(point, export, _header(export, 1, None), sink)
            point.committed()
        for size in (4 * MIB, 8 * MIB):
            scene.qemu.control.command("block_resize", {"node-name": "d0", "size": size})
        (disk,) = source.inventory().disks
        since = source.known_since(disk, CHAIN, 1, f"{1:010x}")
        assert isinstance(since, fleece.Since)
        with (
            source.take(
                fleece.Request(CHAIN, 2, f"{2:010x}", [fleece.Wanted(disk, since)])
            ) as point,
            fleece.open_delta(full) as parent,
        ):
            (export,) = point.exports
            head = _header(export, 2, parent)
            with pytest.raises(fleece.PointError, match="shrunk and grown back"):
                fleece.write_delta(point, export, head, io.BytesIO(), fleece.Chain([parent]))


def test_a_delta_is_given_up_before_its_scratch_is_too_large(scene: Scene) -> None:
    """The stream stalls, and the guest goes on writing."""

    def exported() -> bool:
        exports = scene.qemu.control.command("query-block-exports")
        return any(item["id"].startswith("fleece-") for item in exports)

    class Stalls(io.BytesIO):
        def write(self, data: Any) -> int:
            if self.tell():
                scene.writer().write(0, os.urandom(6 * MIB))
                wait_until(lambda: not exported(), "the export's end")
            return super().write(data)

    with fleece.QemuSource(str(scene.qemu.qmp_socket), scene.scratch, 4 * MIB) as source:
        (disk,) = source.inventory().disks
        with source.take(
            fleece.Request(CHAIN, 1, f"{1:010x}", [fleece.Wanted(disk, None)])
        ) as point:
            (export,) = point.exports
            with pytest.raises(fleece.PointError, match="the scratch has taken"):
                fleece.write_delta(point, export, _header(export, 1, None), Stalls())
    scene.nothing_left()


def test_a_closed_source_is_an_error_of_its_family(scene: Scene) -> None:
    with fleece.QemuSource(str(scene.qemu.qmp_socket), scene.scratch) as source:
        pass
    with pytest.raises(fleece.SourceError, match="was closed"):
        source.inventory()


def test_a_disk_restored_by_the_library_is_the_disk(scene: Scene) -> None:
    taken = scene.take()
    heard: list[Event] = []
    target = scene.folder / "out.qcow2"
    result = fleece.restore(
        fleece.open_store(scene.store),
        taken.point,
        "d0",
        str(target),
        options=fleece.RestoreOptions(target_format=fleece.ImageFormat.QCOW2),
        listener=heard.append,
    )
    assert result.root == taken.disks[0].root
    assert {event.name for event in heard} == {"progress"}
    images.check(target)
    scene.qemu.quit()
    images.compare(target, scene.folder / "d0.qcow2", "qcow2", "qcow2")


# ---- what importing it costs and does -----------------------------------------------------------


def test_importing_it_loads_no_command_line(tmp_path: Path) -> None:
    code = "import sys, fleece; fleece.backup; fleece.QemuSource; print(*sorted(sys.modules))"
    loaded = INTACT.script(code).wait().succeeded().out.split()
    assert "fleece.engine.backup.run" in loaded
    for name in ("argparse", "tqdm", "fleece.cli", "fleece.cli.main"):
        assert name not in loaded


def test_the_bare_import_loads_almost_nothing() -> None:
    code = "import sys, fleece; print(fleece.__version__, *sorted(sys.modules))"
    loaded = INTACT.script(code).wait().succeeded().out.split()
    for name in ("numpy", "zstandard", "qemu.qmp", "nbd", "argparse", "asyncio", "fleece.api"):
        assert name not in loaded


def test_every_module_can_be_imported_first() -> None:
    """No module needs another one to have been imported before it."""
    root = Path(fleece.__file__).parent
    names = [
        ".".join(path.relative_to(root.parent).with_suffix("").parts)
        for path in sorted(root.rglob("*.py"))
        # plugins are scripts, which only nbdkit can run
        if path.name not in ("__init__.py", "__main__.py") and not path.stem.endswith("_plugin")
    ]
    code = """
import importlib, os, sys
import nbd, numpy, qemu.qmp, xxhash, zstandard  # others' modules need no proof, only time
for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        importlib.import_module(name)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, name
"""
    INTACT.script(code, *names).wait().succeeded()


def test_using_it_installs_no_signal_handler_and_prints_nothing(scene: Scene) -> None:
    code = """
import signal, sys, threading, warnings
from pathlib import Path
import fleece
warnings.simplefilter("error")
before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
with fleece.QemuSource(sys.argv[1], Path(sys.argv[2])) as source:
    fleece.backup(source, fleece.init(sys.argv[3]))
assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
assert threading.active_count() == 1, threading.enumerate()
assert "argparse" not in sys.modules
"""
    words = (scene.qemu.qmp_socket, scene.scratch, scene.store)
    ran = INTACT.script(code, *words).wait().succeeded()
    assert (ran.out, ran.err) == ("", "")
    scene.nothing_left()


def test_no_file_descriptor_is_lost(scene: Scene) -> None:
    scene.take()
    scene.check_exact()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        scene.take()
        scene.check_exact()
        scene.verify()
    assert len(os.listdir("/proc/self/fd")) <= before
