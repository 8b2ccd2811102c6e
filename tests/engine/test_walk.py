"""The way of a dirty extent is the one that docs/internals/architecture.rst lists, file by file."""

from __future__ import annotations

import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import fleece
from fleece import events
from tests.rig import images
from tests.rig.process import run_checked

_ROOT = Path(__file__).parents[2]
_CODE = f"{_ROOT}/fleece/"
_MOST = 15
"""Files that a dirty extent passes: more is a matter for a decision (0029-walk.rst)."""


def _listed(indents: str = " +") -> list[str]:
    """The files of the list, in its order; of all lines, or of those indented so."""
    page = (_ROOT / "docs/internals/architecture.rst").read_text()
    block = page.partition("**A dirty extent to the store.**")[2].partition("::\n\n")[2]
    return re.findall(rf"^{indents}([\w/]+\.py)", block.partition("\n\n")[0], re.MULTILINE)


def _named(sentence: str) -> set[str]:
    """The files and rooms that a sentence of the page names."""
    page = (_ROOT / "docs/internals/architecture.rst").read_text()
    text = page.partition(sentence)[2].partition("\n\n")[0]
    return set(re.findall(r"``([\w/]+(?:\.py)?)``", text))


@contextmanager
def _watched(entered: list[str]) -> Iterator[None]:
    """Note each file of fleece's whose code begins to run, from `fill_by_pull` on."""
    first = "engine/backup/fill_by_pull.py"

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(_CODE):
            name = frame.f_code.co_filename.removeprefix(_CODE)
            if name == first or entered:
                entered.append(name)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def _walk(folder: Path) -> list[str]:
    """The files that an incremental backup enters, until its point is committed."""
    image = images.random_image(folder / "d0.qcow2", 1 << 20, seed=1)
    (folder / "scratch").mkdir()
    store = fleece.init(folder / "store")
    entered: list[str] = []

    def heard(event: events.Event) -> None:
        if isinstance(event, events.Committed):
            sys.setprofile(None)

    def backup(listener: events.Listener) -> fleece.BackupResult:
        options = fleece.SourceOptions(folder / "scratch")
        with fleece.open_source(f"image:d0={image}", options) as source:
            return fleece.backup(source, store, fleece.BackupOptions(workers=1), listener)

    backup(heard)
    run_checked("qemu-io", "-c", "write -P 7 0 64k", image)
    with _watched(entered):
        result = backup(heard)
    assert result.mode == "incremental"
    return entered


def test_a_dirty_extent_goes_the_way_that_is_written_down() -> None:
    """All that is listed is passed in that order, and what is passed is listed or named there."""
    listed = _listed()
    with tempfile.TemporaryDirectory(prefix="rig-") as folder:  # a short one, for the socket
        entered = _walk(Path(folder))
    rest = iter(entered)
    missing = [name for name in listed if name not in rest]
    assert not missing, f"not passed, or not in this order: {missing[0]}"
    known = {*listed} | _named("Left out are")
    rooms = {name for name in known if not name.endswith(".py")}
    strange = {name for name in entered if name.partition("/")[0] not in rooms} - known
    assert not strange
    conduct = _named("Only conduct:")
    assert len({*listed} - conduct) <= _MOST
    outside = _listed(" {4}")
    assert len(outside) < len(listed)
    assert max(map(outside.count, outside)) <= 2
