"""The verbs that look into points without reading data: `diff` and `map`."""

from __future__ import annotations

import fleece
from fleece.cancel import CancelToken
from fleece.cli import heat
from fleece.cli.output import Output
from fleece.cli.words import DiffWords, MapWords
from fleece.errors import UsageError
from fleece.terminal import counted, human

_SHOWN = 20


def diff(output: Output, cancel: CancelToken, words: DiffWords) -> None:
    """`fleece diff STORE A B`."""
    catalogue = fleece.open_store(words.store, words.secret, cancel).catalogue()
    before, after = catalogue.find(words.old, words.guest), catalogue.find(words.new, words.guest)
    known = sorted({*before.disks, *after.disks})
    for name in words.disks:
        if name not in known:
            raise UsageError(
                f"neither point has a disk {name}", hint=f"there are: {', '.join(known)}"
            )
    total = 0
    for name in dict.fromkeys(words.disks or known):
        total += _diff_disk(output, cancel, catalogue, name, (before, after))
    if not words.disks:
        _diff_machine(output, catalogue, before, after)
    output.succeed("", old=before.id, new=after.id, changed_bytes=total)


def _diff_machine(
    output: Output,
    catalogue: fleece.Catalogue,
    before: fleece.StoredPoint,
    after: fleece.StoredPoint,
) -> None:
    """Tell what changed of the machine."""
    for part in fleece.compare_parts(catalogue, before, after):
        output.row(
            "machine",
            (f"{part.name}: {part.change}", *part.lines),
            name=part.name,
            part=part.kind,
            change=part.change,
            diff=part.lines,
        )


def _diff_disk(
    output: Output,
    cancel: CancelToken,
    catalogue: fleece.Catalogue,
    name: str,
    points: tuple[fleece.StoredPoint, fleece.StoredPoint],
) -> int:
    """Tell what changed of one disk; gives the bytes."""
    old, new = (point.disks.get(name) for point in points)
    count = total = 0
    with fleece.compare_points(catalogue, old, new) as comparison:
        for start, end in comparison.ranges():
            cancel.check()
            count, total = count + 1, total + end - start
            if output.machine or count <= _SHOWN:
                text = f"{name}: {end - start} bytes at {start}"
                output.row("differs", text, disk=name, start=start, end=end)
    sizes = [None if entry is None else entry.header.size for entry in (old, new)]
    more = f" (the first {_SHOWN} are shown; --json lists all)" if count > _SHOWN else ""
    output.row(
        "difference",
        f"{name}: {human(total)} in {counted(count, 'extent')}{more}{_other_size(sizes)}",
        disk=name,
        extents=count,
        changed_bytes=total,
        old_size=sizes[0],
        new_size=sizes[1],
        old_root=old.root if old else None,
        new_root=new.root if new else None,
        nodes=comparison.fetched,
    )
    return total


def _other_size(sizes: list[int | None]) -> str:
    old, new = sizes
    if old is None:
        return ", a new disk"
    if new is None:
        return ", a disk that is gone"
    return "" if old == new else f", and its size is {new}, before it was {old} bytes"


def draw(output: Output, cancel: CancelToken, words: MapWords) -> None:
    """`fleece map STORE POINT DISK`."""
    catalogue = fleece.open_store(words.store, words.secret, cancel).catalogue()
    found = catalogue.find(words.point, words.guest, words.disk, output.listen)
    entry = found.disk(words.disk)
    title = f"disk {words.disk} of {entry.header.guest} at point {entry.header.point.id}"
    with catalogue.chain(entry) as chain:
        picture = fleece.picture_of(chain, heat.CELLS)
        if words.svg is not None:
            heat.write_svg(words.svg, picture, title)
        if output.machine:
            _extent_lines(output, cancel, chain)
        else:
            frame = heat.Frame.of(output.size())
            output.answer(title)
            fitting = frame.cells == heat.CELLS
            fit = picture if fitting else fleece.picture_of(chain, frame.cells)
            for line in heat.lines(fit, frame):
                output.drawn(line)
    points = [
        {"point": ref.id, "time": ref.time, "data_bytes": data, "zero_bytes": zeros}
        for ref, data, zeros in zip(
            picture.points, picture.data_bytes.tolist(), picture.zeros.tolist(), strict=True
        )
    ]
    output.succeed("", disk=words.disk, size=picture.size, points=points, svg=words.svg)


def _extent_lines(output: Output, cancel: CancelToken, chain: fleece.Chain) -> None:
    points = [delta.header.point.id for delta in chain.deltas]
    for extent in fleece.mapped_extents(chain):
        cancel.check()
        output.row(
            "extent",
            "",
            start=extent.start,
            length=extent.end - extent.start,
            zero=extent.zero,
            data=not extent.zero,
            point=points[extent.owner],
        )
