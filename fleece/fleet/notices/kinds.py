"""What somebody can be told of, and in which form."""

from __future__ import annotations

import enum


class Kind(enum.StrEnum):
    """What somebody can be told of.

    Attributes:
        FAILURE: something could not be done.
        DAMAGE: a verification or an audit failed.
        STALE: there is no good point that is young enough.
        RECOVERY: what was told is over.
    """

    FAILURE = "failure"
    DAMAGE = "damage"
    STALE = "stale"
    RECOVERY = "recovery"


class Form(enum.StrEnum):
    """What an address on the web takes.

    Attributes:
        JSON: all of it, as an object.
        SLACK: Slack's text, which Mattermost, Rocket.Chat and others take, too.
        MATRIX: a message that is put into a room.
        NTFY: the text as it is, with a title beside.
    """

    JSON = "json"
    SLACK = "slack"
    MATRIX = "matrix"
    NTFY = "ntfy"
