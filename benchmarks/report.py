"""Lines that `python -m benchmarks` looks for in the output of a benchmark: goals, and why nothing was measured."""

from __future__ import annotations

GOAL = "goal"
NOT_MEASURED = "not measured"  # at the start of the only line


def report_goal(label: str, bound: str, reached: str, *, met: bool) -> None:
    """Print what was to be reached, and what was reached."""
    print("\t".join((GOAL, label, bound, reached, "yes" if met else "no")), flush=True)
