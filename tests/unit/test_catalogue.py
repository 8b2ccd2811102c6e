"""The points of one guest, at the cost of that guest's."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleece.errors import StoreError
from fleece.store.init import init
from tests.unit.copies import Site


@pytest.fixture
def sites(tmp_path: Path) -> tuple[Site, Site]:
    """Two guests of one store, with a point each."""
    store = init(tmp_path / "store")
    made = Site(store, "web"), Site(store, "db")
    for site in made:
        site.back_up()
    return made


def test_a_guest_has_its_own_part_only(sites: tuple[Site, Site], tmp_path: Path) -> None:
    """What is damaged elsewhere is not even read."""
    (other,) = (tmp_path / "store" / "db").rglob("*.fleece")
    other.write_bytes(b"")
    store = sites[0].store
    assert [point.guest for point in store.catalogue("web").points] == ["web"]
    assert store.catalogue("web").damaged == ()
    assert len(store.catalogue().damaged) == 1


def test_a_guest_of_whom_nothing_is_there_is_looked_for_everywhere(
    sites: tuple[Site, Site], tmp_path: Path
) -> None:
    """Somebody may have renamed its folder; and who is wrong about a name is told others."""
    (tmp_path / "store" / "web").rename(tmp_path / "store" / "moved")
    store = sites[0].store
    assert [point.guest for point in store.catalogue("web").of_guest("web")] == ["web"]
    with pytest.raises(StoreError, match="did you mean db"):
        store.catalogue("dbb").named("dbb")
    sites[0].back_up()
    assert len([*(tmp_path / "store" / "web").rglob("*.fleece")]) == 1
    assert len(store.catalogue("web").of_guest("web")) == 2
