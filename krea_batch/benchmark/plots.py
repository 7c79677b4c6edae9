"""Draws the results of a benchmark as SVG. Requires matplotlib, from the extra `bench`.

The same results give the same bytes: ids are made with a fixed salt, and there are no dates. Text stays text, in the
viewer's own font.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krea_batch.benchmark.comparison import ENGINES, ComparisonRow, ProgramRun
from krea_batch.benchmark.measurements import CaseResult
from krea_batch.benchmark.output import PLOT_CREATOR, write_bench_file

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COMPARISON_PLOT = "comparison.svg"
COMPARISON_SIZE_IN = (10.0, 2.8)  # chosen: six narrow panels of seven bars
SIZE_IN = (8.0, 4.5)  # chosen: 800 px wide at 100 dpi, where 10-point labels are readable
ENGINE_COLOUR, SCRIPT_COLOUR, IDEAL_COLOUR = "#1b6ca8", "#c8553d", "#888888"
RC_PARAMS: dict[Any, Any] = {
    "svg.hashsalt": "krea-batch",
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.titleweight": "bold",
    "axes.titlesize": 11,
    "figure.constrained_layout.use": True,
}


def write_plots(folder: Path, rows: Sequence[CaseResult]) -> list[Path]:
    """Draw every plot into the directory, and return the paths.

    Raises InputError if another file has the name of a plot, ImportError without matplotlib.
    """

    def draw_with_legend(draw: Callable[[Figure, Sequence[CaseResult]], None], figure: Figure) -> None:
        draw(figure, rows)
        _shared_legend(figure)

    return [_write_plot(folder / f"{name}.svg", partial(draw_with_legend, draw)) for name, draw in PLOTS.items()]


def write_comparison_plot(folder: Path, rows: Sequence[ComparisonRow]) -> Path:
    """Draw the plot of the comparison into the directory, and return its path. Raises as `write_plots` does."""
    measured = [row for row in rows if row.steady and row.killed]
    return _write_plot(folder / COMPARISON_PLOT, lambda figure: _comparison(figure, measured))


def _write_plot(path: Path, draw: Callable[[Figure], None]) -> Path:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context():
        mpl.rcdefaults()  # a matplotlibrc of the working directory could have LaTeX run
        mpl.rcParams.update(RC_PARAMS)
        figure = Figure(figsize=SIZE_IN)
        draw(figure)
        svg = BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": PLOT_CREATOR})
        write_bench_file(path, svg.getvalue())
    return path


def _comparison(figure: Figure, rows: Sequence[ComparisonRow]) -> None:
    """Draw a panel of bars for each column of the table, with the value beside each bar."""
    figure.set_size_inches(COMPARISON_SIZE_IN)
    panels = figure.subplots(1, len(COMPARISON_PANELS), sharey=True)
    names = [row.program.value for row in rows]
    colours = [ENGINE_COLOUR if row.program in ENGINES else SCRIPT_COLOUR for row in rows]
    for axes, (title, (value, form)) in zip(panels, COMPARISON_PANELS.items(), strict=True):
        values = [value(row) for row in rows]
        bars = axes.barh(names, values, color=colours, height=0.65)
        axes.bar_label(bars, [format(each, form) for each in values], padding=3, fontsize=9)
        axes.set_xlim(0, 1.35 * max([*values, 1e-9]))
        axes.set_title(title)
        axes.set_xticks([])
        axes.grid(visible=False)
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(axis="y", length=0)
    panels[0].invert_yaxis()  # the first program at the top


def _steady(value: Callable[[ProgramRun], float | None]) -> Callable[[ComparisonRow], float]:
    return lambda row: (row.steady and value(row.steady)) or 0.0


def _killed(value: Callable[[ProgramRun], float]) -> Callable[[ComparisonRow], float]:
    return lambda row: (row.killed and value(row.killed)) or 0.0


COMPARISON_PANELS: dict[str, tuple[Callable[[ComparisonRow], float], str]] = {
    "used of the limit": (_steady(lambda run: run.limit_utilisation), ".2f"),
    "polls per job": (_steady(lambda run: run.polls_per_job), ".2f"),
    "CPU ms per job": (_steady(lambda run: run.cpu_ms_per_job), ".1f"),
    "paid, no image": (_killed(lambda run: run.paid_without_image), ".0f"),
    "charged twice": (_killed(lambda run: run.charged_twice), ".0f"),
    "jobs left": (_killed(lambda run: run.jobs_left), ".0f"),
}


def _throughput(figure: Figure, rows: Sequence[CaseResult]) -> None:
    axes = figure.subplots()
    limits = sorted({row.limit_per_s for row in rows})
    axes.plot(limits, limits, color=IDEAL_COLOUR, linestyle="--", label="the limit")
    _panel(axes, rows, lambda row: row.accepted_per_s, "Use of the rate limit", "accepted (submits/s)")


def _timeline(figure: Figure, rows: Sequence[CaseResult]) -> None:
    from matplotlib.ticker import MaxNLocator

    panels = [(limit, list(group)) for limit, group in groupby(sorted(rows, key=_limit), key=_limit)]
    columns = 1 if len(panels) == 1 else 2
    panel_rows = -(-len(panels) // columns)
    figure.set_size_inches(SIZE_IN[0], 1.2 + 2.6 * panel_rows)
    for position, (limit, results) in enumerate(panels, 1):
        axes = figure.add_subplot(panel_rows, columns, position)
        axes.axhline(limit, color=IDEAL_COLOUR, linestyle="--", label="limit")
        for row in results:
            counts = row.accepted_each_second[:-1] or row.accepted_each_second  # the last second is incomplete
            axes.stairs(
                counts,
                baseline=None,
                linewidth=1.5,
                color=ENGINE_COLOUR,
                label="krea-batch",
            )
        _label_axes(axes, f"limit {limit:g}/s", "seconds since the first accept", "accepted (submits/s)")
        _set_y_floor(axes)
        axes.set_xlim(0, None)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle("Accepted submits per second", fontweight="bold")


def _rate_limited(figure: Figure, rows: Sequence[CaseResult]) -> None:
    _panel(figure.subplots(), rows, lambda row: row.rate_limited_per_job, "Submits refused with 429", "429s per job")


def _polls(figure: Figure, rows: Sequence[CaseResult]) -> None:
    polls, lag = figure.subplots(1, 2)
    _panel(polls, rows, lambda row: row.polls_per_job, "Polls", "polls per job")
    _panel(lag, rows, lambda row: row.lag_mean_s, "Lag from an end until it is detected", "mean lag (s)")


def _cost(figure: Figure, rows: Sequence[CaseResult]) -> None:
    time, memory = figure.subplots(1, 2)
    _panel(time, rows, lambda row: row.cpu_ms_per_job, "CPU time", "CPU ms per job")
    _panel(memory, rows, lambda row: row.memory_kib_per_job_in_flight, "Memory", "KiB per job in flight")


def _loop_lag(figure: Figure, rows: Sequence[CaseResult]) -> None:
    axes = figure.subplots()
    lags = [(row.limit_per_s, row.loop_lag_ms) for row in sorted(rows, key=_limit) if row.loop_lag_ms]
    limits = [limit for limit, _ in lags]
    for name, style in (("max", ":"), ("p99", "--"), ("p50", "-")):  # as the lines are from top to bottom
        values_ms = [getattr(lag, name) for _, lag in lags]
        axes.plot(limits, values_ms, linestyle=style, marker="o", color=ENGINE_COLOUR, label=name)
    _label_axes(axes, "Event-loop lag", "limit (submits/s)", "lag (ms)")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    _set_limit_ticks(axes, rows)


PLOTS: dict[str, Callable[[Figure, Sequence[CaseResult]], None]] = {
    "throughput": _throughput,
    "timeline": _timeline,
    "rate_limited": _rate_limited,
    "polls": _polls,
    "cost": _cost,
    "loop": _loop_lag,
}


def _panel(
    axes: Axes, rows: Sequence[CaseResult], value: Callable[[CaseResult], float | None], title: str, y: str
) -> None:
    """Draw one value of the rows against the limits."""
    _line(axes, rows, value)
    _label_axes(axes, title, "limit (submits/s)", y)
    _set_limit_ticks(axes, rows)


def _line(axes: Axes, rows: Sequence[CaseResult], value: Callable[[CaseResult], float | None]) -> None:
    """Draw a line against the limits at which the value was measured."""
    ordered = sorted(rows, key=_limit)
    points = [(row.limit_per_s, measured) for row in ordered if (measured := value(row)) is not None]
    if points:
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, marker="o", clip_on=False, color=ENGINE_COLOUR, label="krea-batch")


def _label_axes(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def _set_limit_ticks(axes: Axes, rows: Sequence[CaseResult]) -> None:
    """Use the measured limits as x ticks, and zero as the minimum of a linear y axis."""
    limits = sorted({row.limit_per_s for row in rows})
    axes.set_xscale("log")
    axes.set_xticks(limits, [f"{limit:g}" for limit in limits])
    axes.minorticks_off()
    if axes.get_yscale() == "linear":
        _set_y_floor(axes)


def _set_y_floor(axes: Axes) -> None:
    """Start the y axis at zero, with room above the highest line, even if all values are zero."""
    highest = axes.dataLim.y1
    axes.set_ylim(0, 1.1 * highest if highest > 0 else 1)


def _shared_legend(figure: Figure) -> None:
    """Draw one legend for all panels below them."""
    handles: dict[str, Artist] = {}
    for axes in figure.axes:
        lines, labels = axes.get_legend_handles_labels()
        handles |= {str(label): line for line, label in zip(lines, labels, strict=True)}
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=len(handles), frameon=False
    )


def _limit(row: CaseResult) -> float:
    return row.limit_per_s
