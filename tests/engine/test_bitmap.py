"""`fleece bitmap`: what a store needs stays, what none needs goes when it is named."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from tests.engine.scene import GUEST, INTACT, KIB64, ROOT, Json, Moment, Ran, Scene, flip


def _bitmap(scene: Scene, *words: object) -> Ran:
    named = () if not words or str(words[0]).startswith("--") else ("--guest", GUEST)
    return INTACT.run("bitmap", scene.source, *words, *named, "--json")


@pytest.fixture
def two(scene: Scene) -> tuple[Scene, Json, Json]:
    """A disk with backups in two stores, and the segment of each."""
    scene.take()
    scene.take(store=scene.folder / "other")
    scene.writer().write(0, b"x" * KIB64)
    told = _bitmap(scene, scene.store, scene.folder / "other").succeeded().named("segment")
    found = {segment["stores"][0]: segment for segment in told}
    assert len(told) == 2
    return scene, found[str(scene.store)], found[str(scene.folder / "other")]


def test_each_segment_is_listed_with_the_store_that_needs_it(
    two: tuple[Scene, Json, Json],
) -> None:
    scene, mine, other = two
    assert mine["chain"] != other["chain"]
    assert {mine["bitmap"], other["bitmap"]} == set(scene.segments())
    assert (mine["disk"], mine["state"], mine["count"]) == ("d0", "recording", KIB64)
    assert mine["point"] == scene.newest()
    told = _bitmap(scene, scene.store).succeeded()
    assert [segment["stores"] for segment in told.named("segment")].count([]) == 1
    assert (told.result["segments"], told.result["dropped"]) == (2, 0)
    shown = INTACT.run("bitmap", scene.source).succeeded().out
    assert shown.count("needed by no STORE given") == 2


def test_what_no_store_needs_goes_and_the_other_chain_goes_on(
    two: tuple[Scene, Json, Json],
) -> None:
    scene, mine, other = two
    shutil.rmtree(scene.folder / "other")
    ran = _bitmap(scene, scene.store, "--drop", other["chain"]).succeeded()
    assert [segment["bitmap"] for segment in ran.named("segment")] == [other["bitmap"]]
    assert ran.result["dropped"] == 1
    assert scene.segments() == [mine["bitmap"]]
    scene.take("incremental")
    scene.check_exact()


def test_what_a_store_needs_is_never_dropped(two: tuple[Scene, Json, Json]) -> None:
    scene, mine, _ = two
    before = scene.segments()
    _bitmap(scene, scene.store, "--drop", mine["chain"]).failed(5, "needs the segments")
    _bitmap(scene, "--drop", mine["chain"][:6]).failed(4, "no segment of chain")
    (delta,) = scene.store.rglob("*.fleece")
    flip(delta, 20)
    refused = _bitmap(scene, scene.store, "--drop", mine["chain"])
    refused.failed(5, "is unknown because of 1 damaged file")
    flip(delta, 20)
    assert scene.segments() == before
    scene.take("incremental")


def test_a_store_without_a_point_yet_needs_what_was_streamed_for_it(scene: Scene) -> None:
    words = [sys.executable, "-m", "fleece", *map(str, scene.words("--output", "-"))]
    with (scene.folder / "streamed").open("wb") as sink:
        subprocess.run(words, cwd=ROOT, stdout=sink, check=True)
    (segment,) = _bitmap(scene, scene.store).succeeded().named("segment")
    assert segment["stores"] == [str(scene.store)]
    _bitmap(scene, scene.store, "--drop", segment["chain"]).failed(5, "needs the segments")


def test_a_point_that_is_in_qemu_keeps_its_chain(scene: Scene) -> None:
    scene.take()
    scene.writer().write(0, b"x" * KIB64)
    scene.killed_backup(Moment("in the copy", "fleece.nbd.connection", "Connection.read"))
    chain = _bitmap(scene).succeeded().named("segment")[0]["chain"]
    before = scene.segments()
    _bitmap(scene, "--drop", chain).failed(4, "is in the source", "clean")
    assert scene.segments() == before
    INTACT.run("clean", scene.source, "--scratch", scene.scratch).succeeded()
    _bitmap(scene, "--drop", chain).succeeded()
    assert scene.segments() == []
    scene.take()
    scene.check_exact()
