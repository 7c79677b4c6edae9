"""Report goals as lines that `python -m benchmarks` collects into its table of goals."""

from __future__ import annotations

GOAL = "goal"


def report_goal(label: str, bound: str, reached: str, *, met: bool) -> None:
    """Print what was to be reached, and what was reached."""
    print("\t".join((GOAL, label, bound, reached, "yes" if met else "no")), flush=True)
