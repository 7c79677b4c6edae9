"""Draw the states and their transitions as an SVG: `python -m docs.state_diagram > docs/reference/states.svg`.

The arrows are those of `rules.lifecycle.PATHS`; only the places of the states are chosen here.
"""

from __future__ import annotations

import sys
from itertools import pairwise

from krea_batch.jobs import STATES, State
from krea_batch.rules.lifecycle import PATHS, Action

PLACES: dict[State, tuple[float, float]] = {
    State.PENDING: (0, 1.0),
    State.SUBMITTING: (1, 1.0),
    State.ACCEPTED: (2, 1.0),
    State.FINISHED: (3, 1.0),
    State.SUCCEEDED: (4, 1.0),
    State.REJECTED: (1, 0.0),
    State.FAILED: (2, 0.0),
    State.ERRORED: (1.97, 2.0),
    State.AMBIGUOUS: (1.15, 2.45),
    State.TIMED_OUT: (3.1, 2.7),
    State.CANCELLED: (1.7, 3.6),
}
"""Column and row of each state."""

BY_RESUME = (Action.RESUME,)
BY_USER = (Action.RESUBMIT, Action.ADOPT, Action.ABANDON, Action.RETRY)

COLUMN_PX, ROW_PX, MARGIN_PX = 190, 110, 30
BOX_PX = (118, 34)
FONT = 'font-family="sans-serif" font-size="15"'
MARKER_SIZE = 'refX="9" refY="5" markerWidth="8" markerHeight="8"'
BEND = 0.12  # of the length of an arrow, so that two in opposite directions do not cover each other
STYLES = {"run": "", "resume": "7 4", "user": "2 4"}
LEGEND = {"run": "during a run", "resume": "when the next run starts", "user": "by your decision, or by proof"}


def edges() -> dict[tuple[State, State], str]:
    """Return the kind of each transition: the first of run, resume and user that makes it."""
    found: dict[tuple[State, State], str] = {}
    for action, paths in PATHS.items():
        kind = "resume" if action in BY_RESUME else "user" if action in BY_USER else "run"
        for edge in (pair for path in paths for pair in pairwise(path)):
            if edge not in found or list(STYLES).index(kind) < list(STYLES).index(found[edge]):
                found[edge] = kind
    return found


def svg() -> str:
    """Return the diagram."""
    width = MARGIN_PX * 2 + BOX_PX[0] + 4 * COLUMN_PX
    height = round(MARGIN_PX * 2 + BOX_PX[1] + 3.6 * ROW_PX + 30)
    head = '<path d="M0 1 L10 5 L0 9 z" fill="#5c6bc0"/>'
    marker = f'<marker id="head" viewBox="0 0 10 10" {MARKER_SIZE} orient="auto-start-reverse">{head}</marker>'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" {FONT}>',
        "<title>The states of a job and the transitions between them</title>",
        f"<defs>{marker}</defs>",
        f'<rect width="{width}" height="{height}" fill="white" rx="8"/>',
        *(_arrow(old, new, kind) for (old, new), kind in edges().items()),
        *(_box(state) for state in State),
        *(_legend(n, kind) for n, kind in enumerate(STYLES)),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _centre(state: State) -> tuple[float, float]:
    column, row = PLACES[state]
    return MARGIN_PX + BOX_PX[0] / 2 + column * COLUMN_PX, MARGIN_PX + BOX_PX[1] / 2 + row * ROW_PX


def _box(state: State) -> str:
    x, y = _centre(state)
    fill = "#e8eaf6" if STATES[state].final else "white"
    left, top = x - BOX_PX[0] / 2, y - BOX_PX[1] / 2
    return (
        f'<rect x="{left:g}" y="{top:g}" width="{BOX_PX[0]}" height="{BOX_PX[1]}" rx="8" fill="{fill}"'
        f' stroke="#3949ab" stroke-width="1.5"/><text x="{x:g}" y="{y + 5:g}" text-anchor="middle">{state}</text>'
    )


def _arrow(old: State, new: State, kind: str) -> str:
    (x1, y1), (x2, y2) = _centre(old), _centre(new)
    bend_x = (x1 + x2) / 2 + (y2 - y1) * BEND
    bend_y = (y1 + y2) / 2 - (x2 - x1) * BEND
    start_x, start_y = _border(x1, y1, bend_x, bend_y)
    end_x, end_y = _border(x2, y2, bend_x, bend_y)
    return (
        f'<path d="M{start_x:.1f} {start_y:.1f} Q{bend_x:.1f} {bend_y:.1f} {end_x:.1f} {end_y:.1f}" fill="none"'
        f' stroke="#5c6bc0" stroke-width="1.5" stroke-dasharray="{STYLES[kind]}" marker-end="url(#head)"'
        f' data-from="{old}" data-to="{new}"/>'
    )


def _border(x: float, y: float, to_x: float, to_y: float) -> tuple[float, float]:
    """Return where the line from the centre of a box leaves it."""
    half_width, half_height = BOX_PX[0] / 2 + 2, BOX_PX[1] / 2 + 2
    share = min(half_width / max(abs(to_x - x), 1e-9), half_height / max(abs(to_y - y), 1e-9))
    return x + (to_x - x) * share, y + (to_y - y) * share


def _legend(n: int, kind: str) -> str:
    x, y = MARGIN_PX + n * 260, MARGIN_PX + BOX_PX[1] + 3.6 * ROW_PX + 35
    return (
        f'<path d="M{x} {y:g} h40" stroke="#5c6bc0" stroke-width="1.5" stroke-dasharray="{STYLES[kind]}"'
        f' marker-end="url(#head)"/><text x="{x + 50}" y="{y + 5:g}" font-size="13">{LEGEND[kind]}</text>'
    )


if __name__ == "__main__":
    sys.stdout.write(svg())
