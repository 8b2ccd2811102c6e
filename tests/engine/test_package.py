"""The packages: all that belongs in them, nothing else, and what a plain environment is told."""

from __future__ import annotations

import importlib.metadata as metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import fleece
from fleece import ExitCode
from tests.engine.scene import MIB, ROOT, Ran
from tests.rig.process import run_checked

_DATA = {f"fleece/fleet/{name}" for name in ("schema.json", "alerts.yaml", "dashboard.json")}
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "_build")
_BESIDE = ("docs", "changes")
_ALONE = (
    "CHANGELOG.rst",
    "CONTRIBUTING.rst",
    "LICENSE",
    "MANIFEST.in",
    "README.rst",
    "SECURITY.rst",
    "pyproject.toml",
    "setup.cfg",
    "towncrier.toml",
)


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@dataclass(frozen=True)
class Built:
    """What a release consists of, and the files that it was built of."""

    tree: Path
    sdist: Path
    wheel: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A source distribution of the checkout, and the wheel that is built of that one alone."""
    folder = tmp_path_factory.mktemp("built")
    tree = folder / "tree"
    for name in ("fleece", "tests/unit", "tools", *_BESIDE):
        shutil.copytree(ROOT / name, tree / name, ignore=_LEFT_OUT)
    for name in _ALONE:
        shutil.copy(ROOT / name, tree)
    shutil.copy(ROOT / "tests/test_rig.py", tree / "tests")  # which setuptools takes by itself
    words = ("-m", "build", "--no-isolation", "--outdir", folder, tree)
    run_checked(sys.executable, *map(str, words))
    return Built(tree, *folder.glob("*.tar.gz"), *folder.glob("*.whl"))


def test_a_wheel_has_the_whole_package_and_nothing_else(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == {f"fleece/{name}" for name in _files(built.tree / "fleece")}
    assert {"fleece/py.typed", *_DATA} <= names


def test_a_source_distribution_has_what_the_manual_is_made_of_and_no_tests(built: Built) -> None:
    top = built.sdist.name.removesuffix(".tar.gz")
    with tarfile.open(built.sdist) as sdist:
        names = {m.name.removeprefix(f"{top}/") for m in sdist.getmembers() if m.isfile()}
    made = {name for name in names if name == "PKG-INFO" or ".egg-info/" in name}
    parts = ("fleece", *_BESIDE)
    wanted = {f"{part}/{name}" for part in parts for name in _files(built.tree / part)}
    assert names - made == wanted | set(_ALONE)


def _needed(name: str, seen: set[str]) -> Iterator[metadata.Distribution]:
    """What a plain `pip install` of a distribution brings, itself left out."""
    for text in metadata.distribution(name).requires or ():
        need = Requirement(text)
        key = canonicalize_name(need.name)
        if key not in seen and (need.marker is None or need.marker.evaluate({"extra": ""})):
            seen.add(key)
            yield metadata.distribution(need.name)
            yield from _needed(need.name, seen)


def _modules(dist: metadata.Distribution) -> set[str]:
    """The names of a distribution's own in its folder."""
    listed = {path.parts[0] for path in dist.files or () if path.parts[0] != ".."}
    named = (dist.read_text("top_level.txt") or dist.name.replace("-", "_")).split()
    return listed or set(named)


@dataclass(frozen=True)
class Environment:
    """A virtual environment with the wheel, and what that says it depends on; no more."""

    folder: Path

    @property
    def packages(self) -> Path:
        """Where what is installed lies."""
        return Path(sysconfig.get_path("purelib", vars={"base": str(self.folder)}))

    def run(self, *words: object) -> Ran:
        """The command line, as its user runs it."""
        command = [str(self.folder / "bin/fleece"), *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return Ran(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def plain(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment that does not see the distribution's packages, as `python -m venv` makes it.

    What the wheel depends on is linked from where the tests run: no network is needed.
    """
    made = Environment(tmp_path_factory.mktemp("plain") / "venv")
    run_checked(sys.executable, "-m", "venv", "--without-pip", str(made.folder))
    python = str(made.folder / "bin/python")
    words = ("--python", python, "install", "-q", "--no-deps", "--no-index", str(built.wheel))
    run_checked(sys.executable, "-m", "pip", *words)
    for dist in _needed("fleece-backup", {"fleece-backup"}):
        for name in _modules(dist):
            place = Path(str(dist.locate_file(name)))
            if not (made.packages / name).exists():
                (made.packages / name).symlink_to(place)
    return made


@dataclass(frozen=True)
class Scene:
    """A disk and a store."""

    source: str
    store: Path
    scratch: Path

    @property
    def backup(self) -> tuple[object, ...]:
        """The words of a backup."""
        return "backup", self.source, self.store, "--guest", "g", "--scratch", self.scratch


@pytest.fixture
def scene() -> Iterator[Scene]:
    """A raw image with a few bytes, a new store and a folder for the scratch."""
    with tempfile.TemporaryDirectory() as name:  # pytest's is too long for a socket
        folder = Path(name)
        disk = folder / "disk.raw"
        disk.write_bytes(os.urandom(4096))
        os.truncate(disk, MIB)
        (folder / "scratch").mkdir()
        fleece.init(folder / "store")
        yield Scene(f"image:d0=raw:{disk}", folder / "store", folder / "scratch")


def test_a_plain_environment_is_told_what_is_missing_before_anything_is_done(
    plain: Environment, scene: Scene
) -> None:
    before = _files(scene.store.parent)
    remade = "/usr/bin/python3 -m venv --system-site-packages"
    ran = plain.run(*scene.backup)
    ran.failed(ExitCode.USAGE, "libnbd's Python bindings are missing", "python3-libnbd", remade)
    assert _files(scene.store.parent) - before == {"store/g/.lock"}
    missing = plain.run("doctor")
    assert missing.code == ExitCode.OK
    assert "python3-libnbd" in missing.out
    assert plain.run("verify", scene.store).code == ExitCode.OK


def test_one_that_sees_the_distributions_packages_backs_up_and_a_plain_one_restores(
    plain: Environment, scene: Scene
) -> None:
    settings = plain.folder / "pyvenv.cfg"
    closed = settings.read_text()
    try:
        settings.write_text(closed.replace("packages = false", "packages = true"))
        assert plain.run(*scene.backup).code == ExitCode.OK
    finally:
        settings.write_text(closed)
    for words in ("verify",), ("restore", "latest", "d0", scene.scratch / "restored.raw"):
        assert plain.run(words[0], scene.store, *words[1:]).code == ExitCode.OK


def test_a_package_that_is_missing_is_told_with_how_to_get_it(
    plain: Environment, scene: Scene
) -> None:
    link = plain.packages / "zstandard"
    place = link.readlink()
    link.unlink()
    try:
        ran = plain.run("verify", scene.store)
        ran.failed(ExitCode.USAGE, "No module named 'zstandard'", "pip install fleece-backup")
    finally:
        link.symlink_to(place)


def test_a_mere_folder_of_the_same_name_does_not_hide_the_package(tmp_path: Path) -> None:
    """Beside a script, whose folder Python looks into first."""
    (tmp_path / "fleece").mkdir()
    script = tmp_path / "script.py"
    script.write_text("import fleece; print(fleece.__version__)")
    assert run_checked(sys.executable, str(script), cwd=tmp_path).strip() == fleece.__version__
