"""What a run needs is looked for before anything is changed, and `doctor` says what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import venv
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy
import pytest

import fleece
from fleece.engine.work import kvm
from fleece.engine.work.kvm import KvmState, examine_kvm
from tests.engine.history import Guest
from tests.engine.scene import (
    GUEST,
    INTACT,
    ROOT,
    Moment,
    Ran,
    Scene,
    fill,
    small_tmpfs,
    wait_until,
)
from tests.engine.test_boot import bootable
from tests.rig.process import LIMIT

PACKAGES = Path(numpy.__file__).parents[1]
"""Where this Python's packages are; libnbd's bindings are elsewhere, among the distribution's."""

PROGRAMS = ("qemu-img", "qemu-nbd", "nbdkit", "qemu-system-x86_64", "setpriv", "ionice")

COPYING = Moment("the third read", "fleece.nbd.connection", "Connection.read", nth=3)


def _run(
    *words: object, python: str = sys.executable, path: Sequence[Path] = (), **env: str
) -> Ran:
    done = subprocess.run(
        [python, "-m", "fleece", *map(str, words)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT]))} | env,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def _path_without(folder: Path, *missing: str) -> str:
    """A PATH with all programs that fleece uses but some."""
    folder.mkdir()
    for name in PROGRAMS:
        if name not in missing:
            (folder / name).symlink_to(f"/usr/bin/{name}")
    return str(folder)


def _lacking_plugin(folder: Path) -> str:
    """A PATH whose nbdkit is without its Python plugin."""
    path = _path_without(folder, "nbdkit")
    script = Path(path, "nbdkit")
    gone = "/nowhere/nbdkit-python-plugin.so"
    script.write_text(
        f'#!/bin/sh\nfor w; do shift; [ "$w" = python ] && w={gone}; set -- "$@" "$w"; done\n'
        'exec /usr/bin/nbdkit "$@"\n'
    )
    script.chmod(0o755)
    return path


def _fake_nbd(folder: Path, text: str = "__version__ = '1.0'\n") -> Path:
    """A folder with a package `nbd` that is not libnbd's."""
    package = folder / "fake" / "nbd"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(text)
    return package.parent


def _verdicts(ran: Ran) -> dict[str, dict[str, object]]:
    return {need["name"]: need for need in ran.succeeded().named("need")}


# ---- doctor -------------------------------------------------------------------------------------


def test_doctor_finds_what_is_there(scene: Scene) -> None:
    ran = INTACT.run("doctor", scene.source, scene.place(), "--scratch", scene.scratch, "--json")
    found = _verdicts(ran)
    lacking = [name for name, need in found.items() if not need["ready"]]
    assert set(lacking) <= {"KVM"}
    assert ran.result["missing"] == lacking
    assert ran.named("qemu")
    for name in ("scratch", "store"):
        room = found[name]["room"]
        assert isinstance(room, int)
        assert room > 0
    text = INTACT.run("doctor").succeeded().out
    assert "libnbd (for " in text
    assert "ready" in text


@pytest.mark.parametrize(
    ("missing", "name", "package"),
    [
        ("qemu-img", "qemu-img", "qemu-utils"),
        ("qemu-nbd", "qemu-nbd", "qemu-utils"),
        ("nbdkit", "nbdkit", "nbdkit"),
        ("qemu-system-x86_64", "qemu-system-x86_64", "qemu-system-x86"),
    ],
)
def test_doctor_names_the_package_of_a_missing_program(
    missing: str, name: str, package: str, tmp_path: Path
) -> None:
    path = _path_without(tmp_path / "bin", missing)
    ran = _run("doctor", "--json", PATH=path)
    need = _verdicts(ran)[name]
    assert need["ready"] is False
    assert need["trouble"] == f"{missing} is missing"
    assert need["hint"] == f"install the package {package}"
    assert name in ran.result["missing"]
    said = _run("doctor", PATH=path).succeeded().out
    assert f"NOT READY: {missing} is missing; install the package {package}\n" in said


def test_doctor_names_the_package_of_a_missing_plugin(tmp_path: Path) -> None:
    found = _verdicts(_run("doctor", "--json", PATH=_lacking_plugin(tmp_path / "bin")))
    for name in ("nbdkit", "nbdkit's Python"):
        assert found[name]["trouble"] == "nbdkit lacks its Python plugin"
        assert found[name]["hint"] == "install the package nbdkit-plugin-python"


def test_doctor_looks_at_scratch_and_store(tmp_path: Path) -> None:
    words = ("doctor", "qmp:/nowhere", fleece.init(tmp_path / "store").where, "--scratch")
    nowhere = _run(*words, tmp_path / "none").failed(3, "cannot be reached")
    assert "scratch (for backup, audit): NOT READY" in nowhere.out
    assert "store (for backup): ready, " in nowhere.out
    none = INTACT.run("doctor", "qmp:/nowhere", tmp_path / "none").failed(3)
    assert "store (for backup): NOT READY" in none.out
    assert "fleece init" in none.out
    with small_tmpfs(1) as full:
        fleece.init(full)
        fill(full)
        said = _run("doctor", "qmp:/nowhere", full, "--scratch", full).failed(3).out
        assert "scratch (for backup, audit): NOT READY" in said
        assert "store (for backup): NOT READY" in said


# ---- libnbd -------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", [False, True], ids=["plain", "with system packages"])
def test_a_virtual_environment_without_libnbd(system: bool, scene: Scene, tmp_path: Path) -> None:
    made = tmp_path / "venv"
    venv.create(made, system_site_packages=system, symlinks=True)
    python, hidden = str(made / "bin" / "python"), tmp_path / "hidden"
    hidden.mkdir()
    # With the distribution's packages in sight, a part of the bindings is missing.
    (hidden / "libnbdmod.py").write_text("raise ImportError('gone', name='libnbdmod')\n")
    path = [hidden, PACKAGES] if system else [PACKAGES]
    ran = _run("doctor", "--json", python=python, path=path)
    need = _verdicts(ran)["libnbd"]
    assert str(need["trouble"]).startswith("libnbd's Python bindings are missing")
    hint = str(need["hint"])
    assert "install the distribution's package python3-libnbd" in hint
    assert "/usr/bin/python3 -m venv --system-site-packages" in hint
    assert ("recreate the virtual environment" in hint) is not system
    _nothing_begins(_run(*scene.words(), python=python, path=path), scene, "python3-libnbd")


@pytest.mark.parametrize(
    "text", ["__version__ = '1'\n", "import notebook_diff\n", "print 'Python 2'\n", "1 / 0\n"]
)
def test_the_package_nbd_of_pypi(text: str, scene: Scene, tmp_path: Path) -> None:
    path = [_fake_nbd(tmp_path, text)]
    need = _verdicts(_run("doctor", "--json", path=path))["libnbd"]
    assert "PyPI's notebook tool 'nbd', not libnbd" in str(need["trouble"])
    assert str(need["hint"]).startswith("run 'pip uninstall nbd'; then install")
    _nothing_begins(_run(*scene.words(), path=path), scene, "pip uninstall nbd")


def test_a_point_to_resume_outlives_a_run_without_libnbd(scene: Scene, tmp_path: Path) -> None:
    scene.killed_backup(COPYING)
    _run(*scene.words(), path=[_fake_nbd(tmp_path)]).failed(2, "not libnbd")
    assert scene.backup().succeeded().result["resumed"] is True


# ---- before a point -----------------------------------------------------------------------------


def _nothing_begins(ran: Ran, scene: Scene, *words: str, code: int = 2) -> None:
    ran.failed(code, *words)
    assert [event["event"] for event in ran.events] == ["result"]
    scene.nothing_left()
    assert scene.segments() == []


def test_a_backup_without_qemu_img(scene: Scene, tmp_path: Path) -> None:
    path = _path_without(tmp_path / "bin", "qemu-img")
    _nothing_begins(_run(*scene.words(), PATH=path), scene, "qemu-img is missing", "qemu-utils")


def test_a_push_without_nbdkit(scene: Scene, tmp_path: Path) -> None:
    words = (*scene.words(), "--transport", "push")
    path = _path_without(tmp_path / "bin", "nbdkit")
    _nothing_begins(_run(*words, PATH=path), scene, "nbdkit is missing")
    path = _lacking_plugin(tmp_path / "other")
    _nothing_begins(_run(*words, PATH=path), scene, "nbdkit-plugin-python")


def test_a_pull_needs_no_nbdkit(scene: Scene, tmp_path: Path) -> None:
    _run(*scene.words(), PATH=_path_without(tmp_path / "bin", "nbdkit")).succeeded()


def test_an_audit_without_libnbd_or_qemu_img(scene: Scene, tmp_path: Path) -> None:
    scene.take()
    before = scene.bitmaps()
    options = ("--guest", GUEST, "--scratch", scene.scratch, "--json")
    words = ("audit", scene.source, scene.store, *options)
    for ran in (
        _run(*words, path=[_fake_nbd(tmp_path)]),
        _run(*words, PATH=_path_without(tmp_path / "bin", "qemu-img")),
    ):
        ran.failed(2)
        assert [event["event"] for event in ran.events] == ["result"]
    assert [item["name"] for item in scene.bitmaps()] == [item["name"] for item in before]
    scene.nothing_left()


def test_a_store_without_room_is_told_before_the_point(scene: Scene) -> None:
    with small_tmpfs(2) as place:
        store = scene.place(place / "store")
        fill(place, leave=10)
        ran = scene.backup(store=store)
        ran.failed(5, "there is no room")
        assert ran.named("point") == []
        scene.nothing_left()
        assert scene.segments() == []


def test_a_store_that_may_be_too_small_is_a_warning(scene: Scene) -> None:
    with small_tmpfs(9) as place:
        scene.backup(store=place / "store").succeeded()
        scene.writer().write(0, bytes(8 << 20))
        ran = scene.backup(store=place / "store").succeeded()
        assert [event for event in ran.named("warning") if "may run out of room" in event["what"]]


# ---- programs that hang -------------------------------------------------------------------------


@pytest.mark.parametrize("probe", ["nbdkit", "KVM"])
def test_a_signal_ends_the_wait_for_a_program_that_hangs(
    probe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _path_without(tmp_path / "path", "nbdkit")
    started = tmp_path / "started"
    script = tmp_path / "hangs.py"
    script.write_text(
        f"#!{sys.executable}\nimport pathlib, time\n"
        f"pathlib.Path({str(started)!r}).touch()\ntime.sleep({LIMIT})\n"
    )
    script.chmod(0o755)
    Path(path, "nbdkit").symlink_to(script)
    monkeypatch.setenv("PATH", path)
    monkeypatch.setattr(kvm, "_PROBE", script)
    cancel = fleece.CancelToken()

    def interrupt() -> None:
        wait_until(started.exists, "the program")
        cancel.cancel()

    thread = threading.Thread(target=interrupt)
    thread.start()
    waits: dict[str, Callable[[], object]] = {
        "nbdkit": partial(fleece.examine_host, cancel=cancel),
        "KVM": partial(examine_kvm, Path("/dev/null"), cancel),
    }
    with pytest.raises(fleece.Interrupted):
        waits[probe]()
    thread.join()


# ---- KVM ----------------------------------------------------------------------------------------


def test_kvm_that_is_not_there(tmp_path: Path) -> None:
    assert examine_kvm(tmp_path / "kvm").state is KvmState.MISSING


def test_kvm_that_does_not_work(tmp_path: Path) -> None:
    found = examine_kvm(Path("/dev/null"))
    assert found.state is KvmState.BROKEN
    assert "nappropriate ioctl" in str(found)
    assert examine_kvm(tmp_path).state is KvmState.BROKEN


def test_kvm_that_may_not_be_opened(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    script = "from fleece.engine.work.kvm import examine_kvm; print(examine_kvm())"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", 'touch "$1"; chmod 0 "$1"; mount --bind "$1" /dev/kvm; shift;'
         ' exec setpriv --reuid 65534 --clear-groups "$@"', "-", tmp_path / "kvm",
         sys.executable, "-c", script],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "mount" in done.stderr or "No module" in done.stderr or "rror 13" in done.stderr:
        pytest.skip(done.stderr)
    assert done.stdout == "KVM may not be opened by this user (group kvm)\n", done.stderr


@pytest.mark.parametrize("broken", [False, True], ids=["as it is", "broken"])
def test_a_machine_boots_whether_kvm_works_or_not(broken: bool, tmp_path: Path) -> None:
    guest = Guest(tmp_path / "store")
    guest.holding({"system": bootable()})
    words: list[object] = [sys.executable, "-m", "fleece", "boot-test", guest.store, "latest"]
    words += ["--memory", 64, "--console-text", "BOOTED", "--timeout", LIMIT / 2, "--json"]
    if broken:
        if os.geteuid() != 0 or not Path("/dev/kvm").exists():
            pytest.skip("nothing to break, or not root")
        hide = 'mount --bind /dev/null /dev/kvm && exec "$@"'
        words = ["unshare", "-m", "sh", "-c", hide, "-", *words]
    done = subprocess.run(
        [*map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=LIMIT
    )
    ran = Ran(done.returncode, done.stdout, done.stderr).succeeded()
    warnings = [event["what"] for event in ran.named("warning")]
    works = examine_kvm().works and not broken
    assert [text for text in warnings if "the machine is emulated, which is slow" in text] == (
        [] if works else warnings
    )
    assert bool(warnings) is not works
