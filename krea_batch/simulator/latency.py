"""A description of latencies comes in; how long each job takes, in simulated seconds, goes out.

fixed:15   uniform:5,30   lognormal:12,0.4 (median, sigma)   bimodal:5,25,0.3 (low, high, share of high; ±20 %)
"""

from __future__ import annotations

import math
from random import Random

SYNTAX = "fixed:15, uniform:5,30, lognormal:12,0.4 or bimodal:5,25,0.3"
_COUNTS = {"fixed": 1, "uniform": 2, "lognormal": 2, "bimodal": 3}


class Latency:
    """One distribution; `draw` gives seconds."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.kind, _, rest = text.partition(":")
        try:
            self.numbers = [float(number) for number in rest.split(",")]
        except ValueError:
            self.numbers = []
        wanted = _COUNTS.get(self.kind)
        if wanted != len(self.numbers) or not all(math.isfinite(n) and n >= 0 for n in self.numbers):
            raise ValueError(f"{text!r} is no latency; write {SYNTAX}")

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
