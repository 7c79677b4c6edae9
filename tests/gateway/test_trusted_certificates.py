"""The certificates that connections trust, by the variables of the environment."""

from __future__ import annotations

import os
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from krea_batch import InputError
from krea_batch.gateway.trusted_certificates import (
    OPENSSL_VARIABLES,
    OTHER_VARIABLES,
    describe_certificate_error,
    find_bundle,
    open_context,
)
from tests.certificates import make_certificate
from tests.cli.test_tls import tls_proxy_port
from tests.processes import RunningSimulator, StartSimulator, result_rows, run_command, write_jobs

NONE_SET: dict[str, Any] = dict.fromkeys((*OPENSSL_VARIABLES, *OTHER_VARIABLES), "")


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with a certificate that no system trusts."""
    return make_certificate(tmp_path_factory.mktemp("certificate") / "private.pem")


@pytest.fixture
def simulator(simulate: StartSimulator) -> RunningSimulator:
    return simulate("--tiny", "--latency", "fixed:0.2")


@pytest.fixture
def gateway(simulator: RunningSimulator, pem: Path) -> Iterator[str]:
    """Return the URL of a gateway with this certificate."""
    with tls_proxy_port(urlsplit(simulator.gateway_url).port or 0, pem) as port:
        yield f"https://localhost:{port}"


@pytest.fixture
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in NONE_SET:
        monkeypatch.delenv(variable, raising=False)


def bundle_at(pem: Path, tmp_path: Path, kind: str) -> Path:
    """Return a file with the certificate, or a directory as OpenSSL reads it."""
    if kind == "file":
        return pem
    folder = tmp_path / "certificates"
    folder.mkdir()
    (folder / "private.pem").write_bytes(pem.read_bytes())
    subprocess.run(["openssl", "rehash", folder], check=True, capture_output=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "kind"),
    [
        ("SSL_CERT_FILE", "file"),
        ("SSL_CERT_DIR", "directory"),
        ("REQUESTS_CA_BUNDLE", "file"),
        ("REQUESTS_CA_BUNDLE", "directory"),
        ("CURL_CA_BUNDLE", "file"),
    ],
)
def test_a_run_with_a_private_certificate(gateway: str, pem: Path, tmp_path: Path, variable: str, kind: str) -> None:
    """POSTs and polls trust the certificates that the variable names, and `doctor` names the variable."""
    write_jobs(tmp_path / "jobs.jsonl", 3)
    bundle = bundle_at(pem, tmp_path, kind)
    variables = NONE_SET | {variable: str(bundle)}
    options = ("--gateway", gateway, "--poll-interval", "0.2")
    done = run_command("run", "jobs.jsonl", "--out", "out", *options, cwd=tmp_path, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row["status"] for row in result_rows(tmp_path / "out")] == ["succeeded"] * 3
    told = run_command("doctor", "--gateway", gateway, cwd=tmp_path, **variables).stdout
    assert f"those of {variable} ({bundle}) are trusted" in " ".join(told.split())


@pytest.mark.slow
@pytest.mark.parametrize("content", [None, "no certificate\n"], ids=["missing", "no certificate"])
def test_a_wrong_bundle_is_told_at_once(
    gateway: str, simulator: RunningSimulator, tmp_path: Path, content: str | None
) -> None:
    """A path without certificates ends a run with exit code 2 before anything is sent; `doctor` says the same."""
    write_jobs(tmp_path / "jobs.jsonl", 1)
    if content is not None:
        (tmp_path / "bundle.pem").write_text(content)
    variables = NONE_SET | {"REQUESTS_CA_BUNDLE": "bundle.pem"}
    done = run_command("run", "jobs.jsonl", "--out", "out", "--gateway", gateway, cwd=tmp_path, **variables)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "REQUESTS_CA_BUNDLE (bundle.pem)" in done.stderr
    assert simulator.admin_request("/ledger")["posts"] == []
    told = run_command("doctor", "--gateway", gateway, cwd=tmp_path, **variables)
    assert told.returncode != 0
    assert "REQUESTS_CA_BUNDLE (bundle.pem)" in told.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "advice"),
    [
        ({}, "set SSL_CERT_FILE to a file with the certificates to trust"),
        ({"SSL_CERT_FILE": os.devnull}, f"SSL_CERT_FILE ({os.devnull}) has no certificate that it can be verified"),
        ({"SSL_CERT_FILE": "missing.pem"}, "SSL_CERT_FILE (missing.pem) cannot be read"),
    ],
    ids=["none", "empty", "missing"],
)
def test_a_certificate_that_is_not_trusted(
    gateway: str, tmp_path: Path, variables: dict[str, str], advice: str
) -> None:
    """`doctor` says that the certificate is the reason, and what to set."""
    told = run_command("doctor", "--gateway", gateway, cwd=tmp_path, **NONE_SET | variables).stdout
    assert f"certificate verify failed: self-signed certificate; {advice}" in " ".join(told.split())


@pytest.mark.usefixtures("no_variables")
def test_the_first_variable_decides(pem: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a variable, and with one of OpenSSL, aiohttp's own context is used; an empty variable is not set."""
    assert find_bundle() is None
    assert open_context() is True
    for variable in reversed(NONE_SET):
        monkeypatch.setenv(variable, str(pem))
        assert find_bundle() == (variable, str(pem))
        assert (open_context() is True) == (variable in OPENSSL_VARIABLES)
    for variable in OPENSSL_VARIABLES:
        monkeypatch.setenv(variable, "")
    context = open_context()
    assert isinstance(context, ssl.SSLContext)
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert len(context.get_ca_certs()) == 1


@pytest.mark.usefixtures("no_variables")
@pytest.mark.parametrize("path", ["missing.pem", "nul\0", "."], ids=repr)
def test_paths_that_cannot_be_used(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that does not exist or is none is an InputError; a directory may be empty."""
    monkeypatch.chdir(tmp_path)
    if path == ".":
        monkeypatch.setenv("CURL_CA_BUNDLE", path)
        assert isinstance(open_context(), ssl.SSLContext)
        return
    monkeypatch.setattr(os, "environ", {"CURL_CA_BUNDLE": path})
    with pytest.raises(InputError, match="CURL_CA_BUNDLE"):
        open_context()


def test_another_reason_has_no_advice() -> None:
    """A name that does not match, or a date, is not remedied by another certificate to trust."""
    error = ssl.SSLCertVerificationError()
    error.verify_code, error.verify_message = 10, "certificate has expired"
    assert describe_certificate_error(error) == "certificate verify failed: certificate has expired"
