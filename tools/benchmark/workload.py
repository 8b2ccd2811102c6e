"""The disk that is measured: one third incompressible, one third text-like, one third zero.

Run as a program of its own, so that its memory does not count for those who start others: a
child's peak is never below what its parent held when it was started.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

RUN = 8 * 1024 * 1024
"""Bytes of one kind before the next kind follows."""

_BLOCK = 1024 * 1024
_POOL = 64 * 1024 * 1024
_WORDS = 6000


def text(length: int, rng: np.random.Generator) -> bytes:
    """Words drawn as in a language, few of them often: zstd packs it to about a third."""
    letters = np.frombuffer(b"etaoinshrdlucmfw", np.uint8)
    words = [
        letters[rng.integers(0, len(letters), size)].tobytes() + b" "
        for size in rng.integers(2, 12, _WORDS).tolist()
    ]
    weight = 1.0 / (np.arange(_WORDS) + 3.0)
    drawn = rng.choice(_WORDS, length // 4, p=weight / weight.sum()).tolist()
    return b"".join(words[word] for word in drawn)[:length]


def write(path: Path, size: int, *, holes: bool, seed: int = 1) -> None:
    """Write the raw disk; the same arguments, the same disk.

    Args:
        path: of the file to make.
        size: in bytes.
        holes: leave the zeros out of the file; else write them.
        seed: of all that is random.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    pool = memoryview(text(_POOL, rng))
    with path.open("wb") as file:
        file.truncate(size)
        for number, start in enumerate(range(0, size, RUN)):
            file.seek(start)
            length = min(RUN, size - start)
            if number % 3 == 0:
                file.write(rng.bytes(length))
            elif number % 3 == 1:
                for done in range(0, length, _BLOCK):
                    at = int(rng.integers(0, len(pool) - _BLOCK))
                    file.write(pool[at : at + min(_BLOCK, length - done)])
            elif not holes:
                file.write(bytes(length))


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2]), holes=sys.argv[3] == "holes")
