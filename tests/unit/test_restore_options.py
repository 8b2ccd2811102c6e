"""An option of a restore that has no effect on its target is refused, by the library too."""

from __future__ import annotations

from pathlib import Path

import pytest

import fleece

_RAW = fleece.ImageFormat.RAW


@pytest.mark.parametrize(
    "options",
    [
        fleece.RestoreOptions(force=True),
        fleece.RestoreOptions(in_place=True),
        fleece.RestoreOptions(target_format=_RAW),
    ],
)
def test_a_chain_takes_nothing_but_a_guest_and_a_mode(
    options: fleece.RestoreOptions, tmp_path: Path
) -> None:
    store = fleece.init(tmp_path / "store")
    with pytest.raises(fleece.UsageError, match="a new folder of qcow2 images"):
        fleece.restore_as_chain(store, "latest", "vda", str(tmp_path / "out"), options)
    with pytest.raises(fleece.StoreError):  # it is empty, and nothing else is wrong
        fleece.restore_as_chain(
            store, "latest", "vda", str(tmp_path / "out"), fleece.RestoreOptions("web", mode=0o640)
        )


def test_what_can_be_proven_is_not_written_in_place(tmp_path: Path) -> None:
    store, target = fleece.init(tmp_path / "store"), str(tmp_path / "out")
    options = fleece.RestoreOptions(in_place=True)
    with pytest.raises(fleece.UsageError, match="makes a new image"):
        fleece.restore_partial(store, "latest", "vda", target, options)


def test_force_and_in_place_are_two_ways(tmp_path: Path) -> None:
    store, target = fleece.init(tmp_path / "store"), str(tmp_path / "out")
    options = fleece.RestoreOptions(force=True, in_place=True)
    with pytest.raises(fleece.UsageError, match="exclude each other"):
        fleece.restore(store, "latest", "vda", target, options)
