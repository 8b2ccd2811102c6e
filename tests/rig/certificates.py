"""Certificates for TLS."""

from __future__ import annotations

from pathlib import Path

from tests.rig.process import run_checked


def certificates(folder: Path) -> None:
    """Make a folder of them: an authority, a server localhost, a client; as libnbd names them."""
    folder.mkdir()
    for name in ("ca", "server", "client"):
        key = run_checked("certtool", "--generate-privkey", "--key-type", "ecdsa")
        (folder / f"{name}-key.pem").write_text(key)
        more = {"ca": "ca\ncert_signing_key", "server": "tls_www_server\ndns_name = localhost"}
        told = more.get(name, "tls_www_client")
        (folder / "template").write_text(f"cn = {name}\nexpiration_days = 9\n{told}\n")
        words: list[str | Path] = [
            "--template",
            folder / "template",
            "--load-privkey",
            folder / f"{name}-key.pem",
        ]
        signer: list[str | Path] = ["--load-ca-privkey", folder / "ca-key.pem"]
        signer += ["--load-ca-certificate", folder / "ca-cert.pem"]
        way = ["--generate-self-signed"] if name == "ca" else ["--generate-certificate", *signer]
        made = folder / f"{name}-cert.pem"
        run_checked("certtool", *way, *words, "--outfile", made)
