"""A cancel token may be set by anybody, at any moment."""

from __future__ import annotations

import subprocess
import sys

import pytest

import fleece
from tests.rig.process import LIMIT

_SIGNALLED_IN_CANCEL = """
import signal
from fleece.cancel import CancelToken
done = 0
def handler(number, frame):
    global done
    done += 1
    token.cancel()
signal.signal(signal.SIGALRM, handler)
while done < 2000:
    token = CancelToken()
    before = done
    signal.setitimer(signal.ITIMER_REAL, 1e-6 * (done % 60 + 1))
    while done == before:
        token.cancel()
    assert token.cancelled
"""


def test_it_stops_the_work_once_it_was_set() -> None:
    token = fleece.CancelToken()
    token.check()
    token.cancel()
    token.cancel()
    assert token.cancelled
    with pytest.raises(fleece.Interrupted):
        token.check()


def test_a_signal_handler_may_set_it_while_it_is_being_set() -> None:
    """As two signals do, one right after the other: neither may wait for the other."""
    subprocess.run([sys.executable, "-c", _SIGNALLED_IN_CANCEL], timeout=LIMIT, check=True)
