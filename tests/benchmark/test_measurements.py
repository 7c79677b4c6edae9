"""The rules of `krea-batch bench`: bins, percentiles, figures, rates, the table and the report."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from krea_batch.benchmark.cases import Case, CaseRecord, Implementation, jobs_for_rate, parse_rates, run_dir_name
from krea_batch.benchmark.measurements import case_result, counts_per_second, percentile, percentiles, rate_per_s
from krea_batch.benchmark.output import COLUMN_TITLES, bench_report, cells, result_table, write_bench_json
from krea_batch.errors import SettingsError
from krea_batch.settings import Rate

BENCH_CASE = Case(
    implementation=Implementation.ENGINE,
    rate="2/s",
    per_s=2.0,
    jobs=5,
    poll_interval_s=1.0,
    max_in_flight=5,
    out="out",
    prompt="a fox",
)
BENCH_RECORD = CaseRecord(
    accepted_at=[100.0, 100.5, 101.0, 101.5, 103.0],
    rate_limited=1,
    polls=10,
    stored=4,
    peak_in_flight=4,
    lags_s=[0.1, 0.3],
    loop_lags_ms=[1.0, 2.0, 9.0],
    cpu_s=0.02,
    memory_kib=400,
)


class TestNumbers:
    def test_a_record_becomes_figures_a_job(self) -> None:
        """Counts are divided by the accepted jobs, memory by the most in flight, throughput by the limit."""
        row = case_result(BENCH_CASE, BENCH_RECORD)
        assert row.accepted == 5
        assert row.accepted_per_s == pytest.approx(4 / 3)
        assert row.limit_utilisation == pytest.approx(2 / 3)
        assert row.accepted_each_second == [2, 2, 0, 1]
        assert (row.rate_limited_per_job, row.polls_per_job) == (0.2, 2.0)
        assert row.cpu_ms_per_job == pytest.approx(4.0)
        assert row.memory_kib_per_job_in_flight == 100.0
        assert row.lag_mean_s == pytest.approx(0.2)
        assert row.loop_lag_ms == percentiles([1.0, 2.0, 9.0])

    def test_what_was_not_measured_is_none_and_not_zero(self) -> None:
        """A run in which nothing was accepted divides by nothing and makes nothing up."""
        row = case_result(BENCH_CASE, CaseRecord())
        assert (row.limit_utilisation, row.polls_per_job, row.lag_s, row.cpu_ms_per_job, row.loop_lag_ms) == (
            None,
        ) * 5
        assert "–" in cells(row)

    @given(st.lists(st.floats(0, 1000), min_size=1))
    def test_every_instant_is_in_one_bin(self, instants: list[float]) -> None:
        """The bins hold each instant once; the first and the last bin are not empty."""
        bins = counts_per_second(instants)
        assert sum(bins) == len(instants)
        assert bins[0]
        assert bins[-1]

    @given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0, 100))
    def test_a_percentile_is_one_of_the_values(self, values: list[float], percent: float) -> None:
        """At least `percent` of the values are not above it."""
        found = percentile(sorted(values), percent)
        assert sum(value <= found for value in values) >= len(values) * percent / 100
        assert found in values

    def test_one_instant_has_no_rate(self) -> None:
        """A rate needs two instants that differ."""
        assert rate_per_s([]) is None
        assert rate_per_s([3.0]) is None
        assert rate_per_s([3.0, 3.0]) is None
        assert counts_per_second([]) == []


class TestRates:
    def test_rates_are_read_in_order(self) -> None:
        """Each rate keeps the words it was given in."""
        assert [rate.text for rate in parse_rates("5/s, 600/min")] == ["5/s", "600/min"]

    @pytest.mark.parametrize("text", ["", "5", "5/s,", "5/s,fast", "auto", "5/s,300/min"])
    def test_what_is_no_list_of_rates_names_the_option(self, text: str) -> None:
        """Nonsense, `auto` and a rate that is given twice are refused, under the option's own name."""
        with pytest.raises(SettingsError, match="rates"):
            parse_rates(text)

    def test_jobs_are_ten_seconds_of_the_rate(self) -> None:
        """Unless a number was asked for."""
        assert jobs_for_rate(Rate.parse("50/s"), None) == 500
        assert jobs_for_rate(Rate.parse("50/s"), 7) == 7
        assert jobs_for_rate(Rate.parse("1/h"), None) == 2

    def test_a_rate_names_a_folder(self) -> None:
        """Without a separator in it."""
        assert run_dir_name(Rate.parse("600/min")) == "600-per-min"


class TestReport:
    def test_the_table_has_every_column_and_value(self) -> None:
        """A row a case, under the heads."""
        text = StringIO()
        Console(file=text, width=160).print(result_table([case_result(BENCH_CASE, BENCH_RECORD)]))
        for expected_text in (*COLUMN_TITLES, "krea-batch", "2/s", "0.667", "2.0/9.0/9"):
            assert expected_text in text.getvalue()

    def test_the_report_is_json_with_machine_and_options(self, tmp_path: Path) -> None:
        """bench.json tells what was measured, where, when and how."""
        at = datetime(2030, 1, 2, tzinfo=UTC)
        path = write_bench_json(tmp_path, bench_report([case_result(BENCH_CASE, BENCH_RECORD)], {"rates": "2/s"}, at))
        decoded = json.loads(path.read_text())
        assert decoded["at"] == "2030-01-02T00:00:00+00:00"
        assert decoded["options"] == {"rates": "2/s"}
        assert set(decoded["machine"]) == {"cpus", "system", "python", "uvloop"}
        assert decoded["results"][0]["accepted_each_second"] == [2, 2, 0, 1]
