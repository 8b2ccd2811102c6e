"""`fleece metrics`, read by those whose formats these are: promtool, node_exporter, Prometheus."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import fleece
from tests.engine.scene import INTACT, wait_until
from tests.engine.test_fleet import Fleet
from tests.rig.process import Child, find_tool, run, run_checked
from tests.rig.s3 import free_ports

_HOST = socket.gethostname()
_Samples = dict[tuple[str, str, str], float]

needs_prometheus = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="Prometheus is not installed"
)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """Two guests with a point each, which are in two stores, and one without."""
    made = Fleet(tmp_path_factory.mktemp("fleet"))
    made.add("a", "b {é}")
    made.more = 'copy-to = ["copies"]'
    made.last = 'stale-after = "1h"'
    made.run().succeeded()
    made.add("c")
    return made


def _samples(text: str) -> _Samples:
    """The values by name, guest and store. No two are of one."""
    found: _Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = sample.labels
            if sample.name.startswith("fleece_"):
                assert labels["host"] == _HOST
                key = (sample.name, labels.get("guest", ""), labels.get("store", ""))
                assert key not in found
                found[key] = sample.value
    return found


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as answer:
        text: str = answer.read().decode()
    return text


def _answers(url: str) -> bool:
    try:
        _get(url)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _serving(fleet: Fleet) -> Iterator[str]:
    """The address of metrics that are scraped."""
    words = ("metrics", "--config", fleet.file, "--listen", "127.0.0.1:0", "--json")
    running = INTACT.command(*words)
    try:
        yield str(running.wait_event("serving")["url"])
    finally:
        running.signal(signal.SIGTERM)
    running.wait().succeeded()


def _check(samples: Mapping[tuple[str, str, str], float], fleet: Fleet) -> None:
    """Check figures of all guests in both stores."""
    points = {key[1:]: value for key, value in samples.items() if key[0] == "fleece_points"}
    names = ("a", "b {é}", "c")
    stores = ("main", "copies")
    assert points == {(name, store): name != "c" for name in names for store in stores}
    good = "fleece_last_good_point_timestamp_seconds"
    catalogue = fleece.open_store(fleet.folder / "store").catalogue()
    moment = catalogue.of_guest("a")[-1].moment.timestamp()
    assert samples[good, "a", "main"] == samples[good, "a", "copies"] == moment
    assert (good, "c", "main") not in samples
    assert samples["fleece_store_up", "", "copies"] == 1
    assert samples["fleece_stale_after_seconds", "c", "main"] == 3600
    assert ("fleece_stale_after_seconds", "a", "main") not in samples


@needs_prometheus
def test_the_textfile_collector_reads_several_stores_of_one_file(fleet: Fleet) -> None:
    """Whole, also by another user; no two figures of one name and labels."""
    folder = fleet.folder / "textfiles"
    folder.mkdir()
    path = folder / "fleece.prom"
    for _ in range(2):
        INTACT.run("metrics", "--config", fleet.file, "--output", path).succeeded()
    assert [each.name for each in folder.iterdir()] == ["fleece.prom"]
    assert path.stat().st_mode & 0o777 == 0o644
    with path.open() as file:
        words = [find_tool("promtool"), "check", "metrics"]
        done = subprocess.run(words, stdin=file, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    (port,) = free_ports(1)
    command = [find_tool("prometheus-node-exporter"), "--collector.disable-defaults"]
    command += ["--collector.textfile", f"--collector.textfile.directory={folder}"]
    command += [f"--web.listen-address=127.0.0.1:{port}"]
    child = Child(command, fleet.folder / "node_exporter.log")
    try:
        url = f"http://127.0.0.1:{port}/metrics"
        wait_until(lambda: _answers(url), "node_exporter")
        text = _get(url)
    finally:
        child.kill()
    assert "node_textfile_scrape_error 0\n" in text
    _check(_samples(text), fleet)


@needs_prometheus
def test_the_alert_rules_are_right(fleet: Fleet) -> None:
    """As promtool finds them; and they tell what they are for."""
    rules = fleet.folder / "rules.yaml"
    rules.write_text(INTACT.run("metrics", "--rules").succeeded().out)
    assert "SUCCESS" in run_checked("promtool", "check", "rules", rules)
    labels = 'host="h", store="s", instance="i"'
    series = {
        f'fleece_points{{guest="none", {labels}}}': "0x5000",
        f'fleece_points{{guest="bad", {labels}}}': "2x5000",
        f'fleece_points{{guest="old", {labels}}}': "2x5000",
        f'fleece_last_good_point_timestamp_seconds{{guest="old", {labels}}}': "0x5000",
        f'fleece_points{{guest="slow", {labels}}}': "2x5000",
        f'fleece_last_good_point_timestamp_seconds{{guest="slow", {labels}}}': "0x5000",
        f'fleece_stale_after_seconds{{guest="slow", {labels}}}': f"{100 * 86400}x5000",
        f'fleece_failed_deltas{{guest="old", {labels}}}': "0x5000",
        'fleece_store_up{host="h", store="s"}': "0x5000",
        'fleece_host_up{host="h"}': "1x5000",
    }
    fired = {
        "FleeceNoPoint": ["none"],
        "FleeceNoGoodPoint": ["bad"],
        "FleecePointOld": ["old"],
        "FleecePointTooOld": [],
        "FleeceDamage": [],
        "FleeceHostDown": [],
    }
    _fires(rules, series, fired)


def _fires(rules: Path, series: Mapping[str, str], fired: Mapping[str, list[str]]) -> None:
    """Check which alerts fire for which guests at minute 2960."""
    queries = [
        {
            "expr": f'count by (guest) (ALERTS{{alertname="{alert}", alertstate="firing"}})',
            "eval_time": "2960m",
            "exp_samples": [{"labels": f'{{guest="{guest}"}}', "value": 1} for guest in guests],
        }
        for alert, guests in fired.items()
    ]
    test = {
        "rule_files": [str(rules)],
        "evaluation_interval": "10m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": k, "values": v} for k, v in series.items()],
                "promql_expr_test": queries,
            }
        ],
    }
    path = rules.with_name("rules-test.yaml")
    path.write_text(json.dumps(test))
    done = run("promtool", "test", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_prometheus
def test_prometheus_answers_every_question_of_the_dashboard(fleet: Fleet) -> None:
    board = json.loads(INTACT.run("metrics", "--dashboard").succeeded().out)
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    assert {each["name"] for each in board["templating"]["list"]} == {
        "datasource",
        "host",
        "store",
        "guest",
    }
    with _serving(fleet) as url, _prometheus(fleet.folder, url) as api:
        wait_until(lambda: bool(_ask(api, "fleece_points")), "a scrape")
        for panel in board["panels"]:
            for target in panel["targets"]:
                text = re.sub(r"\$(guest|store|host)\b", ".*", target["expr"])
                found = _ask(api, text)
                verified = "fleece_verified_timestamp_seconds" in text
                assert bool(found) is not verified, text
        for each in board["templating"]["list"][1:]:
            asked = re.fullmatch(r"label_values\((\w+), (\w+)\)", each["query"]["query"])
            assert asked is not None
            assert any(asked[2] in row["metric"] for row in _ask(api, asked[1]))


@contextlib.contextmanager
def _prometheus(folder: Path, url: str) -> Iterator[str]:
    """The address of a Prometheus that scrapes an address."""
    (port,) = free_ports(1)
    target = urllib.parse.urlsplit(url).netloc
    job = {"job_name": "fleece", "static_configs": [{"targets": [target]}]}
    config = {"global": {"scrape_interval": "1s"}, "scrape_configs": [job]}
    (folder / "prometheus.yml").write_text(json.dumps(config))
    command = [find_tool("prometheus"), f"--config.file={folder}/prometheus.yml"]
    command += [f"--storage.tsdb.path={folder}/tsdb"]
    command += [f"--web.listen-address=127.0.0.1:{port}"]
    child = Child(command, folder / "prometheus.log")
    try:
        wait_until(lambda: _answers(f"http://127.0.0.1:{port}/-/ready"), "Prometheus")
        yield f"http://127.0.0.1:{port}/api/v1/query"
    finally:
        child.kill()


def _ask(api: str, query: str) -> list[Any]:
    answer = json.loads(_get(f"{api}?{urllib.parse.urlencode({'query': query})}"))
    assert answer["status"] == "success"
    result: list[Any] = answer["data"]["result"]
    return result


def test_scrapes_are_answered(fleet: Fleet) -> None:
    with _serving(fleet) as url:
        _check(_samples(_get(url)), fleet)
        ran = INTACT.run("metrics", "--config", fleet.file, "--listen", url[7:].partition("/")[0])
        ran.failed(fleece.ExitCode.TARGET, "cannot listen (Address already in use)")
    INTACT.run("metrics", "--config", fleet.file, "--listen", "9717").failed(
        fleece.ExitCode.USAGE, "takes ADDRESS:PORT"
    )


def test_stores_without_a_configuration(fleet: Fleet) -> None:
    """One that cannot be read is told, and keeps none of the others from being read."""
    store, gone = fleet.folder / "store", fleet.folder / "gone"
    samples = _samples(INTACT.run("metrics", store).succeeded().out)
    assert samples["fleece_points", "a", str(store)] == 1
    assert samples["fleece_store_problems", "", str(store)] == 0
    ran = INTACT.run("metrics", gone, store)
    ran.failed(fleece.ExitCode.STORE, str(gone))
    samples = _samples(ran.out)
    assert samples["fleece_store_up", "", str(gone)] == 0
    assert samples["fleece_store_up", "", str(store)] == 1
    assert samples["fleece_points", "a", str(store)] == 1
    INTACT.run("metrics", store, "--output", fleet.folder / "no/x.prom").failed(
        fleece.ExitCode.TARGET, "No such file"
    )
