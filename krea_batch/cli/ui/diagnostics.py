"""A machine comes in; a finding for each thing that a run needs goes out.

Newcomers: the gateway is asked for the status of a request that cannot be, without the key. Whatever it answers, it
can be reached, and its answer says what time it is there.
"""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import ssl
import sys
import tempfile
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import msgspec

from krea_batch.cli.ui.formatting import format_bytes, pluralize
from krea_batch.cli.ui.run_session import find_key
from krea_batch.errors import InputError
from krea_batch.gateway.health import Unreachable, fetch_server_date
from krea_batch.ledger import SQLITE_VERSION
from krea_batch.settings import Settings

TYPICAL_IMAGE_BYTES = 2_000_000  # chosen: what images of a megapixel were seen to have, rounded up
MIN_FREE_IMAGES = 500  # chosen: with less room than this, people are warned
MAX_CLOCK_SKEW_S = 60.0  # chosen: Retry-After dates and expiring addresses are off by as much
OTHER_OPEN_FILES = 200  # chosen: sockets of polls and downloads, the ledger, images, Python's own
NETWORK_FILE_SYSTEMS = ("nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "afs")
LIBRARIES = ("aiohttp", "anyio", "msgspec", "aiolimiter", "orjson", "click", "rich")
EXTRAS = {
    "simulator": "PIL",
    "bench": "matplotlib",
    "object-store": "obstore",
    "metrics": "prometheus_client",
    "otel": "opentelemetry",
    "parquet": "pyarrow",
    "fast": "uvloop",
}


class Finding(msgspec.Struct, frozen=True):
    """What was found of one thing, and what would be right where it is not."""

    check: str
    state: Literal["ok", "warn", "fail"]
    detail: str
    hint: str = ""


def run_diagnostics(out: Path, gateway: str, key_file: str | None, max_in_flight: int) -> list[Finding]:
    """Every finding, in the order in which they matter."""
    return [
        _check_key(key_file),
        _check_gateway_and_clock(out, gateway),
        *_check_disk(out),
        _check_open_files(max_in_flight),
        _list_versions(),
        _list_extras(),
    ]


def _check_key(key_file: str | None) -> Finding:
    try:
        find_key(key_file)
    except InputError as error:
        return Finding("key", "fail", error.problem, error.hint)
    source = key_file or "PIXAZO_API_KEY"
    return Finding("key", "ok", f"there is one in {source}; it was not sent")


def _check_gateway_and_clock(out: Path, gateway: str) -> Finding:
    try:
        settings = Settings.from_options(out=out, gateway=gateway)
    except InputError as error:
        return Finding("gateway", "fail", error.problem, error.hint)
    try:
        server_date = asyncio.run(fetch_server_date(settings))
    except Unreachable as error:
        hint = "see whether this machine reaches the network, and its proxy and firewall let it"
        return Finding("gateway", "fail", f"{settings.gateway} cannot be reached ({error})", hint)
    if server_date is None:
        return Finding("gateway", "ok", f"{settings.gateway} answers; it does not say what time it is")
    skew_s = (datetime.now(UTC) - parsedate_to_datetime(server_date)).total_seconds()
    if abs(skew_s) > MAX_CLOCK_SKEW_S:
        direction = "ahead of" if skew_s > 0 else "behind"
        return Finding(
            "clock", "warn", f"this clock is {abs(skew_s):.0f} s {direction} the gateway's", "set it by NTP"
        )
    return Finding("gateway", "ok", f"{settings.gateway} answers, and the clocks agree")


def _check_disk(out: Path) -> list[Finding]:
    existing_dir = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
    try:
        with tempfile.TemporaryFile(dir=existing_dir) as file:
            file.write(b"krea-batch")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return [
            Finding("disk", "fail", f"{existing_dir} cannot be written ({error.strerror})", "choose another --out")
        ]
    free = shutil.disk_usage(existing_dir).free
    free_space = (
        f"{format_bytes(free)} free in {existing_dir}, some {pluralize(free // TYPICAL_IMAGE_BYTES, 'image')}"
    )
    findings = [
        Finding("disk", "ok", free_space)
        if free >= MIN_FREE_IMAGES * TYPICAL_IMAGE_BYTES
        else Finding("disk", "warn", free_space, "make room, or choose another --out")
    ]
    file_system = _file_system(existing_dir)
    if file_system in NETWORK_FILE_SYSTEMS:
        hint = "keep OUT on a disk of this machine, and images elsewhere by --sink"
        findings.append(
            Finding("disk", "warn", f"it is a network file system ({file_system}), whose locks SQLite may miss", hint)
        )
    return findings


def _file_system(folder: Path) -> str:
    """Its type, by the longest mount point that leads there; empty where the system does not tell."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text("utf-8").splitlines()]
    except OSError:
        return ""
    containing = [mount for mount in mounts if len(mount) > 2 and folder.is_relative_to(mount[1])]
    return max(containing, key=lambda mount: len(mount[1]))[2] if containing else ""


def _check_open_files(max_in_flight: int) -> Finding:
    if sys.platform == "win32":
        return Finding("files", "ok", "this system has no limit of open files worth mentioning")
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = max_in_flight + OTHER_OPEN_FILES
    if limit != resource.RLIM_INFINITY and limit < needed:
        hint = f"ulimit -n {needed}, or a lower --max-in-flight"
        return Finding(
            "files", "warn", f"{limit:,} files may be open, {max_in_flight:,} jobs in flight may need more", hint
        )
    return Finding("files", "ok", "enough of them may be open")


def _list_versions() -> Finding:
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    core_versions = f"krea-batch {version('krea-batch')}, Python {platform.python_version()}, SQLite {SQLITE_VERSION}"
    return Finding("versions", "ok", f"{core_versions}, {ssl.OPENSSL_VERSION}, {libraries}")


def _list_extras() -> Finding:
    installed = [name for name, module in EXTRAS.items() if find_spec(module)]
    missing = [name for name in EXTRAS if name not in installed]
    installed_names = ", ".join(installed) or "none"
    return Finding("extras", "ok", f"{installed_names}; not installed: {', '.join(missing) or 'none'}")
