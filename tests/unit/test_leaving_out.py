"""Command lines without a STORE, and with words that are nearly right."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleece import events
from fleece.cli.leaving_out import parsed
from fleece.errors import StoreError, UsageError
from fleece.events import Event
from fleece.store.open import open_store
from tests.engine.history import Guest
from tests.engine.scene import INTACT

HELD = {"FLEECE_STORE": "/held"}


@pytest.mark.parametrize(
    ("words", "store", "others"),
    [
        ("list", "/held", {}),
        ("list /other", "/other", {}),
        ("prune --keep-last 3", "/held", {"last": 3}),
        ("restore latest vda out.raw", "/held", {"point": "latest", "target": "out.raw"}),
        ("restore latest --force vda out.raw", "/held", {"point": "latest", "force": True}),
        ("restore /other latest vda out.raw", "/other", {"point": "latest"}),
        ("restore /other --force latest vda out.raw", "/other", {"point": "latest"}),
        ("backup libvirt:web1", "/held", {"source": "libvirt:web1"}),
        ("backup libvirt:web1 /other", "/other", {"source": "libvirt:web1"}),
        ("copy /away", "/held", {"to": "/away"}),
        ("copy /other /away", "/other", {"to": "/away"}),
        ("verify", "/held", {"point": None}),
        ("verify latest", "/held", {"point": "latest"}),
        ("verify 1e12 --against x", "/held", {"point": "1e12", "against": "x"}),
        ("verify /other", "/other", {"point": None}),
        ("verify ./1e12", "./1e12", {"point": None}),
        ("verify /other latest", "/other", {"point": "latest"}),
        ("files latest vda ls", "/held", {"point": "latest", "paths": []}),
        ("files latest vda ls /etc", "/held", {"point": "latest", "paths": ["/etc"]}),
        ("files /other latest vda ls", "/other", {"point": "latest", "paths": []}),
    ],
)
def test_a_store_that_is_left_out_is_the_variables(
    words: str, store: str, others: dict[str, object]
) -> None:
    said = vars(parsed(words.split(), HELD))
    assert said["store"] == store
    assert {name: said[name] for name in others} == others


@pytest.mark.parametrize("words", ["serve-store", "restore latest vda", "info"])
def test_nothing_else_is_made_up(words: str) -> None:
    with pytest.raises(UsageError, match="the following arguments are required"):
        parsed(words.split(), HELD)


def test_without_the_variable_or_with_an_empty_one_a_store_is_missing() -> None:
    for environment in ({}, {"FLEECE_STORE": ""}):
        with pytest.raises(UsageError, match="required: STORE"):
            parsed(["list"], environment)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("lst", "invalid choice: 'lst'; did you mean list?"),
        ("list /s --guset web", "unrecognized arguments: --guset web; did you mean --guest?"),
        ("list /s --lang=en", "unrecognized arguments: --lang=en; did you mean --long?"),
        ("backup a b --mode incrmental", "invalid choice: 'incrmental'; did you mean incremental?"),
        ("files /s latest vda lsl", "invalid choice: 'lsl'; did you mean ls?"),
    ],
)
def test_a_word_of_the_command_line_that_is_nearly_right(words: str, meant: str) -> None:
    with pytest.raises(UsageError) as failed:
        parsed(words.split(), HELD)
    assert str(failed.value).endswith(meant)


@pytest.fixture(scope="module")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """web: two points, of which the newer lacks vdb; db: one point of sda."""
    folder = tmp_path_factory.mktemp("guests") / "store"
    web = Guest(folder, "web")
    web.full({"vda": 65536, "vdb": 65536})
    del web.states["vdb"]
    web.become(vda=b"x" * 65536)
    Guest(folder, "db").full({"sda": 65536})
    return folder


def test_latest_is_of_the_disk_that_is_wanted(guests: Path) -> None:
    catalogue = open_store(guests).catalogue()
    heard: list[Event] = []
    assert catalogue.find("latest", disk="vda", listener=heard.append).sequence == 2
    assert heard == []
    assert catalogue.find("latest", disk="sda").guest == "db"
    assert catalogue.find("latest", disk="vdb", listener=heard.append).sequence == 1
    (warned,) = heard
    assert isinstance(warned, events.Warned)
    assert "the newest point, 0000000002, has no disk vdb: point 0000000001" in warned.what
    with pytest.raises(UsageError, match="several guests; name one with --guest: db, web"):
        catalogue.find("latest", disk="vdz")
    with pytest.raises(UsageError, match="point 0000000002 has no disk vdz"):
        catalogue.find("latest", "web", "vdz").disk("vdz")


def test_a_name_in_a_store_that_is_nearly_right(guests: Path) -> None:
    catalogue = open_store(guests).catalogue()
    with pytest.raises(StoreError, match=r"no point of guest wbe; did you mean web\?"):
        catalogue.find("latest", "wbe")
    with pytest.raises(StoreError, match=r"no point of guest w; did you mean web\?$"):
        catalogue.find("latest", "w")
    with pytest.raises(StoreError, match=r"no such point: lates; did you mean latest\?"):
        catalogue.find("lates", "web")
    with pytest.raises(StoreError, match=r"no such point: 00000003; did you mean 0000000001\?"):
        catalogue.find("00000003", "db")
    with pytest.raises(UsageError, match="matches 2 points; name the guest with --guest"):
        catalogue.find("0000000001")
    with pytest.raises(StoreError, match=r"no such point: 1234; 'fleece list'"):
        catalogue.find("1234", "db")


def test_the_variable_is_heeded(guests: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEECE_STORE", str(guests))
    assert "3 points" in INTACT.run("list").succeeded().out
    out = guests.parent / "out"
    said = INTACT.run("restore", "latest", "vdb", out).succeeded()
    assert "warning: the newest point, 0000000002, has no disk vdb" in said.err
    assert out.read_bytes() == bytes(65536)
