"""The verb `metrics`: how guests and stores are, in the text format that Prometheus reads."""

from __future__ import annotations

import functools
import importlib.resources
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path

from prometheus_client import CollectorRegistry, Metric, generate_latest, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

import fleece
from fleece import events
from fleece.cancel import CancelToken
from fleece.cli.fleet import config_path, open_configured
from fleece.cli.output import Output
from fleece.cli.words import MetricsWords
from fleece.errors import FleeceError, TargetError, UsageError
from fleece.fleet.config import load
from fleece.fleet.figures import Figures, Place, of_plan, of_stores, stores_of
from fleece.fleet.plan import plan
from fleece.folder import Folder

_READABLE = 0o644
_FRESH = 60.0
"""Seconds: a scrape within this time costs the stores nothing."""

_EVERY = 0.1


def metrics(output: Output, cancel: CancelToken, words: MetricsWords) -> None:
    """`fleece metrics [STORE]...`."""
    for asked, name in ((words.rules, "alerts.yaml"), (words.dashboard, "dashboard.json")):
        if asked:
            found = importlib.resources.files("fleece.fleet").joinpath(name)
            output.listing(found.read_text("utf-8").rstrip("\n").split("\n"))
            return
    find = _of_stores(cancel, words) if words.stores else _of_config(cancel, words)
    if words.listen is not None:
        _listen(output, cancel, words.listen, find)
        return
    figures = find()
    registry = CollectorRegistry()
    registry.register(_Cached(figures, lambda: figures))
    text = generate_latest(registry)
    if words.output is None:
        output.listing(text.decode().rstrip().split("\n"))
    else:
        _put(Path(words.output), text)
    for status in figures.stores.values():
        if isinstance(status, FleeceError):
            raise status
    stores, guests = len(figures.stores), len(figures.guests)
    output.succeed("", stores=stores, guests=guests)


def _of_stores(cancel: CancelToken, words: MetricsWords) -> Callable[[], Figures]:
    return lambda: of_stores(
        {
            place: functools.partial(fleece.open_store, place, words.secret, cancel)
            for place in words.stores
        }
    )


def _of_config(cancel: CancelToken, words: MetricsWords) -> Callable[[], Figures]:
    config = load(config_path(words.config))

    def find() -> Figures:
        planned = plan(config, (), cancel)
        names = dict.fromkeys(name for guest in planned.guests for name in stores_of(guest))
        stores = {name: config.stores[name] for name in names}
        return of_plan(
            planned,
            {
                name: functools.partial(open_configured, store, cancel)
                for name, store in stores.items()
            },
        )

    return find


def _put(path: Path, text: bytes) -> None:
    """Have a file be the text, whole at each moment."""
    try:
        with Folder.open(path.parent) as folder:
            folder.put(path.name, text, _READABLE)
    except OSError as error:
        raise TargetError(f"cannot be written ({error.strerror})", where=path) from error


def _listen(output: Output, cancel: CancelToken, listen: str, find: Callable[[], Figures]) -> None:
    """Answer scrapes until it is interrupted."""
    address, _, port = listen.rpartition(":")
    if not port.isascii() or not port.isdigit() or int(port) > 65535 or not address:
        raise UsageError("--listen takes ADDRESS:PORT, like 127.0.0.1:9717", where=listen)
    registry = CollectorRegistry()
    registry.register(_Cached(find(), _told(output, find)))
    try:
        server, thread = start_http_server(int(port), address.strip("[]"), registry)
    except OSError as error:
        raise TargetError(f"cannot listen ({error.strerror})", where=listen) from error
    try:
        url = f"http://{address}:{server.server_port}/metrics"
        output.row("serving", url, url=url)
        while not cancel.cancelled:
            time.sleep(_EVERY)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    output.succeed("")


def _told(output: Output, find: Callable[[], Figures]) -> Callable[[], Figures]:
    """The figures; none, if they cannot be found, which is told here and missed there."""

    def found() -> Figures:
        try:
            return find()
        except FleeceError as error:
            output.listen(events.Warned(str(error)))
            return Figures({}, {}, {}, {})

    return found


class _Cached(Collector):
    """Gives the metrics of figures that are young enough, one scrape at a time."""

    def __init__(self, found: Figures, find: Callable[[], Figures]) -> None:
        self._found, self._find = found, find
        self._lock = threading.Lock()
        self._since = time.monotonic()

    def collect(self) -> Iterable[Metric]:
        """The metrics."""
        with self._lock:
            if time.monotonic() - self._since > _FRESH:
                self._found, self._since = self._find(), time.monotonic()
            return [*_metrics(self._found)]


_Value = Callable[[fleece.GuestStatus], float | None]


def _moment(text: str | None) -> float | None:
    return None if text is None else datetime.fromisoformat(text).timestamp()


_GAUGES: tuple[tuple[str, str, _Value], ...] = (
    (
        "last_good_point_timestamp_seconds",
        "Of when the newest point is that is whole, as far as is known; absent: there is none.",
        lambda guest: _moment(guest.time),
    ),
    ("chain_depth", "Deltas that this point is restored from.", lambda guest: guest.depth),
    ("stored_bytes", "Bytes of all deltas.", lambda guest: guest.stored_bytes),
    (
        "growth_bytes",
        f"Bytes of the deltas of the last {fleece.GROWTH_DAYS} days.",
        lambda guest: guest.growth_bytes,
    ),
    (
        "verified_timestamp_seconds",
        "When the longest unverified delta was last verified; absent while one never was.",
        lambda guest: _moment(guest.verified),
    ),
    ("unverified_deltas", "Deltas that were never verified.", lambda guest: guest.unverified),
    ("failed_deltas", "Deltas whose last verification failed.", lambda guest: guest.failed),
)


def _metrics(figures: Figures) -> Iterator[Metric]:
    """One for each kind of figure."""
    points = _gauge("points", "Complete points.")
    for place, guest in figures.guests.items():
        _add(points, place, 0 if guest is None else guest.points)
    yield points
    for name, text, value_of in _GAUGES:
        gauge = _gauge(name, text)
        for place, guest in figures.guests.items():
            if guest is not None and (value := value_of(guest)) is not None:
                _add(gauge, place, value)
        yield gauge
    stale = _gauge("stale_after_seconds", "How old the newest good point may be.")
    for place, seconds in figures.stale_after.items():
        _add(stale, place, seconds)
    yield stale
    yield from _store_metrics(figures)


def _store_metrics(figures: Figures) -> Iterator[Metric]:
    up = GaugeMetricFamily(
        "fleece_store_up", "Whether the store can be read.", labels=["store", "host"]
    )
    problems = GaugeMetricFamily(
        "fleece_store_problems", "Things known to be wrong in it.", labels=["store", "host"]
    )
    for place, status in figures.stores.items():
        readable = isinstance(status, fleece.StoreStatus)
        labels = _labels(place.store, place.host)
        up.add_metric(labels, readable)
        if isinstance(status, fleece.StoreStatus):
            problems.add_metric(labels, len(status.problems))
    hosts = GaugeMetricFamily(
        "fleece_host_up", "Whether the host could tell its guests.", labels=["host"]
    )
    for host, known in figures.hosts.items():
        hosts.add_metric(_labels(host), known)
    yield from (up, problems, hosts)


def _gauge(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"fleece_{name}", text, labels=["guest", "store", "host"])


def _add(gauge: GaugeMetricFamily, place: Place, value: float) -> None:
    gauge.add_metric(_labels(place.guest, place.store, place.host), value)


def _labels(*names: str) -> list[str]:
    """Names as texts that UTF-8 can have: a path's bytes, and JSON of somebody else's, need not."""
    return [name.encode(errors="backslashreplace").decode() for name in names]
