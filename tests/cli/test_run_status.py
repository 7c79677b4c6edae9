"""The status of a run: recent rates, time left and errors, and their display on terminals of any width."""

from __future__ import annotations

import asyncio
import io
import re
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from krea_batch.cli.ui.run_status import ASCII_SPARKLINE_CHARS, SPARKLINE_CHARS, RunStatus, sparkline
from krea_batch.cli.ui.status_readers import (
    HISTORY_S,
    RATE_WINDOW_S,
    EndedJobs,
    EngineStatusReader,
    LedgerStatusReader,
    RateHistory,
    RecentErrors,
    remaining_s,
)
from krea_batch.engine.engine import Engine
from krea_batch.errors import RunStopped
from krea_batch.events import JobEnded, RetryScheduled, StateChanged
from krea_batch.jobs import ErrorInfo, Outcome, State
from krea_batch.ledger.sqlite import SqliteLedger
from krea_batch.rules.lifecycle import count_ended
from krea_batch.rules.verdicts import Ambiguous, Errored, Failed, Finished, Refusal, Refused, Waiting
from krea_batch.storage.run_dir import LEDGER
from krea_batch.testing import ACCEPT, FINISH, ScriptedGateway, run_virtual
from tests.engine_fixtures import ledger_states, make_jobs
from tests.processes import StartSimulator, run_command, write_jobs

SOME_STATUS = RunStatus(
    total=1000,
    done=206,
    succeeded=193,
    in_flight=325,
    downloading=185,
    unsuccessful=13,
    submitted=531,
    submits_per_s=15.6,
    limit_per_s=19.0,
    polls=447,
    downloaded_bytes=126_600_000,
    remaining_s=60.0,
    submits_each_second=(3.0, 0.0, 19.0, 9.0),
    top_errors=(("submit: HTTP 500", 13), ("failed: [b]no[/b] image of “長椅子”", 2)),
)


def outcome(status: State, message: str | None) -> Outcome:
    return Outcome(
        id="a",
        status=status,
        request_id=None,
        files=(),
        error=ErrorInfo("kind", message) if message else None,
        request={},
        metadata={},
        polls=0,
        attempts=1,
        submitted_at=None,
        accepted_at=None,
        finished_at=None,
        stored_at=None,
    )


class TestRateHistory:
    def test_the_recent_mean(self) -> None:
        """Rates cover only the given number of recent seconds."""
        history = RateHistory()
        for second in range(40):
            history.add(float(second), 10 * second if second < 30 else 300, second)
        assert history.rates_per_s(9.0) == (0.0, 1.0)
        assert history.rates_per_s(39.0)[0] == pytest.approx(300 / 39)
        assert history.span_s == 39.0

    def test_submits_of_each_second(self) -> None:
        """The history has the submits of each completed second, the latest last."""
        history = RateHistory()
        for tenth in range(31):
            history.add(tenth / 10, min(tenth, 20), 0)
        assert list(history.submits_each_second) == [10, 10, 0]

    def test_a_long_gap_between_updates(self) -> None:
        """After a gap between updates, the submits are spread over its seconds, and none is lost."""
        history = RateHistory()
        history.add(0.0, 0, 0)
        history.add(4.0, 10, 0)
        assert list(history.submits_each_second) == [3, 3, 2, 2]
        history.add(1000.0, 10, 0)
        assert history.submits_each_second == (0,) * HISTORY_S

    @given(st.lists(st.tuples(st.floats(0.01, 30), st.integers(0, 50)), min_size=1))
    def test_history_never_exceeds_the_submits(self, steps: list[tuple[float, int]]) -> None:
        """With updates at any interval, the history never has more submits than there were, nor a negative count."""
        history, now_s, submits = RateHistory(), 0.0, 0
        history.add(now_s, submits, 0)
        for wait_s, more in steps:
            now_s, submits = now_s + wait_s, submits + more
            history.add(now_s, submits, 0)
        assert sum(history.submits_each_second) <= submits
        assert all(count >= 0 for count in history.submits_each_second)
        assert len(history.submits_each_second) <= HISTORY_S

    def test_time_left(self) -> None:
        """The time left follows the rate of submits while any are left, then of ends; it is None at first."""
        history = RateHistory()
        history.add(0.0, 0, 0)
        assert remaining_s(history, 50, 50) is None
        history.add(RATE_WINDOW_S, 100, 20)
        assert remaining_s(history, 50, 10) == pytest.approx(5.0)
        assert remaining_s(history, 50, 0) == pytest.approx(25.0)


def test_identical_errors_are_grouped() -> None:
    """Equal recent errors of retries and of jobs are counted, the most common first; a success is no error."""
    errors = RecentErrors()
    for n in range(3):
        errors.on_event(RetryScheduled(f"{n}", "submit", "HTTP 500"))
    errors.on_event(JobEnded(outcome(State.FAILED, "no")))
    errors.on_event(JobEnded(outcome(State.SUCCEEDED, None)))
    assert errors.most_common() == (("submit: HTTP 500", 3), ("failed: no", 1))
    for n in range(300):
        errors.on_event(RetryScheduled(f"{n}", "poll", "cut"))
    assert errors.most_common() == (("poll: cut", 200),)


@pytest.mark.parametrize(
    ("history", "limit", "expected"),
    [
        ((), 10.0, ""),
        ((0, 1, 5, 10, 10), 10.0, " ▁▅██"),
        ((1, 20), 10.0, "▁█"),
        ((1, 2), None, "▅█"),
        ((0, 0), None, "  "),
    ],
)
def test_sparkline(history: tuple[float, ...], limit: float | None, expected: str) -> None:
    """There is one character per second: a space without submits, the highest where the limit was reached."""
    assert sparkline(history, limit, SPARKLINE_CHARS) == expected


class TestLiveDisplay:
    def rendered(self, status: RunStatus, *, width: int = 80, encoding: str = "utf-8") -> list[str]:
        file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
        console = Console(file=file, width=width, force_terminal=False, color_system=None)
        console.print(status.render(console.encoding))
        assert isinstance(file.buffer, io.BytesIO)
        return file.buffer.getvalue().decode(encoding).splitlines()

    def test_content(self) -> None:
        """The display has three stages, rate, jobs and errors; markup in an error is printed unchanged."""
        lines = self.rendered(SOME_STATUS)
        assert [line.split()[0] for line in lines[:6]] == [
            "submitted", "completed", "done", "submits", "jobs", "errors",
        ]  # fmt: skip
        assert "531/1,000" in lines[0]
        assert "391/1,000" in lines[1]
        assert "206/1,000" in lines[2]
        assert "1:00 left" in lines[2]
        assert "▂ █▄" in lines[3]
        assert "15.6/s of 19/s" in lines[3]
        assert "193 stored" in lines[4]
        assert "13 failed" in lines[4]
        assert "[b]no[/b] image of “長椅子”" in lines[6]

    @pytest.mark.parametrize("width", [40, 60, 80, 200])
    def test_lines_fit_the_terminal(self, width: int) -> None:
        """No line is wrapped, or longer than the width of the terminal."""
        lines = self.rendered(SOME_STATUS, width=width)
        assert len(lines) == 7
        assert all(len(line) <= width for line in lines)

    def test_an_ascii_terminal(self) -> None:
        """In an ASCII terminal, only ASCII is written."""
        plain = with_changes(SOME_STATUS, top_errors=())
        text = "\n".join(self.rendered(plain, encoding="ascii"))
        assert text.isascii()
        assert set(ASCII_SPARKLINE_CHARS) & set(text)

    def test_unknown_values_are_left_out(self) -> None:
        """The status of another process's run has no polls and bytes, and no limit if it is found automatically."""
        lines = self.rendered(
            with_changes(
                SOME_STATUS, polls=None, downloaded_bytes=None, limit_per_s=None, remaining_s=None, top_errors=()
            )
        )
        assert "polls" not in "".join(lines)
        assert "15.6/s" in lines[3]
        assert "of" not in lines[3]
        assert "left" not in lines[2]


def with_changes(status: RunStatus, **changes: object) -> RunStatus:
    """Return a copy of the status with these changes."""
    return msgspec.structs.replace(status, **changes)


def test_a_run_of_another_process(tmp_path: Path) -> None:
    """The ledger alone gives the job counts, the limit, the rate and the errors of a run of another process."""
    store = SqliteLedger.open(tmp_path / LEDGER)
    status_reader = LedgerStatusReader(tmp_path, clock=iter([0.0, 5.0]).__next__)
    store.transaction(lambda store: store.start_run("https://a", "0", 0.0, 12.0))
    store.transaction(lambda store: store.set_expected_jobs(10))
    before = status_reader.read()
    assert (before.total, before.done, before.limit_per_s, before.top_errors) == (10, 0, 12.0, ())

    def jobs(store: SqliteLedger) -> None:
        for n in range(4):
            number = store.record_intent(f"{n}", b'{"prompt":"a"}', bytes(32), b"{}", 1.0, "")
            store.mark_accepted(number, f"r{n}", 2.0)
        store.mark_finished(1, Finished(("https://a/b.png",), "image/png"), 3.0, 1)
        store.mark_finished(2, Finished(("https://a/b.png",), "image/png"), 3.0, 1)
        store.mark_stored(2, (), 4.0)
        store.mark_failed(3, ErrorInfo("failed", "no"), 4.0, 1)
        store.enqueue("later", b'{"prompt":"a"}', bytes(32), b"{}", "")

    store.transaction(jobs)
    after = status_reader.read()
    store.close()
    assert (after.total, after.done, after.succeeded, after.in_flight, after.downloading) == (10, 2, 1, 2, 1)
    assert (after.submitted, after.unsuccessful, after.top_errors) == (4, 1, (("no", 1),))
    assert after.submits_per_s == pytest.approx(0.8)
    assert not status_reader.is_running
    assert after.remaining_s is None


class TestResumedRuns:
    """The jobs that are done, in runs that resume others: each counted once, and never more than there are."""

    def scripted(self) -> ScriptedGateway:
        """Return a gateway at which each of the first jobs ends differently, if `max_attempts` is 1."""
        gateway = ScriptedGateway()
        gateway.submit_script["j0"] = [Refused(Refusal.REJECTED, 400, "bad"), ACCEPT]
        gateway.submit_script["j1"] = [Ambiguous("cut"), ACCEPT]
        gateway.poll_script["j2"] = [Failed("nsfw")]
        gateway.poll_script["j3"] = [Errored("gpu"), FINISH]
        gateway.poll_script["j4"] = [Waiting("PROCESSING")] * 5 + [FINISH]
        return gateway

    @pytest.mark.parametrize("max_attempts", [1, 2])
    @pytest.mark.parametrize("ambiguous", ["keep", "resubmit"])
    @pytest.mark.parametrize("jobs", [3, 8, 12], ids=lambda count: f"{count} jobs")
    def test_every_job_is_counted_once(self, tmp_path: Path, max_attempts: int, ambiguous: str, jobs: int) -> None:
        """Whatever ended or was interrupted before, `done` is right at every event and reaches the total."""
        gateway, statuses = self.scripted(), list[RunStatus]()

        async def first() -> None:
            async with Engine(tmp_path, gateway_client=gateway, max_attempts=1, job_timeout_s=20.0) as engine:
                running = asyncio.create_task(engine.run(make_jobs(8)))
                await asyncio.sleep(60.0)
                await running
            async with Engine(tmp_path, gateway_client=gateway, max_attempts=1) as engine:
                running = asyncio.create_task(engine.run(make_jobs(10)))
                await asyncio.sleep(1.0)  # j8 and j9 are accepted and not done
                engine.abort()
                with pytest.raises(RunStopped):
                    await running

        async def second() -> None:
            with closing(SqliteLedger.open(tmp_path / LEDGER, read_only=True)) as store:
                counts = store.counts()
            recorded, total = sum(counts.values()), max(10, jobs)
            assert recorded == 10
            ended = EndedJobs(recorded)
            engine = Engine(
                tmp_path,
                gateway_client=gateway,
                max_attempts=max_attempts,
                ambiguous=ambiguous,
                listeners=[ended.on_event, lambda _: read()],
            )
            reader = EngineStatusReader(
                engine, RecentErrors(), ended, total=total, succeeded_before=counts[State.SUCCEEDED]
            )
            started = False

            def read() -> None:
                if started:
                    statuses.append(reader.read())

            async with engine:
                started = True
                await engine.run(make_jobs(jobs))
                statuses.append(reader.read())
                assert statuses[-1].done == count_ended(await engine.counts())

        run_virtual(first())
        run_virtual(second())
        assert all(status.succeeded <= status.done <= status.total for status in statuses)
        assert statuses[-1].done == statuses[-1].total

    def test_a_callback_that_resolves_an_ambiguous_job(self) -> None:
        """An ambiguous job that is accepted after all is not done until it ends again."""
        ended = EndedJobs(recorded=3)
        steps = [State.PENDING, State.SUBMITTING, State.AMBIGUOUS, State.ACCEPTED, State.FINISHED, State.SUCCEEDED]
        counts = []
        for old, new in pairwise(steps):
            ended.on_event(StateChanged("a", old, new))
            counts.append(ended.count)
        assert counts == [3, 4, 3, 3, 4]


def done_and_total(stderr: str) -> list[tuple[int, int]]:
    """Return both numbers of each line of progress."""
    return [(int(done), int(total)) for done, total in re.findall(r"^(\d+)/(\d+) done", stderr, re.MULTILINE)]


@pytest.mark.slow
def test_progress_of_resumed_runs(simulate: StartSimulator, tmp_path: Path) -> None:
    """`run`, `retry` and `watch` never show more jobs done than there are, and end with all of them.

    Jobs time out in the first run, whose polls all fail, and the second one resumes them. A third run adds
    others.
    """
    simulator = simulate("--tiny", "--latency=fixed:0.1", "--fault=poll-500")
    write_jobs(tmp_path / "jobs.jsonl", 30)
    (tmp_path / "more.jsonl").write_text('{"id": "more", "prompt": "more"}\n{"id": "last", "prompt": "last"}\n')
    options = ("--out", "out", "--gateway", simulator.gateway_url, "--rate=200/s", "--poll-interval=0.1")
    run_command("run", "jobs.jsonl", *options, "--job-timeout=0.2", "--max-identical-failures=0", cwd=tmp_path)
    assert set(ledger_states(tmp_path / "out").values()) == {"timed_out"}
    simulator.admin_request("/settings", {"faults": {}})
    for command, total in (
        (("run", "jobs.jsonl", *options), 30),
        (("run", "more.jsonl", *options), 32),
        (("run", "jobs.jsonl", *options), 32),
        (("watch", "out"), 32),
    ):
        done = run_command(*command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        shown = done_and_total(done.stderr)
        assert all(count <= of for count, of in shown)
        assert shown[-1] == (total, total)
