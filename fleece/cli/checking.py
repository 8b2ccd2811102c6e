"""The verbs that prove: `verify`, in whole or in parts, `status` of what is proven, and `root`."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict

import fleece
from fleece.amounts import fraction_of
from fleece.cancel import CancelToken
from fleece.cli.choosing import guest_choice
from fleece.cli.output import Output
from fleece.cli.table import Column, table
from fleece.cli.words import RootWords, StatusWords, VerifyWords
from fleece.errors import StoreError, UsageError, VerifyError
from fleece.terminal import counted, human, local_time, span


def verify(output: Output, cancel: CancelToken, words: VerifyWords) -> None:
    """`fleece verify STORE [POINT] [--against IMAGE]`, `verify STORE [--max-age] [--fraction]`."""
    place = fleece.open_store(words.store, words.secret, cancel)
    output.charge(place.usage)
    catalogue = place.catalogue()
    if words.max_age is not None or words.fraction is not None:
        others = words.point, words.against, words.disk, words.image_format
        if any(word is not None for word in others):
            raise UsageError(
                "--max-age and --fraction do not go with POINT, --against, --disk or --format"
            )
        _scrub(output, cancel, catalogue, words)
        return
    if words.against is not None:
        _verify_image(output, cancel, catalogue, words.against, words)
        return
    if words.disk is not None or words.image_format is not None:
        raise UsageError("--disk and --format need --against")
    choice = guest_choice(words.guest, words.shard)
    if words.point is not None and words.shard is not None:
        raise UsageError("--shard does not go with POINT")
    points = None if words.point is None else [catalogue.find(words.point, words.guest)]
    result = fleece.verify_store(
        catalogue, points, output.listen, cancel, guest=choice, record=True
    )
    fields = asdict(result)
    if result.errors:
        raise _failed(
            f"{counted(len(result.errors), 'error')} in {words.store}", fields, StoreError
        )
    output.succeed(
        [
            output.work(f"read {human(result.read_bytes)}", result.read_bytes),
            f"no damage in {counted(len(result.points), 'point')}: "
            f"{counted(result.deltas, 'delta')}",
        ],
        **fields,
    )


def _scrub(
    output: Output,
    cancel: CancelToken,
    catalogue: fleece.Catalogue,
    words: VerifyWords,
) -> None:
    rules = fleece.ScrubRules(
        None if words.max_age is None else fleece.Duration.parse(words.max_age),
        1.0 if words.fraction is None else fraction_of("--fraction", words.fraction),
        guest_choice(words.guest, words.shard),
    )
    result = fleece.scrub(catalogue, rules, output.listen, cancel)
    fields = asdict(result)
    if result.errors:
        raise _failed(
            f"{counted(len(result.errors), 'error')} in {catalogue.where}", fields, StoreError
        )
    output.succeed(
        [
            output.work(f"read {human(result.read_bytes)}", result.read_bytes),
            f"{counted(result.deltas, 'delta')} checked, no damage; "
            f"{result.left} of {result.due} due are left for the next run",
        ],
        **fields,
    )


def _verify_image(
    output: Output,
    cancel: CancelToken,
    catalogue: fleece.Catalogue,
    image: str,
    words: VerifyWords,
) -> None:
    if words.point is None:
        raise UsageError("--against needs a POINT to compare the image with")
    found = catalogue.find(words.point, words.guest, words.disk, output.listen)
    if words.disk is None and len(found.disks) > 1:
        raise UsageError(
            f"point {found.id} has several disks: {', '.join(sorted(found.disks))}",
            hint="name one with --disk",
        )
    entry = found.disk(words.disk or next(iter(found.disks)))
    with contextlib.ExitStack() as stack:
        chain = stack.enter_context(catalogue.chain(entry))
        opened = stack.enter_context(
            fleece.open_image(image, words.image_format, listener=output.listen, cancel=cancel)
        )
        result = fleece.compare_image(chain, opened, output.listen, cancel)
    for start, end in result.differing:
        output.row("differs", f"differs: bytes {start} to {end - 1}", start=start, end=end)
    fields: dict[str, object] = {"points": [found.id], "errors": [], "root": result.root}
    if result.root != entry.root:
        text = f"{human(result.differing.total)} differ from point {found.id}"
        fields |= {"errors": [text]}
        raise _failed(text, fields, VerifyError)
    output.succeed(
        f"{image} is disk {entry.header.disk} at point {found.id}: root {result.root}", **fields
    )


def _failed(
    what: str, fields: dict[str, object], family: type[fleece.FleeceError]
) -> fleece.FleeceError:
    """An error that brings its result's fields along for machine output."""
    error = family(what)
    error.fields = fields
    return error


def status(output: Output, cancel: CancelToken, words: StatusWords) -> None:
    """`fleece status STORE`."""
    place = fleece.open_store(words.store, words.secret, cancel)
    output.charge(place.usage)
    found = fleece.status(place.catalogue())
    if output.machine:
        for guest in found.guests:
            output.row("guest", "", **asdict(guest))
    else:
        output.listing(table(_COLUMNS, [*map(_row, found.guests)], output.width()))
    _tell_foreign(output, found.foreign)
    if found.problems:
        for problem in found.problems if not output.machine else ():
            output.say(f"PROBLEM: {problem}")
        fields: dict[str, object] = {"problems": found.problems}
        raise _failed(
            f"{counted(len(found.problems), 'problem')} in {words.store}", fields, StoreError
        )
    output.succeed("", guests=len(found.guests), problems=[])


def _tell_foreign(output: Output, paths: Sequence[str]) -> None:
    """Tell what in the store is not fleece's."""
    for path in paths if output.machine else paths[:_SHOWN]:
        output.row("foreign", f"not fleece's, ignored: {path}", path=path)
    if len(paths) > _SHOWN and not output.machine:
        output.row("", f"{len(paths) - _SHOWN} more are not fleece's; --json lists all")


_SHOWN = 20
_COLUMNS = (
    Column("GUEST", gives_way=True),
    Column("LAST GOOD POINT"),
    Column("AGE", right=True),
    Column("POINTS", right=True),
    Column("DEPTH", right=True),
    Column("SIZE", right=True),
    Column("GROWTH", right=True),
    Column("VERIFIED", gives_way=True),
)


def _row(guest: fleece.GuestStatus) -> tuple[str, ...]:
    if guest.failed:
        checked = f"{counted(guest.failed, 'delta')} FAILED"
    elif guest.unverified:
        checked = f"{counted(guest.unverified, 'delta')} never"
    else:
        checked = f"all since {local_time(guest.verified)}" if guest.verified else ""
    return (
        guest.guest,
        guest.point or "NONE",
        "" if guest.age is None else span(guest.age),
        str(guest.points),
        str(guest.depth),
        human(guest.stored_bytes),
        f"{human(guest.growth_bytes)}/{fleece.GROWTH_DAYS}d",
        checked,
    )


def root(output: Output, cancel: CancelToken, words: RootWords) -> None:
    """`fleece root IMAGE`."""
    algorithm = {known.name: known for known in (fleece.XXH3_128, fleece.BLAKE3)}[words.hash_name]
    with fleece.open_image(
        words.image, words.image_format, listener=output.listen, cancel=cancel
    ) as disk:
        geometry = fleece.Geometry(disk.size, algorithm=algorithm)
        found = fleece.disk_root(disk, output.listen, cancel, geometry).hex()
        size = disk.size
    output.answer(found)
    output.succeed("", root=found, size=size, image=words.image)
