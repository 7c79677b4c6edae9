"""Report goals as lines that `python -m benchmarks` collects into its table of goals, and compute percentiles."""

from __future__ import annotations

from collections.abc import Iterable

GOAL = "goal"


def report_goal(label: str, bound: str, reached: str, *, met: bool) -> None:
    """Print what was to be reached, and what was reached."""
    print("\t".join((GOAL, label, bound, reached, "yes" if met else "no")), flush=True)


def percentile(values: Iterable[float], share: float) -> float:
    """Return the value that this share of the values does not exceed; 0.0 for no values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
