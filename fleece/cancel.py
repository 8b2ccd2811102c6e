"""Cancellation: one flag that the caller sets and that every long loop asks."""

from __future__ import annotations

import select

from fleece.errors import Interrupted

_TICK = 200
"""Milliseconds between two looks at the flag while a descriptor is waited for."""


class CancelToken:
    """Set from any thread or signal handler; the work stops at its next safe place.

    A cancelled backup tears its point down and leaves the chain as it was.
    """

    def __init__(self) -> None:
        # No threading.Event: a signal handler that is called while another one sets it waits for
        # the lock that this one holds, for ever.
        self._cancelled = False

    def cancel(self) -> None:
        """Ask the work to stop. Safe to call more than once, and from a signal handler."""
        self._cancelled = True

    @property
    def cancelled(self) -> bool:
        """True once `cancel` was called."""
        return self._cancelled

    def check(self) -> None:
        """Raise `Interrupted` if `cancel` was called."""
        if self._cancelled:
            raise Interrupted

    def wait(self, descriptor: int, event: int) -> None:
        """Wait until something can be read or written, or never can be.

        A call that blocks is begun again by Python after a signal, and the flag is not asked.

        Args:
            descriptor: of a pipe, a socket, a terminal; a file is always ready.
            event: `select.POLLIN` or `select.POLLOUT`.

        Raises:
            Interrupted: `cancel` was called.
        """
        poll = select.poll()
        poll.register(descriptor, event)
        self.check()
        while not poll.poll(_TICK):
            self.check()
