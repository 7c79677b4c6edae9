"""How long answers usually take, and whether one is late, which shows that its request was delayed on its way."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque

from krea_batch.rules.send_window import MARGIN_S, WINDOW_S

LATE_VARIATIONS = 4.0  # RFC 6298, 2: an answer is late if it takes longer than usual by this many variations
ABSORBED_S = 0.75 * MARGIN_S  # chosen: requests that are delayed by less arrive within the margin of a window
MAX_MEAN_LATE_S = 0.01 * WINDOW_S  # chosen: share of the rate that counting delayed requests later may cost
MIN_SMOOTHED = 8.0  # RFC 6298, 2: answers in the smoothed latency; at higher rates, those of one second
LATEST = 64  # chosen: the latencies from which the delay of a request is judged
MAX_DELAY_S = 0.005  # chosen: an answer that is later than by this was delayed itself
MAX_MEAN_DELAY = 0.03  # chosen: share of the rate that waiting for delayed requests may cost


class AnswerLatency:
    """The latency of answers and its variation, smoothed as RFC 6298 does."""

    def __init__(self) -> None:
        self.usual_s = 0.0
        self.variation_s = 0.0
        self._fast_s = 0.0  # how long the fastest answers take
        self._mean_late_s = 0.0  # by how much answers take longer than that, and than the margin absorbs
        self._answers = 0.0  # how many answers are smoothed over
        self._latest_s: deque[float] = deque(maxlen=LATEST)  # of requests whose spacing counts

    def observe(self, latency_s: float, per_s: float) -> float:
        """Record an answer at this rate of submits. Return by how much it is late; 0.0 if it is not.

        Every answer is compared with the fastest ones, since the next request may be as fast. If that costs too much
        of the rate, because answers take very different times, only those are late that take far longer than usual.
        """
        if not self._answers:
            self.usual_s = self._fast_s = latency_s
            self.variation_s, self._answers = latency_s / 2, 1.0
            return 0.0
        self._answers = min(self._answers + 1.0, max(MIN_SMOOTHED, per_s * WINDOW_S))
        difference_s = latency_s - self.usual_s
        max_late_s = max(LATE_VARIATIONS * self.variation_s, MARGIN_S)
        late_s = max(0.0, latency_s - self._fast_s - ABSORBED_S)
        self._mean_late_s += (min(late_s, max_late_s) - self._mean_late_s) / self._answers
        if self._mean_late_s > MAX_MEAN_LATE_S:
            late_s = difference_s if difference_s > max_late_s else 0.0
        self._fast_s = min(latency_s, self._fast_s + (self.usual_s - self._fast_s) / self._answers)
        if self._answers > MIN_SMOOTHED:
            difference_s = min(difference_s, max_late_s)
        self.variation_s += (abs(difference_s) - self.variation_s) / self._answers
        self.usual_s += difference_s / self._answers
        return late_s

    def delay_s(self, latency_s: float, spacing_s: float) -> float:
        """Record an answer while requests are `spacing_s` apart. Return by how much its request was probably delayed.

        This is how much longer its answer took than usual. What is usual is chosen so that all delays together are
        a small share of the time, since only some of the delays are on the way of the requests.
        """
        self._latest_s.append(latency_s)
        if latency_s >= spacing_s:
            return 0.0  # The next request does not wait for the answer.
        latest_s = sorted(self._latest_s)
        max_delay_s = min(MAX_DELAY_S, spacing_s / 2)

        def is_enough(usual_s: float) -> bool:
            delays_s = (min(later_s - usual_s, max_delay_s) for later_s in latest_s if later_s > usual_s)
            return sum(delays_s) <= MAX_MEAN_DELAY * spacing_s * len(latest_s)

        usual_s = latest_s[bisect_left(latest_s, True, key=is_enough)]
        return min(max(0.0, latency_s - usual_s), max_delay_s)

    @property
    def long_s(self) -> float:
        """Return a time within which nearly every answer arrives."""
        return self.usual_s + 2.0 * self.variation_s
