"""What the library's events are called for people."""

from __future__ import annotations

from fleece import events
from fleece.terminal import counted, human, local_time, local_times


def text_of(event: events.Event) -> str | None:
    """The line for people that an event is worth, if it is."""
    match event:
        case events.Leftover():
            return f"removed, left by an interrupted run: {event.kind} {event.item}"
        case events.DiskPlanned():
            return f"{event.disk}: {event.mode}: {event.reason}"
        case events.DiskGone():
            return f"{event.disk}: the guest no longer has it; its newest point is {event.point}"
        case events.PointTaken():
            return f"point {event.point} taken of {', '.join(event.disks)}"
        case events.Resumed():
            return (
                f"resuming point {event.point} of {local_time(event.time)}: "
                f"{human(event.done)} already stored"
            )
        case events.Streamed():
            return f"point {event.point} is written to the output"
        case events.Warned():
            return f"warning: {local_times(event.what)}"
    return _text_of_store(event)


def _text_of_store(event: events.Event) -> str | None:
    match event:
        case events.DeltaChecked():
            return f"sound: point {event.point} disk {event.disk} root {event.root}"
        case events.Problem():
            return f"PROBLEM: {event.where}: {event.what}"
        case events.Merged():
            return (
                f"point {event.point} disk {event.disk} stands for {counted(event.deltas, 'delta')}"
            )
        case events.Arrived():
            return f"arrived: point {event.point} of {event.guest}, {human(event.stored_bytes)}"
        case events.Dropped():
            return f"dropped: point {event.point} of {event.guest}"
    return None
