"""Latency distributions, from a text such as `lognormal:12,0.3` or from the latencies of an earlier run."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from random import Random

from krea_batch.errors import SettingsError
from krea_batch.settings import parse_duration_s

Latencies = Callable[[Random], float]
"""Draws a latency in seconds, from an accepted POST to the end of its job."""

DEFAULT_LATENCY = "lognormal:12,0.3"  # the simulator's: around the API document's example of 15 s

_NUMBER = r"(\d+(?:\.\d+)?)"
_TIME = r"(\d[\w.]*?)"
_FORMS = (
    (rf"(?:fixed:)?{_TIME}", lambda a: lambda _: a),
    (rf"(?:uniform:)?{_TIME}(?:,|\.\.){_TIME}", lambda a, b: lambda random: random.uniform(a, b)),
    (rf"lognormal:{_TIME},{_NUMBER}", lambda m, s: lambda random: random.lognormvariate(math.log(m), s)),
    (
        rf"bimodal:{_TIME},{_TIME},{_NUMBER}",
        lambda a, b, share: lambda random: b if random.random() < share else a,
    ),
)


def parse_latencies(text: str) -> Latencies:
    """Parse a latency distribution. Raises SettingsError.

    `12s` or `fixed:12`; `5s..30s` or `uniform:5,30`; `lognormal:12,0.3` (median, sigma); `bimodal:5,25,0.3` (two
    values and the share of the second). A time may have a unit (`2m`), else it is in seconds.
    """
    for form, make in _FORMS:
        match = re.fullmatch(form, text.strip())
        if not match:
            continue
        try:
            numbers = [parse_duration_s(number) for number in match.groups()]
        except ValueError:
            continue
        if text.strip().startswith("lognormal") and not numbers[0]:
            break
        latencies: Latencies = make(*numbers)
        return latencies
    hint = "write 12s, 5s..30s, lognormal:12,0.3 (median, sigma) or bimodal:5,25,0.3"
    raise SettingsError("latency", f"invalid latency {text!r}", hint)


def empirical(samples_s: Sequence[float]) -> Latencies:
    """Return a distribution that draws from these latencies of an earlier run."""
    return lambda random: random.choice(samples_s)


def scaled(latencies: Latencies, factor: float) -> Latencies:
    """Return the same distribution with all latencies multiplied by `factor`."""
    return lambda random: latencies(random) * factor
