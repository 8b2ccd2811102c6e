"""The grammar of the verbs that talk to a source."""

from __future__ import annotations

import argparse

from fleece.cli.grammar.options import (
    SOURCE,
    STORE,
    AddVerb,
    add_bitmap,
    add_connect,
    add_disks,
    add_fleecing,
    add_http,
    add_key,
    add_nice,
    add_scratch,
    add_scratch_limit,
    add_tags,
    add_verbose,
)
from fleece.cli.words import (
    AuditWords,
    BackupWords,
    BitmapWords,
    CleanWords,
    DoctorWords,
    ExportWords,
    ServeSourceWords,
)


def source_verbs(verb: AddVerb) -> None:
    """backup, export, audit, bitmap, clean, doctor, serve-source."""
    for add in (_backup_verb, _export_verb, _audit_verb, _bitmap_verb, _clean_verb, _doctor_verb):
        add(verb)
    _serving_verb(verb)


def _backup_verb(verb: AddVerb) -> None:
    backup = verb(
        "backup",
        "backing_up:backup",
        BackupWords,
        "take a point of a guest's disks and store it",
    )
    backup.add_argument("source", metavar="SOURCE", help=SOURCE)
    backup.add_argument("store", metavar="STORE", help=STORE)
    add_verbose(backup)
    add_key(backup)
    backup.add_argument(
        "--output",
        choices=("-",),
        default=None,
        dest="stream",
        metavar="-",
        help="write the delta of the one disk to standard output instead of the store",
    )
    backup.add_argument(
        "--mode",
        choices=("auto", "full", "incremental", "differential", "rescan"),
        default="auto",
        help="what to read and store; default: auto, which decides and says why",
    )
    backup.add_argument(
        "--guest",
        help="the guest's name in the store; default: the one that the source tells",
    )
    backup.add_argument(
        "--adopt",
        action="store_true",
        help="take over the points of another guest (of another UUID, or name if it had none): "
        "from now on they are this guest's; everything is read",
    )
    add_disks(
        backup,
        "back up this disk (repeatable); default: all writable ones. Of nbd: sources NAME=URI adds "
        "a disk",
    )
    add_tags(backup, "give the point these tags (repeatable)")
    _add_ways(backup)
    _add_freeze(backup)
    _add_checks(backup)


def _add_ways(backup: argparse.ArgumentParser) -> None:
    """How the point is held and read."""
    add_scratch(backup)
    add_connect(backup)
    add_scratch_limit(backup)
    add_fleecing(backup)
    backup.add_argument(
        "--transport",
        choices=("auto", "pull", "push"),
        default="auto",
        help="pull: read from the source; push: the source writes to fleece; auto (default): "
        "pull, except where a lost connection would kill the guest",
    )
    backup.add_argument(
        "--jobs",
        type=int,
        default=None,
        metavar="N",
        help="threads that read, hash and compress, for all disks together; default: 4",
    )
    backup.add_argument(
        "--rate",
        metavar="BYTES",
        help="read at most this many bytes a second from the source, like 50M",
    )
    add_nice(backup)
    backup.add_argument("--level", type=int, default=None, help="zstd level, 1 to 19; default: 1")


def _add_freeze(backup: argparse.ArgumentParser) -> None:
    """Whether the guest's file systems stand still."""
    backup.add_argument(
        "--guest-agent",
        metavar="SOCKET",
        help="the unix socket of the guest agent's port: freeze the guest's file systems for the "
        "moment of the point",
    )
    _add_freeze_by_agent(backup)


def _add_freeze_by_agent(made: argparse.ArgumentParser) -> None:
    """Whether whoever holds the guest's agent is to freeze it."""
    made.add_argument(
        "--freeze",
        action="store_true",
        help="of libvirt's guests, and of a provider that can: freeze the file systems for the "
        "moment of the point, by the guest's agent",
    )
    made.add_argument(
        "--require-freeze",
        action="store_true",
        help="with --guest-agent or --freeze: fail, exit code 4, if the guest cannot be frozen",
    )


def _add_checks(backup: argparse.ArgumentParser) -> None:
    """What is made of what was there before."""
    add_bitmap(backup)
    backup.add_argument(
        "--no-resume",
        action="store_false",
        dest="resume",
        help="take a new point even if an interrupted backup left one that could be resumed",
    )
    backup.add_argument(
        "--audit",
        type=float,
        default=0.0,
        metavar="FRACTION",
        help="also read this part (0 to 1) of what the source calls unchanged, chosen at random, "
        "and compare it with the store; default: 0",
    )


def _export_verb(verb: AddVerb) -> None:
    export = verb(
        "export",
        "exporting:export",
        ExportWords,
        "hold a point of a guest's disks for another program, which reads it over NBD",
    )
    export.add_argument("source", metavar="SOURCE", help=SOURCE)
    add_disks(export, "export this disk (repeatable); default: all writable ones")
    export.add_argument(
        "--name",
        dest="consumer",
        metavar="CONSUMER",
        help="whose points these are: each consumer has bases of its own; default: default",
    )
    export.add_argument(
        "--since",
        metavar="BASE",
        help="a point that the consumer has, as its commit printed it: tell what changed since; "
        "without it everything is to be read",
    )
    export.add_argument(
        "--full", action="store_true", help="everything is to be read, whatever changed"
    )
    export.add_argument(
        "--keep-bases",
        type=int,
        metavar="N",
        help="how many committed points can be built on after a commit, this one among them; "
        "default: 1",
    )
    _add_doors(export)
    add_http(export)
    export.add_argument(
        "--ttl",
        metavar="TIME",
        help="drop the point after this time, like 90s, 30min, 2h, 3d; default: 2h",
    )
    add_scratch(export)
    add_connect(export)
    add_scratch_limit(export)
    _add_freeze(export)
    for name, text in (("commit", "commit"), ("drop", "drop")):
        export.add_argument(
            f"--{name}",
            metavar="TOKEN",
            help=f"{text} the point that another 'fleece export SOURCE' holds",
        )


def _add_doors(export: argparse.ArgumentParser) -> None:
    """Where clients are let in."""
    export.add_argument(
        "--socket",
        metavar="PATH",
        help="path of the unix socket; default: one in a new folder",
    )
    export.add_argument(
        "--listen",
        metavar="ADDRESS:PORT",
        help="listen on TCP instead; beyond this host only with TLS",
    )
    export.add_argument(
        "--tls-x509",
        metavar="DIR",
        help="with --listen: TLS, by ca-cert.pem, server-cert.pem and server-key.pem in DIR; "
        "clients need a certificate of that authority",
    )
    export.add_argument(
        "--tls-psk",
        metavar="FILE",
        help="with --listen: TLS, by the keys in FILE, a line USER:HEX each; needs Python 3.13",
    )


def _audit_verb(verb: AddVerb) -> None:
    audit = verb(
        "audit",
        "audit:audit",
        AuditWords,
        "compare all that the source calls unchanged with the store; store nothing",
    )
    audit.add_argument("source", metavar="SOURCE", help=SOURCE)
    audit.add_argument("store", metavar="STORE", help="a folder with points of this guest")
    audit.add_argument("--guest", help="the guest's name in the store")
    add_disks(
        audit,
        "audit this disk (repeatable); default: all writable ones. Of nbd: sources NAME=URI adds a "
        "disk",
    )
    add_bitmap(audit)
    add_scratch(audit)
    add_connect(audit)
    add_scratch_limit(audit)
    add_fleecing(audit)
    add_verbose(audit)
    add_key(audit)


def _bitmap_verb(verb: AddVerb) -> None:
    bitmap = verb(
        "bitmap",
        "bitmaps:bitmap",
        BitmapWords,
        "list the segments in a source and the stores that need them; drop those of a chain",
    )
    bitmap.add_argument("source", metavar="SOURCE", help=SOURCE)
    bitmap.add_argument("stores", metavar="STORE", nargs="*", help="a store that may need them")
    bitmap.add_argument(
        "--drop",
        metavar="CHAIN",
        help="remove the segments of this chain, whose store is gone; refused if a STORE needs it",
    )
    bitmap.add_argument("--guest", help="the guest's name in the stores")
    add_connect(bitmap)
    add_key(bitmap)


def _clean_verb(verb: AddVerb) -> None:
    clean = verb(
        "clean",
        "backing_up:clean",
        CleanWords,
        "clean up what interrupted backups left in a source",
    )
    clean.add_argument("source", metavar="SOURCE", help=SOURCE)
    add_scratch(clean)
    add_connect(clean)


def _doctor_verb(verb: AddVerb) -> None:
    doctor = verb(
        "doctor",
        "doctor:doctor",
        DoctorWords,
        "show what this host lacks, what a source can do, and which disks and bitmaps it has",
    )
    doctor.add_argument(
        "source", metavar="SOURCE", nargs="?", help=f"{SOURCE}; default: only look at this host"
    )
    doctor.add_argument("store", metavar="STORE", nargs="?", help="a store: check that it has room")
    doctor.add_argument(
        "--scratch",
        metavar="DIR",
        help="folder for scratch files to look at; default: as for backup",
    )
    add_connect(doctor)


def _serving_verb(verb: AddVerb) -> None:
    serving = verb(
        "serve-source",
        "far:serve_source",
        ServeSourceWords,
        "let a fleece elsewhere back up a guest of this host, over standard input and output",
    )
    serving.add_argument("source", metavar="SOURCE", help=SOURCE)
    add_scratch(serving)
    add_connect(serving)
    add_scratch_limit(serving)
    _add_freeze_by_agent(serving)
