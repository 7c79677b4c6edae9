"""A self-signed certificate for localhost."""

from __future__ import annotations

import subprocess
from pathlib import Path

CERTIFICATE_COMMAND = (
    "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
    "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
)  # fmt: skip


def make_certificate(path: Path) -> Path:
    """Write a certificate for localhost and its key into one file, and return its path."""
    subprocess.run([*CERTIFICATE_COMMAND, "-keyout", path, "-out", path], check=True, capture_output=True)
    return path
