"""Providers that lie, hang and die: one clear error, nothing left running, nothing committed."""

from __future__ import annotations

import itertools
import json
import shlex
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import fleece
from fleece import Unknown
from fleece.cli.main import main
from fleece.source.provider import program
from fleece.source.provider.answers import Said, changes
from fleece.source.provider.text import parse
from fleece.source.provider.words import LIMITS, Word
from fleece.testing.provider.checks import CHECKS, verdicts
from tests.engine.scene import INTACT, KIB64, Moment, died, wait_until
from tests.rig import images
from tests.rig.process import run, run_checked

_LIAR = Path(__file__).with_name("provider_liar.py")
_WRITER = Path(__file__).with_name("provider_writer.py")


@dataclass
class Owner:
    """An image, and a store with a point of it that a provider has as a base."""

    folder: Path
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        images.random_image(self.image, images.MIB, seed=1)
        fleece.init(self.store)
        self.backup("")

    @property
    def image(self) -> Path:
        """The disk."""
        return self.folder / "disk.qcow2"

    @property
    def store(self) -> Path:
        """The store."""
        return self.folder / "store"

    def provider(self, lie: str) -> str:
        """What a provider with a fault is called by."""
        return f"provider:{shlex.join([sys.executable, str(_LIAR), lie, str(self.image)])}"

    def bitmaps(self) -> list[str]:
        """The names of those in the image."""
        info = json.loads(run_checked("qemu-img", "info", "-U", "--output=json", self.image))
        return [bitmap["name"] for bitmap in info["format-specific"]["data"].get("bitmaps", [])]

    def write(self) -> None:
        """Write something new."""
        number = next(self.numbers)
        words = f"write -P {number + 33} {number % 16 * KIB64} {KIB64}"
        run_checked("qemu-io", "-f", "qcow2", "-c", words, self.image)

    def backup(self, lie: str, cancel: fleece.CancelToken | None = None) -> fleece.BackupResult:
        """Back it up by a provider with a fault."""
        with fleece.open_source(self.provider(lie), cancel=cancel) as source:
            options = fleece.BackupOptions(guest="g")
            return fleece.backup(source, fleece.open_store(self.store), options, cancel=cancel)

    def points(self) -> list[str]:
        """The ids of the store's points."""
        return [point.id for point in fleece.open_store(self.store).catalogue().points]

    def nobody_runs(self) -> bool:
        """No program has the image in its command line."""
        return not any(
            str(self.image).encode() in path.read_bytes()
            for path in Path("/proc").glob("[0-9]*/cmdline")
            if path.exists()
        )

    def check_exact(self) -> None:
        """A true provider's next point is incremental, and is what the image holds."""
        result = self.backup("")
        assert result.mode == "incremental"
        target = self.folder / "restored"
        store = fleece.open_store(self.store)
        fleece.restore(store, result.point, "disk", str(target))
        images.compare(self.image, target, "qcow2", "raw")
        target.unlink()


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory) -> Owner:
    """Of an image of 1 MiB; no test leaves anything in it but its points."""
    return Owner(tmp_path_factory.mktemp("provider"))


_S, _P = fleece.SourceError, fleece.PointError
_LIES = {
    "version": (_S, "is of version 2 of the protocol"),
    "nameless": (_S, "has no name"),
    "two alike": (_S, "has two disks that are called disk"),
    "size zero": (_S, "has 0 bytes"),
    "size text": (_S, "is a text where a number belongs"),
    "part": (_S, "no disk's name begins with @"),
    "uuid": (_S, "has a uuid that is none"),
    "deep": (_S, "answered 'describe' by what is no JSON"),
    "escape": (_S, r"is no NBD URI: \x1b[2J"),
    "scheme": (_S, "is no NBD URI: http://h/vda"),
    "socketless": (_S, "is no NBD URI"),
    "nobody": (_S, "cannot be reached"),
    "size": (_S, "and its export has 1048576"),
    "no disk": (_S, "has no disk, where disk was asked for"),
    "other disk": (_S, "has other, where disk was asked for"),
    "other base": (_S, "is since fleece-0, where fleece-"),
    "no base": (_S, "is since no base, where fleece-"),
    "no bitmap": (_S, "has a base, and neither bitmaps nor changes"),
    "lacks bitmap": (_S, "that its export lacks: none"),
    "babbles at describe": (_S, "answered 'describe' by what is no JSON"),
    "never ends a line at describe": (_S, "by a line of more than 1048576 bytes"),
    "answers twice at describe": (_S, "is not to what was asked last"),
    "exits at hello": (_S, r"ended before it answered 'hello' (exit code 9): all is \x1b[31mlost"),
    "exits at begin": (_S, "ended before it answered 'begin' (exit code 9)"),
    "is killed at begin": (_S, "(was killed by signal 9)"),
    "is killed at check": (_P, "ended before it answered 'check'"),
    "refuses at hello": (_S, r"not \x1b[31mtoday; come back tomorrow"),
    "refuses at begin": (_P, r"not \x1b[31mtoday; come back tomorrow"),
    "refuses at check": (_P, r"not \x1b[31mtoday; come back tomorrow"),
}


@pytest.mark.parametrize("lie", _LIES)
def test_a_lie_is_one_error_and_nothing_is_left(owner: Owner, lie: str) -> None:
    family, words = _LIES[lie]
    points, bitmaps = owner.points(), owner.bitmaps()
    with pytest.raises(family) as caught:
        owner.backup(lie)
    assert words in str(caught.value)
    assert str(caught.value).isprintable()
    assert owner.points() == points
    assert set(bitmaps) <= set(owner.bitmaps())
    wait_until(owner.nobody_runs, "the end of all that it started")


def test_after_all_of_them_the_next_point_is_incremental_and_exact(owner: Owner) -> None:
    owner.write()
    for lie in ("is killed at begin", "is killed at check"):
        with pytest.raises(fleece.FleeceError):
            owner.backup(lie)
        owner.write()
    owner.check_exact()
    assert len(owner.bitmaps()) == 1  # what was killed left more


@pytest.mark.parametrize("lie", ["refuses at commit", "is killed at commit", "no keep"])
def test_a_commit_that_fails_costs_an_older_base_and_no_point(owner: Owner, lie: str) -> None:
    owner.write()
    before = owner.points()
    heard: list[str] = []

    def hear(event: fleece.events.Event) -> None:
        if isinstance(event, fleece.events.Warned):
            heard.append(event.what)

    with fleece.open_source(owner.provider(lie)) as source:
        options = fleece.BackupOptions(guest="g")
        made = fleece.backup(source, fleece.open_store(owner.store), options, hear)
    assert owner.points() == [*before, made.point]
    assert any("may not be kept" in text for text in heard) == (lie != "no keep")
    wait_until(owner.nobody_runs, "the end of all that it started")
    owner.write()
    if lie == "no keep":  # it let go of the older one all the same
        assert owner.backup("").mode == "rescan"
    owner.check_exact()


def test_what_it_leaves_running_is_killed(owner: Owner) -> None:
    owner.backup("leaves")
    wait_until(owner.nobody_runs, "the end of all that it started")


@pytest.mark.parametrize(
    "lie", ["hangs at hello", "dribbles at describe", "hangs at begin", "hangs at commit"]
)
def test_one_that_hangs_is_killed_with_all_that_it_started(
    owner: Owner, lie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    word = lie.rpartition(" ")[2]
    monkeypatch.setitem(LIMITS, Word(word), 1.0)
    monkeypatch.setattr(program, "_END_LIMIT", 0.1)
    if word == "commit":
        owner.backup(lie)
    else:
        with pytest.raises(fleece.FleeceError, match=f"did not answer '{word}' in time"):
            owner.backup(lie)
    wait_until(owner.nobody_runs, "the end of all that it started")


def test_a_run_that_is_interrupted_waits_for_no_provider(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "_INTERRUPTED_LIMIT", 0.1)
    sign, cancel = Path(f"{owner.image}.hangs"), fleece.CancelToken()
    sign.unlink(missing_ok=True)

    def interrupt() -> None:
        wait_until(sign.exists, "the provider")
        cancel.cancel()

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(fleece.Interrupted, match="the point was ended"):
        owner.backup("hangs at begin", cancel)
    thread.join()
    wait_until(owner.nobody_runs, "the end of all that it started")


def test_one_that_can_is_asked_to_freeze_the_guest(owner: Owner) -> None:
    tried = fleece.SourceOptions(freeze=True)
    with pytest.raises(fleece.UsageError, match="this provider freezes no guest"):
        fleece.open_source(owner.provider(""), tried)
    heard: list[str] = []

    def hear(event: fleece.events.Event) -> None:
        if isinstance(event, fleece.events.Warned):
            heard.append(event.what)

    store, options = fleece.open_store(owner.store), fleece.BackupOptions(guest="g")
    with fleece.open_source(owner.provider("freezes"), tried) as source:
        assert fleece.backup(source, store, options, hear).frozen
    assert heard == [r"cold\x07"]
    must = fleece.SourceOptions(freeze=True, require_freeze=True)
    with (
        fleece.open_source(owner.provider("freezes"), must) as source,
        pytest.raises(fleece.PointError, match="was not frozen"),
    ):
        fleece.backup(source, store, options)
    assert len(owner.bitmaps()) == 1


def test_a_base_is_of_its_disk_and_not_of_its_image(owner: Owner) -> None:
    with fleece.open_source(f"provider:images other={owner.image}") as source:
        assert source.known_since(source.inventory().choose(())[0], *_newest(owner)) == Unknown(
            f"the provider does not know what was written since point {_newest(owner)[2]}"
        )


def _newest(owner: Owner) -> tuple[str, int, str]:
    point = fleece.open_store(owner.store).catalogue().points[-1]
    return point.chain, point.sequence, point.id


def test_its_points_are_exported_and_their_bases_dropped(owner: Owner) -> None:
    before = owner.bitmaps()
    with fleece.open_source(owner.provider("")) as source:
        with fleece.export(source, fleece.ExportOptions("app")) as held:
            base = held.commit()
        owner.write()
        with fleece.export(source, fleece.ExportOptions("app", since=base)) as held:
            (disk,) = held.told.disks
            assert disk.dirty_bytes == KIB64
        (segment,) = [
            one.bitmap for one in fleece.segments(source) if one.bitmap.name not in before[0]
        ]
        fleece.drop_segments(source, segment.chain_id)
    assert owner.bitmaps() == before


def test_what_verbs_make_of_it(owner: Owner, capsys: pytest.CaptureFixture[str]) -> None:
    chain, sequence, point = _newest(owner)
    assert main(["doctor", owner.provider(""), "--json"]) == 0
    assert f"fleece-{chain}-{sequence:06d}-{point}" in capsys.readouterr().out
    assert main(["audit", owner.provider(""), str(owner.store), "--guest", "g"]) == 0
    assert main(["clean", owner.provider("")]) == 0
    assert main(["bitmap", owner.provider("")]) == 0
    assert f"chain {chain}  since point {point}  kept  needed by no" in capsys.readouterr().out
    assert main(["doctor", "provider:none"]) == 2
    words = ["backup", owner.provider(""), str(owner.store), "--guest", "g", "--no-resume"]
    assert main(words) == 2
    assert "no provider of this name comes with fleece" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({}, "has no extents"),
        ({"extents": [[0]]}, "is no offset and length"),
        ({"extents": [[0, 0]]}, "is out of order, or not on the disk"),
        ({"extents": [[0, 512], [0, 512]]}, "is out of order"),
        ({"extents": [[1 << 62, 512]]}, "is a number that cannot be"),
        ({"extents": [[512, images.MIB]]}, "not on the disk"),
        ({"extents": [], "next": 512}, "goes on where it cannot"),
        ({"extents": [[0, 512]], "next": 0}, "goes on where it cannot"),
        ({"extents": [[0, 512]], "next": images.MIB}, "goes on where it cannot"),
    ],
)
def test_changes_that_cannot_be_are_no_answer(said: object, words: str) -> None:
    with pytest.raises(fleece.SourceError, match=words):
        changes(Said(said, "changes", "mine"), 0, images.MIB)


def test_changes_come_in_pages(owner: Owner) -> None:
    """All of them are read: what a liar leaves out, no backup has."""
    owner.backup("")
    owner.write()
    owner.write()
    found = owner.backup("lists")
    assert found.mode == "incremental"
    assert found.disks[0].read_bytes == 2 * KIB64
    owner.check_exact()


_ASKED = "fleece.source.provider.program"


@pytest.mark.parametrize(
    "moment",
    [
        Moment("while it begins", _ASKED, "Lines.write", "after", 5),
        Moment("while the point is held", "fleece.nbd.connection", "Connection.read"),
        Moment(
            "before the commit", "fleece.source.provider.point", "ProviderPoint.committed", "before"
        ),
    ],
    ids=str,
)
def test_when_the_engine_is_killed_the_provider_ends_its_point(
    owner: Owner, moment: Moment
) -> None:
    owner.write()
    words = "backup", owner.provider(""), owner.store, "--guest", "g", "--json"
    died(INTACT, moment, words, may_end=False)
    wait_until(owner.nobody_runs, "the end of the provider")
    owner.write()
    owner.check_exact()


_TESTS = sys.executable, "-m", "fleece.testing.provider"
_BROKEN = {
    "version": "it_says_what_it_is",
    "two alike": "it_describes_the_same_again",
    "any base": "it_refuses_what_it_does_not_know",
    "size": "a_point_shows_all_disks",
    "lacks bitmap": "what_is_written_since_a_base_is_dirty",
    "refuses at check": "a_point_shows_all_disks",
    "serves on": "a_dropped_point_is_gone",
    "two points": "there_is_one_point_at_a_time",
    "any commit": "what_is_not_there_cannot_be_committed",
    "leaves": "the_end_of_its_input_ends_it",
    "stays": "the_end_of_its_input_ends_it",
    "refuses at begin": "it_may_be_killed",
    "no keep": "a_committed_point_is_a_base",
    "exits at forget": "a_point_without_a_token_leaves_nothing",
    "blind": "what_is_written_since_a_base_is_dirty",
    "no forget": "what_is_forgotten_is_no_base",
}


def test_there_is_a_fault_for_each_check() -> None:
    assert {check.__name__ for check in CHECKS} == {*_BROKEN.values()}


@pytest.mark.parametrize("lie", _BROKEN)
def test_the_tests_of_providers_find_a_fault(
    owner: Owner, lie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lie == "stays":
        monkeypatch.setattr(program, "_END_LIMIT", 0.5)
    writer = [sys.executable, str(_WRITER), str(owner.image)]
    command = parse(owner.provider(lie).partition(":")[2])
    (verdict,) = verdicts(command, writer, _BROKEN[lie])
    assert verdict.failed


def test_an_author_runs_them(owner: Owner) -> None:
    writer = shlex.join([sys.executable, str(_WRITER), str(owner.image)])
    whole = run(*_TESTS, "--write", writer, "images", f"disk={owner.image}")
    assert whole.returncode == 0, whole.stdout
    assert whole.stdout.splitlines()[-1] == f"{len(CHECKS)} kept, 0 failed"
    one = run(*_TESTS, "--only", "it_says_what_it_is", "/bin/true")
    assert one.returncode == 1
    assert one.stdout.startswith("FAILED  it_says_what_it_is: true: the provider ended")
