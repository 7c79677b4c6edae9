"""Tests of `krea-batch bench`: how results are computed from a record, and the table and bench.json."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from krea_batch.benchmark.cases import Case, CaseRecord, jobs_for_rate, parse_rates, run_dir_name
from krea_batch.benchmark.measurements import case_result, counts_per_second, percentile, percentiles, rate_per_s
from krea_batch.benchmark.output import COLUMN_TITLES, bench_report, cells, result_table, write_bench_json
from krea_batch.errors import SettingsError
from krea_batch.settings import Rate

BENCH_CASE = Case(
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


class TestResults:
    def test_a_result_has_values_per_job(self) -> None:
        """Counts are divided by the accepted jobs, memory by the peak in flight, and the rate by the limit."""
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

    def test_missing_values_are_none(self) -> None:
        """A run without an accepted job has None for every value that it cannot measure, and not 0."""
        row = case_result(BENCH_CASE, CaseRecord())
        assert (row.limit_utilisation, row.polls_per_job, row.lag_s, row.cpu_ms_per_job, row.loop_lag_ms) == (
            None,
        ) * 5
        assert "–" in cells(row)

    @given(st.lists(st.floats(0, 1000), min_size=1))
    def test_each_time_is_counted_once(self, times_s: list[float]) -> None:
        """Each time is counted in one second; the first and the last second have at least one."""
        counts = counts_per_second(times_s)
        assert sum(counts) == len(times_s)
        assert counts[0]
        assert counts[-1]

    @given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0, 100))
    def test_a_percentile_is_one_of_the_values(self, values: list[float], percent: float) -> None:
        """A percentile is one of the values, and at least `percent` percent of them are not greater."""
        result = percentile(sorted(values), percent)
        assert sum(value <= result for value in values) >= len(values) * percent / 100
        assert result in values

    def test_a_rate_needs_two_times(self) -> None:
        """With fewer than two different times there is no rate."""
        assert rate_per_s([]) is None
        assert rate_per_s([3.0]) is None
        assert rate_per_s([3.0, 3.0]) is None
        assert counts_per_second([]) == []


class TestRates:
    def test_rates_are_parsed_in_order(self) -> None:
        """Rates are in the given order, and each keeps its text."""
        assert [rate.text for rate in parse_rates("5/s, 600/min")] == ["5/s", "600/min"]

    @pytest.mark.parametrize("text", ["", "5", "5/s,", "5/s,fast", "auto", "5/s,300/min"])
    def test_invalid_rates(self, text: str) -> None:
        """An invalid rate, `auto` and a duplicate rate are errors of the setting `rates`."""
        with pytest.raises(SettingsError, match="rates"):
            parse_rates(text)

    def test_the_default_number_of_jobs_takes_ten_seconds(self) -> None:
        """Without a number, there are as many jobs as the rate allows in ten seconds, but at least two."""
        assert jobs_for_rate(50.0, None) == 500
        assert jobs_for_rate(50.0, 7) == 7
        assert jobs_for_rate(1 / 3600, None) == 2

    def test_the_run_directory_of_a_rate(self) -> None:
        """The name of the run directory is the rate, without a path separator."""
        assert run_dir_name(Rate.parse("600/min")) == "600-per-min"


class TestReport:
    def test_the_table_has_every_column_and_value(self) -> None:
        """The table has all column titles, and a row of values for each case; only names are left-aligned."""
        table, text = result_table([case_result(BENCH_CASE, BENCH_RECORD)]), StringIO()
        Console(file=text, width=160).print(table)
        for expected_text in (*COLUMN_TITLES, "2/s", "0.667", "2.0/9.0/9"):
            assert expected_text in text.getvalue()
        assert [column.justify for column in table.columns] == ["left", *["right"] * (len(COLUMN_TITLES) - 1)]

    def test_the_report_is_json_with_machine_and_options(self, tmp_path: Path) -> None:
        """bench.json has the results, the time, the machine and the options."""
        measured_at = datetime(2030, 1, 2, tzinfo=UTC)
        report = bench_report([case_result(BENCH_CASE, BENCH_RECORD)], {"rates": "2/s"}, measured_at)
        path = write_bench_json(tmp_path, report)
        decoded = json.loads(path.read_text())
        assert decoded["at"] == "2030-01-02T00:00:00+00:00"
        assert decoded["options"] == {"rates": "2/s"}
        assert set(decoded["machine"]) == {"cpus", "system", "python", "uvloop"}
        assert decoded["results"][0]["accepted_each_second"] == [2, 2, 0, 1]
