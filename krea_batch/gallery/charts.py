"""The jobs of a run come in; what the run was like goes out, as SVG: throughput, latency, polls, ends."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from io import StringIO
from typing import Any

import msgspec

BINS = 60  # chosen: bars that are still told apart at 480 pixels
INK, GRID, FILL, LIMIT = "#1d2733", "#d9dee5", "#3567b5", "#b5482f"


class Times(msgspec.Struct):
    """What charts need of all jobs, in lists: seconds since 1970, and counts."""

    submitted_s: list[float] = []
    took_s: list[float] = []
    polls: list[int] = []
    statuses: Counter[str] = msgspec.field(default_factory=Counter)
    errors: Counter[str] = msgspec.field(default_factory=Counter)

    def add(self, row: dict[str, Any]) -> None:
        """Take in one item of the page."""
        self.statuses[row["status"]] += 1
        if row["error"]:
            self.errors[row["error"]] += 1
        if row["submitted_at"]:
            begin_s = datetime.fromisoformat(row["submitted_at"]).timestamp()
            self.submitted_s.append(begin_s)
            if row["stored_at"]:
                self.took_s.append(datetime.fromisoformat(row["stored_at"]).timestamp() - begin_s)
        if row["polls"]:
            self.polls.append(row["polls"])


def draw(times: Times, limit_per_s: float | None) -> list[tuple[str, str]]:
    """Title and SVG of each chart that there is something to draw of."""
    charts = []
    if len(times.submitted_s) > 1:
        charts.append(("Submits a second", _throughput(times.submitted_s, limit_per_s)))
    if times.took_s:
        charts.append(("Seconds from submit to picture", _histogram(times.took_s, "seconds", BINS)))
    if times.polls:
        most = max(times.polls)
        charts.append(("Polls a job", _histogram(times.polls, "polls", min(BINS, most), (0.5, most + 0.5))))
    if times.statuses:
        charts.append(("What became of the jobs", _ends(times.statuses)))
    return charts


def _throughput(submitted_s: Sequence[float], limit_per_s: float | None) -> str:
    figure, axes = _figure()
    begin_s, end_s = min(submitted_s), max(submitted_s)
    span_s = max(end_s - begin_s, 1.0)
    bins = max(1, min(BINS, round(span_s)))
    width_s = span_s / bins
    axes.hist(
        [at_s - begin_s for at_s in submitted_s],
        bins=bins,
        range=(0, span_s),
        weights=[1 / width_s] * len(submitted_s),
        color=FILL,
    )
    if limit_per_s:
        axes.axhline(limit_per_s, color=LIMIT, linewidth=1.5)
        axes.annotate(f"limit {limit_per_s:g}/s", (0, limit_per_s), color=LIMIT, va="bottom")
    axes.set_xlabel("seconds since the first submit")
    return _svg(figure)


def _histogram(values: Sequence[float], unit: str, bins: int, span: tuple[float, float] | None = None) -> str:
    figure, axes = _figure()
    axes.hist(values, bins=bins, range=span, color=FILL)
    middle = sorted(values)[len(values) // 2]
    axes.axvline(middle, color=LIMIT, linewidth=1.5)
    axes.annotate(f"median {middle:.3g}", (middle, axes.get_ylim()[1]), color=LIMIT, va="top", ha="left")
    axes.set_xlabel(unit)
    return _svg(figure)


def _ends(statuses: Counter[str]) -> str:
    figure, axes = _figure()
    named = statuses.most_common()[::-1]
    bars = axes.barh([name for name, _ in named], [count for _, count in named], color=FILL)
    axes.bar_label(bars, fmt="{:,.0f}", padding=3, color=INK)
    axes.margins(x=0.15)
    return _svg(figure)


def _figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 2.6), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    axes.tick_params(colors=INK, labelsize=8, length=0)
    axes.xaxis.label.set_color(INK)
    axes.xaxis.label.set_fontsize(8)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Any) -> str:
    import matplotlib as mpl

    file = StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "krea-batch", "font.size": 8}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    return re.sub(r"^.*?(?=<svg)", "", svg, flags=re.DOTALL)
