"""A unix socket whose clients a test meets."""

from __future__ import annotations

import socket
import threading
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path


class Listening(ABC):
    """Listens on a unix socket, and meets one client after the other, in a thread of its own.

    Attributes:
        path: of the socket.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                self.meet(self._listener.accept()[0])

    @abstractmethod
    def meet(self, client: socket.socket) -> None:
        """A client has connected."""
