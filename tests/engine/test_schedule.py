"""`fleece schedule`: units that systemd's own tools judge."""

from __future__ import annotations

import json
import os
import stat
import sys
import tomllib
from pathlib import Path

import pytest

import fleece
from tests.engine.scene import INTACT, ROOT, Ran
from tests.rig.booted import booted
from tests.rig.process import run, run_checked

_UNITS = Path("etc/systemd/system")
_EXPOSURE = 55
"""In tenths, of systemd's scale from 0 to 100: what `fleece run` may be at most."""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration whose names are no plain words."""
    store = tmp_path / 'the 100% "store" $x'
    INTACT.run("init", store).succeeded()
    path = tmp_path / "a b" / "fleece.toml"
    path.parent.mkdir()
    place = str(store).replace('"', '\\"')
    path.write_text(
        f'[store.main]\nplace = "{place}"\n'
        '[[guest]]\nname = "web1"\nsource = "libvirt:web1"\nstore = "main"\n'
    )
    path.chmod(0o600)
    return path


def _schedule(config: Path, *words: object) -> Ran:
    return INTACT.run("schedule", *words, "--config", config)


def _shown(config: Path, folder: Path) -> list[Path]:
    """The units, as files."""
    ran = _schedule(config, "show", "--json").succeeded()
    found = []
    for unit in ran.named("unit"):
        found.append(folder / unit["unit"])
        found[-1].write_text(unit["content"])
    return found


def test_systemd_finds_nothing_wrong_with_the_units(config: Path, tmp_path: Path) -> None:
    units = _shown(config, tmp_path)
    assert [unit.name for unit in units] == ["fleece-run.service", "fleece-run.timer"]
    done = run("systemd-analyze", "verify", "--man=no", *units)
    mine = [line for line in (done.stdout + done.stderr).splitlines() if "fleece-run" in line]
    assert (done.returncode, mine) == (0, [])


def test_a_word_that_systemd_would_take_apart_is_noticed(config: Path, tmp_path: Path) -> None:
    """The judge above sees a program's name that is not quoted."""
    service, _ = _shown(config, tmp_path)
    program = tmp_path / "a b" / "fleece"
    program.symlink_to("/bin/true")
    text = service.read_text()
    start = text.index("ExecStart=") + len("ExecStart=")
    for quoted, code in ((f'"{program}"', 0), (str(program), 1)):
        service.write_text(f"{text[:start]}{quoted}\n{text[text.index(chr(10), start) :]}")
        assert run("systemd-analyze", "verify", "--man=no", service).returncode == code


def test_the_service_may_do_little(config: Path, tmp_path: Path) -> None:
    service, _ = _shown(config, tmp_path)
    words = ("systemd-analyze", "security", "--offline=true", f"--threshold={_EXPOSURE}")
    done = run(*words, service)
    assert done.returncode == 0, done.stdout
    kept = service.read_text()
    service.write_text(kept[: kept.index("ProtectSystem")])
    assert run(*words, service).returncode != 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has capabilities to lose")
def test_with_what_the_service_may_do_a_guest_is_backed_up(config: Path, tmp_path: Path) -> None:
    """Under the capabilities that its unit names, and with no new privileges."""
    service, _ = _shown(config, tmp_path)
    lines = [line for line in service.read_text().splitlines() if "BoundingSet=" in line]
    named = " ".join(line.partition("=")[2] for line in lines).lower().split()
    kept = "".join(f",+{name.removeprefix('cap_')}" for name in named)
    image = tmp_path / "d.qcow2"
    run_checked("qemu-img", "create", "-q", "-f", "qcow2", image, "16M")
    config.write_text(config.read_text().replace("libvirt:web1", f"image:{image}"))
    words = ("--no-new-privs", f"--bounding-set=-all{kept}", sys.executable, "-m", "fleece")
    for mode in ("full", "incremental"):
        run_checked("qemu-io", "-f", "qcow2", "-c", "write -q 0 1M", image)
        said = run_checked("setpriv", *words, "run", "--config", config, cwd=ROOT)
        assert said.splitlines()[1].split()[:3] == ["web1", "main", mode]


def test_units_are_installed_into_another_root_and_removed(config: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for calendar in ("02:15", "Mon *-*-* 03:00"):
        _schedule(config, "install", "--root", root, "--calendar", calendar).succeeded()
        timer = root / _UNITS / "fleece-run.timer"
        assert f"OnCalendar={calendar}\n" in timer.read_text()
        assert stat.S_IMODE(timer.stat().st_mode) == 0o644
        wanted = root / _UNITS / "timers.target.wants" / "fleece-run.timer"
        assert wanted.is_symlink()
        enabled = run_checked("systemctl", f"--root={root}", "is-enabled", "fleece-run.timer")
        assert enabled == "enabled\n"
    ran = _schedule(config, "remove", "--root", root).succeeded()
    assert ran.out.count("removed ") == 2
    assert [path for path in root.rglob("*") if not path.is_dir()] == []
    assert "nothing was there" in _schedule(config, "remove", "--root", root).succeeded().out


def test_a_unit_of_somebody_elses_stays(config: Path, tmp_path: Path) -> None:
    theirs = tmp_path / _UNITS / "fleece-run.timer"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("[Timer]\n")
    for action in ("install", "remove"):
        ran = _schedule(config, action, "--root", tmp_path)
        ran.failed(fleece.ExitCode.TARGET, "fleece-run.timer: is not of fleece's making")
    assert [*theirs.parent.iterdir()] == [theirs]
    assert theirs.read_text() == "[Timer]\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can boot a system")
def test_systemd_runs_a_configuration(config: Path, tmp_path: Path) -> None:
    """A real one, under all that the service forbids; its journal has a field for what it is asked
    for, of a guest that is backed up and of one that cannot be.
    """
    for name in ("web1", "web2"):
        run_checked("qemu-img", "create", "-q", "-f", "qcow2", tmp_path / f"{name}.qcow2", "16M")
    text = config.read_text().replace("libvirt:web1", f"image:vda={tmp_path}/web1.qcow2")
    more = text[text.index("[[guest]]") :].replace("web1", "web2")
    config.write_text(f"{text}{more}")
    fleece_words = ("env", "-C", ROOT, sys.executable, "-m", "fleece", "schedule")
    with booted(tmp_path) as system:
        system.run(*fleece_words, "install", "--config", config)
        system.run("systemctl", "start", "fleece-run.service")
        assert "fleece-run.timer" in system.run("systemctl", "list-timers", "fleece-run.timer")
        (tmp_path / "web2.qcow2").unlink()
        assert system.fails("systemctl", "start", "fleece-run.service")
        system.run("journalctl", "--sync")
        said = system.run("journalctl", "-u", "fleece-run", "-o", "json")
        system.run(*fleece_words, "remove", "--config", config)
        assert "fleece-run" not in system.run("systemctl", "list-timers", "--all")
    entries = [json.loads(line) for line in said.splitlines()]
    told = [
        (entry["FLEECE_GUEST"], entry["FLEECE_EXIT_CODE"], entry["PRIORITY"])
        for entry in entries
        if "FLEECE_EXIT_CODE" in entry
    ]
    assert sorted(told[:2]) == [("web1", "0", "6"), ("web2", "0", "6")]
    assert sorted(told[2:]) == [("web1", "0", "6"), ("web2", "3", "3")]
    points = {point.guest: point.id for point in _store(config).catalogue().points[-1:]}
    assert points["web2"] in {entry.get("FLEECE_POINT") for entry in entries}
    failed = [entry["MESSAGE"] for entry in entries if entry.get("FLEECE_EXIT_CODE") == "3"]
    assert failed[0].startswith("web2: backup failed: ")
    assert not [entry for entry in entries if entry["MESSAGE"].startswith("GUEST")]


def _store(config: Path) -> fleece.Store:
    return fleece.open_store(tomllib.loads(config.read_text())["store"]["main"]["place"])


@pytest.mark.skipif(Path("/run/systemd/system").is_dir(), reason="systemd runs here")
def test_where_no_systemd_runs_nothing_is_written(config: Path) -> None:
    before = os.listdir("/etc/systemd/system")
    for action in ("install", "remove"):
        ran = _schedule(config, action)
        ran.failed(fleece.ExitCode.USAGE, "systemd does not run here", "--cron", "--root")
    assert os.listdir("/etc/systemd/system") == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("install", "--calendar", "at night"), "at night is no time that systemd knows"),
        (("install", "--cron"), "--cron goes with 'show'"),
        (("show", "--cron", "--calendar", "03:00"), "--calendar has no effect with --cron"),
        (("show", "--root", "/x"), "--root has no effect on 'show'"),
        (("remove", "--calendar", "03:00"), "--calendar has no effect on 'remove'"),
    ],
)
def test_what_cannot_be_is_refused(words: tuple[str, ...], said: str, config: Path) -> None:
    _schedule(config, *words).failed(fleece.ExitCode.USAGE, said)


def test_cron_runs_the_same(config: Path) -> None:
    out = _schedule(config, "show", "--cron").succeeded().out
    (line,) = [line for line in out.splitlines() if line.startswith("15 2 ")]
    command = line.split("root  ")[1].replace("\\%", "%").replace(" run ", " config check ", 1)
    command = command.replace(" --quiet", "").replace(" --wait 3600", "")
    assert f"{config}: 1 guest" in run_checked("sh", "-c", command)
