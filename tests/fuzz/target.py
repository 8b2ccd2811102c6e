"""What is run on every input: all readers of deltas. They may refuse it, and nothing else."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator

import zstandard

from fleece.delta.chain import Chain
from fleece.delta.check import Walk
from fleece.delta.layout import Kind, Tag
from fleece.delta.salvage import Survey, Surveyor, write_salvaged
from fleece.delta.wreck import Wreck
from fleece.engine.restore.proof import Source, prove
from fleece.errors import DeltaError, FleeceError
from fleece.extents import Extents
from fleece.store.loose import open_delta, open_wreck
from fleece.tree import BlankDisk
from tests.fuzz.repair import repaired


def one_input(data: bytes) -> None:
    """Read some bytes as a delta: as they are, with a sound header, and with hashes that fit.

    Raises:
        AssertionError: what a reader gives contradicts itself.
        Exception: any other than a `FleeceError` is a fault.
    """
    for read, content in (
        (_read_whole, data),
        (_salvage, repaired(data, (Tag.HEADER,))),
        (_salvage, repaired(data)),
        (_read_whole, repaired(data)),
    ):
        with _file(content) as path, contextlib.suppress(FleeceError):
            read(path)


@contextlib.contextmanager
def _file(content: bytes) -> Iterator[str]:
    descriptor = os.memfd_create("delta")
    try:
        os.write(descriptor, content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _read_whole(path: str) -> None:
    with open_delta(path) as delta:
        unpack = zstandard.ZstdDecompressor()
        for page in delta.pages:
            if page.tag is Tag.TREE:
                delta.tree_page(page)
        for row in delta.rows().tolist():
            delta.record_at(*row)
        walk = Walk(delta)
        for placed in walk:
            if placed.record.kind is Kind.DATA:
                frame = delta.read_at(placed.frame_position, placed.record.frame_length)
                delta.check_frame(placed.record, frame)
                delta.unpack(placed.record, frame, unpack)
        walk.finish(BlankDisk(delta.geometry))
        if delta.header.parent is None:
            Chain([delta]).map()
            _is_whole_to_salvage(path)


def _is_whole_to_salvage(path: str) -> None:
    with open_wreck(path) as wreck:
        found = survey_of(wreck)
        assert found.held() == Extents.whole(wreck.geometry.size)
        proof = prove([Source(wreck, found)], [], wreck.root)
        assert proof.root == wreck.root


def _salvage(path: str) -> None:
    with open_wreck(path) as wreck:
        found = survey_of(wreck)
        prove([Source(wreck, found)], [], wreck.root)
        sink = io.BytesIO()
        write_salvaged(sink, wreck, found, lambda length: None)
    with _file(sink.getvalue()) as again, open_wreck(again) as saved:
        kept = survey_of(saved)
        assert kept.held() == found.held()
        assert (kept.lost, kept.uncertain) == (found.lost, found.uncertain)


def survey_of(wreck: Wreck) -> Survey:
    """As `fleece.engine.restore.salvage.survey`, without threads."""
    unpack = zstandard.ZstdDecompressor()
    surveyor = Surveyor(wreck)
    for item in wreck.remnants():
        try:
            if item.frame is None:
                raise DeltaError("damaged")
            if item.record.kind is Kind.DATA:
                wreck.unpack(item.record, item.frame, unpack)
        except DeltaError:
            surveyor.broken(item.record)
        else:
            surveyor.proven(item.record, item.position)
    return surveyor.finish()
