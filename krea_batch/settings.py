"""The settings of a run: one table of names, types, defaults, ranges and help texts.

Nothing here reads the environment or a file; `cli` does. `ApiKey` hides its text: only the gateway's client calls
`reveal`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, get_origin, get_type_hints
from urllib.parse import parse_qs, urlsplit

import msgspec

from krea_batch.errors import SettingsError

KEY_VARIABLE = "PIXAZO_API_KEY"  # API document, Authentication: an environment variable of our choice
GATEWAY_URL = "https://gateway.pixazo.ai"  # API document, Base URL

_RATE = re.compile(r"(?P<count>\d+(?:\.\d+)?)\s*/\s*(?P<unit>s|sec|second|m|min|minute|h|hour)")
_INVALID_IN_URLS = re.compile(r"[\s\x00-\x20\x7f%<>\"\\^`{|}]")
OBJECT_STORE_SCHEMES = ("s3", "gs", "az")  # those of obstore that name a bucket or container
AUTO = "auto"
IPNetwork = IPv4Network | IPv6Network
MAX_PER_S = 10_000.0  # chosen: more than one event loop can submit
_UNIT_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(s(?:ec(?:onds?)?)?|m(?:in(?:utes?)?)?|h(?:ours?)?|d(?:ays?)?)\s*")
_DURATION = re.compile(rf"(?:{_DURATION_PART.pattern})+")


def parse_duration_s(text: str) -> float:
    """Return the seconds of `30m`, `1h30m`, `90s` or a number of seconds. Raises ValueError."""
    text = text.strip().lower()
    if not _DURATION.fullmatch(text):
        return float(text)
    return sum(float(number) * _UNIT_S[unit[0]] for number, unit in _DURATION_PART.findall(text))


class ApiKey:
    """The API key. Only `reveal` returns it; repr, str and pickling do not."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        if not text or not text.isascii() or not text.isprintable() or " " in text:
            raise SettingsError(
                "api_key", "the API key is empty or contains spaces or control characters", "use it as issued"
            )
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return "ApiKey(***)"

    def __reduce__(self) -> str:
        raise TypeError("an ApiKey is not pickled")


class Rate(msgspec.Struct, frozen=True):
    """A number of requests per second, minute or hour. `text` is as the user wrote it, `per_s` its value."""

    per_s: float
    text: str

    @property
    def is_auto(self) -> bool:
        """Whether the limit is to be found; `per_s` is then the maximum that one event loop can submit."""
        return self.text == AUTO

    @classmethod
    def parse(cls, text: str, parameter: str = "rate") -> Rate:
        """Parse `10/s`, `600/min`, `5000/h`, or `auto` for `rate`. Raises SettingsError naming `parameter`."""
        if parameter == "rate" and text.strip() == AUTO:
            return cls(MAX_PER_S, AUTO)
        match = _RATE.fullmatch(text.strip())
        per_s = float(match["count"]) / _UNIT_S[match["unit"][0]] if match else 0.0
        if not 0 < per_s <= 100_000:
            hint = "use e.g. 10/s, 600/min or 5000/h" + (", or auto" if parameter == "rate" else "")
            raise SettingsError(parameter, f"invalid rate {text!r}", hint)
        return cls(per_s, text.strip())


class AmbiguousPolicy(StrEnum):
    """What to do with a job whose POST may or may not have been accepted and charged."""

    KEEP = "keep"
    RESUBMIT = "resubmit"


class Webhook(msgspec.Struct, frozen=True):
    """Where the gateway sends a callback when a job ends (API document, Webhook).

    `url` is the URL at which the gateway reaches this machine: https, except on loopback. With `listen`
    ("0.0.0.0:8080") the engine opens its own server there; without it, the service mounts `Engine.callbacks_app` or
    `Engine.callbacks_handler` at `url`. A `listen` on loopback needs no `url`. Raises SettingsError.
    """

    url: str = ""
    listen: str = ""

    def __post_init__(self) -> None:
        if not self.url and not (self.listen and is_loopback(self.listen_address[0])):
            hint = "pass the URL at which the gateway reaches this machine"
            raise SettingsError("webhook.url", "required when webhook.listen is not on loopback", hint)
        if self.listen:
            _ = self.listen_address
        if self.url and (problem := _webhook_problem(self.url)):
            raise SettingsError("webhook.url", f"{self.url!r}: {problem}", "use e.g. https://my.host/krea")

    @property
    def listen_address(self) -> tuple[str, int]:
        """Host and port of `listen`."""
        host, _, port = self.listen.rpartition(":")
        if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise SettingsError("webhook.listen", f"invalid address {self.listen!r}", "use e.g. 0.0.0.0:8080")
        return host.strip("[]"), int(port)


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """The properties of a setting, besides its name, type and default.

    The command line's options, the range checks, the settings file and the reference page are made from it. `minimum`
    and `above` are limits of numbers: at least `minimum`, or more than `above`. `example` is shown where there is no
    default. `command_default` replaces the default on the command line. `command_line` is False for settings that
    only the library has. Settings with `forecast` change the result of `plan`.

    Settings with `file` may be set in `krea-batch.toml`, which is read from the working directory and may have been
    written by someone else. So `file` is False by default, and True only for settings of which no value changes where
    the key goes, what is spent, or what is written.
    """

    help: str
    metavar: str | None = None
    minimum: int | None = None
    above: float | None = None
    none_means: str | None = None
    example: str | int | None = None
    command_default: int | None = None
    command_line: bool = True
    forecast: bool = False
    file: bool = False


MAX_NUMBER = 1e7  # chosen: seconds, about four months; no setting has a use for more


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How a run behaves. A suffix `_s` means seconds. Raises SettingsError where a value is out of range.

    To add a setting, add a field here and a parameter to `Engine`; everything else is derived from the two.
    """

    out: Path
    rate: Annotated[
        Rate,
        Option(
            metavar="RATE",
            forecast=True,
            file=True,
            help="Maximum submit rate: 10/s, 600/min, 5000/h; auto finds the limit.",
        ),
    ] = Rate(10.0, "10/s")  # chosen: polite, since the API document names no limit
    max_in_flight: Annotated[
        int, Option(metavar="N", minimum=1, forecast=True, file=True, help="Maximum jobs in flight.")
    ] = 500  # chosen: at 10/s and 50 s a job this is the whole rate
    poll_interval_s: Annotated[
        float,
        Option(
            metavar="TIME", above=0, forecast=True, file=True, help="Minimum time between polls of a job: 5s, 1m."
        ),
    ] = 5.0  # API document, Typical Workflow: poll every 5-10 seconds
    poll_rate: Annotated[
        Rate | None,
        Option(
            metavar="RATE",
            forecast=True,
            file=True,
            none_means="as needed",
            example="50/s",
            help="Maximum poll rate over all jobs.",
        ),
    ] = None
    shared_quota: Annotated[
        bool, Option(forecast=True, file=True, help="Count polls and submits against one limit, --rate.")
    ] = False
    poll_lag_weight: Annotated[
        float,
        Option(
            metavar="X",
            above=0,
            forecast=True,
            file=True,
            help="Weight of lag against the number of polls; higher values poll more often.",
        ),
    ] = 1.0  # chosen: one interval's lag is worth one poll
    job_timeout_s: Annotated[
        float,
        Option(
            metavar="TIME",
            above=0,
            file=True,
            help="Time to wait for an accepted job in this run: 30m, 1h; the next run continues to poll.",
        ),
    ] = 1800.0  # chosen: 100 times the API document's 15 s example
    max_attempts: Annotated[
        int,
        Option(metavar="N", minimum=1, help="Maximum submits of a job that ends in ERROR (not charged)."),
    ] = 3  # chosen: ERROR is free, so a second and third attempt cost nothing
    ambiguous: Annotated[
        AmbiguousPolicy,
        Option(help="Keep jobs whose submit may have been charged, or resubmit them."),
    ] = AmbiguousPolicy.KEEP
    max_charges: Annotated[
        int | None,
        Option(
            metavar="N",
            minimum=0,
            none_means="no limit",
            help="Stop before more than N submits are charged, counting all runs of the directory; none: no limit. "
            "If it is not given, `retry` uses the limit of the latest run.",
        ),
    ] = None
    count_server_errors: Annotated[
        bool,
        Option(
            help="Count submits that were answered with 500 or 503 towards --max-charges, too, because the API "
            "document does not say that they are free. `retry` does the same as the latest run."
        ),
    ] = False
    max_identical_failures: Annotated[
        int | None,
        Option(
            metavar="N",
            minimum=0,
            command_default=20,
            none_means="never stop, but hold submits",
            help="Stop if the first N jobs fail with the same error; 0: never, and do not hold submits because of "
            "identical refusals either.",
        ),
    ] = None  # chosen: the first users of a service may well all send bad requests
    shared: Annotated[
        bool,
        Option(
            help="Work on the run directory together with other processes of this machine, each with this option."
        ),
    ] = False
    ledger: Annotated[
        str | None,
        Option(
            metavar="URL",
            none_means="OUT/ledger.db",
            help="Keep the ledger in PostgreSQL, for processes on several machines: postgresql://user@host/database. "
            "The password comes from PGPASSWORD or ~/.pgpass. Implies --shared.",
        ),
    ] = None
    batch: Annotated[
        str | None,
        Option(
            metavar="NAME",
            none_means="the name of OUT",
            help="Name of the run in the database of --ledger; the same on all machines.",
        ),
    ] = None
    sink: Annotated[
        str | None,
        Option(
            metavar="URL",
            none_means="OUT/images",
            help="Store images in an object store: s3://bucket/folder, gs://…, az://….",
        ),
    ] = None
    references: Annotated[
        str | None,
        Option(
            metavar="URL",
            none_means="none",
            help="Upload local reference images (image_path) to an object store, from which the gateway fetches them "
            "by signed URLs: s3://bucket/folder, gs://…, az://….",
        ),
    ] = None
    gateway: Annotated[str, Option(metavar="URL", help="Base URL of the API.")] = GATEWAY_URL
    allow_networks: Annotated[
        tuple[str, ...],
        Option(
            metavar="NETWORK",
            none_means="public addresses only",
            help="Also fetch images from the addresses of this network: 198.18.0.0/15 if a VPN or proxy tool answers "
            "DNS with fake addresses, 64:ff9b:1::/48 for a local NAT64 (repeatable).",
        ),
    ] = ()
    webhook: Annotated[
        Webhook | None,
        Option(command_line=False, none_means="polls only", help="Where the gateway sends callbacks when jobs end."),
    ] = None
    request_timeout_s: Annotated[
        float,
        Option(
            command_line=False,
            above=0,
            help="Seconds to wait for an answer of the API; for a POST that was sent, three minutes longer.",
        ),
    ] = 60.0  # chosen: a POST that only queues a job answers in far less
    downloads: Annotated[int, Option(command_line=False, minimum=1, help="Maximum concurrent downloads.")] = (
        64  # chosen: 200 images a second where a CDN takes 0.3 s for one
    )
    download_patience_s: Annotated[
        float,
        Option(
            command_line=False, above=0, help="Seconds to retry a failing download before it is left to the next run."
        ),
    ] = 600.0  # chosen: a CDN that fails for ten minutes loses no image of this run; a retry is free

    @classmethod
    def from_options(cls, out: Path, **options: Any) -> Settings:
        """Return settings from keywords; rates and `ambiguous` may be text. Raises SettingsError."""
        unknown = sorted(set(options) - set(cls.__struct_fields__))
        if unknown:
            raise SettingsError(unknown[0], "unknown setting", "see the fields of Settings")
        if "rate" in options:
            options["rate"] = _parse_rate(options["rate"], "rate")
        if options.get("poll_rate") is not None:
            options["poll_rate"] = _parse_rate(options["poll_rate"], "poll_rate")
        if "ambiguous" in options:
            options["ambiguous"] = _parse_ambiguous(options["ambiguous"])
        if "allow_networks" in options:
            networks = options["allow_networks"]
            options["allow_networks"] = (networks,) if isinstance(networks, str) else tuple(networks)
        return cls(out=out, **options)

    @classmethod
    def fields(cls) -> tuple[msgspec.structs.FieldInfo, ...]:
        """Return the fields with their types and defaults."""
        return msgspec.structs.fields(cls)

    @property
    def origin(self) -> str:
        """Scheme and host of the gateway, where this run's request_ids are valid; its port may change."""
        parts = urlsplit(self.gateway)
        return f"{parts.scheme}://{parts.hostname}"

    @property
    def batch_name(self) -> str:
        """The name of the run in the database of `ledger`."""
        return self.batch or self.out.absolute().name

    @property
    def allowed_networks(self) -> tuple[IPNetwork, ...]:
        """The networks of `allow_networks`."""
        return tuple(map(_parse_network, self.allow_networks))

    def __post_init__(self) -> None:
        _ = self.allowed_networks
        if problem := _gateway_problem(self.gateway):
            raise SettingsError("gateway", f"{self.gateway!r}: {problem}", f"use e.g. {GATEWAY_URL}")
        for name in ("sink", "references"):
            url = getattr(self, name)
            if url is not None and (problem := _object_store_problem(url)):
                raise SettingsError(name, problem, "use e.g. s3://bucket/folder")
        self._check_ledger()
        for name, option in OPTIONS.items():
            _check_range(name, option, getattr(self, name))

    def _check_ledger(self) -> None:
        if self.ledger is None:
            if self.batch is not None:
                raise SettingsError("batch", "requires ledger", "pass the URL of the database as ledger")
            return
        if url_problem := ledger_url_problem(self.ledger):
            raise SettingsError("ledger", *url_problem)
        if problem := batch_problem(self.batch_name):
            raise SettingsError("batch", problem, "pass the same name on all machines: batch=cats")


OPTIONS: Mapping[str, Option] = {
    name: hint.__metadata__[0]
    for name, hint in get_type_hints(Settings, include_extras=True).items()
    if get_origin(hint) is Annotated
}
"""The options of `Settings`, by field name, in the order of `--help`."""


def _check_range(name: str, option: Option, value: Any) -> None:
    """Raise SettingsError for a number outside the option's range."""
    if option.minimum is not None and value is not None and value < option.minimum:
        raise SettingsError(name, f"must be at least {option.minimum} (got {value})")
    if option.above is not None and not value > option.above:
        raise SettingsError(name, f"must be greater than {option.above:g} (got {value})")
    if option.above is not None and not value < MAX_NUMBER:
        raise SettingsError(name, f"must be less than {MAX_NUMBER:,.0f} (got {value})")


def _object_store_problem(url: str) -> str | None:
    """Return what is wrong with the URL of an object store, or None. Secrets in it are not repeated."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "not a valid URL"
    if parts.scheme not in OBJECT_STORE_SCHEMES:
        return f"unknown scheme {parts.scheme!r}; the object stores are {', '.join(OBJECT_STORE_SCHEMES)}"
    if "@" in parts.netloc or parts.query or parts.fragment:
        return "only bucket and folder are allowed; put credentials into the environment"
    if not parts.netloc or _INVALID_IN_URLS.search(url) or "//" in parts.path or "/../" in f"{parts.path}/":
        return f"{url!r} does not name a bucket and folder"
    return None


_BATCH = re.compile(r"[a-z0-9][a-z0-9_-]{0,49}")  # with a prefix, it fits into the 63 bytes of a PostgreSQL name
_PASSWORD_OPTIONS = {"password", "passfile", "require_auth", "service"}  # of libpq


def ledger_url_problem(url: str) -> tuple[str, str] | None:
    """Return what is wrong with the URL of a database and what would be right; None if nothing is.

    A URL does not say how a password is sent, or which file it is read from: the URL in a run directory may be
    another person's. A password in the URL is not repeated.
    """
    if not url.startswith(("postgresql://", "postgres://")):
        return "the url does not start with postgresql://", "use e.g. postgresql://krea@db.example/krea"
    try:
        parts = urlsplit(url)
        has_password = parts.password is not None
    except ValueError:
        return "the url is not a valid URL", "use e.g. postgresql://krea@db.example/krea"
    options = _PASSWORD_OPTIONS & parse_qs(parts.query, keep_blank_values=True).keys()
    if has_password or "password" in options:
        return "the url has a password", "pass it in PGPASSWORD, or write it into ~/.pgpass"
    if options:
        name = min(options)
        return f"the url sets {name}", f"set it in the environment: PG{name.replace('_', '').upper()}"
    return None


def batch_problem(name: str) -> str | None:
    """Return what is wrong with the name of a batch, or None."""
    if _BATCH.fullmatch(name):
        return None
    return f"{name[:60]!r} is not up to 50 lower-case letters, digits, '_' and '-'"


def _gateway_problem(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
        host.encode("idna")  # a resolver would do so, and raise
    except ValueError:
        return "not a valid URL"
    if parts.scheme not in ("http", "https") or _INVALID_IN_URLS.search(url):
        return "not an http(s) URL"
    if not host:
        return "no host"
    if parts.scheme != "https" and not is_loopback(host):
        return "the key would be sent unencrypted"
    if parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc:
        return "only scheme, host and port are allowed"
    return None


def _webhook_problem(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return "not a valid URL"
    if parts.scheme not in ("http", "https") or not host or _INVALID_IN_URLS.search(url) or not url.isascii():
        return "not an http(s) URL"
    if parts.query or parts.fragment or "@" in parts.netloc:
        return "only scheme, host, port and path are allowed"
    if parts.scheme != "https" and not is_loopback(host):
        return "the secret in its path would be sent unencrypted"
    return None


def _parse_network(text: str) -> IPNetwork:
    try:
        return ip_network(text)
    except ValueError:
        hint = "use e.g. 198.18.0.0/15 or 64:ff9b:1::/48"
        raise SettingsError("allow_networks", f"{text!r} is not a network", hint) from None


def _parse_rate(value: object, parameter: str) -> Rate:
    return value if isinstance(value, Rate) else Rate.parse(str(value), parameter)


def _parse_ambiguous(text: str) -> AmbiguousPolicy:
    try:
        return AmbiguousPolicy(text)
    except ValueError:
        raise SettingsError("ambiguous", f"unknown choice {text!r}", "use keep or resubmit") from None


def url_host(host: str) -> str:
    """Return a host as a URL has it: an IPv6 address in brackets (RFC 3986, 3.2.2)."""
    return f"[{host}]" if ":" in host else host


@lru_cache(maxsize=64)  # a run connects to few hosts
def is_loopback(host: str) -> bool:
    """Return whether the host name or address is this machine's."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
