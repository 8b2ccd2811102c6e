"""What is done once a point is stored: no failure of it is a failure of the backup."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from fleece import events
from fleece.attempts import Attempts
from fleece.delta.header import Mode
from fleece.engine.backup.decide import needed_since
from fleece.engine.backup.options import DiskResult
from fleece.engine.backup.take import Taken
from fleece.engine.backup.task import Task


class Aftermath:
    """Steps after the commit: each is tried, and what fails is a warning.

    Args:
        listener: hears of it. What it raises itself is kept until `settle`, so that it stops none
            of the steps.

    Attributes:
        stored: the point is durable; set it.
    """

    def __init__(self, listener: events.Listener) -> None:
        self._listener = listener
        self._tried = Attempts()
        self._told: set[str] = set()
        self._unheard: BaseException | None = None
        self.stored = False

    def tell(self, event: events.Event) -> None:
        """Tell the listener, whatever it does."""
        try:
            self._listener(event)
        except BaseException as error:
            self._unheard = self._unheard or error

    def attempt(self, step: Callable[[], None]) -> None:
        """Try a step of cleaning up the source or the scratch.

        What is left there, the next backup finds by its name.
        """
        with self._tried.step():
            step()
        self._warn()

    @contextmanager
    def rest(self) -> Iterator[None]:
        """What ends with the context: once the point is `stored`, no failure of it is raised."""
        try:
            yield
        except Exception as error:
            if not self.stored:
                raise
            self._tried.failures.append(error)
            self._warn()

    def _warn(self) -> None:
        for text in self._tried.texts:
            if text not in self._told:
                self._told.add(text)
                told = f"the point is stored, but the source could not be cleaned up: {text}"
                self.tell(events.Warned(told))

    def settle(self) -> None:
        """Raise what the listener raised first."""
        if self._unheard is not None:
            raise self._unheard


def trust(task: Task, results: Sequence[DiskResult], after: Aftermath) -> None:
    """What was read as a whole is right again, whatever an audit found before."""
    tried = Attempts()
    for done in results:
        if done.mode in (Mode.FULL, Mode.RESCAN):
            with tried.step():
                task.store.trust(task.lineage.chain_id, done.disk)
    for text in tried.texts:
        after.tell(events.Warned(f"the next backup is a rescan again: {text}"))


def oldest_needed(task: Task, taken: Taken) -> int:
    """The sequence of the oldest segment that a next backup of a streamed disk needs."""
    (made,) = taken.decisions
    needed = needed_since(made.disk, task.lineage)
    return taken.ref.sequence if needed is None else needed


def let_go(taken: Taken, oldest: int | None, after: Aftermath) -> None:
    """Take the point down, and drop the segments that are not needed any more.

    Args:
        taken: the point, stored.
        oldest: sequence of the oldest point that another backup may build on; None: this one.
        after: tries the steps.
    """

    def forget() -> None:
        for kept in taken.living.committed(oldest):
            after.tell(events.Warned(kept))

    after.attempt(taken.living.close)
    after.attempt(forget)
