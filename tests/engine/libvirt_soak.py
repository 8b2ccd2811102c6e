"""A long life of one guest of libvirt's and one store, under random faults.

More than the random deaths that it builds on: the guest is switched off and on, with a backup going
on or not, its QEMU dies, and libvirtd ends and dies between the backups. `tools/soak --libvirt`
lets it run for hours.
"""

from __future__ import annotations

import random
import signal
from collections import Counter

from tests.engine.libvirt_kills import Deaths, Writing, death, points
from tests.engine.libvirt_scene import LibvirtScene


class LibvirtSoak:
    """One guest that writes, and one store.

    Attributes:
        done: how often each thing happened; `backup` counts the successful ones, `fault` all
            faults, `checked` the points that were compared with the guest's writes.
    """

    def __init__(self, scene: LibvirtScene, seed: int) -> None:
        self.done: Counter[str] = Counter()
        self._scene = scene
        self._chance = random.Random(seed)
        self._deaths = Deaths()
        scene.take("full")
        self._writing = Writing(scene, seed)

    def happen(self) -> str:
        """One random thing happens, then a backup succeeds and leaves nothing; gives its name."""
        events = {
            self.engine_or_libvirtd_dies: 8,
            self.guest_is_switched: 2,
            self.guest_stops_in_mid_backup: 1,
            self.qemu_dies: 1,
            self.libvirtd_is_started_anew: 2,
        }
        event = self._chance.choices([*events], [*events.values()])[0]
        event()
        self.done[event.__name__] += 1
        self.done["fault"] += 1
        self.back_up()
        return event.__name__

    def stop(self) -> None:
        """Write no more, and check every point."""
        self._writing.stop()
        self.done["write"] += len(self._writing.writes)
        self.done["daemon"] += self._deaths.daemons
        self.done["checked"] += self._writing.check(points(self._scene))

    def back_up(self) -> None:
        """Back up; nothing but the point and its checkpoint may stay."""
        ran = self._scene.backup().succeeded()
        self.done["backup"] += 1
        self.done["resumed"] += ran.result["resumed"]
        self._scene.nothing_left()

    # What happens

    def engine_or_libvirtd_dies(self) -> None:
        """In a backup."""
        death(self._scene, self._writing, self._chance, self._deaths)

    def guest_is_switched(self) -> None:
        """Off, perhaps with a backup of its images, and on."""
        with self._writing.pausing():
            self._scene.switch(on=False)
            if self._chance.random() < 0.5:
                self.back_up()
            self._scene.switch(on=True)

    def guest_stops_in_mid_backup(self) -> None:
        """The point is lost, and its engine says so."""
        running = self._scene.slow("--jobs", "1")
        running.wait_event("point")
        with self._writing.pausing():
            self._scene.switch(on=False)
            running.signal(signal.SIGCONT)
            running.wait()
            self._scene.switch(on=True)

    def qemu_dies(self) -> None:
        """What it has written is in the image; its bitmaps are broken."""
        with self._writing.pausing():
            backend = "/machine/peripheral/virtio-disk0/virtio-backend"
            self._scene.guest.hmp(f'qemu-io -d {backend} "flush"')
            self._scene.guest.kill()
            self._scene.switch(on=True)

    def libvirtd_is_started_anew(self) -> None:
        """After its end, or its death, between two backups."""
        number = self._chance.choice((signal.SIGKILL, signal.SIGTERM))
        with self._writing.pausing():
            self._scene.guest.daemon.kill(number)
            self._scene.guest.daemon.start()
            self._scene.guest.again()
        self.done["daemon"] += 1
