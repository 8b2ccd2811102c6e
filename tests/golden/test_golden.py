"""Every later version reads what version 1 wrote, and the format's page shows the real bytes."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import xxhash

from fleece.cancel import CancelToken
from fleece.disk.raw import RawDisk
from fleece.engine.check.verify import check_delta
from fleece.engine.restore.image import write_chain
from fleece.engine.restore.salvage import Loss, LostExtent, describe, salvage
from fleece.engine.work.pool import Counter
from fleece.engine.work.scan import disk_root
from fleece.errors import TargetError
from fleece.events import Phase, ignore
from fleece.store.loose import open_delta
from tests.golden.make import CASES, FULL_DISK, Case, main, opened

HERE = Path(__file__).parent / "v1"
FULL = HERE / "full.fleece"
FORMAT = Path(__file__).parents[2] / "docs" / "internals" / "format.rst"

_NAMED = re.compile(r"^``tests/golden/v1/([a-z0-9-]+\.fleece)``", re.MULTILINE)
_DUMP = re.compile(r"^ {4}([0-9a-f]{8}): ((?:[0-9a-f]{2,4} )+) ", re.MULTILINE)


def _counter() -> Counter:
    return Counter(ignore, Phase.VERIFY, "golden", 0)


EVERY = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as made:
        yield made


@EVERY
def test_restores_to_the_bytes_and_the_root_it_was_made_from(
    case: Case, stack: contextlib.ExitStack, tmp_path: Path
) -> None:
    target = tmp_path / "disk.raw"
    target.write_bytes(bytes(len(case.disk)))
    chain = opened(HERE, case.name, stack)
    image = RawDisk(str(target), TargetError, writable=True)
    write_chain(chain, chain.maps(), image, _counter(), CancelToken())
    assert target.read_bytes() == case.disk
    assert disk_root(image, geometry=chain.geometry) == chain.root


@EVERY
def test_passes_a_full_check(case: Case, stack: contextlib.ExitStack) -> None:
    older = None if case.parent is None else opened(HERE, case.parent, stack)
    check_delta(opened(HERE, case.name, stack).deltas[0], older, _counter(), CancelToken())


@EVERY
def test_zstd_walks_it_and_yields_the_data_of_its_records(case: Case) -> None:
    path = HERE / f"{case.name}.fleece"
    subprocess.run(["zstd", "-tq", path], check=True)
    sealed = case.purposes[1]
    data = b"" if sealed else b"".join(case.disk[at : at + n] for at, n in case.data.items())
    assert subprocess.run(["zstd", "-dcq", path], check=True, capture_output=True).stdout == data


@EVERY
def test_the_same_program_makes_the_same_headers_and_roots(
    case: Case, made: Path, stack: contextlib.ExitStack
) -> None:
    again = opened(made, case.name, stack).deltas[0]
    golden = opened(HERE, case.name, stack).deltas[0]
    assert again.header == golden.header
    assert again.footer.root == golden.footer.root


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    main(folder)
    return folder


def test_the_files_are_those_of_the_cases() -> None:
    assert {path.stem for path in HERE.iterdir()} == {case.name for case in CASES} | {"salvaged"}


def test_the_first_bytes_tell_a_person_what_it_is() -> None:
    shown = FULL.read_bytes()[:600].decode("ascii", "replace")
    assert "fleece delta v1" in shown
    assert '"guest": "golden"' in shown
    assert b"fleece key v1" in (HERE / "sealed.fleece").read_bytes()[:40]


def test_the_dumps_in_the_format_page_are_the_files_bytes() -> None:
    """Each dump is of the golden file that was named last before it."""
    _, *parts = _NAMED.split(FORMAT.read_text())
    shown_of = {}
    for name, words in zip(parts[::2], parts[1::2], strict=True):
        content = (HERE / name).read_bytes()
        dumps = _DUMP.findall(words)
        for place, digits in dumps:
            shown = bytes.fromhex(digits)
            at = int(place, 16)
            assert content[at : at + len(shown)] == shown, f"{name}: {place}"
        shown_of[name] = len(dumps)
    assert shown_of["full.fleece"] > 20
    assert shown_of["sealed.fleece"] == 9


def test_the_hashes_are_those_of_xxhsum(tmp_path: Path) -> None:
    leaf = tmp_path / "leaf"
    leaf.write_bytes(FULL_DISK[:65536])
    said = subprocess.run(["xxhsum", "-H2", leaf], capture_output=True, text=True, check=True)
    digest = said.stdout.split()[0]
    assert digest == xxhash.xxh3_128_hexdigest(FULL_DISK[:65536])
    row = open_delta(FULL).rows()[0].tolist()
    assert open_delta(FULL).record_at(*row)[0].leaves.hex() == digest


def test_a_salvaged_file_is_read_and_made_again_byte_for_byte(tmp_path: Path) -> None:
    """Made of `full.fleece` with a bit of its first frame wrong: the first leaf is lost."""
    golden = HERE / "salvaged.fleece"
    raw = bytearray(FULL.read_bytes())
    raw[0x2A0] ^= 1
    (tmp_path / "damaged").write_bytes(raw)
    made = salvage(str(tmp_path / "damaged"), str(tmp_path / "made"))
    assert (tmp_path / "made").read_bytes() == golden.read_bytes()
    said = describe(str(golden))
    assert said == replace(made, path=str(golden))
    assert said.lost == (LostExtent(0, 65536, Loss.LOST),)
    assert (said.records, said.data_bytes, said.zero_bytes) == (2, 512, 65536)
    assert said.root == open_delta(FULL).footer.root.hex()
