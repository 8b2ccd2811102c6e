"""What runs a configuration by itself: a service and a timer of systemd's, or a line of cron's."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from fleece.errors import UsageError
from fleece.fleet.config import Config

MADE = "# Made by 'fleece schedule install', and removed by 'fleece schedule remove'."
"""The first line of each file, by which it is known as one of fleece's."""

WAIT = 3600
"""Seconds that a run by timer waits for the end of one that somebody has begun by hand."""

_PROTECTION = """\
# What a backup needs and no more. It writes into stores, scratch folders and, for their bitmaps,
# images of guests that are off, wherever those are: so only the system's own folders are closed.
# PrivateTmp and PrivateDevices must stay off: QEMU must see the scratch, and disks can be devices.
ProtectSystem=full
ProtectHome=read-only
NoNewPrivileges=yes
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
KeyringMode=private
SystemCallArchitectures=native
SystemCallFilter=~@clock @cpu-emulation @debug @module @mount @obsolete @raw-io @reboot @swap
SystemCallErrorNumber=EPERM
UMask=0077
CapabilityBoundingSet=CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_KILL
CapabilityBoundingSet=CAP_SETGID CAP_SETUID CAP_SYS_PTRACE
"""


def unit_names(path: Path) -> tuple[str, str]:
    """What the service and the timer of a configuration are called.

    Raises:
        UsageError: its file's name cannot be in theirs.
    """
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", path.stem):
        raise UsageError("no unit can be called so", where=path, hint="rename the file")
    name = "fleece-run" if path.stem == "fleece" else f"fleece-run-{path.stem}"
    return f"{name}.service", f"{name}.timer"


def units(config: Config, path: Path, command: Sequence[str], calendar: str) -> dict[str, str]:
    """The files of a service and its timer, by their names.

    Args:
        config: the configuration.
        path: of it, absolute.
        command: that starts fleece.
        calendar: when, as systemd writes it (systemd.time(7)).

    Raises:
        UsageError: the configuration's file has a name that no unit can have, or the calendar none.
    """
    service, timer = unit_names(path)
    if "\n" in calendar:
        raise UsageError("--calendar takes one line", where=calendar)
    return {service: _service(config, path, command), timer: _timer(path, calendar)}


def _service(config: Config, path: Path, command: Sequence[str]) -> str:
    folders = sorted({store.place for store in config.stores.values() if store.place[0] == "/"})
    mounts = "".join(f"RequiresMountsFor={_quoted(folder)}\n" for folder in folders)
    homes = "".join(f"ReadWritePaths=-{_quoted(folder)}\n" for folder in folders)
    words = [*command, "run", "--config", str(path), "--wait", str(WAIT)]
    return f"""\
{MADE}
[Unit]
Description=Back up the guests of {_escaped(str(path))}
Wants=network-online.target
After=network-online.target libvirtd.service virtqemud.service
{mounts}
[Service]
Type=oneshot
ExecStart={" ".join(map(_quoted, words))}
EnvironmentFile=-/etc/fleece/environment
StateDirectory=fleece
CacheDirectory=fleece
RuntimeDirectory=fleece
RuntimeDirectoryMode=0700
RuntimeDirectoryPreserve=yes
Nice=10
IOSchedulingClass=best-effort
IOSchedulingPriority=7
TimeoutStopSec=5min
{homes}
{_PROTECTION}"""


def _timer(path: Path, calendar: str) -> str:
    return f"""\
{MADE}
[Unit]
Description=Back up the guests of {_escaped(str(path))}, again and again

[Timer]
OnCalendar={calendar}
RandomizedDelaySec=15min
Persistent=yes

[Install]
WantedBy=timers.target
"""


def cron_line(path: Path, command: Sequence[str]) -> str:
    """A file for /etc/cron.d that runs a configuration each night; cron mails trouble."""
    words = [*command, "run", "--quiet", "--config", str(path), "--wait", str(WAIT)]
    line = " ".join(map(shlex.quote, words)).replace("%", r"\%")
    return f"{MADE}\nMAILTO=root\n15 2 * * *  root  {line}\n"


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


def _quoted(word: str) -> str:
    """A word as systemd reads it back (systemd.service(5), "Command lines")."""
    text = _escaped(word).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return f'"{text}"' if set(text) & set(" \t'\"\\;") or not text else text
