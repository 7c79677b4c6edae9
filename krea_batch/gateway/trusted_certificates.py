"""Finds the certificates that connections trust, in the environment.

OpenSSL reads SSL_CERT_FILE and SSL_CERT_DIR itself. In networks that intercept TLS, users often have
REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE set for other programs, so these are used if neither of the first two is set.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import NamedTuple

from krea_batch.errors import InputError

OPENSSL_VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
OTHER_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")  # in the order in which requests reads them

# OpenSSL's verify errors (x509_vfy.h) that another certificate to trust can remedy: the issuer is not known.
_ISSUER_UNKNOWN = frozenset({2, 18, 19, 20, 21})


class Bundle(NamedTuple):
    """The certificates that a variable of the environment names: the path of a file or a directory."""

    variable: str
    path: str

    def __str__(self) -> str:
        return f"{self.variable} ({self.path})"


def find_bundle() -> Bundle | None:
    """Return the certificates that the environment names; None for those of the system."""
    for variable in (*OPENSSL_VARIABLES, *OTHER_VARIABLES):
        if path := os.environ.get(variable):
            return Bundle(variable, path)
    return None


def system_paths() -> list[str]:
    """Return the file and the directory of the system's certificates, if they exist."""
    paths = ssl.get_default_verify_paths()
    return [path for path in (paths.cafile, paths.capath) if path]


def open_context() -> ssl.SSLContext | bool:
    """Return the `ssl` option of aiohttp: True if it finds the certificates itself. Raises InputError."""
    bundle = find_bundle()
    if bundle is None or bundle.variable in OPENSSL_VARIABLES:
        return True
    hint = "set it to a file of certificates in PEM format, or to a directory of them made by openssl rehash"
    try:
        if Path(bundle.path).is_dir():
            context = ssl.create_default_context(capath=bundle.path)
        else:
            context = ssl.create_default_context(cafile=bundle.path)
    except ssl.SSLError:
        raise InputError(f"{bundle} has no certificates", hint) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a path"
        raise InputError(f"{bundle} cannot be read ({reason})", hint) from None
    context.set_alpn_protocols(("http/1.1",))  # as aiohttp does for its own
    return context


def describe_certificate_error(error: Exception) -> str:
    """Describe why a certificate was refused, and what would be trusted."""
    if not isinstance(error, ssl.SSLCertVerificationError):
        return str(error)
    problem = f"certificate verify failed: {error.verify_message.rstrip('.')}"
    return f"{problem}; {_advice()}" if error.verify_code in _ISSUER_UNKNOWN else problem


def _advice() -> str:
    bundle = find_bundle()
    if bundle is None:
        return "set SSL_CERT_FILE to a file with the certificates to trust"
    if not os.access(bundle.path, os.R_OK):
        return f"{bundle} cannot be read"
    return f"{bundle} has no certificate that it can be verified with"
