"""What is stored of each guest, and what rules would free."""

from __future__ import annotations

from pathlib import Path

from tests.engine.history import Guest
from tests.engine.scene import INTACT


def test_stats_count_what_is_there_and_what_prune_would_free(tmp_path: Path) -> None:
    store = tmp_path / "store"
    web, db = Guest(store, "web"), Guest(store, "db")
    web.holding({"vda": b"x" * 131072, "vdb": bytes(65536)})
    web.become(vda=b"y" * 65536 + b"x" * 65536)
    web.become(vda=bytes(131072))
    db.holding({"sda": b"z" * 65536})
    run = INTACT.run
    sizes = {
        name: [sum(paths[at].stat().st_size for paths in guest.paths.values()) for at in range(n)]
        for name, guest, n in (("web", web, 3), ("db", db, 1))
    }
    told = {one["guest"]: one for one in run("stats", store, "--json").succeeded().named("guest")}
    assert [*told] == ["db", "web"]
    assert {name: told["web"][name] for name in told["web"] if name not in ("event", "ratio")} == {
        "guest": "web",
        "points": 3,
        "restored_bytes": 3 * (131072 + 65536),
        "data_bytes": 131072 + 65536,
        "stored_bytes": sum(sizes["web"]),
        "freed_bytes": None,
    }
    ruled = run("stats", store, "--keep-last", "1", "--json").succeeded().named("guest")
    assert [one["freed_bytes"] for one in ruled] == [0, sum(sizes["web"][:2])]
    dry = run("prune", store, "--keep-last", "1", "--dry-run", "--json").succeeded().result
    assert dry["removed_bytes"] == sum(one["freed_bytes"] for one in ruled)
    lines = run("stats", store, "--guest", "db").succeeded().out.splitlines()
    assert lines[0].split() == ["GUEST", "POINTS", "RESTORED", "DATA", "STORED", "RATIO"]
    assert lines[-1].startswith("1 point of 1 guest, ")
    run("stats", store, "--tag", "a").failed(2, "no rule says what to keep")
    run("stats", store, "--guest", "wbe").failed(5, "did you mean web?")
    db.paths["sda"][0].write_bytes(b"")
    run("stats", store).failed(5, "1 damaged file: what they hold is not counted")
