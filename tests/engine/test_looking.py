"""`fleece diff` and `fleece map`: what they say of points whose bytes are known."""

from __future__ import annotations

import dataclasses
import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

import fleece
from fleece.cli import heat
from fleece.delta.chain import Chain
from fleece.extents import Extents
from tests.engine.history import Guest, deep_guest
from tests.engine.scene import INTACT, Json, fill, flip, small_tmpfs
from tests.unit.kit import LEAF, Change, OpenChain

SIZES = {"vda": 300 * LEAF, "vdb": 40 * LEAF + 700}


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Guest:
    """Twelve points of two disks; nobody may change it."""
    return deep_guest(tmp_path_factory.mktemp("looking") / "store", 12, SIZES, seed=5)


@pytest.fixture
def small(tmp_path: Path) -> Guest:
    """Two points of one disk."""
    made = Guest(tmp_path / "store")
    made.full({"vda": 64 * LEAF})
    made.change(vda=[Change(LEAF, 2 * LEAF, 7)])
    return made


def changed(old: bytes, new: bytes) -> Extents:
    """The leaves that differ."""
    return Extents.of(
        (at, min(at + LEAF, len(new)))
        for at in range(0, len(new), LEAF)
        if old[at : at + LEAF] != new[at : at + LEAF]
    )


def ranges(events: list[Json], disk: str) -> Extents:
    return Extents.of([(e["start"], e["end"]) for e in events if e["disk"] == disk])


# ---- diff ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "new"), [(0, 11), (10, 11), (11, 3), (6, 6)])
def test_diff_tells_exactly_the_leaves_that_differ(guest: Guest, old: int, new: int) -> None:
    points = guest.points[old], guest.points[new]
    ran = INTACT.run("diff", guest.store, *points, "--json").succeeded()
    told = {event["disk"]: event for event in ran.named("difference")}
    assert told.keys() == SIZES.keys()
    for disk, event in told.items():
        expected = changed(guest.disk(disk, old), guest.disk(disk, new))
        assert ranges(ran.named("differs"), disk) == expected
        assert (event["changed_bytes"], event["extents"]) == (expected.total, len(expected))
        assert event["old_size"] == event["new_size"] == SIZES[disk]
        assert (event["old_root"] == event["new_root"]) == (len(expected) == 0)
    assert ran.result["changed_bytes"] == sum(event["changed_bytes"] for event in told.values())
    assert (ran.result["old"], ran.result["new"]) == points


def test_diff_looks_up_only_the_nodes_above_what_differs(small: Guest) -> None:
    """A disk of 64 leaves, fan-out 16: the top node of both, one node of the newer tree."""
    ran = INTACT.run("diff", small.store, *small.points, "--json").succeeded()
    (event,) = ran.named("difference")
    assert event["nodes"] == 2
    same = INTACT.run("diff", small.store, "latest", "latest", "--json").succeeded()
    assert same.named("difference")[0]["nodes"] == 0


def test_diff_for_people_is_short(guest: Guest) -> None:
    ran = INTACT.run("diff", guest.store, guest.points[0], "latest", "--disk", "vda").succeeded()
    lines = ran.out.splitlines()
    assert len(lines) == 21
    assert lines[0].startswith("vda: ")
    assert "(the first 20 are shown; --json lists all)" in lines[-1]


def test_diff_of_a_disk_that_came_or_went_is_its_data(small: Guest) -> None:
    """The same guest, later, has another disk."""
    later = dataclasses.replace(small, states={}, paths={}, _refs={})
    later.full({"vdb": 20 * LEAF})
    later.change(vdb=[Change(0, 5 * LEAF, 1)])
    words = (small.store, small.points[1], "latest", "--json")
    ran = INTACT.run("diff", *words).succeeded()
    gone, new = ran.named("difference")
    assert (gone["disk"], gone["new_size"], gone["changed_bytes"]) == ("vda", None, LEAF)
    assert (new["disk"], new["old_size"], new["changed_bytes"]) == ("vdb", None, 5 * LEAF)


def test_diff_of_a_disk_that_grew_tells_both_sizes(small: Guest) -> None:
    later = dataclasses.replace(small, states={}, paths={}, _refs={})
    later.full({"vda": 600 * LEAF})
    later.change(vda=[Change(LEAF, 2 * LEAF, 7), Change(500 * LEAF, 501 * LEAF, 1)])
    ran = INTACT.run("diff", small.store, small.points[1], "latest", "--json").succeeded()
    assert ranges(ran.named("differs"), "vda") == Extents.of([(500 * LEAF, 501 * LEAF)])
    (event,) = ran.named("difference")
    assert (event["old_size"], event["new_size"]) == (64 * LEAF, 600 * LEAF)


def test_diff_refuses_what_is_not_there(small: Guest) -> None:
    INTACT.run("diff", small.store, "cafe", "latest").failed(5, "no such point: cafe")
    ran = INTACT.run("diff", small.store, *small.points, "--disk", "vdz", "--json")
    ran.failed(2, "neither point has a disk vdz", "vda")


def test_diff_of_a_damaged_tree_is_an_error(small: Guest) -> None:
    with OpenChain([*reversed(small.paths["vda"])]) as chain:
        page = next(page for page in chain.deltas[0].pages if page.level == 1)
    flip(small.paths["vda"][-1], page.position + page.length // 2)
    ran = INTACT.run("diff", small.store, *small.points, "--json")
    ran.failed(5, "TREE frame does not match its hash")


# ---- map -------------------------------------------------------------------------------------


@pytest.mark.parametrize("disk", SIZES)
@pytest.mark.parametrize("number", [0, 5, 11])
def test_map_tiles_the_disk_and_names_the_point_of_each_part(
    guest: Guest, disk: str, number: int
) -> None:
    ran = INTACT.run("map", guest.store, guest.points[number], disk, "--json").succeeded()
    told = ran.named("extent")
    content = guest.disk(disk, number)
    assert [e["start"] for e in told] == [0, *(e["start"] + e["length"] for e in told[:-1])]
    assert told[-1]["start"] + told[-1]["length"] == len(content)
    for event in told:
        part = slice(event["start"], event["start"] + event["length"])
        owner = guest.points.index(event["point"])
        assert owner <= number
        for state in range(owner, number + 1):
            assert guest.disk(disk, state)[part] == content[part]
        assert event["data"] is not event["zero"]
        assert not event["zero"] or not any(content[part])
    sums = {
        point["point"]: (point["data_bytes"], point["zero_bytes"]) for point in ran.result["points"]
    }
    for point, (data, zeros) in sums.items():
        mine = [event for event in told if event["point"] == point]
        assert data == sum(event["length"] for event in mine if event["data"])
        assert zeros == sum(event["length"] for event in mine if event["zero"])
    assert len(sums) == number + 1


def test_map_for_people_is_bounded_and_shows_where_data_is(guest: Guest) -> None:
    ran = INTACT.run("map", guest.store, "latest", "vda").succeeded()
    title, *rest = ran.out.splitlines()
    assert title == f"disk vda of web at point {guest.points[-1]}"
    cells = "".join(
        line[12:] for line in rest if line[:11].endswith("iB") or line[:11].endswith("0 B")
    )
    content = guest.disk("vda")
    shown = [any(content[at : at + LEAF]) for at in range(0, len(content), LEAF)]
    assert [cell == "█" for cell in cells[: len(shown)]] == shown
    assert "\x1b" not in ran.out
    assert sum(line.split(" ")[0] in guest.points for line in rest) <= 20


def _picture(guest: Guest, cells: int) -> fleece.Picture:
    with OpenChain([*reversed(guest.paths["vda"])]) as chain:
        assert isinstance(chain, Chain)
        return fleece.picture_of(chain, cells)


@pytest.mark.parametrize("cells", [1, 7, 64, 100000])
def test_a_picture_of_any_number_of_cells_loses_nothing(guest: Guest, cells: int) -> None:
    picture = _picture(guest, cells)
    assert len(picture.data) <= cells
    content = guest.disk("vda")
    assert int(picture.data_bytes.sum() + picture.zeros.sum()) == len(content)
    for number in range(len(picture.data)):
        part = content[number * picture.cell : (number + 1) * picture.cell]
        full = sum(any(part[at : at + LEAF]) for at in range(0, len(part), LEAF)) * LEAF
        assert picture.filled(number) == pytest.approx(full / len(part))


def test_a_terminal_gets_colours_and_may_refuse_them(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = _picture(guest, 64)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b[38;2;" in "".join(heat.lines(picture, heat.Frame()))
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in "".join(heat.lines(picture, heat.Frame()))
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in "".join(heat.lines(picture, heat.Frame()))


@pytest.mark.parametrize("columns", [20, 40, 80, 120, 200])
@pytest.mark.parametrize("height", [10, 24, 60])
def test_a_picture_fits_its_terminal(guest: Guest, columns: int, height: int) -> None:
    frame = heat.Frame.of(os.terminal_size((columns, height)))
    lines = [*heat.lines(_picture(guest, frame.cells), frame)]
    assert max(map(len, lines)) <= columns
    assert len(lines) + 2 <= height  # with a title and a prompt


def test_the_svg_is_one_with_a_rectangle_for_each_cell(guest: Guest, tmp_path: Path) -> None:
    target = tmp_path / "disk.svg"
    INTACT.run("map", guest.store, "latest", "vda", "--svg", target).succeeded()
    top = ElementTree.parse(target).getroot()
    name = "{http://www.w3.org/2000/svg}"
    assert top.tag == f"{name}svg"
    assert len(top.findall(f"{name}rect/{name}title")) == 300
    text = "".join(item.text or "" for item in top.findall(f"{name}text"))
    assert all(offset in text for offset in ("256.0 KiB", "512.0 KiB", "768.0 KiB", "1.0 MiB"))
    assert all(point in text for point in guest.points[-3:])


def test_a_name_cannot_break_out_of_the_svg(tmp_path: Path) -> None:
    made = Guest(tmp_path / "store")
    disk = '</text><script>"&'
    made.full({disk: 4 * LEAF})
    target = tmp_path / "disk.svg"
    INTACT.run("map", made.store, "latest", disk, "--svg", target).succeeded()
    top = ElementTree.parse(target).getroot()
    assert not [item for item in top.iter() if item.tag.endswith("script")]
    assert disk in "".join(top.itertext())


def test_an_svg_that_cannot_be_written_is_a_target_error(small: Guest, tmp_path: Path) -> None:
    words = ("map", small.store, "latest", "vda", "--json", "--svg")
    INTACT.run(*words, tmp_path / "no" / "disk.svg").failed(7, "No such file")
    (tmp_path / "folder").mkdir()
    INTACT.run(*words, tmp_path / "folder").failed(7, "not a regular file")
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    INTACT.run(*words, tmp_path / "dangling").failed(7, "not a regular file")
    os.mkfifo(tmp_path / "pipe")
    INTACT.run(*words, tmp_path / "pipe").failed(7, "not a regular file")
    found = sorted(item.name for item in tmp_path.iterdir())
    assert found == ["dangling", "folder", "pipe", "store"]
    assert (tmp_path / "pipe").is_fifo()


def test_no_link_leads_the_svg_to_another_file(small: Guest, tmp_path: Path) -> None:
    victim, target = tmp_path / "victim", tmp_path / "m.svg"
    victim.write_text("precious")
    trap = tmp_path / ".m.svg.partial"
    trap.symlink_to(victim)
    for _ in range(2):  # into a new file, and over one
        INTACT.run("map", small.store, "latest", "vda", "--svg", target).succeeded()
        assert target.is_file()
        assert not target.is_symlink()
    assert victim.read_text() == "precious"
    assert sorted(item.name for item in tmp_path.iterdir()) == [
        ".m.svg.partial",
        "m.svg",
        "store",
        "victim",
    ]


def test_an_svg_on_a_full_file_system_leaves_nothing(small: Guest) -> None:
    with small_tmpfs(1) as place:
        fill(place)
        words = ("map", small.store, "latest", "vda", "--svg", place / "x.svg")
        INTACT.run(*words).failed(7, "x.svg: No space left")
        assert not [item for item in place.iterdir() if "svg" in item.name]


def test_map_refuses_what_is_not_there(small: Guest) -> None:
    INTACT.run("map", small.store, "latest", "vdz").failed(2, "has no disk vdz")
    INTACT.run("map", small.store, "cafe", "vda", "--json").failed(5, "no such point: cafe")


@pytest.mark.parametrize(
    "name", ["", "/", ".", "..", "file/disk.svg", "/etc/passwd/x.svg", "long/" + "n" * 300]
)
def test_an_svg_under_an_impossible_name_is_a_target_error(
    name: str, small: Guest, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "long").mkdir()
    before = sorted(tmp_path.rglob("*"))
    target = name if len(name) < 3 else tmp_path / name
    INTACT.run("map", small.store, "latest", "vda", "--svg", target).failed(7)
    assert sorted(tmp_path.rglob("*")) == before
