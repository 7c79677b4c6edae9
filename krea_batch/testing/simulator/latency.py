"""Latency distributions, in simulated seconds. Pure.

fixed:15             every job takes 15 s
uniform:5,30         from 5 to 30 s, uniformly distributed
lognormal:12,0.4     median 12 s, sigma 0.4: two of three between 12/1.5 and 12·1.5 s, with a long tail
bimodal:5,25,0.3     30 % around 25 s, the others around 5 s, each ±20 %
"""

from __future__ import annotations

import math
from random import Random

LATENCY_SYNTAX = "fixed:15, uniform:5,30, lognormal:12,0.4 or bimodal:5,25,0.3"
_PARAMETER_COUNTS = {"fixed": 1, "uniform": 2, "lognormal": 2, "bimodal": 3}


class LatencyDistribution:
    """One distribution; `draw` returns seconds. Raises ValueError, which shows the syntax, for an invalid text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.kind, _, rest = text.partition(":")
        try:
            self.numbers = [float(number) for number in rest.split(",")]
        except ValueError:
            self.numbers = []
        if len(self.numbers) != _PARAMETER_COUNTS.get(self.kind) or not self._is_valid():
            raise ValueError(f"invalid latency {text!r}; use {LATENCY_SYNTAX}")

    def _is_valid(self) -> bool:
        if not all(math.isfinite(number) and number >= 0 for number in self.numbers):
            return False
        match self.kind, self.numbers:
            case "uniform", [low, high]:
                return low <= high
            case "lognormal", [median, sigma]:
                return median > 0 and sigma <= 5
            case "bimodal", [_, _, share]:
                return share <= 1
            case _:
                return True

    def draw(self, random: Random) -> float:
        match self.kind, self.numbers:
            case "fixed", [seconds]:
                return seconds
            case "uniform", [low, high]:
                return random.uniform(low, high)
            case "lognormal", [median, sigma]:
                return median * math.exp(random.gauss(0.0, sigma))
            case _:
                low, high, share = self.numbers
                return (high if random.random() < share else low) * random.uniform(0.8, 1.2)
