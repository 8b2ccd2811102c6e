"""An option that has no effect where it is given is refused, before anything is done.

The verbs of targets have a table of their own in `test_targets`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.history import Guest
from tests.engine.scene import INTACT

BACKUP = ("backup", "qmp:/nowhere", "{store}")

IDLE: tuple[tuple[tuple[str, ...], str], ...] = (
    ((*BACKUP, "--require-freeze"), "--require-freeze has no effect without --guest-agent"),
    ((*BACKUP, "--no-resume", "--output", "-"), "--no-resume has no effect with --output"),
    ((*BACKUP, "--no-resume", "--transport", "push"), "no effect with --transport push"),
    ((*BACKUP, "--no-resume", "--fleecing", "filter"), "no effect with --fleecing filter"),
    (
        (*BACKUP, "--no-resume", "--require-freeze", "--guest-agent", "/nowhere"),
        "--no-resume has no effect with --require-freeze",
    ),
    ((*BACKUP, "--audit", "0.5", "--mode", "full"), "--audit has no effect with --mode full"),
    ((*BACKUP, "--audit", "1", "--mode", "rescan"), "--audit has no effect with --mode rescan"),
    (("bitmap", "qmp:/nowhere", "--guest", "g"), "--guest has no effect without a STORE"),
    (("bitmap", "qmp:/nowhere", "--key-file", "{key}"), "--key-file has no effect without"),
    (("bitmap", "qmp:/nowhere", "--passphrase-file", "{key}"), "--passphrase-file has no effect"),
    (("metrics", "{store}", "--json"), "--json has no effect without --output or --listen"),
    (("metrics", "{store}", "--rules"), "STORE has no effect with --rules"),
    (("metrics", "{store}", "--config", "x"), "--config has no effect with a STORE"),
    (("metrics", "--key-file", "{key}"), "--key-file has no effect without a STORE"),
    (("metrics", "--passphrase-file", "{key}"), "--passphrase-file has no effect without"),
    (("info", "{delta}", "--key-file", "{key}"), "a key was given, but this delta has none"),
    (
        ("salvage", "{delta}", "-o", "{new}", "--passphrase-file", "{key}"),
        "a key was given, but this delta has none",
    ),
    *(
        ((*words, "--key-file", "{key}"), "a key was given, but this store has none")
        for words in (
            ("list", "{store}"),
            ("status", "{store}"),
            ("verify", "{store}"),
            ("verify", "{store}", "--max-age", "1d"),
            ("merge", "{store}", "latest"),
            ("prune", "{store}", "--keep-last", "1"),
            ("pin", "{store}", "latest"),
            ("unpin", "{store}", "latest"),
            ("diff", "{store}", "latest", "latest"),
            ("map", "{store}", "latest", "vda"),
        )
    ),
    (("list", "{store}", "-q", "--json"), "--quiet has no effect with --json"),
    (("verify", "{store}", "-v", "--json"), "--verbose has no effect with --json"),
    (("verify", "{store}", "-v", "-q"), "--verbose has no effect with --quiet"),
    (("serve-store", "{store}", "-q"), "has no effect"),
    (("prune", "{store}", "--dry-run"), "no rule says what to keep"),
    (("prune", "{store}", "--guest", "guest"), "no rule says what to keep"),
    (("prune", "{store}", "--keep-last", "0"), "no rule says what to keep"),
)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the words of `IDLE` stand for."""
    folder = tmp_path_factory.mktemp("idle")
    made = Guest(folder / "store")
    made.holding({"vda": bytes(1 << 20)})
    key = folder / "key"
    key.write_bytes(b"k" * 32 + b"\n")
    key.chmod(0o600)
    return {
        "store": str(made.store),
        "delta": str(made.paths["vda"][0]),
        "key": str(key),
        "new": str(folder / "new"),
    }


@pytest.mark.parametrize("machine", [False, True], ids=["people", "json"])
@pytest.mark.parametrize(("words", "reason"), IDLE, ids=[" ".join(words) for words, _ in IDLE])
def test_an_option_without_effect_is_refused(
    places: dict[str, str], words: tuple[str, ...], reason: str, machine: bool
) -> None:
    if "--output" in words and machine:
        pytest.skip("with data on standard output, what is said goes to standard error")
    more = ("--json",) if machine and "--json" not in words else ()
    ran = INTACT.run(*(word.format(**places) for word in words), *more).failed(2, reason)
    assert machine or "--json" in words or ran.out == ""
    assert not Path(places["new"]).exists()


@pytest.mark.parametrize(
    "words",
    [
        ("backup", "qmp:/nowhere", "{store}", "--guest", "a", "--guest", "b"),
        ("backup", "qmp:/nowhere", "{store}", "--mode", "auto", "--mode=full"),
        ("backup", "qmp:/nowhere", "{store}", "--jobs", "2", "--jobs", "2"),
        ("restore", "{store}", "latest", "vda", "{new}", "--format", "raw", "--format", "qcow2"),
        ("files", "{store}", "latest", "vda", "ls", "--volume", "1", "--volume=2"),
        ("list", "{store}", "--key-file", "{key}", "--key-file", "{key}"),
        ("prune", "{store}", "--keep-last", "1", "--keep-last", "0"),
    ],
    ids=" ".join,
)
def test_an_option_that_would_replace_its_own_value_is_refused(
    words: tuple[str, ...], places: dict[str, str]
) -> None:
    INTACT.run(*(word.format(**places) for word in words)).failed(2, "is given more than once")
    assert not Path(places["new"]).exists()


def test_what_has_an_effect_is_not_refused(places: dict[str, str]) -> None:
    for words in (
        ("--no-resume",),
        ("--no-resume", "--transport", "pull", "--mode", "full"),
        ("--audit", "0", "--mode", "full"),
        ("--audit", "1", "--mode", "differential"),
        ("--require-freeze", "--guest-agent", "/nowhere"),
        ("--disk", "a", "--disk", "b", "--adopt", "--adopt"),
    ):
        store = places["store"]
        INTACT.run("backup", "qmp:/nowhere", store, *words).failed(
            3, "the QMP monitor cannot be reached"
        )
