"""The project's own papers: fragments that towncrier will take, one place for the version."""

from __future__ import annotations

import configparser
import re
import tomllib
from pathlib import Path

from fleece.version import VERSION

_ROOT = Path(__file__).parents[2]


def test_every_fragment_is_of_a_known_kind_and_says_something() -> None:
    settings = tomllib.loads((_ROOT / "towncrier.toml").read_text())["tool"]["towncrier"]
    kinds = {kind["directory"] for kind in settings["type"]}
    for path in (_ROOT / settings["directory"]).iterdir():
        if path.name in settings["ignore"]:
            continue
        parts = path.name.split(".")
        assert path.name.startswith("+"), path.name
        assert len(parts) == 3, path.name
        assert parts[1] in kinds, path.name
        assert parts[2] == "rst", path.name
        assert path.read_text().strip().endswith("."), path.name


def test_the_version_stands_in_one_place() -> None:
    setup = configparser.ConfigParser()
    setup.read(_ROOT / "setup.cfg")
    assert setup["metadata"]["version"] == "attr: fleece.version.VERSION"
    named = [
        path.relative_to(_ROOT)
        for path in [*(_ROOT / "fleece").rglob("*.py"), *_ROOT.glob("*.toml"), *_ROOT.glob("*.cfg")]
        if re.search(rf"\b{re.escape(VERSION)}\b", path.read_text())
    ]
    assert named == [Path("fleece/version.py")]
