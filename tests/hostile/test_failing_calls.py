"""A system call fails: one clear error, nothing damaged or lost, and the next run does it.

`tools/failingcalls` tries every call of every verb; here it is some of each.
"""

from __future__ import annotations

from collections.abc import Iterator
from errno import EIO
from pathlib import Path

import pytest

from tests.engine.scene import Mutation
from tests.hostile.failing_calls import VERBS, Bench, Trial, Verb, Wrong, bench, sample


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """One bench for all."""
    with bench(tmp_path_factory.mktemp("bench")) as made:
        yield made


@pytest.mark.parametrize("verb", VERBS, ids=str)
def test_one_call_fails(verb: Verb, here: Bench) -> None:
    for trial in sample(here, 4, seed=1, verbs=(verb,)):
        try:
            here.check(trial)
        except Wrong as wrong:
            pytest.fail(f"{trial}: {wrong}")


_FAULT = Mutation(
    "what the system says is passed on as it is",
    (
        (
            "engine/work/new_file.py",
            "with target_errors(final):\n                os.fsync(descriptor)",
            "if True:\n                os.fsync(descriptor)",
        ),
    ),
)


def test_these_checks_can_fail(here: Bench, tmp_path: Path) -> None:
    (verb,) = (verb for verb in VERBS if verb.name == "restore")
    trial = Trial(verb, "sync", 2, EIO)
    assert not here.check(trial)
    (tmp_path / "broken").mkdir()
    with (
        bench(tmp_path / "broken", _FAULT.engine(tmp_path)) as broken,
        pytest.raises(Wrong, match="exit code 1"),
    ):
        broken.check(trial)
