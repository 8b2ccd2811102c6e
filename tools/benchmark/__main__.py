"""The command line of the measurements; prints a table, writes JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tools.benchmark import (
    buckets,
    checkouts,
    dense,
    fulls,
    growth,
    looks,
    peer,
    restores,
    scale,
    shards,
    verbs,
)
from tools.benchmark.cases import CASES, GIB, MIB, SWEEPS, Bench, Case, Setting, Side, phases
from tools.benchmark.timing import BenchError, Usage, warm

_CASES = {
    **fulls.CASES,
    **peer.CASES,
    "serve": looks.serve,
    **scale.CASES,
    **restores.CASES,
    **CASES,
    "restore-deep": restores.deep,
}
LOOKS = (
    looks.LOOKS
    | scale.LOOKS
    | verbs.LOOKS
    | growth.LOOKS
    | buckets.LOOKS
    | shards.LOOKS
    | {"dense": dense.dense}
)

NAMES = ("phases", *SWEEPS, *LOOKS, *_CASES)
"""All that can be measured, in the order in which it is: the last ones change the disk."""


def measure(case: Case, pairs: int) -> list[tuple[Usage, Usage]]:
    """Run both sides by turns; the first pair warms up and is thrown away."""
    return [(_once(case.ours), _once(case.reference)) for _ in range(pairs + 1)][1:]


def _once(side: Side) -> Usage:
    side.before()
    usage = side.run()
    side.after()
    return usage


def summary(name: str, case: Case, runs: list[tuple[Usage, Usage]]) -> dict[str, Any]:
    """The medians, and everything that they come from."""
    ratios = [reference.seconds / ours.seconds for ours, reference in runs]
    return {
        "name": name,
        "facts": case.facts,
        "ours": _side(case.ours, [ours for ours, _ in runs]),
        "reference": _side(case.reference, [reference for _, reference in runs]),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def _side(side: Side, usages: list[Usage]) -> dict[str, Any]:
    names = ("seconds", "cpu", "server_cpu", "other_cpu", "peak_rss")
    medians = {name: statistics.median(getattr(usage, name) for usage in usages) for name in names}
    return (
        {"label": side.label, "size": side.size}
        | medians
        | {"runs": [asdict(usage) for usage in usages]}
    )


def table(found: dict[str, Any]) -> str:
    """One comparison for people."""
    low, high = min(found["ratios"]), max(found["ratios"])
    lines = [
        f"{found['name']}: {found['ratio']:.2f} times the reference's speed "
        f"({low:.2f} to {high:.2f}, {len(found['ratios'])} pairs)"
    ]
    for side in (found["ours"], found["reference"]):
        speed = f"{side['size'] / MIB / side['seconds']:6.0f} MiB/s" if side["size"] else " " * 12
        lines.append(
            f"  {side['label']:38} {side['seconds']:6.2f} s {speed}"
            f"  cpu {side['cpu']:5.2f} s  qemu {side['server_cpu']:5.2f} s"
            f"  peak {side['peak_rss'] / MIB:4.0f} MiB  others {side['other_cpu']:4.0%}"
        )
    if facts := found["facts"]:
        lines.append("  " + ", ".join(f"{key} {value:.0f}" for key, value in facts.items()))
    return "\n".join(lines)


def show_phases(bench: Bench, runs: int) -> dict[str, Any]:
    """Print the median time of each phase of a full backup."""
    found = [phases(bench) for _ in range(runs + 1)][1:]
    medians = {
        name: statistics.median(spans[at][1] for spans in found)
        for at, (name, _) in enumerate(found[0])
    }
    print(f"phases of a full backup, level 1, median of {runs}:")
    for name, seconds in medians.items():
        print(f"  {name:30} {seconds:6.3f} s")
    return {"name": "phases", "seconds": medians}


def show_sweep(name: str, bench: Bench, runs: int) -> dict[str, Any]:
    """Print what each of several ways costs."""
    print(f"full backup, {name}, median of {runs}:")
    found = []
    for label, seconds, stored in SWEEPS[name](bench, runs):
        print(f"  {label:30} {seconds:6.2f} s  {stored:7.0f} MiB stored", flush=True)
        found.append({"label": label, "seconds": seconds, "stored_mib": stored})
    return {"name": name, "ways": found}


def show_look(name: str, bench: Bench, runs: int) -> dict[str, Any]:
    """Print the figures of something that has no reference."""
    figures = LOOKS[name](bench, runs)
    print(f"{name}, median of {runs}:")
    for what, value in figures.items():
        print(f"  {what:30} {value:14.3f}", flush=True)
    return {"name": name, "figures": figures}


def machine() -> dict[str, Any]:
    """What this was measured on."""
    cpu = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    versions = {
        tool: subprocess.run([tool, "--version"], capture_output=True, text=True, check=True)
        .stdout.strip()
        .split("\n")[0]
        for tool in ("qemu-storage-daemon", "nbdcopy", "zstd")
    }
    return {
        "cpu": cpu[0] if cpu else platform.machine(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
    } | versions


def _one(name: str, bench: Bench, pairs: int) -> dict[str, Any]:
    """Measure and print one of the names of the command line."""
    if name == "phases":
        return show_phases(bench, pairs)
    if name in SWEEPS:
        return show_sweep(name, bench, pairs)
    if name in LOOKS:
        return show_look(name, bench, pairs)
    with _CASES[name](bench) as case:
        found = summary(name, case, measure(case, pairs))
    print(table(found), flush=True)
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tools/bench",
        description="Measure fleece against other programs, by turns.",
        epilog="docs/benchmarks.rst tells what each side includes.",
    )
    parser.add_argument(
        "names",
        nargs="+",
        choices=[*NAMES, "all"],
        metavar="NAME",
        help=f"one or more of {', '.join(NAMES)}; or all",
    )
    parser.add_argument("--size", type=float, default=4.0, metavar="GIB", help="default: 4")
    parser.add_argument("--pairs", type=int, default=5, help="pairs of runs; default: 5")
    parser.add_argument(
        "--dir",
        type=Path,
        default=Path("/dev/shm"),
        help="where to work, about 3 times the size; default: /dev/shm",
    )
    parser.add_argument(
        "--format",
        choices=("qcow2", "raw"),
        default="qcow2",
        dest="fmt",
        help="of the image; default: qcow2",
    )
    parser.add_argument(
        "--zeros",
        choices=("holes", "written"),
        default="holes",
        help="whether the zero third is left out of the image; default: holes",
    )
    parser.add_argument(
        "--dirty",
        type=int,
        default=160,
        metavar="MIB",
        help="what incremental changes; default: 160",
    )
    parser.add_argument(
        "--sync", action="store_true", help="full: the reference syncs its file too, as fleece does"
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="CHECKOUT",
        help="compare with fleece of another checkout, whose own tools/bench is run by turns with "
        "this one; --pairs says how often",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    return parser.parse_args()


def _against(options: argparse.Namespace, names: list[str], about: dict[str, Any]) -> int:
    """Compare two checkouts, by the cases that have figures of two sides."""
    if bad := [name for name in names if name not in _CASES]:
        print(f"tools/bench: --against takes no {', '.join(bad)}", file=sys.stderr)
        return 2
    more = ["--size", str(options.size), "--dir", str(options.dir), "--format", options.fmt]
    more += ["--zeros", options.zeros, "--dirty", str(options.dirty)]
    more += ["--sync"] if options.sync else []
    try:
        rounds = checkouts.by_turns(options.against.resolve(), names, more, options.pairs)
    except BenchError as error:
        print(f"tools/bench: {error}", file=sys.stderr)
        return 1
    print(checkouts.table(rounds))
    if options.json is not None:
        said = {"machine": about, "against": str(options.against)}
        found = [asdict(each) for each in rounds]
        options.json.write_text(json.dumps(said | {"rounds": found}, indent=1) + "\n")
    return 0


def main() -> int:
    """Measure what the command line names."""
    options = _arguments()
    names = [name for name in NAMES if name in options.names or "all" in options.names]
    about = machine()
    if options.against is not None:
        return _against(options, names, about)
    folder = Path(tempfile.mkdtemp(prefix="fleece-bench-", dir=options.dir))
    size = int(options.size * GIB) // MIB * MIB
    setting = Setting(
        folder, size, options.fmt, options.zeros == "holes", options.dirty * MIB, options.sync
    )
    found: list[dict[str, Any]] = []
    try:
        with ExitStack() as stack:
            warm(folder, 3 * size)
            bench = Bench(setting, stack)
            for name in names:
                found.append(_one(name, bench, options.pairs))
    except BenchError as error:
        print(f"tools/bench: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    about["load_after"] = os.getloadavg()[0]
    chosen = asdict(setting) | {"folder": str(options.dir), "pairs": options.pairs}
    if options.json is not None:
        options.json.write_text(
            json.dumps({"machine": about, "setting": chosen, "results": found}, indent=1) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
