"""Run a verb, turn the outcome into an exit code."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import CodeType, FrameType

import fleece
from fleece.cancel import CancelToken
from fleece.cli.idle import refuse_idle
from fleece.cli.leaving_out import parsed
from fleece.cli.output import Output, OutputError, printing
from fleece.cli.process import fill_standard_streams, guard_terminal, set_up_process
from fleece.errors import ExitCode, FleeceError, UsageError, bug


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; gives the exit code."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    fill_standard_streams()
    guard_terminal()
    output = Output.of_words(argv)
    cancel = CancelToken()

    _stop_on_signals(cancel)
    set_up_process()
    try:
        with printing(sys.stdout):
            options = vars(parsed(argv, os.environ))
        output = Output.of_options(options)
        refuse_idle(options)
        for told in ("machine", "quiet", "verbose"):
            options.pop(told, None)
        if "key_file" in options:
            from fleece.cli.secret import secret_of

            files = options.pop("key_file"), options.pop("passphrase_file")
            options["secret"] = secret_of(*files, os.environ, cancel)
        if options.pop("nice", False):
            from fleece.cli.priority import step_back

            step_back()
        module, _, function = options.pop("verb").partition(":")
        run = getattr(importlib.import_module(f"fleece.cli.{module}"), function)
        run(output, cancel, options.pop("words")(**options))
    except FleeceError as error:
        output.fail(error, **error.fields)
        return int(error.code)
    except Exception as error:
        if (missing := _not_loaded(error)) is not None:
            output.fail(missing)
            return int(missing.code)
        with contextlib.suppress(OutputError), printing(sys.stderr):
            traceback.print_exc()
        output.fail(bug(error))
        return int(ExitCode.INTERNAL)
    return int(ExitCode.OK)


def _not_loaded(error: Exception) -> FleeceError | None:
    """The error for a part of the program that the system could not load; None: it is another."""
    if isinstance(error, ImportError):
        lacking = isinstance(error, ModuleNotFoundError)
        return UsageError(
            f"a part of the program cannot be loaded: {error}",
            hint="pip install fleece-backup brings what is missing" if lacking else None,
        )
    frames = (frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__))
    if not isinstance(error, OSError) or not any(_loads(code) for code in frames):
        return None
    too_many = error.errno in (errno.EMFILE, errno.ENFILE)
    return UsageError(
        f"a part of the program cannot be loaded ({error.strerror})",
        where=error.filename,
        hint="raise the limit of open files (ulimit -n)" if too_many else None,
    )


def _loads(code: CodeType) -> bool:
    """Whether what runs belongs to the loading of a module."""
    within_import = code.co_filename.startswith("<frozen importlib") or code.co_name == "<module>"
    return within_import or code.co_filename == fleece.__file__


def _stop_on_signals(cancel: CancelToken) -> None:
    """Let a signal cancel the run. A hang-up that nohup has it ignore stays ignored."""

    def stop(number: int, frame: FrameType | None) -> None:
        cancel.cancel()

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, stop)
