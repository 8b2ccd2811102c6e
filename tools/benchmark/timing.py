"""Run child processes and see what they cost: time, processor time, peak memory, disturbance."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
_ENVIRONMENT = {
    name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
}
"""As where a program is installed: its modules are compiled once and not at every start."""


class BenchError(Exception):
    """A measured program failed."""


@dataclass(frozen=True)
class Usage:
    """What one run cost.

    Attributes:
        seconds: from the start of the first process to the end of the last.
        cpu: processor seconds of these processes and their children.
        peak_rss: bytes; the sum over a pipeline's processes. Never less than what this program
            itself holds, about 25 MiB a process.
        server_cpu: processor seconds of the QEMU processes that served.
        other_cpu: the share of the machine that anything else took meanwhile, 0 to 1.
    """

    seconds: float
    cpu: float
    peak_rss: int
    server_cpu: float
    other_cpu: float


class Meter:
    """Runs pipelines and measures them.

    Args:
        servers: process ids of the QEMU processes that serve them.
    """

    def __init__(self, servers: Sequence[int]) -> None:
        self._servers = list(servers)

    def run(self, *commands: Sequence[str | Path]) -> Usage:
        """Run commands joined by pipes to their end.

        Raises:
            BenchError: one failed; the message has what it printed.
        """
        busy, served, start = _busy(), self._served(), time.monotonic()
        with tempfile.TemporaryFile() as printed:
            processes = _spawn(commands, printed.fileno())
            costs = [_reap(process) for process in processes]
            seconds = time.monotonic() - start
            if any(process.returncode != 0 for process in processes):
                printed.seek(0)
                text = printed.read().decode(errors="replace")
                raise BenchError(f"{' | '.join(_shown(c) for c in commands)}:\n{text}")
        cpu = sum(cost.ru_utime + cost.ru_stime for cost in costs)
        server_cpu = self._served() - served
        other = (_busy() - busy - cpu - server_cpu) / (seconds * (os.cpu_count() or 1))
        peak = sum(cost.ru_maxrss for cost in costs) * 1024
        return Usage(seconds, cpu, peak, server_cpu, min(1.0, max(0.0, other)))

    def _served(self) -> float:
        return sum(_process_cpu(pid) for pid in self._servers)


def warm(folder: Path, size: int) -> None:
    """Touch as much memory as will be used, where a folder is in memory.

    A virtual machine gets memory from its host when it first touches it, and that is several times
    slower than touching it again: whoever runs first would pay for all who follow.

    Args:
        folder: whose file system will be written; left as it was.
        size: in bytes.
    """
    kind = subprocess.run(
        ["stat", "-f", "-c", "%T", folder], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()
    if kind != "tmpfs":
        return
    path, block = folder / "warm", bytes(range(256)) * 4096
    with path.open("wb") as file:
        for _ in range(size // len(block)):
            file.write(block)
    path.unlink()


def _spawn(commands: Sequence[Sequence[str | Path]], printed: int) -> list[subprocess.Popen[bytes]]:
    processes: list[subprocess.Popen[bytes]] = []
    for number, command in enumerate(commands):
        before = processes[-1].stdout if processes else None
        last = number == len(commands) - 1
        processes.append(
            subprocess.Popen(
                [str(word) for word in command],
                env=_ENVIRONMENT,
                stdin=before or subprocess.DEVNULL,
                stdout=printed if last else subprocess.PIPE,
                stderr=printed,
            )
        )
        if before is not None:
            before.close()
    return processes


def _reap(process: subprocess.Popen[bytes]) -> os.struct_rusage:  # type: ignore[name-defined]
    _, status, cost = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return cost


def _shown(command: Sequence[str | Path]) -> str:
    return " ".join(map(str, command))


def _process_cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def _busy() -> float:
    """Processor seconds that were not there for the idle: spent on anything, or stolen."""
    user, nice, system, _, _, irq, softirq, steal, *_ = (
        int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    )
    return (user + nice + system + irq + softirq + steal) / _TICK
