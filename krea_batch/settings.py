"""Options come in as a user writes them; checked, typed `Settings` go out.

Newcomers: nothing here reads the environment or a file; `cli` does. `ApiKey` hides itself: only the gateway's
client calls `reveal`.
"""

from __future__ import annotations

import re
from enum import StrEnum
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from krea_batch.errors import SettingsError

GATEWAY_URL = "https://gateway.pixazo.ai"  # API document, Base URL

_RATE = re.compile(r"(?P<count>\d+(?:\.\d+)?)\s*/\s*(?P<unit>s|sec|second|m|min|minute|h|hour)")
_NOT_IN_URLS = re.compile(r"[\s\x00-\x20\x7f%<>\"\\^`{|}]")
SINK_SCHEMES = ("s3", "gs", "az")  # those of obstore that name a bucket or container
AUTO = "auto"
AUTO_PER_S = 10_000.0  # chosen: more than one loop can submit
_UNIT_S = {"s": 1.0, "m": 60.0, "h": 3600.0}


class ApiKey:
    """The key of the paid account. It shows itself to nobody who does not call `reveal`."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        if not text or not text.isascii() or not text.isprintable() or " " in text:
            raise SettingsError(
                "api-key-file",
                "the API key is empty or holds blanks or control characters",
                "give it as issued",
            )
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return "ApiKey(***)"

    def __reduce__(self) -> str:
        raise TypeError("an ApiKey is not pickled")


class Rate(msgspec.Struct, frozen=True):
    """How many requests in how long. `text` is what the user wrote, `per_s` what it means."""

    per_s: float
    text: str

    @property
    def is_auto(self) -> bool:
        """Whether the rate is to be found out; `per_s` is then the most that one loop can submit."""
        return self.text == AUTO

    @classmethod
    def parse(cls, text: str, option: str = "rate") -> Rate:
        """Read `10/s`, `600/min`, `5000/h`, or `auto` for --rate. Raises SettingsError for anything else."""
        if option == "rate" and text.strip() == AUTO:
            return cls(AUTO_PER_S, AUTO)
        match = _RATE.fullmatch(text.strip())
        per_s = float(match["count"]) / _UNIT_S[match["unit"][0]] if match else 0.0
        if not 0 < per_s <= 100_000:
            right = "write for example 10/s, 600/min or 5000/h"
            raise SettingsError(option, f"{text!r} is no rate", right + (", or auto" if option == "rate" else ""))
        return cls(per_s, text.strip())


class Ambiguous(StrEnum):
    """What to do with a job whose POST may or may not have been accepted (and paid)."""

    HOLD = "hold"
    RESUBMIT = "resubmit"


class Webhook(msgspec.Struct, frozen=True):
    """Where the gateway calls when a job ends (API document, Webhook).

    `url` is how the gateway reaches us: https, but for loopback. With `listen` ("0.0.0.0:8080") the engine opens a
    server of its own there; without it, the service mounts `Engine.callbacks_app` or `Engine.callbacks_handler` at
    `url`. A `listen` on loopback needs no `url`. Raises SettingsError.
    """

    url: str = ""
    listen: str = ""

    def __post_init__(self) -> None:
        if not self.url and not (self.listen and is_loopback(self.listen_address[0])):
            right = "give the URL at which the gateway reaches this machine"
            raise SettingsError("webhook-url", "there is none", right)
        if self.listen:
            _ = self.listen_address
        if self.url and (wrong := _why_not_webhook(self.url)):
            right = "write for example https://my.host/krea"
            raise SettingsError("webhook-url", f"{self.url!r}: {wrong}", right)

    @property
    def listen_address(self) -> tuple[str, int]:
        """Host and port of `listen`."""
        host, _, port = self.listen.rpartition(":")
        if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
            right = "write for example 0.0.0.0:8080"
            raise SettingsError("webhook-listen", f"{self.listen!r} is no HOST:PORT", right)
        return host.strip("[]"), int(port)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How a run behaves. Suffixes name units: `_s` seconds.

    Raises SettingsError where a value has no meaning.
    """

    out: Path
    gateway: str = GATEWAY_URL
    rate: Rate = Rate(10.0, "10/s")  # chosen: polite, since the document names no limit
    max_in_flight: int = 500  # DESIGN: hundreds of jobs on one loop
    poll_interval_s: float = 5.0  # API document, Typical Workflow: poll every 5-10 seconds
    poll_rate: Rate | None = None  # None: as many as the jobs in flight need
    shared_quota: bool = False  # polls and submits count against one rate
    poll_eagerness: float = 1.0  # what an interval's lag is worth, in polls; chosen: as much as one
    job_timeout_s: float = 1800.0  # chosen: 100 times the document's 15 s example
    max_attempts: int = 3  # chosen: ERROR is free, so a second and third try cost nothing
    ambiguous: Ambiguous = Ambiguous.HOLD
    webhook: Webhook | None = None
    max_charges: int | None = None
    max_same_failures: int = 0  # 0: any number; a service's first users may well all be wrong
    request_timeout_s: float = 60.0  # chosen: a POST that only queues answers in far less
    downloads: int = 64  # chosen: 200 pictures a second where a CDN takes 0.3 s for one
    sink: str | None = None  # where pictures are kept, as a URL; None: in the run's folder
    download_attempts: int = 8  # chosen: with backoff to 30 s this outlasts a CDN's bad two minutes

    @classmethod
    def of(cls, out: Path, **options: Any) -> Settings:
        """Settings from keywords; rates and the ambiguous choice may be text."""
        unknown = sorted(set(options) - set(cls.__struct_fields__))
        if unknown:
            raise SettingsError(unknown[0], "there is no such setting", "see the fields of Settings")
        if "rate" in options:
            options["rate"] = _rate(options["rate"], "rate")
        if options.get("poll_rate") is not None:
            options["poll_rate"] = _rate(options["poll_rate"], "poll-rate")
        if "ambiguous" in options:
            options["ambiguous"] = _ambiguous(options["ambiguous"])
        return cls(out=out, **options)

    @property
    def origin(self) -> str:
        """Where this run's request_ids mean something: scheme and host; ports come and go."""
        parts = urlsplit(self.gateway)
        return f"{parts.scheme}://{parts.hostname}"

    def __post_init__(self) -> None:
        self._check_gateway()
        self._check_sink()
        for option, value, least in (
            ("max-in-flight", self.max_in_flight, 1),
            ("max-attempts", self.max_attempts, 1),
            ("max-charges", 0 if self.max_charges is None else self.max_charges, 0),
            ("max-same-failures", self.max_same_failures, 0),
            ("downloads", self.downloads, 1),
            ("download-attempts", self.download_attempts, 1),
        ):
            if value < least:
                raise SettingsError(option, f"{value} is too small", f"give {least} or more")
        for option, number in (
            ("poll-interval", self.poll_interval_s),
            ("poll-eagerness", self.poll_eagerness),
            ("job-timeout", self.job_timeout_s),
            ("request-timeout", self.request_timeout_s),
        ):
            if not 0 < number < 1e7:
                raise SettingsError(option, f"{number} has no meaning", "give a number, more than 0")

    def _check_gateway(self) -> None:
        if wrong := _why_not_gateway(self.gateway):
            raise SettingsError("gateway", f"{self.gateway!r}: {wrong}", f"write for example {GATEWAY_URL}")

    def _check_sink(self) -> None:
        if self.sink is not None and (wrong := _why_not_sink(self.sink)):
            raise SettingsError("sink", wrong, "write for example s3://bucket/folder")


def _why_not_sink(url: str) -> str | None:
    """What is wrong with a URL of a place for pictures. What is secret in it is not repeated."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "it cannot be read"
    if parts.scheme not in SINK_SCHEMES:
        return f"{parts.scheme!r} is no kind of object store; there are {', '.join(SINK_SCHEMES)}"
    if "@" in parts.netloc or parts.query or parts.fragment:
        return "it holds more than bucket and folder; credentials belong in the environment"
    if not parts.netloc or _NOT_IN_URLS.search(url) or "//" in parts.path or "/../" in f"{parts.path}/":
        return f"{url!r} names no bucket and folder"
    return None


def _why_not_gateway(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
        host.encode("idna")  # a resolver would do so, and raise
    except ValueError:
        return "it cannot be read"
    if parts.scheme not in ("http", "https") or _NOT_IN_URLS.search(url):
        return "no http(s) URL"
    if not host:
        return "it has no host"
    if parts.scheme != "https" and not is_loopback(host):
        return "the key would travel in clear text"
    if parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc:
        return "only scheme, host and port belong there"
    return None


def _why_not_webhook(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return "it cannot be read"
    if parts.scheme not in ("http", "https") or not host or _NOT_IN_URLS.search(url) or not url.isascii():
        return "no http(s) URL"
    if parts.query or parts.fragment or "@" in parts.netloc:
        return "only scheme, host, port and path belong there"
    if parts.scheme != "https" and not is_loopback(host):
        return "what makes its paths unguessable would travel in clear text"
    return None


def _rate(given: object, option: str) -> Rate:
    return given if isinstance(given, Rate) else Rate.parse(str(given), option)


def _ambiguous(text: str) -> Ambiguous:
    try:
        return Ambiguous(text)
    except ValueError:
        raise SettingsError("ambiguous", f"{text!r} is no choice", "write hold or resubmit") from None


@lru_cache(maxsize=64)  # a run meets few hosts
def is_loopback(host: str) -> bool:
    """True for the names and addresses of this very machine."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
