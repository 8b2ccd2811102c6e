"""A guest agent of any behaviour: what the real one cannot be made to do."""

from __future__ import annotations

import json
import select
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.rig.process import LIMIT

Answer = dict[str, Any]
Behaviour = Callable[["ScriptedAgent", str], "Answer | None"]
"""Called with each command but the sync; gives the answer, or None for the true one."""

SILENCE: Answer = {}
"""The answer that is never sent."""


class HangUp(Exception):
    """Raised by a behaviour: end the connection without an answer."""


class ScriptedAgent:
    """Serves one client at a time on a unix socket, as QEMU does for the real one.

    Args:
        path: of the socket.
        behaviour: what it does instead of the right thing.

    Attributes:
        frozen: the guest's file systems.
        asked: all commands so far but syncs.
        silent: it answers nothing at all, not even a sync.
        litter: bytes that are sent before the answer to a sync.
    """

    def __init__(self, path: Path, behaviour: Behaviour = lambda agent, command: None) -> None:
        self.path = path
        self.behaviour = behaviour
        self.frozen = False
        self.asked: list[str] = []
        self.silent = False
        self.litter = b""
        self._client: socket.socket | None = None
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Serve nobody any more."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._client = client
                with client, client.makefile("rb") as lines, suppress(HangUp, OSError):
                    for line in lines:
                        self._answer(client, json.loads(line.replace(b"\xff", b"")))

    def _answer(self, client: socket.socket, request: dict[str, Any]) -> None:
        command = request["execute"]
        if command == "guest-sync-delimited":
            if not self.silent:
                answer = json.dumps({"return": request["arguments"]["id"]}).encode()
                client.sendall(self.litter + b"\xff" + answer + b"\n")
            return
        self.asked.append(command)
        answer_to_give = self.behaviour(self, command)
        if answer_to_give is None:
            answer_to_give = self.obey(command)
        if answer_to_give and not self.silent:
            client.sendall(json.dumps(answer_to_give).encode() + b"\n")

    def until_asked(self) -> None:
        """Wait until the one whom it serves asks for something more, or goes."""
        assert self._client is not None
        select.select([self._client], [], [], LIMIT)

    def obey(self, command: str) -> Answer:
        """Do what is asked; gives the answer."""
        if command == "guest-fsfreeze-status":
            return {"return": "frozen" if self.frozen else "thawed"}
        was, self.frozen = self.frozen, command == "guest-fsfreeze-freeze"
        return {"return": int(was != self.frozen)}
