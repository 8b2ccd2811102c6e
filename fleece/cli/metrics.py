"""A store's status in the text format that Prometheus reads."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from prometheus_client import CollectorRegistry, Gauge, generate_latest

import fleece


def _verified(guest: fleece.GuestStatus) -> float | None:
    return None if guest.verified is None else datetime.fromisoformat(guest.verified).timestamp()


_Value = Callable[[fleece.GuestStatus], float | None]

_GAUGES: tuple[tuple[str, str, _Value], ...] = (
    ("points", "Complete points.", lambda guest: guest.points),
    (
        "last_good_point_age_seconds",
        "Age of the newest point that is whole, as far as is known.",
        lambda guest: guest.age,
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
        _verified,
    ),
    ("unverified_deltas", "Deltas that were never verified.", lambda guest: guest.unverified),
    ("failed_deltas", "Deltas whose last verification failed.", lambda guest: guest.failed),
)


def text_of(found: fleece.StoreStatus) -> str:
    """The metrics: of the store, and of each guest."""
    registry = CollectorRegistry()
    problems = Gauge("fleece_problems", "Things known to be wrong in the store.", registry=registry)
    problems.set(len(found.problems))
    for name, text, value_of in _GAUGES:
        gauge = Gauge(f"fleece_{name}", text, ["guest"], registry=registry)
        for guest in found.guests:
            value = value_of(guest)
            if value is not None:
                gauge.labels(guest.guest).set(value)
    return generate_latest(registry).decode()
