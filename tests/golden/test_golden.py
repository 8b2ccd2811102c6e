"""Every later version reads what version 1 wrote, and the format's page shows the real bytes."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import xxhash

from fleece.cancel import CancelToken
from fleece.delta.chain import Chain
from fleece.delta.reader import DeltaReader
from fleece.disk.raw import RawDisk
from fleece.engine.pool import Counter
from fleece.engine.restore import write_chain
from fleece.engine.root import disk_root
from fleece.engine.salvage import Loss, LostExtent, describe, salvage
from fleece.engine.verify import check_delta
from fleece.errors import TargetError
from fleece.events import Phase, ignore
from tests.golden.make import CHILD_DISK, FULL_DISK, SIZE, main

HERE = Path(__file__).parent / "v1"
FULL, CHILD = HERE / "full.fleece", HERE / "child.fleece"
FORMAT = Path(__file__).parents[2] / "docs" / "format.rst"

_DUMP = re.compile(r"^ {4}([0-9a-f]{8}): ((?:[0-9a-f]{2,4} )+) ", re.MULTILINE)


def _counter() -> Counter:
    return Counter(ignore, Phase.VERIFY, "golden", 0)


@pytest.mark.parametrize(("paths", "content"), [([FULL], FULL_DISK), ([CHILD, FULL], CHILD_DISK)])
def test_restores_to_the_bytes_and_the_root_it_was_made_from(
    paths: list[Path], content: bytes, tmp_path: Path
) -> None:
    target = tmp_path / "disk.raw"
    target.write_bytes(bytes(SIZE))
    chain = Chain([DeltaReader(path) for path in paths])
    image = RawDisk(str(target), TargetError, writable=True)
    write_chain(chain, chain.map(), image, _counter(), CancelToken())
    assert target.read_bytes() == content
    assert disk_root(image) == chain.root


def test_passes_a_full_check() -> None:
    full, child = DeltaReader(FULL), DeltaReader(CHILD)
    check_delta(full, None, _counter(), CancelToken())
    check_delta(child, Chain([full]), _counter(), CancelToken())


@pytest.mark.parametrize("path", [FULL, CHILD])
def test_zstd_walks_it(path: Path) -> None:
    subprocess.run(["zstd", "-tq", path], check=True)


def test_the_same_program_makes_the_same_files_but_for_the_compressor(tmp_path: Path) -> None:
    main(tmp_path)
    for name in ("full.fleece", "child.fleece"):
        made, golden = DeltaReader(tmp_path / name), DeltaReader(HERE / name)
        assert made.header == golden.header
        assert made.footer.root == golden.footer.root


def test_the_dumps_in_the_format_page_are_the_files_bytes() -> None:
    content = FULL.read_bytes()
    dumps = _DUMP.findall(FORMAT.read_text())
    assert len(dumps) > 20
    for place, digits in dumps:
        shown = bytes.fromhex(digits)
        at = int(place, 16)
        assert content[at : at + len(shown)] == shown, place


def test_the_hashes_are_those_of_xxhsum(tmp_path: Path) -> None:
    leaf = tmp_path / "leaf"
    leaf.write_bytes(FULL_DISK[:65536])
    said = subprocess.run(["xxhsum", "-H2", leaf], capture_output=True, text=True, check=True)
    digest = said.stdout.split()[0]
    assert digest == xxhash.xxh3_128_hexdigest(FULL_DISK[:65536])
    row = DeltaReader(FULL).rows()[0].tolist()
    assert DeltaReader(FULL).record_at(*row)[0].leaves.hex() == digest


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
    assert said.root == DeltaReader(FULL).footer.root.hex()
