"""What a benchmark found goes in; lines that `python -m benchmarks` gathers for its table of goals go out."""

from __future__ import annotations

GOAL = "goal"


def report_goal(label: str, bound: str, reached: str, *, met: bool) -> None:
    """Say what was to be reached, and what was."""
    print("\t".join((GOAL, label, bound, reached, "yes" if met else "no")), flush=True)
