"""The saved corpus, and seeded changes of it, through every reader. atheris is not needed here."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from fleece.store.loose import open_delta
from tests.fuzz.repair import repaired
from tests.fuzz.target import one_input

_CORPUS = sorted((Path(__file__).parent / "corpus").iterdir())
_WHOLE = ("leaf-1", "small-1", "small-2")


@pytest.mark.parametrize("part", range(8))
def test_every_input_of_the_corpus_is_taken_or_refused(part: int) -> None:
    assert len(_CORPUS) >= len(_WHOLE)
    for path in _CORPUS[part::8]:
        one_input(path.read_bytes())


@pytest.mark.parametrize("seed", range(4))
def test_changed_inputs_whose_hashes_were_made_to_fit_are_taken_or_refused(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(100):
        data = bytearray(chance.choice(_CORPUS).read_bytes())
        for _ in range(chance.choice((1, 2, 8))):
            at = chance.randrange(len(data) + 1)
            end = at + chance.choice((0, 1, 8))
            data[at:end] = chance.choice((b"", b"\0", b"\xff" * 8, chance.randbytes(end - at)))
        one_input(bytes(data))


@pytest.mark.parametrize("name", _WHOLE)
def test_repair_leaves_a_sound_delta_as_it_is_and_mends_every_hash(name: str) -> None:
    """Or else the fuzzer would never get behind the hashes."""
    path = Path(__file__).parent / "corpus" / name
    raw = path.read_bytes()
    assert repaired(raw) == raw
    with open_delta(path) as delta:
        ends = [page.position + page.length for page in delta.pages]
        ends += [delta.records_start, delta.length]
    for end in ends:
        broken = bytearray(raw)
        broken[end - 16 : end] = bytes(16)
        assert repaired(bytes(broken)) == raw
