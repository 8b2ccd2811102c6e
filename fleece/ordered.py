"""Sets of numbers as ascending arrays.

numpy's own functions for it (`unique`, `setdiff1d`) load a module when they are first called, and
in the middle of a run a module can no longer be loaded for sure: files may run out.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

_Number = TypeVar("_Number", bound=np.integer[Any])


def distinct(numbers: npt.NDArray[_Number]) -> npt.NDArray[_Number]:
    """Each number once, ascending."""
    ordered = np.sort(numbers)
    first = np.ones(len(ordered), np.bool_)
    first[1:] = ordered[1:] != ordered[:-1]
    return ordered[first]


def without(numbers: npt.NDArray[_Number], others: npt.NDArray[_Number]) -> npt.NDArray[_Number]:
    """The numbers that are not among the others, in their order."""
    if len(others) == 0:
        return numbers
    ordered = np.sort(others)
    at = np.minimum(np.searchsorted(ordered, numbers), len(ordered) - 1)
    kept: npt.NDArray[_Number] = numbers[ordered[at] != numbers]
    return kept
