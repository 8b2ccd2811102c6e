"""This checkout against another one of fleece: each is measured by its own tools/bench, by turns.

So the other may be of any age, with a store format of its own. Both run on this interpreter, with
its packages. What is compared is fleece's side of each case; the references say how the machine was
meanwhile.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.benchmark.timing import BenchError

_HERE = Path(__file__).parents[2]


@dataclass(frozen=True)
class Round:
    """One case, once on each side: what `tools/bench --json` says of it."""

    mine: dict[str, Any]
    other: dict[str, Any]

    def ratio(self, what: str, side: str = "ours") -> float:
        """This checkout's figure through the other's; below 1 it is the better one."""
        return float(self.mine[side][what] / self.other[side][what])


def by_turns(other: Path, names: Sequence[str], options: Sequence[str], rounds: int) -> list[Round]:
    """Measure the same cases in both checkouts, in each round the other way round.

    Args:
        other: root of the other checkout.
        names: of the cases.
        options: more of the command line of `tools/bench`.
        rounds: how often.

    Raises:
        BenchError: a run failed.
    """
    found = []
    for number in range(rounds):
        order = [_HERE, other] if number % 2 else [other, _HERE]
        said = {root: _measured(root, [*names, *options]) for root in order}
        found += [
            Round(mine, theirs) for mine, theirs in zip(said[_HERE], said[other], strict=True)
        ]
        print(f"round {number + 1} of {rounds} is done", file=sys.stderr, flush=True)
    return found


def _measured(root: Path, words: Sequence[str]) -> list[dict[str, Any]]:
    with tempfile.NamedTemporaryFile("r", suffix=".json") as file:
        # A pair after one to warm up: rounds are what is repeated.
        command = [sys.executable, "-P", "-m", "tools.benchmark", *words]
        done = subprocess.run(
            [*command, "--pairs", "1", "--json", file.name],
            cwd=root,
            env=os.environ | {"PYTHONPATH": str(root)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise BenchError(f"{root}: {done.stderr.strip()}")
        results: list[dict[str, Any]] = json.load(file)["results"]
        return results


def table(rounds: Sequence[Round]) -> str:
    """The comparison for people, a line for each case."""
    lines = ["this checkout's figure through the other's (lowest to highest); below 1 is better"]
    for name in dict.fromkeys(each.mine["name"] for each in rounds):
        some = [each for each in rounds if each.mine["name"] == name]
        told = [f"{label} {_spread(some, what)}" for label, what in _FIGURES.items()]
        drift = _spread(some, "seconds", "reference")
        others = max(each.mine["ours"]["other_cpu"] for each in some)
        lines.append(f"{name}: {', '.join(told)}; references' time {drift}, others {others:.0%}")
    return "\n".join(lines)


_FIGURES = {"time": "seconds", "cpu": "cpu", "peak": "peak_rss"}


def _spread(rounds: Sequence[Round], what: str, side: str = "ours") -> str:
    ratios = [each.ratio(what, side) for each in rounds]
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
