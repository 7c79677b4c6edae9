"""The checks of `krea-batch doctor`.

The gateway is asked, without the key, for the status of a request that does not exist. Any answer proves that it can
be reached, and carries its time.
"""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import ssl
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import msgspec

from krea_batch.cli.options.run_settings import find_key
from krea_batch.cli.ui.error_messages import error_text, option_of
from krea_batch.cli.ui.formatting import format_bytes, pluralize
from krea_batch.engine.open_run import MAX_KNOWN_IMAGES
from krea_batch.errors import InputError, LedgerError, RunDirError, SettingsError
from krea_batch.gateway.address_check import find_refused_host
from krea_batch.gateway.health import Unreachable, fetch_server_date, gateway_proxy
from krea_batch.gateway.image_urls import hosts_of
from krea_batch.gateway.proxies import Proxy
from krea_batch.gateway.trusted_certificates import find_bundle, open_context, system_paths
from krea_batch.gateway.url_policy import check_networks
from krea_batch.ledger import inspect_database, read_ledger
from krea_batch.ledger.sqlite import SQLITE_VERSION
from krea_batch.settings import KEY_VARIABLE, Settings
from krea_batch.storage.atomic import sync_fd
from krea_batch.storage.operating_system import max_open_files
from krea_batch.storage.run_dir import RunDir, has_ledger

TYPICAL_IMAGE_BYTES = 2_000_000  # chosen: the size of a one-megapixel image, rounded up
MIN_FREE_IMAGES = 500  # chosen: warn below this
MAX_CLOCK_SKEW_S = 60.0  # chosen: Retry-After dates and expiring URLs are off by as much
OTHER_OPEN_FILES = 200  # chosen: sockets of polls and downloads, ledger, images, interpreter
NETWORK_FILE_SYSTEMS = ("nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "afs")
LIBRARIES = ("aiohttp", "anyio", "msgspec", "aiolimiter", "orjson", "click", "rich")
EXTRAS = {
    "simulator": "PIL",
    "bench": "matplotlib",
    "object-store": "obstore",
    "metrics": "prometheus_client",
    "otel": "opentelemetry",
    "parquet": "pyarrow",
    "postgres": "psycopg",
    "sheets": "python_calamine",
    "yaml": "yaml",
    "fast": "uvloop",
}


class Finding(msgspec.Struct, frozen=True):
    """The result of one check; `hint` says what to do if it is not ok."""

    check: str
    state: Literal["ok", "warn", "fail"]
    detail: str
    hint: str = ""


def run_diagnostics(
    out: Path,
    gateway: str,
    key_file: Path | None,
    max_in_flight: int,
    allow_networks: Sequence[str] = (),
    ledger: str | None = None,
    batch: str | None = None,
) -> list[Finding]:
    """Return all findings, the most important first."""
    return [
        _check_key(key_file),
        *_check_gateway(out, gateway, allow_networks),
        *_check_disk(out),
        *_check_database(out, ledger, batch),
        _check_open_files(max_in_flight),
        _list_versions(),
        _list_extras(),
    ]


def _check_key(key_file: Path | None) -> Finding:
    try:
        find_key(key_file)
    except InputError as error:
        return Finding("key", "fail", error.problem, error.hint)
    source = key_file or KEY_VARIABLE
    return Finding("key", "ok", f"found in {source} (not sent)")


def _check_gateway(out: Path, gateway: str, allow_networks: Sequence[str]) -> list[Finding]:
    try:
        settings = Settings.from_options(out=out, gateway=gateway, allow_networks=allow_networks)
        check_networks(settings.allowed_networks)
        proxy = gateway_proxy(settings)
        open_context()
        refused = asyncio.run(find_refused_host(settings, _known_cdn_hosts(out)))
    except InputError as error:
        return [Finding("gateway", "fail", error_text(error))]
    findings = [_check_clock(settings, proxy), _check_certificates()]
    if refused:
        findings.append(Finding("images", "fail", refused.error.problem, _hint_of(refused.error)))
    return findings


def _known_cdn_hosts(out: Path) -> list[str]:
    """Return the hosts from which images of the run came, if there is a run that can be read."""
    if not has_ledger(out):
        return []
    try:
        with read_ledger(out) as store:
            (urls,) = store.read(lambda store: store.latest_media_urls(MAX_KNOWN_IMAGES))
    except (RunDirError, LedgerError):
        return []
    return hosts_of(urls)


def _hint_of(error: InputError) -> str:
    """Return what to do, with the option instead of the parameter."""
    return f"{option_of(error.parameter)}: {error.hint}" if isinstance(error, SettingsError) else error.hint


def _check_clock(settings: Settings, proxy: Proxy | None) -> Finding:
    through = f" through the proxy {proxy.url}" if proxy else ""
    try:
        server_date = asyncio.run(fetch_server_date(settings, proxy))
    except Unreachable as error:
        hint = (
            "check HTTPS_PROXY and NO_PROXY, and this machine's network and firewall"
            if proxy
            else "check this machine's network and firewall; if it needs a proxy, set HTTPS_PROXY"
        )
        return Finding("gateway", "fail", f"{settings.gateway} is not reachable{through} ({error})", hint)
    if server_date is None:
        return Finding("gateway", "ok", f"{settings.gateway} answers{through}, without a date")
    skew_s = (datetime.now(UTC) - parsedate_to_datetime(server_date)).total_seconds()
    if abs(skew_s) > MAX_CLOCK_SKEW_S:
        direction = "ahead of" if skew_s > 0 else "behind"
        return Finding(
            "clock", "warn", f"this clock is {abs(skew_s):.0f} s {direction} the gateway's", "synchronise it with NTP"
        )
    return Finding("gateway", "ok", f"{settings.gateway} answers{through}, and the clocks agree")


def _check_certificates() -> Finding:
    """Say which certificates are trusted. Those that `open_context` cannot read have been reported."""
    bundle = find_bundle()
    if bundle is None:
        paths = system_paths()
        if not paths:
            hint = "set SSL_CERT_FILE to a file with the certificates to trust"
            return Finding("certificates", "warn", "this system has no certificates that OpenSSL finds", hint)
        return Finding("certificates", "ok", f"those of the system are trusted ({', '.join(paths)})")
    if not os.access(bundle.path, os.R_OK):
        return Finding("certificates", "warn", f"{bundle} cannot be read", "correct it, or remove it")
    return Finding("certificates", "ok", f"those of {bundle} are trusted")


def _check_disk(out: Path) -> list[Finding]:
    existing_dir = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
    try:
        with tempfile.TemporaryFile(dir=existing_dir) as file:
            file.write(b"krea-batch")
            file.flush()
            sync_fd(file.fileno())
        with tempfile.TemporaryDirectory(dir=existing_dir) as directory:
            run_dir = RunDir(Path(directory))
            run_dir.lock()
            run_dir.unlock()
    except RunDirError as error:
        return [Finding("disk", "fail", f"{existing_dir}: {error.problem}", error.hint)]
    except OSError as error:
        return [Finding("disk", "fail", f"cannot write {existing_dir} ({error.strerror})", "use another --out")]
    free = shutil.disk_usage(existing_dir).free
    free_space = (
        f"{format_bytes(free)} free in {existing_dir}, about {pluralize(free // TYPICAL_IMAGE_BYTES, 'image')}"
    )
    findings = [
        Finding("disk", "ok", free_space)
        if free >= MIN_FREE_IMAGES * TYPICAL_IMAGE_BYTES
        else Finding("disk", "warn", free_space, "free disk space, or use another --out")
    ]
    file_system = _file_system(existing_dir)
    if file_system in NETWORK_FILE_SYSTEMS:
        hint = "use a local disk for OUT, and --sink for the images"
        findings.append(
            Finding(
                "disk", "warn", f"network file system ({file_system}), on which SQLite's locks are unreliable", hint
            )
        )
    return findings


def _check_database(out: Path, ledger: str | None, batch: str | None) -> list[Finding]:
    """Say what is known about the server of a ledger in PostgreSQL."""
    try:
        found = inspect_database(Settings.from_options(out, ledger=ledger, batch=batch))
    except InputError as error:
        return [Finding("ledger", "fail", error.problem, _hint_of(error))]
    if found is None:
        return []
    address, server = found
    if server.danger:
        return [Finding("ledger", "fail", *server.danger)]
    exists = "exists" if server.batch_exists else "does not exist yet"
    state = f"{server.settings}; batch {address.batch!r} {exists}"
    if server.risk:
        return [Finding("ledger", "warn", state, server.risk)]
    return [Finding("ledger", "ok", state)]


def _file_system(folder: Path) -> str:
    """Return the type of the file system, from its mount point; empty if unknown."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text("utf-8").splitlines()]
    except OSError:
        return ""
    containing = [mount for mount in mounts if len(mount) > 2 and folder.is_relative_to(mount[1])]
    return max(containing, key=lambda mount: len(mount[1]))[2] if containing else ""


def _check_open_files(max_in_flight: int) -> Finding:
    limit = max_open_files()
    needed = max_in_flight + OTHER_OPEN_FILES
    if limit < needed:
        hint = f"raise the hard limit (ulimit -Hn) to {needed}, or use a lower --max-in-flight"
        return Finding(
            "files", "warn", f"limit of {limit:,} open files; {max_in_flight:,} jobs in flight may need more", hint
        )
    return Finding("files", "ok", "the limit of open files is high enough")


def _list_versions() -> Finding:
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    core_versions = f"krea-batch {version('krea-batch')}, Python {platform.python_version()}, SQLite {SQLITE_VERSION}"
    return Finding("versions", "ok", f"{core_versions}, {ssl.OPENSSL_VERSION}, {libraries}")


def _list_extras() -> Finding:
    installed = [name for name, module in EXTRAS.items() if find_spec(module)]
    missing = [name for name in EXTRAS if name not in installed]
    installed_names = ", ".join(installed) or "none"
    return Finding("extras", "ok", f"{installed_names}; not installed: {', '.join(missing) or 'none'}")
