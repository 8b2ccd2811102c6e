"""Let single system calls of the verbs fail, and look at what comes of it.

Prints each trial that showed what must not be, and in the end how many there were; exit code 1 if
there was any (`tests.hostile.failing_calls`).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests.hostile.failing_calls import VERBS, Wrong, bench, sample


def main() -> int:
    """Parse the command line, and run."""
    names = [verb.name for verb in VERBS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--verb", action="append", choices=names, help="default: all")
    parser.add_argument("--count", type=int, default=1000, help="trials; default: 1000")
    parser.add_argument("--seed", type=int, default=0, help="of the order")
    options = parser.parse_args()
    verbs = tuple(verb for verb in VERBS if not options.verb or verb.name in options.verb)
    tried = succeeded = wrong = 0
    with tempfile.TemporaryDirectory(prefix="failingcalls-") as folder, bench(Path(folder)) as here:
        for trial in sample(here, options.count, options.seed, verbs):
            tried += 1
            try:
                succeeded += here.check(trial)
            except Wrong as error:
                wrong += 1
                print(json.dumps({"trial": str(trial), "wrong": str(error)}), flush=True)
    print(json.dumps({"tried": tried, "succeeded": succeeded, "wrong": wrong}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
