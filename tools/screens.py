"""What commands print, from real runs, for docs/screens.rst."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.rig.browser import browser

_OUT = Path(__file__).parents[1] / "docs" / "screens"
_GUESTS = "web1", "mail"
_POINTS = 4
_COLUMNS = "100"


def _fleece(*words: str, shown: Path | None = None) -> None:
    """Run a command; what it prints goes to a file, after the line that calls it."""
    done = subprocess.run(
        [sys.executable, "-m", "fleece", *words],
        env=os.environ | {"COLUMNS": _COLUMNS, "TZ": "UTC"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"tools/screens: fleece {' '.join(words)}:\n{done.stdout}")
    if shown is not None:
        shown.write_text(f"$ fleece {' '.join(words)}\n{done.stdout}")


def _written(image: str, number: int) -> None:
    """A guest's work between two points: new data, data that is replaced, data that is removed."""
    noise = Path("noise")
    noise.write_bytes(os.urandom(1 << 20))
    words = []
    for part in range(24 >> number):
        offset = (part * (11 + 5 * number) + 37 * number) % 240
        words += ["-c", f"write -s {noise} {offset}M 1M"]
    words += [
        "-c",
        f"write -P {0x41 + number} {200 + 8 * number}M 4M",
        "-c",
        f"discard {number}M 1M",
    ]
    subprocess.run(["qemu-io", *words, image], check=True, stdout=subprocess.DEVNULL)


def _runs() -> None:
    """All of it, in the current folder."""
    _fleece("init", "backup", shown=_OUT / "init.txt")
    for guest in _GUESTS:
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", f"{guest}.qcow2", "256M"], check=True
        )
    for number in range(_POINTS):
        for guest in _GUESTS:
            _written(f"{guest}.qcow2", number)
            name = "full.txt" if number == 0 else "incremental.txt"
            shown = _OUT / name if guest == "web1" else None
            source = f"image:vda={guest}.qcow2"
            _fleece("backup", source, "backup", "--guest", guest, shown=shown)
    _fleece("tag", "backup", "latest", "--guest", "web1", "--add", "before-upgrade")
    _fleece("pin", "backup", "latest", "--guest", "mail")
    _fleece("verify", "backup", shown=_OUT / "verify.txt")
    for verb in ("list", "status", "stats"):
        _fleece(verb, "backup", shown=_OUT / f"{verb}.txt")
    _fleece("map", "backup", "latest", "vda", "--guest", "web1", shown=_OUT / "map.txt")
    _fleece("map", "backup", "latest", "vda", "--guest", "web1", "--svg", str(_OUT / "map.svg"))
    restored = "restore", "backup", "latest", "vda", "restored.raw", "--guest", "web1"
    _fleece(*restored, shown=_OUT / "restore.txt")
    _fleece("report", "backup", "--html", "report.html")
    with browser() as chromium:
        page = chromium.new_page(viewport={"width": 900, "height": 700})
        page.goto(Path("report.html").resolve().as_uri())
        page.screenshot(path=_OUT / "report.png", full_page=True)


def main() -> None:
    """Write all screens anew."""
    shutil.rmtree(_OUT, ignore_errors=True)
    _OUT.mkdir()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        _runs()


if __name__ == "__main__":
    main()
