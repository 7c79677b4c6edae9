"""Numbers and words come in; settings that have a meaning, or an error that says what would be right, go out.

Newcomers: `latency` is in simulated seconds, which `time_scale` makes shorter. Everything else that is a time
(limits, Retry-After, slow_duration_s, hang_duration_s) is in real seconds: a limit of 10/s is 10 in a second of your own clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec

from krea_batch.testing.simulator.faults import check_faults
from krea_batch.testing.simulator.latency import LatencyDistribution
from krea_batch.testing.simulator.request_limits import parse_limit

RETRY_AFTER_FORMS = ("seconds", "date", "none")


class SimulatorError(Exception):
    """The simulator cannot start, or a setting has no meaning; `field` names the setting, if it is one."""

    def __init__(self, problem: str, field: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.field = field

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}" if self.field else self.problem


class SimulatorSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the gateway behaves. Raises SimulatorError where a value has no meaning."""

    host: str = "127.0.0.1"
    """Where both ports listen. Chosen: loopback, since there is no password on the admin address."""
    port: int = 0
    """The gateway's port; 0 is any free one."""
    cdn_port: int = 0
    """The CDN's port; 0 is any free one. A port of its own, because the real CDN is another origin."""
    seed: int = 0
    """All chance comes from it: the same requests with the same seed meet the same latencies and faults."""
    latency: str = "lognormal:12,0.3"
    """Simulated seconds from accepted to ended, see `latency`. Chosen: around the document's example of 15 s."""
    time_scale: float = 1.0
    """Simulated seconds in a real one. It shortens latencies and nothing else: limits stay in real seconds."""
    workers: int = 0
    """Jobs the model works on at once, the others wait behind; 0 is no bound (the document names none)."""
    submit_limit: str = "none"
    """Rate limit of POSTs in real time, see `limits`. The document names a 429 but no rate."""
    poll_limit: str = "none"
    """Rate limit of polls in real time."""
    shared_limit: bool = False
    """Polls draw on `submit_limit`, so that both share one quota; then `poll_limit` is not used."""
    retry_after: str = "seconds"
    """What a 429 says of when to come back: seconds, date (an HTTP-date) or none."""
    faults: dict[str, float] = {}
    """Probabilities from 0 to 1 by name, see `faults`."""
    fault_max_attempts: int = 0
    """Faults strike only the first so many tries of one thing (a body, a job's poll, a picture); 0 is all."""
    slow_duration_s: float = 1.0
    """Real seconds that a download takes which the fault cdn-slow has struck."""
    hang_duration_s: float = 30.0
    """Real seconds before the answer, where submit-hang or poll-hang has struck."""
    balance: int | None = None
    """Credits; each accepted POST takes one, ERROR gives it back (document: not charged). None is without end."""
    outputs: int = 1
    """Pictures of a completed job, 1 to 4. The document shows an array of one."""
    tiny: bool = False
    """Small pictures, made in microseconds without Pillow."""
    image_bytes: int = 0
    """The exact size of each picture in bytes, noise that does not compress; 0 is as it comes. Implies `tiny`."""
    key: str = ""
    """The one API key to accept; empty is any that is not empty."""
    revoke_after: int = 0
    """After so many accepted POSTs every key is refused with 401; 0 is never."""
    lenient: bool = False
    """Take unknown fields in a body, where else they are a 400."""
    allow_remote_webhooks: bool = False
    """Send webhooks to any host; else to loopback alone."""
    state_file: str = ""
    """A file that keeps the accepted jobs over restarts; empty is none."""

    def __post_init__(self) -> None:
        for name, parse in _PARSERS.items():
            try:
                parse(getattr(self, name))
            except ValueError as error:
                raise SimulatorError(str(error), name) from None
        for name, (is_valid, hint) in _VALUE_RULES.items():
            value = getattr(self, name)
            if not is_valid(value):
                raise SimulatorError(f"{value!r} has no meaning; {hint}", name)

    @property
    def draws_images(self) -> bool:
        """Whether pictures are drawn, for which Pillow is needed."""
        return not (self.tiny or self.image_bytes)


_PARSERS: dict[str, Callable[[Any], object]] = {
    "latency": LatencyDistribution,
    "submit_limit": parse_limit,
    "poll_limit": parse_limit,
    "faults": check_faults,
}


_ValueRule = tuple[Callable[[Any], bool], str]


def _at_least(minimum: float) -> _ValueRule:
    return lambda value: math.isfinite(value) and value >= minimum, f"it is {minimum} or more"


_PORT: _ValueRule = (
    lambda value: 0 <= value <= 65535,
    "a port is 0 (any free one) to 65535",
)
_VALUE_RULES: dict[str, _ValueRule] = {
    "port": _PORT,
    "cdn_port": _PORT,
    "time_scale": (lambda value: math.isfinite(value) and value > 0, "it is more than 0, for example 20"),
    "workers": _at_least(0),
    "retry_after": (lambda value: value in RETRY_AFTER_FORMS, f"it is one of {', '.join(RETRY_AFTER_FORMS)}"),
    "fault_max_attempts": _at_least(0),
    "slow_duration_s": _at_least(0),
    "hang_duration_s": _at_least(0),
    "balance": (lambda value: value is None or value >= 0, "it is 0 or more credits"),
    "outputs": (lambda value: 1 <= value <= 4, "a job has 1 to 4 outputs"),
    "image_bytes": (
        lambda value: value == 0 or 4096 <= value <= 1 << 26,
        "it is 4096 to 67108864, room for the words in a picture; or 0",
    ),
    "revoke_after": _at_least(0),
}
