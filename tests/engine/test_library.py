"""The library in a program of one's own: typed, quiet, nothing global."""

from __future__ import annotations

import io
import os
import threading
import uuid
from pathlib import Path

import pytest

import fleece
from fleece.events import Event, PointTaken, Progress
from tests.engine.scene import INTACT, KIB64, MIB, Scene

CHAIN = "c0ffee00"


def _header(export: fleece.Export, parent: fleece.ParentRef | None, number: int) -> fleece.Header:
    return fleece.Header(
        file_id=uuid.uuid4(),
        chain=CHAIN,
        guest="own",
        disk=export.disk,
        size=export.size,
        point=fleece.PointRef(f"{number:010x}", number, "2026-11-23T00:00:00Z"),
        parent=parent,
        mode=fleece.Mode.FULL if parent is None else fleece.Mode.INCREMENTAL,
        disks=(export.disk,),
        level=1,
        granularity=export.granularity,
        producer={"test": "1"},
    )


def _source(scene: Scene) -> fleece.QemuSource:
    return fleece.QemuSource(str(scene.qemu.qmp_socket), scene.scratch)


def test_a_point_of_ones_own_goes_into_any_stream(scene: Scene) -> None:
    writer = scene.writer()
    full, child = scene.folder / "full", scene.folder / "child"
    with _source(scene) as source:
        disks = source.inventory().choose(("d0",))
        with source.point(CHAIN, 1, f"{1:010x}", [fleece.Wanted(disks[0], None)]) as point:
            (export,) = point.exports
            stream = io.BytesIO()
            summary = fleece.write_delta(export, _header(export, None, 1), stream)
            point.check()
            full.write_bytes(stream.getvalue())
            point.close()
            point.committed()
        assert summary.stored_bytes == full.stat().st_size

        writer.write(2 * MIB, os.urandom(KIB64))
        writer.zero(3 * MIB, KIB64, unmap=True)
        disk = source.inventory().choose(("d0",))[0]
        names = tuple(bitmap.name for bitmap in disk.bitmaps)
        with (
            source.point(CHAIN, 2, f"{2:010x}", [fleece.Wanted(disk, names)]) as point,
            fleece.DeltaReader(full) as parent,
        ):
            (export,) = point.exports
            changed = [*fleece.dirty_extents(export)]
            head = _header(export, fleece.read_entry(str(full)).as_parent(), 2)
            _write_through_a_pipe(export, head, child, fleece.Chain([parent]))
            point.check()
            point.close()
            point.committed()
    assert sum(end - start for start, end, _ in changed) == 2 * KIB64
    assert (3 * MIB, 3 * MIB + KIB64, True) in changed

    scene.nothing_left()
    with fleece.DeltaReader(child) as newest, fleece.DeltaReader(full) as oldest:
        root = fleece.Chain([newest, oldest]).root
    scene.qemu.quit()
    with fleece.open_image(str(scene.qemu.disks["d0"].path), "qcow2") as image:
        assert fleece.disk_root(image) == root


def _write_through_a_pipe(
    export: fleece.Export, head: fleece.Header, path: Path, parent: fleece.Chain
) -> None:
    reading, writing = os.pipe()
    received: list[bytes] = []

    def receive() -> None:
        with open(reading, "rb") as file:
            received.append(file.read())

    receiver = threading.Thread(target=receive)
    receiver.start()
    with open(writing, "wb", buffering=0) as sink:
        fleece.write_delta(export, head, sink, parent)
    receiver.join()
    path.write_bytes(received[0])


def test_progress_is_heard_up_to_the_whole(scene: Scene) -> None:
    heard: list[Event] = []
    scene.take(listener=heard.append)
    assert any(isinstance(event, PointTaken) for event in heard)
    last = [event for event in heard if isinstance(event, Progress)][-1]
    assert (last.done, last.total) == (8 * MIB, 8 * MIB)


def test_cancelling_takes_everything_down(scene: Scene) -> None:
    scene.take()
    cancel = fleece.CancelToken()

    def stop_at_the_point(event: Event) -> None:
        if isinstance(event, PointTaken):
            cancel.cancel()

    scene.writer().write(0, os.urandom(MIB))
    with pytest.raises(fleece.Interrupted):
        scene.take(listener=stop_at_the_point, cancel=cancel)
    scene.nothing_left()
    assert scene.points() == 1
    assert scene.take().mode == "incremental"
    scene.check_exact()


def test_an_error_in_the_listener_fails_the_backup_and_leaves_nothing(scene: Scene) -> None:
    def broken(event: Event) -> None:
        if isinstance(event, Progress):
            raise RuntimeError("a listener's own bug")

    with pytest.raises(RuntimeError, match="own bug"):
        scene.take(listener=broken)
    scene.nothing_left()
    assert scene.points() == 0


def test_nothing_is_printed(scene: Scene, capfd: pytest.CaptureFixture[str]) -> None:
    scene.take()
    scene.restore()
    scene.verify()
    assert capfd.readouterr() == ("", "")


def test_importing_it_loads_neither_numpy_nor_a_parser() -> None:
    code = (
        "import sys, fleece; print([m for m in ('numpy', 'argparse', 'nbd') if m in sys.modules])"
    )
    ran = INTACT.script(code).wait().succeeded()
    assert ran.out == "[]\n"


def test_using_it_never_loads_the_command_line() -> None:
    code = (
        "import sys, fleece\n"
        "for name in fleece.api.__all__: getattr(fleece, name)\n"
        "print([m for m in sys.modules if m == 'argparse' or m.startswith('fleece.cli')])"
    )
    ran = INTACT.script("import fleece.api\n" + code).wait().succeeded()
    assert ran.out == "[]\n"
