"""A package that is installed brings a kind of source, or of store, of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fleece
from tests.contract.nbd_source import NbdSource

_PACKAGE = """
from fleece.store.folder.backend import FolderBackend
from tests.contract.nbd_source import NbdSource

def open_tape(text):
    return FolderBackend({vault!r} + "/" + text.removeprefix("tape://"))

def open_cloud(place, options, cancel):
    return NbdSource(place, {{"vda": "nbd+unix:///?socket=none"}})
"""


def _install(folder: Path, name: str, points: str, code: str = "") -> None:
    """A package as pip leaves it."""
    (folder / f"{name}.py").write_text(code)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(points)


@pytest.fixture
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    vault = tmp_path / "vault"
    vault.mkdir()
    points = """[fleece.stores]
tape = tape_for_fleece:open_tape
file = tape_for_fleece:open_tape
broken = tape_for_fleece:nothing
[fleece.sources]
cloud = tape_for_fleece:open_cloud
qmp = tape_for_fleece:open_cloud
broken = no_such_module:open
"""
    _install(tmp_path, "tape_for_fleece", points, _PACKAGE.format(vault=str(vault)))
    monkeypatch.syspath_prepend(tmp_path)
    return vault


def test_a_store_of_an_installed_kind_is_made_and_opened(vault: Path) -> None:
    made = fleece.init("tape://vms")
    assert (vault / "vms" / "fleece-store.json").is_file()
    assert fleece.open_store("tape://vms").id == made.id

    paths = f"{vault.parent}:{Path(fleece.__file__).parents[1]}"
    words = [sys.executable, "-m", "fleece", "list", "--json", "tape://vms"]
    done = subprocess.run(
        words, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    assert json.loads(done.stdout)["points"] == 0, done.stderr


def test_a_source_of_an_installed_kind_is_opened(vault: Path) -> None:
    source = fleece.open_source("cloud:web1")
    assert isinstance(source, NbdSource)
    assert source.guest() == "web1"


def test_what_is_fleeces_own_is_nobody_elses(vault: Path, tmp_path: Path) -> None:
    with pytest.raises(fleece.SourceError):
        fleece.open_source(f"qmp:{tmp_path}/none.qmp", fleece.SourceOptions(scratch=tmp_path))
    fleece.init(f"file:{tmp_path}/mine")
    assert (tmp_path / "mine" / "fleece-store.json").is_file()


def test_a_kind_that_cannot_be_loaded_says_whose_it_is(vault: Path) -> None:
    with pytest.raises(fleece.UsageError, match=r"tape_for_fleece:nothing.*cannot be loaded"):
        fleece.open_store("broken://vms")
    with pytest.raises(fleece.UsageError, match=r"no_such_module:open.*cannot be loaded"):
        fleece.open_source("broken:web1")


def test_a_kind_that_two_packages_bring_is_neithers(vault: Path, tmp_path: Path) -> None:
    _install(tmp_path, "other", "[fleece.stores]\ntape = other:open\n")
    with pytest.raises(fleece.UsageError, match="several packages bring tape: other, tape_for"):
        fleece.open_store("tape://vms")


def test_packages_are_not_looked_at_for_a_scheme_of_fleeces_own() -> None:
    code = "import sys, fleece; fleece.backup; fleece.open_store; fleece.open_source; "
    code += "print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(done.stdout.split())
    assert {"fleece.plugins", "fleece.store.open"} <= loaded
    assert "importlib.metadata" not in loaded
