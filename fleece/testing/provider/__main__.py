"""`python -m fleece.testing.provider [--write COMMAND] PROGRAM [ARGS]`."""

from __future__ import annotations

import argparse
import shlex
import sys

from fleece.errors import FleeceError
from fleece.source.provider.text import parse
from fleece.testing.provider.checks import verdicts


def main() -> int:
    """Test a provider, and print what became of each promise; gives the exit code."""
    made = argparse.ArgumentParser(
        prog="python -m fleece.testing.provider",
        description="Test a provider of points (docs/providers.rst) on a guest that is its own.",
    )
    made.add_argument(
        "--write",
        metavar="COMMAND",
        help="has the guest write: the name of a disk, an offset and a length in bytes are added, "
        "and it must change what is there; default: what needs it is not tested",
    )
    made.add_argument("--only", metavar="CHECK", help="do this check alone")
    made.add_argument("program", metavar="PROGRAM", help="its path, or a name as of provider:")
    made.add_argument("words", metavar="ARGS", nargs=argparse.REMAINDER)
    given = made.parse_args()
    write = None if given.write is None else shlex.split(given.write)
    kept, broken = 0, 0
    try:
        command = parse(shlex.join([given.program, *given.words]))
        for one in verdicts(command, write, given.only):
            kept += one.failed is None and one.skipped is None
            broken += one.failed is not None
            if one.failed is not None:
                print(f"FAILED  {one.name}: {one.failed}\n        {one.promise}", flush=True)
            elif one.skipped is not None:
                print(f"skipped {one.name}: {one.skipped}", flush=True)
            else:
                print(f"kept    {one.name}", flush=True)
    except FleeceError as error:
        print(f"fleece.testing.provider: {error}", file=sys.stderr)
        return int(error.code)
    print(f"{kept} kept, {broken} failed")
    return 1 if broken or not kept else 0


if __name__ == "__main__":
    sys.exit(main())
