"""What a short-lived process does without. The library itself leaves all of it alone."""

from __future__ import annotations

import atexit
import gc
import os

_NEW_OBJECTS = 100_000


def prepare() -> None:
    """Make the process start and end sooner; to be called before anything heavy is loaded.

    numpy's linear algebra starts a thread for each processor as it is loaded, and nothing here
    uses it. Loading modules makes many objects that stay: looking through them for garbage takes
    as long as a tenth of the loading, and again when the interpreter ends.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    gc.set_threshold(_NEW_OBJECTS)
    atexit.register(gc.freeze)
