"""Tests of the plots of `krea-batch bench`: valid SVG with titles and units, reproducible byte for byte."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import msgspec
import pytest

from krea_batch.benchmark.measurements import CaseResult, case_result
from krea_batch.benchmark.plots import PLOTS, write_plots
from tests.benchmark.test_measurements import BENCH_CASE, BENCH_RECORD

TITLES = {
    "throughput": ("Use of the rate limit", "limit (submits/s)", "the limit"),
    "timeline": ("Accepted submits per second", "limit 2/s", "accepted (submits/s)"),
    "rate_limited": ("Submits refused with 429", "429s per job"),
    "polls": ("Polls", "Lag from an end until it is detected", "mean lag (s)"),
    "cost": ("CPU time", "CPU ms per job", "KiB per job in flight"),
    "loop": ("Event-loop lag", "lag (ms)", "p99"),
}


def bench_rows() -> list[CaseResult]:
    """Return results at two rates."""
    cases = [msgspec.structs.replace(BENCH_CASE, per_s=per_s, rate=f"{per_s:g}/s") for per_s in (2.0, 4.0)]
    return [case_result(case, BENCH_RECORD) for case in cases]


def plot_text(path: Path) -> str:
    return " ".join(ET.parse(path).getroot().itertext())  # noqa: S314 - our own file


def test_every_plot_has_its_titles_and_units(tmp_path: Path) -> None:
    """Each file is valid XML, and has its titles and units as text."""
    assert {path.stem for path in write_plots(tmp_path, bench_rows())} == set(TITLES) == set(PLOTS)
    for name, titles in TITLES.items():
        text = plot_text(tmp_path / f"{name}.svg")
        for title in titles:
            assert title in text


def test_plots_are_reproducible(tmp_path: Path) -> None:
    """The same results give the same bytes."""
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        write_plots(tmp_path / folder, bench_rows())
    for name in PLOTS:
        first, second = (tmp_path / folder / f"{name}.svg" for folder in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("count", [1, 3])
def test_results_without_values_are_drawn(tmp_path: Path, count: int) -> None:
    """If nothing was measured, all plots are drawn without lines, and there is no error."""
    empty_record = msgspec.structs.replace(BENCH_RECORD, accepted_at=[], loop_lags_ms=[], lags_s=[])
    cases = [msgspec.structs.replace(BENCH_CASE, per_s=float(n + 1)) for n in range(count)]
    assert len(write_plots(tmp_path, [case_result(case, empty_record) for case in cases])) == len(PLOTS)
