"""What is written to whoever is told."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from fleece.fleet.notices.kinds import Kind
from fleece.fleet.notices.trouble import Matter
from fleece.terminal import shown

_MOST = 100
"""Lines; each is of one matter."""

_WORDS = {
    Kind.FAILURE: "failed",
    Kind.DAMAGE: "is damaged",
    Kind.STALE: "is too old",
    Kind.RECOVERY: "is well again",
}


@dataclass(frozen=True)
class News:
    """One thing that is told.

    Attributes:
        kind: of what happened.
        matter: what it happened to.
        what: it is; of a recovery, what it was.
        since: when it was seen first, in UTC.
    """

    kind: Kind
    matter: Matter
    what: str
    since: datetime

    @property
    def line(self) -> str:
        """It, for people."""
        since = f"{self.since:%Y-%m-%d %H:%M} UTC"
        was = "was" if self.kind is Kind.RECOVERY else "since"
        text = f"{self._subject} {_WORDS[self.kind]} ({was} {since}): {self.what}"
        return shown(text)

    @property
    def _subject(self) -> str:
        return f"{self.matter.named}: {self.matter.step}"


@dataclass(frozen=True)
class Letter:
    """What is told at once.

    Attributes:
        host: that tells.
        config: path of the configuration.
        news: the worst first.
    """

    host: str
    config: str
    news: Sequence[News]

    @property
    def title(self) -> str:
        """A short line."""
        counts = Counter(news.kind for news in self.news)
        if len(self.news) == 1:
            (one,) = self.news
            text = f"{one.matter.named}: {one.matter.step} {_WORDS[one.kind]}"
        else:
            text = ", ".join(f"{counts[kind]} {_WORDS[kind]}" for kind in Kind if counts[kind])
        return shown(f"fleece on {self.host}: {text}")

    @property
    def text(self) -> str:
        """All of it, a line each."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        for news in self.news[:_MOST]:
            yield news.line
        if len(self.news) > _MOST:
            yield f"and {len(self.news) - _MOST} more"
        yield shown(f"({self.config})")

    @property
    def urgent(self) -> bool:
        """Whether something is wrong, and not only well again."""
        return any(news.kind is not Kind.RECOVERY for news in self.news)

    def to_json(self) -> bytes:
        """For programs."""
        told = [
            {
                "kind": news.kind,
                "store": news.matter.store,
                "guest": news.matter.guest,
                "step": news.matter.step,
                "what": news.what,
                "since": news.since.isoformat(),
            }
            for news in self.news
        ]
        fields = {"title": self.title, "text": self.text, "host": self.host}
        return json.dumps({**fields, "config": self.config, "news": told}).encode()
