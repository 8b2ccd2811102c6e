"""The verb `doctor`: what this host lacks, what a source can do, which disks and bitmaps it has."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import fleece
from fleece.cancel import CancelToken
from fleece.cli.output import Output
from fleece.cli.words import DoctorWords
from fleece.errors import UsageError
from fleece.terminal import human


def doctor(output: Output, cancel: CancelToken, words: DoctorWords) -> None:
    """`fleece doctor [SOURCE [STORE]]`."""
    needs = fleece.examine_host(_path(words.scratch), words.store, cancel)
    for need in needs:
        _need_row(output, need)
    missing = [need.name for need in needs if not need.ready]
    if words.source is None:
        output.succeed("", missing=missing)
        return
    way = fleece.SourceOptions(_path(words.scratch), connect=words.connect)
    with fleece.open_source(words.source, way, cancel) as opened:
        if not isinstance(opened, fleece.Examinable):
            raise UsageError("this kind of source does not describe itself", where=words.source)
        report = opened.examine()
    _source_rows(output, report)
    missing += [] if report.refusal is None else ["guest"]
    output.succeed("", disks=len(report.disks), missing=missing)


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _need_row(output: Output, need: fleece.Need) -> None:
    verdict = "ready" if need.trouble is None else f"NOT READY: {need.trouble}"
    verdict += "" if need.room is None else f", {human(need.room)} left"
    verdict += "" if need.hint is None else f"; {need.hint}"
    text = f"{need.name} (for {need.purpose}): {verdict}"
    output.row("need", text, ready=need.ready, **asdict(need))


def _source_rows(output: Output, report: fleece.Report) -> None:
    who = "a guest's disk" if report.guest is None else f"guest {report.guest}"
    who += f", {report.identity}" if report.identity else ""
    now = "a point can be taken" if report.refusal is None else f"NOT READY: {report.refusal}"
    output.row(
        report.kind.lower(),
        f"{report.kind} {report.version}, {who}; {report.state or 'no machine'}: {now}",
        version=report.version,
        guest=report.guest,
        identity=None if report.identity is None else asdict(report.identity),
        state=report.state,
        refusal=report.refusal,
    )
    for ability in report.abilities:
        state = "yes" if ability.present else "no"
        output.row(
            "ability", f"  {ability.what}: {state}", name=ability.name, present=ability.present
        )
    for line in report.advice:
        output.row("advice", f"  {line}", what=line)
    for disk in report.disks:
        _disk_rows(output, disk)


def _disk_rows(output: Output, disk: fleece.ExaminedDisk) -> None:
    obstacle = disk.obstacle
    verdict = "can be pulled" if obstacle is None else f"cannot be pulled: {obstacle}"
    output.row(
        "disk",
        f"disk {disk.name} ({disk.format}, {human(disk.size)}, {disk.place}): {verdict}",
        disk=disk.name,
        size=disk.size,
        format=disk.format,
        pull=obstacle is None,
        obstacle=obstacle,
        **disk.details,
    )
    for bitmap in disk.bitmaps:
        each = bitmap.granularity
        output.row(
            "bitmap",
            f"  bitmap {bitmap.name}: {bitmap.state}, {human(bitmap.count)} dirty"
            f"{'' if each is None else f', granularity {human(each)}'}",
            disk=disk.name,
            state=bitmap.state,
            name=bitmap.name,
            granularity=bitmap.granularity,
            count=bitmap.count,
            **bitmap.details,
        )
