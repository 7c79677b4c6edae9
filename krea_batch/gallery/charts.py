"""Draws the charts of a run as SVG, from its ledger. Requires matplotlib, from the extra `gallery`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from io import StringIO
from typing import Any

import msgspec

from krea_batch.jobs import Outcome
from krea_batch.ledger import JobTiming, LedgerReader
from krea_batch.ledger.paging import first_column, iter_rows

MAX_BINS = 60  # chosen: bars that can still be distinguished at 480 pixels
MIN_BINS = 12  # chosen: fewer show no distribution
TEXT_COLOUR, MUTED_COLOUR, GRID_COLOUR, BAR_COLOUR, LIMIT_COLOUR = (
    "#1d2733",
    "#556270",
    "#d9dee5",
    "#3567b5",
    "#b5482f",
)


class ChartData(msgspec.Struct):
    """The data of the charts over all jobs. Lag is the time from the end of a job until it was detected."""

    limit_per_s: float | None = None
    accepted_s: list[float] = []
    not_accepted_s: list[float] = []
    generation_s: list[float] = []
    lag_s: list[float] = []
    polls: list[int] = []
    statuses: Counter[str] = msgspec.field(default_factory=Counter)
    errors: Counter[str] = msgspec.field(default_factory=Counter)

    def add_outcome(self, outcome: Outcome) -> None:
        """Add the outcome of a job."""
        self.statuses[outcome.status.value] += 1
        if outcome.error:
            self.errors[outcome.error.message] += 1

    def load(self, store: LedgerReader) -> None:
        """Add all submissions and timings, and the rate of the latest run."""
        run = store.latest_run()
        self.limit_per_s = run.rate_per_s if run else None
        for _, sent_s, result in iter_rows(store.submissions_page, first_column):
            (self.accepted_s if result == "accepted" else self.not_accepted_s).append(sent_s)
        for timing in iter_rows(store.timings_page, lambda timing: timing.job_no):
            self._add_timing(timing)

    def _add_timing(self, timing: JobTiming) -> None:
        if timing.polls:
            self.polls.append(timing.polls)
        if timing.finished_at is None:
            return
        observed_s = max(0.0, timing.finished_at - timing.accepted_at)  # our clock may have been set back
        self.generation_s.append(observed_s if timing.took_s is None else timing.took_s)
        if timing.took_s is not None:
            self.lag_s.append(observed_s - timing.took_s)


def draw_charts(data: ChartData) -> list[tuple[str, str]]:
    """Return title and SVG of each chart that has data."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()  # a matplotlibrc of the working directory could have LaTeX run
        return _draw_charts(data)


def _draw_charts(data: ChartData) -> list[tuple[str, str]]:
    charts = []
    if len(data.accepted_s) + len(data.not_accepted_s) > 1:
        charts.append(("Submits per second", _throughput_chart(data)))
    if data.generation_s:
        charts.append(("Generation time", _histogram_chart(data.generation_s)))
    if data.lag_s:
        charts.append(("Lag until detected", _histogram_chart(data.lag_s)))
    if data.polls:
        charts.append(("Polls per job", _polls_chart(data.polls)))
    if data.statuses:
        charts.append(("Jobs by state", _outcomes_chart(data.statuses)))
    return charts


def _throughput_chart(data: ChartData) -> str:
    figure, axes = _new_figure()
    all_s = data.accepted_s + data.not_accepted_s
    start_s = min(all_s)
    span_s = max(max(all_s) - start_s, 1.0)
    bins = max(MIN_BINS, min(MAX_BINS, round(span_s)))
    series = [("accepted", data.accepted_s, BAR_COLOUR)]
    if data.not_accepted_s:
        series.append(("not accepted", data.not_accepted_s, LIMIT_COLOUR))
    axes.hist(
        [[at_s - start_s for at_s in instants] for _, instants, _ in series],
        bins=bins,
        range=(0, span_s),
        weights=[[bins / span_s] * len(instants) for _, instants, _ in series],
        color=[colour for _, _, colour in series],
        label=[name for name, _, _ in series],
        stacked=True,
    )
    if data.limit_per_s:
        axes.axhline(
            data.limit_per_s, color=TEXT_COLOUR, linewidth=1, linestyle="--", label=f"limit, {data.limit_per_s:g}/s"
        )
    axes.margins(y=0.25)
    axes.legend(loc="upper right", frameon=False, ncols=3, labelcolor=MUTED_COLOUR)
    axes.set_xlabel("seconds since the first submit")
    return _to_svg(figure)


def _histogram_chart(durations_s: Sequence[float]) -> str:
    figure, axes = _new_figure()
    ordered = sorted(durations_s)
    bins = max(MIN_BINS, min(MAX_BINS, round(len(ordered) ** 0.5 * 2)))
    axes.hist(ordered, bins=bins, color=BAR_COLOUR)
    median, p95 = (ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.95))
    axes.axvline(median, color=LIMIT_COLOUR, linewidth=1.5)
    axes.margins(y=0.2)
    _annotate(axes, f"median {median:.3g}, 95th percentile {p95:.3g}")
    axes.set_xlabel("seconds")
    axes.set_ylabel("jobs")
    return _to_svg(figure)


def _polls_chart(polls: Sequence[int]) -> str:
    from matplotlib.ticker import MaxNLocator

    figure, axes = _new_figure()
    highest = max(polls)
    axes.hist(polls, bins=min(MAX_BINS, highest), range=(0.5, highest + 0.5), color=BAR_COLOUR, rwidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(0.4, max(highest, 4) + 0.6)
    axes.margins(y=0.2)
    mean = sum(polls) / len(polls)
    _annotate(axes, f"mean {mean:.2f}")
    axes.set_xlabel("polls")
    axes.set_ylabel("jobs")
    return _to_svg(figure)


def _outcomes_chart(statuses: Counter[str]) -> str:
    figure, axes = _new_figure()
    counts = statuses.most_common()[::-1]
    bars = axes.barh([name for name, _ in counts], [count for _, count in counts], height=0.6, color=BAR_COLOUR)
    axes.bar_label(bars, fmt="{:,.0f}", padding=3, color=TEXT_COLOUR)
    axes.margins(x=0.15)
    axes.set_ylim(min(-0.5, len(counts) - 4.5), len(counts) - 0.5)  # a single bar should not fill the chart
    axes.grid(visible=False)
    return _to_svg(figure)


def _new_figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 2.6), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID_COLOUR)
    axes.tick_params(colors=TEXT_COLOUR, labelsize=8, length=0)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=MUTED_COLOUR, fontsize=8)
    axes.grid(axis="y", color=GRID_COLOUR, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _annotate(axes: Any, text: str) -> None:
    axes.text(0.99, 0.97, text, transform=axes.transAxes, ha="right", va="top", color=MUTED_COLOUR)


def _to_svg(figure: Any) -> str:
    import matplotlib as mpl

    file = StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "krea-batch", "font.size": 8}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    return re.sub(r"^.*?(?=<svg)", "", svg, flags=re.DOTALL)
