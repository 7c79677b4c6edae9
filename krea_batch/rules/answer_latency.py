"""How long answers usually take, and whether one is late, which shows that its request was delayed on its way."""

from __future__ import annotations

from krea_batch.rules.send_window import MARGIN_S, WINDOW_S

LATE_VARIATIONS = 4.0  # RFC 6298, 2: an answer is late if it takes longer than usual by this many variations
MIN_SMOOTHED = 8.0  # RFC 6298, 2: answers in the smoothed latency; at higher rates, those of one second


class AnswerLatency:
    """The latency of answers and its variation, smoothed as RFC 6298 does."""

    def __init__(self) -> None:
        self.usual_s = 0.0
        self.variation_s = 0.0
        self._answers = 0.0  # how many answers are smoothed over

    def observe(self, latency_s: float, per_s: float) -> float:
        """Record an answer at this rate of submits. Return by how much it is late; 0.0 if it is not."""
        if not self._answers:
            self.usual_s, self.variation_s, self._answers = latency_s, latency_s / 2, 1.0
            return 0.0
        self._answers = min(self._answers + 1.0, max(MIN_SMOOTHED, per_s * WINDOW_S))
        difference_s = latency_s - self.usual_s
        max_late_s = max(LATE_VARIATIONS * self.variation_s, MARGIN_S)
        late_s = difference_s if difference_s > max_late_s else 0.0
        if self._answers > MIN_SMOOTHED:
            difference_s = min(difference_s, max_late_s)
        self.variation_s += (abs(difference_s) - self.variation_s) / self._answers
        self.usual_s += difference_s / self._answers
        return late_s

    @property
    def long_s(self) -> float:
        """Return a time within which nearly every answer arrives."""
        return self.usual_s + 2.0 * self.variation_s
