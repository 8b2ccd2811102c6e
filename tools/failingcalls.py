"""Let single system calls of the verbs fail, and look at what comes of it.

Prints each trial that showed what must not be, and in the end how many there were; exit code 1 if
there was any (`tests.hostile.failing_calls`, and
`tests.hostile.failing_qemu` for the verbs that need a QEMU).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.hostile import failing_calls, failing_qemu
from tests.hostile.failing_calls import Place, Verb, Wrong, sample


def main() -> int:
    """Parse the command line, and run."""
    names = [verb.name for verb in (*failing_calls.VERBS, *failing_qemu.VERBS)]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--verb", action="append", choices=names, help="default: all")
    parser.add_argument("--count", type=int, default=1000, help="trials of each half; 1000")
    parser.add_argument("--seed", type=int, default=0, help="of the order")
    options = parser.parse_args()
    wrong = 0
    for place, known in (
        (failing_calls.bench, failing_calls.VERBS),
        (failing_qemu.living, failing_qemu.VERBS),
    ):
        verbs = tuple(verb for verb in known if not options.verb or verb.name in options.verb)
        if verbs:
            with (
                tempfile.TemporaryDirectory(prefix="failingcalls-") as folder,
                place(Path(folder)) as here,
            ):
                wrong += _tried(here, verbs, options.count, options.seed)
    return 1 if wrong else 0


def _tried(here: Place, verbs: Sequence[Verb], count: int, seed: int) -> int:
    """Try that many calls; how many showed what must not be."""
    known = sum(len(here.trials(verb)) for verb in verbs)
    tried = succeeded = wrong = 0
    for trial in sample(here, count, seed, verbs):
        tried += 1
        try:
            succeeded += here.check(trial)
        except Wrong as error:
            wrong += 1
            print(json.dumps({"trial": str(trial), "wrong": str(error)}), flush=True)
    told = {"known": known, "tried": tried, "succeeded": succeeded, "wrong": wrong}
    print(json.dumps(told), flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
