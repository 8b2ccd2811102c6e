"""Fuzz for as long as you like; needs atheris (the extra `fuzz`).

    python -m tests.fuzz FOLDER tests/fuzz/corpus -max_total_time=3600

New inputs go to FOLDER; the options are libFuzzer's. So far: 685000 runs,
one fault found (`corpus/zeros-that-touch`).
"""

from __future__ import annotations

import sys

import atheris

# What only tries many bits is all noise to the fuzzer.
with atheris.instrument_imports(include=["fleece", "tests.fuzz"], exclude=["fleece.delta.mend"]):
    from tests.fuzz.target import one_input

if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
