"""The verb `serve-source`: what a fleece on another host asks of this one."""

from __future__ import annotations

import os
from dataclasses import replace

import fleece
from fleece.cancel import CancelToken
from fleece.cli.output import Output
from fleece.cli.sources import source_options
from fleece.cli.words import ServeSourceWords
from fleece.errors import UsageError

_STDIN, _STDOUT = 0, 1


def serve_source(output: Output, cancel: CancelToken, words: ServeSourceWords) -> None:
    """`fleece serve-source SOURCE`."""
    if os.isatty(_STDIN) or os.isatty(_STDOUT):
        raise UsageError(
            "speaks with another fleece, not with a terminal",
            hint="on the other host write --connect qemu+ssh://HOST/system",
        )
    way = replace(
        source_options(words.scratch, words.connect, words.scratch_limit),
        freeze=words.freeze,
        require_freeze=words.require_freeze,
    )
    fleece.serve_source(words.source, way, (_STDIN, _STDOUT), cancel)
