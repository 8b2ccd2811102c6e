"""Do raw images of a rig guest's disks show one single point in time?

For each image: the journal is replayed on a copy, the file system must be free of errors, and the
writer's records must be an exact prefix 1..N (tests/rig/records.py). Across the images, in the
guest's order: no later disk, and no later kind of record, may be ahead of an earlier one, nor may
the first be more than one record ahead of the last; and no record that the guest was told to be
durable before the point may be missing.

fsck alone proves nothing: it accepts torn copies of a live disk. Needs no root and no mount.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from tests.rig.process import run, run_checked
from tests.rig.records import Finding, check_churn, check_order, check_slots

KINDS = ("order", "slots", "churn")


@dataclass(frozen=True)
class ImageState:
    """What one image holds.

    Attributes:
        path: the image.
        last: by kind, in the order of writing, the last record that is there; a kind that was
            never written is absent.
        needs_recovery: whether the journal had to be replayed: the cut was made without freeze.
    """

    path: Path
    last: dict[str, int]
    needs_recovery: bool


@dataclass
class Report:
    """The judgement of a set of images.

    Attributes:
        images: what each of them holds.
        problems: all that contradicts one point in time, in words; empty if all is well.
    """

    images: list[ImageState] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing contradicts one point in time."""
        return not self.problems


def check(
    images: Sequence[Path],
    frozen: bool = False,
    acked: int = 0,
    kinds: Sequence[str] = KINDS,
) -> Report:
    """Judge the images of all disks of a guest, taken at one point in time.

    Args:
        images: raw images with ext4, in the guest's order of disks; not changed.
        frozen: the guest's file systems were frozen, so they must be clean as they are.
        acked: the last record known to be durable before the point (`GuestMachine.acked`).
        kinds: what the writer was told to write (``rig.mode``), in the order of writing.

    Raises:
        RigError: a program is missing or an image cannot be read.
    """
    report = Report()
    for disk, image in enumerate(images):
        report.images.append(_check_image(image, disk, frozen, kinds, report.problems))
    _check_across(report, acked)
    return report


def _check_image(
    image: Path, disk: int, frozen: bool, kinds: Sequence[str], problems: list[str]
) -> ImageState:
    found: list[str] = []
    needs_recovery = "needs_recovery" in run("dumpe2fs", "-h", image).stdout
    if frozen:
        found += _fsck(image, "frozen, but not clean as it is")
        if needs_recovery:
            found.append("frozen, but the journal needs recovery")
    with tempfile.TemporaryDirectory(prefix="check-", dir=image.parent) as name:
        folder = Path(name)
        run_checked("cp", "--sparse=always", "--reflink=auto", image, folder / "copy")
        # What a boot does: replay the journal, end half-done deletions, and nothing else.
        run("e2fsck", "-p", folder / "copy")
        found += _fsck(folder / "copy", "not clean after journal replay")
        findings = {kind: _read_and_judge(folder, kind, disk) for kind in kinds}
    last: dict[str, int] = {}
    for kind, finding in findings.items():
        if finding is None:
            found.append(f"no records of kind {kind}")
        else:
            last[kind] = finding.last
            found += finding.problems
    problems += [f"{image.name}: {problem}" for problem in found]
    return ImageState(image, last, needs_recovery)


def _fsck(image: Path, meaning: str) -> list[str]:
    result = run("e2fsck", "-fn", image)
    if result.returncode == 0:
        return []
    return [f"{meaning}: {' / '.join(result.stdout.split(chr(10)))[:300]}"]


def _read_and_judge(folder: Path, kind: str, disk: int) -> Finding | None:
    """Judge one kind of record in the image `folder`/copy; None if it was never written."""
    if kind == "churn":
        files = _read_directory(folder, "churn")
        return None if files is None else check_churn(files, disk)
    name, judge = {"order": ("order.log", check_order), "slots": ("slots.bin", check_slots)}[kind]
    run("debugfs", "-R", f"dump /{name} {name}", "copy", cwd=folder)
    file = folder / name
    return judge(file.read_bytes(), disk) if file.exists() else None


def _read_directory(folder: Path, name: str) -> dict[str, bytes] | None:
    """The files of a directory of the image `folder`/copy, by name; None if it is not there."""
    run("debugfs", "-R", f"rdump /{name} .", "copy", cwd=folder)
    if not (folder / name).is_dir():
        return None
    return {file.name: file.read_bytes() for file in (folder / name).iterdir()}


def _check_across(report: Report, acked: int) -> None:
    """Compare what was written one after the other: it may fall by one record in all."""
    states = [
        (f"{image.path.name} {kind}", last)
        for image in report.images
        for kind, last in image.last.items()
    ]
    if not states:
        return
    for (name, last), (later_name, later_last) in pairwise(states):
        if later_last > last:
            report.problems.append(f"{later_name} has {later_last}, ahead of {name} with {last}")
    first, final = states[0][1], states[-1][1]
    if first - final > 1:
        report.problems.append(f"{states[0][0]} has {first}, {states[-1][0]} only {final}")
    least = min(last for _, last in states)
    if least < acked:
        report.problems.append(f"records to {acked} were durable, only {least} are everywhere")
