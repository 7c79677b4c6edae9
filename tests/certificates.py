"""A self-signed certificate for localhost and other names."""

from __future__ import annotations

import subprocess
from pathlib import Path

CERTIFICATE_COMMAND = (
    "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
    "-subj", "/CN=localhost",
)  # fmt: skip


def make_certificate(path: Path, *names: str) -> Path:
    """Write a certificate for localhost and other `names`, and its key, into one file, and return its path."""
    alternatives = ",".join(f"DNS:{name}" for name in ("localhost", *names))
    options = ("-addext", f"subjectAltName={alternatives}", "-keyout", str(path), "-out", str(path))
    subprocess.run([*CERTIFICATE_COMMAND, *options], check=True, capture_output=True)
    return path
