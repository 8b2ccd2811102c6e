"""Let everything else on the host go first."""

from __future__ import annotations

import os
import shutil
import subprocess

from fleece.environment import child_environment
from fleece.programs import using


def step_back() -> None:
    """Take the lowest priority for processors, and the idle class for disks where `ionice` is.

    What this process starts inherits both. QEMU, which does the reading, keeps its own.
    """
    os.setpriority(os.PRIO_PROCESS, 0, 19)
    if (ionice := shutil.which("ionice")) is not None:
        words = [ionice, "-c", "3", "-p", str(os.getpid())]
        with using(words):
            subprocess.run(words, check=False, env=child_environment())
