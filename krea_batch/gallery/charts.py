"""What the ledger holds of POSTs and jobs comes in; what the run was like goes out, as SVG."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from io import StringIO
from typing import Any

import msgspec

from krea_batch.jobs import Outcome
from krea_batch.ledger import Stay, Store
from krea_batch.ledger.paging import all_rows, number_of

BINS = 60  # chosen: bars that are still told apart at 480 pixels
FEWEST_BINS = 12  # chosen: fewer show no shape
INK, SOFT, GRID, FILL, LIMIT = "#1d2733", "#556270", "#d9dee5", "#3567b5", "#b5482f"


class Times(msgspec.Struct):
    """What charts need of all jobs, in lists of seconds and counts. Lag is how long an end was not seen."""

    limit_per_s: float | None = None
    accepted_s: list[float] = []
    refused_s: list[float] = []
    took_s: list[float] = []
    lag_s: list[float] = []
    polls: list[int] = []
    statuses: Counter[str] = msgspec.field(default_factory=Counter)
    errors: Counter[str] = msgspec.field(default_factory=Counter)

    def count(self, outcome: Outcome) -> None:
        """Take in what became of a job."""
        self.statuses[outcome.status.value] += 1
        if outcome.error:
            self.errors[outcome.error.message] += 1

    def read(self, store: Store) -> None:
        """Take in all POSTs and stays, and the limit of the latest run."""
        run = store.latest_run()
        self.limit_per_s = run.per_s if run else None
        for _, sent_s, came_to in all_rows(store.sent, number_of):
            (self.accepted_s if came_to == "accepted" else self.refused_s).append(sent_s)
        for stay in all_rows(store.stays, lambda stay: stay.n):
            self._add(stay)

    def _add(self, stay: Stay) -> None:
        if stay.polls:
            self.polls.append(stay.polls)
        if stay.finished_at is None:
            return
        seen_s = stay.finished_at - stay.accepted_at
        self.took_s.append(seen_s if stay.took_s is None else stay.took_s)
        if stay.took_s is not None:
            self.lag_s.append(max(0.0, seen_s - stay.took_s))  # the gateway's clock may be ahead of ours


def draw(times: Times) -> list[tuple[str, str]]:
    """Title and SVG of each chart that there is something to draw of."""
    charts = []
    if len(times.accepted_s) + len(times.refused_s) > 1:
        charts.append(("Submits a second", _throughput(times)))
    if times.took_s:
        charts.append(("Seconds that the gateway took", _histogram(times.took_s, "seconds")))
    if times.lag_s:
        charts.append(("Seconds until an end was seen", _histogram(times.lag_s, "seconds")))
    if times.polls:
        charts.append(("Polls a job", _polls(times.polls)))
    if times.statuses:
        charts.append(("What became of the jobs", _ends(times.statuses)))
    return charts


def _throughput(times: Times) -> str:
    figure, axes = _figure()
    every = times.accepted_s + times.refused_s
    begin_s = min(every)
    span_s = max(max(every) - begin_s, 1.0)
    bins = max(FEWEST_BINS, min(BINS, round(span_s)))
    kinds = [("accepted", times.accepted_s, FILL)]
    if times.refused_s:
        kinds.append(("refused or lost", times.refused_s, LIMIT))
    axes.hist(
        [[at_s - begin_s for at_s in instants] for _, instants, _ in kinds],
        bins=bins,
        range=(0, span_s),
        weights=[[bins / span_s] * len(instants) for _, instants, _ in kinds],
        color=[colour for _, _, colour in kinds],
        label=[name for name, _, _ in kinds],
        stacked=True,
    )
    if times.limit_per_s:
        axes.axhline(
            times.limit_per_s, color=INK, linewidth=1, linestyle="--", label=f"limit, {times.limit_per_s:g}/s"
        )
    axes.margins(y=0.25)
    axes.legend(loc="upper right", frameon=False, ncols=3, labelcolor=SOFT)
    axes.set_xlabel("seconds since the first submit")
    return _svg(figure)


def _histogram(values: Sequence[float], unit: str) -> str:
    figure, axes = _figure()
    ordered = sorted(values)
    bins = max(FEWEST_BINS, min(BINS, round(len(ordered) ** 0.5 * 2)))
    axes.hist(ordered, bins=bins, color=FILL)
    middle, late = (ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.95))
    axes.axvline(middle, color=LIMIT, linewidth=1.5)
    axes.margins(y=0.2)
    _remark(axes, f"median {middle:.3g}, 95 in 100 within {late:.3g}")
    axes.set_xlabel(unit)
    axes.set_ylabel("jobs")
    return _svg(figure)


def _polls(polls: Sequence[int]) -> str:
    from matplotlib.ticker import MaxNLocator

    figure, axes = _figure()
    most = max(polls)
    axes.hist(polls, bins=min(BINS, most), range=(0.5, most + 0.5), color=FILL, rwidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(0.4, max(most, 4) + 0.6)
    axes.margins(y=0.2)
    mean = sum(polls) / len(polls)
    _remark(axes, f"{mean:.2f} in the mean")
    axes.set_xlabel("polls")
    axes.set_ylabel("jobs")
    return _svg(figure)


def _ends(statuses: Counter[str]) -> str:
    figure, axes = _figure()
    named = statuses.most_common()[::-1]
    bars = axes.barh([name for name, _ in named], [count for _, count in named], height=0.6, color=FILL)
    axes.bar_label(bars, fmt="{:,.0f}", padding=3, color=INK)
    axes.margins(x=0.15)
    axes.set_ylim(min(-0.5, len(named) - 4.5), len(named) - 0.5)  # one bar alone is no wall
    axes.grid(visible=False)
    return _svg(figure)


def _figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 2.6), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    axes.tick_params(colors=INK, labelsize=8, length=0)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=SOFT, fontsize=8)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _remark(axes: Any, text: str) -> None:
    axes.text(0.99, 0.97, text, transform=axes.transAxes, ha="right", va="top", color=SOFT)


def _svg(figure: Any) -> str:
    import matplotlib as mpl

    file = StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "krea-batch", "font.size": 8}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    return re.sub(r"^.*?(?=<svg)", "", svg, flags=re.DOTALL)
