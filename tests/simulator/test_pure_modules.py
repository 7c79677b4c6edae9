"""The pure modules: latency, faults, ranges, body validation, job planner, accounting, settings, responses."""

from __future__ import annotations

import json
import math
import statistics
import uuid
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krea_batch.testing.simulator import SimulatorError, SimulatorSettings
from krea_batch.testing.simulator.accounting import Accounting
from krea_batch.testing.simulator.body_validation import CREATIVITY, VALID_ASPECT_RATIOS, validate_body
from krea_batch.testing.simulator.cdn import resolve_range
from krea_batch.testing.simulator.faults import FAULTS, FaultInjector, check_faults
from krea_batch.testing.simulator.job_planner import JobPlanner, SimulatedJob
from krea_batch.testing.simulator.latency import LatencyDistribution
from krea_batch.testing.simulator.responses import format_instant, new_request_id

CDN_ETAG = '"abc-1"'
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4)
)
BODY_FIELDS = [
    "prompt",
    "aspect_ratio",
    "creativity",
    "seed",
    "image_style_references",
    "styles",
    "moodboards",
    "size",
]


def plan_jobs(planner: JobPlanner, injector: FaultInjector, *arrivals: float) -> list[SimulatedJob]:
    """Return jobs with different bodies, accepted at these times."""
    jobs = [SimulatedJob(f"r-{n}", {"prompt": "x"}, at, f"body {n}", 1) for n, at in enumerate(arrivals)]
    for job in jobs:
        planner.plan(job, injector)
    return jobs


# ---- latencies ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "minimum", "maximum", "median"),
    [
        ("fixed:15", 15, 15, 15),
        ("fixed:0", 0, 0, 0),
        ("fixed:0.25", 0.25, 0.25, 0.25),
        ("uniform:5,30", 5, 30, 17.5),
        ("uniform:7,7", 7, 7, 7),
        ("lognormal:12,0.4", 0, math.inf, 12),
        ("lognormal:12,0", 12, 12, 12),
        ("bimodal:5,25,0", 4, 6, 5),
        ("bimodal:5,25,1", 20, 30, 25),
        ("bimodal:5,25,0.3", 4, 30, 5.4),
    ],
)
def test_drawn_latencies(text: str, minimum: float, maximum: float, median: float) -> None:
    """A distribution draws within its bounds and around its median, and the same for the same seed."""
    latency = LatencyDistribution(text)
    drawn = [latency.draw(Random(n)) for n in range(2000)]
    assert minimum <= min(drawn)
    assert max(drawn) <= maximum
    assert statistics.median(drawn) == pytest.approx(median, rel=0.1)
    assert drawn == [LatencyDistribution(text).draw(Random(n)) for n in range(2000)]


def test_a_bimodal_latency_has_two_modes() -> None:
    """Of bimodal:5,25,0.3, 30 % of the draws are around 25, the others around 5, and none between."""
    drawn = [LatencyDistribution("bimodal:5,25,0.3").draw(Random(n)) for n in range(2000)]
    slow = [seconds for seconds in drawn if seconds > 15]
    assert len(slow) / len(drawn) == pytest.approx(0.3, abs=0.05)
    assert all(4 <= seconds <= 6 or 20 <= seconds <= 30 for seconds in drawn)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "15",
        "fixed",
        "fixed:",
        "fixed:x",
        "fixed:1,2",
        "fixed:-1",
        "fixed:nan",
        "fixed:inf",
        "uniform:5",
        "uniform:30,5",
        "lognormal:0,1",
        "lognormal:12,-1",
        "lognormal:12,6",
        "bimodal:5,25",
        "bimodal:5,25,1.1",
        "normal:1,2",
        "Fixed:15",
    ],
)
def test_invalid_latencies(text: str) -> None:
    """An invalid latency is refused with its text and the syntax."""
    with pytest.raises(ValueError, match=r"invalid latency .*; use fixed:15") as raised:
        LatencyDistribution(text)
    assert repr(text) in str(raised.value)


# ---- faults ---------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    seed=st.integers(),
    about=st.lists(st.tuples(st.sampled_from(sorted(FAULTS)), st.text(max_size=8), st.integers(1, 5)), unique=True),
    shuffle=st.randoms(use_true_random=False),
)
def test_faults_do_not_depend_on_order(seed: int, about: list[tuple[str, str, int]], shuffle: Random) -> None:
    """A fault depends only on seed, name, subject and attempt, not on the order of calls."""
    faults = dict.fromkeys(FAULTS, 0.5)
    injector = FaultInjector(seed, faults)
    drawn = {each: injector.should_fail(*each) for each in about}
    shuffled = sorted(about, key=lambda _: shuffle.random())
    other = FaultInjector(seed, faults)
    assert {each: other.should_fail(*each) for each in shuffled} == drawn
    alone = {each: FaultInjector(seed, {each[0]: 0.5}).should_fail(*each) for each in about}
    assert alone == drawn


def test_random_draws_are_the_same_in_every_version() -> None:
    """A seed always gives the same numbers, so a run can be repeated years later."""
    injector = FaultInjector(7, {"job-failed": 0.5})
    assert injector.fraction("job-failed", "a", 1) == 0.5409197489607855


@pytest.mark.parametrize("probability", [0.01, 0.1, 0.5, 0.9])
def test_faults_have_the_configured_probability(probability: float) -> None:
    """Each fault occurs with its probability, and two faults are independent."""
    injector = FaultInjector(1, {"poll-500": probability, "poll-404": probability})
    subjects = [(str(subject), attempt) for subject in range(2000) for attempt in (1, 2, 3)]
    failed = [{subject for subject in subjects if injector.should_fail(name, *subject)} for name in injector.faults]
    for each in failed:
        assert len(each) / len(subjects) == pytest.approx(probability, abs=0.03)
    assert len(failed[0] & failed[1]) / len(subjects) == pytest.approx(probability**2, abs=0.03)


def test_never_always_and_the_first_attempts() -> None:
    """Probability 0 never occurs, 1 always does, and with `max_attempts` only in the first attempts."""
    injector = FaultInjector(0, {"poll-500": 1.0, "poll-404": 0.0})
    assert all(injector.should_fail("poll-500", "a", attempt) for attempt in range(1, 100))
    assert not any(injector.should_fail(name, "a", 1) for name in ("poll-404", "poll-cut"))
    few = FaultInjector(0, {"poll-500": 1.0}, max_attempts=2)
    assert [few.should_fail("poll-500", "a", attempt) for attempt in (1, 2, 3, 4)] == [True, True, False, False]


def test_the_first_fault_drawn() -> None:
    """Of several faults the first in the given order is returned."""
    injector = FaultInjector(0, {"poll-404": 1.0, "poll-500": 1.0})
    assert injector.first_fault(["poll-cut", "poll-500", "poll-404"], "a", 1) == "poll-500"
    assert injector.first_fault(["poll-cut"], "a", 1) is None
    assert FaultInjector(0, {}).first_fault(FAULTS, "a", 1) is None


@pytest.mark.parametrize(
    ("faults", "expected"),
    [
        ({"poll-501": 0.5}, "'poll-501' is not a fault; use one of submit-400, "),
        ({"": 0.5}, "'' is not a fault"),
        ({"poll-500": 1.01}, "poll-500=1.01: a probability must be between 0 and 1"),
        ({"poll-500": -0.01}, "poll-500=-0.01"),
        ({"poll-500": math.nan}, "poll-500=nan"),
    ],
)
def test_invalid_faults(faults: dict[str, float], expected: str) -> None:
    """An unknown fault and an invalid probability are refused by name."""
    with pytest.raises(ValueError, match=r"is not a fault|probability") as raised:
        check_faults(faults)
    assert expected in str(raised.value)


# ---- ranges ---------------------------------------------------------------------------------------------


@given(length=st.integers(1, 200), first=st.integers(0, 250), last=st.integers(0, 250), etag=st.booleans())
def test_ranges_of_first_and_last(length: int, first: int, last: int, etag: bool) -> None:
    """A range with both ends is a slice of the image, an empty one is a 416, a reversed one the full image."""
    resolved = resolve_range(f"bytes={first}-{last}", CDN_ETAG if etag else None, CDN_ETAG, length)
    full = range(length)
    if last < first:
        assert resolved == (0, length)
    elif first >= length:
        assert resolved is None
    else:
        assert resolved is not None
        assert range(*resolved) == full[first : last + 1]


@given(length=st.integers(1, 200), number=st.integers(0, 250))
def test_open_ranges(length: int, number: int) -> None:
    """A range without an end goes to the last byte; one without a start counts from the end."""
    assert resolve_range(f"bytes={number}-", None, CDN_ETAG, length) == (
        (number, length) if number < length else None
    )
    assert resolve_range(f"bytes=-{number}", None, CDN_ETAG, length) == (
        (max(0, length - number), length) if number else None
    )


@given(header=st.none() | st.text(max_size=30), if_range=st.none() | st.text(max_size=10), length=st.integers(1, 99))
def test_any_range_is_resolved(header: str | None, if_range: str | None, length: int) -> None:
    """For any headers the resolved range is within the image."""
    resolved = resolve_range(header, if_range, CDN_ETAG, length)
    assert resolved is None or 0 <= resolved[0] < resolved[1] <= length


@pytest.mark.parametrize("header", ["bytes = 3-4", " bytes=3-4 "])
def test_spaces_in_a_range(header: str) -> None:
    """Spaces around a range and around its equals sign are ignored."""
    assert resolve_range(header, None, CDN_ETAG, 10) == (3, 5)


# ---- body validation ------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=300)
@given(body=json_values | st.dictionaries(st.sampled_from(BODY_FIELDS), json_values), lenient=st.booleans())
def test_any_body_is_validated(body: Any, lenient: bool) -> None:
    """Any JSON body is either valid or has a problem of one line; a valid body has a prompt."""
    problem = validate_body(body, lenient=lenient)
    assert problem is None or (problem and "\n" not in problem.replace(repr(body), ""))
    if problem is None:
        assert body["prompt"].strip()
        assert validate_body(body, lenient=True) is None


@st.composite
def valid_bodies(draw: st.DrawFn) -> dict[str, Any]:
    """Return bodies that the API document allows."""
    strength = st.fixed_dictionaries({}, optional={"strength": st.floats(-5, 5) | st.integers(-5, 5)})

    def entries(key: str, names: st.SearchStrategy[str], max_size: int) -> st.SearchStrategy[Any]:
        entry = st.builds(lambda name, rest: {key: name} | rest, names, strength)
        return st.lists(entry, max_size=max_size)

    urls = st.text(min_size=1, max_size=9).map("https://".__add__)
    return draw(
        st.fixed_dictionaries(
            {"prompt": st.text(min_size=1).filter(str.strip)},
            optional={
                "aspect_ratio": st.sampled_from(VALID_ASPECT_RATIOS),
                "creativity": st.sampled_from(CREATIVITY),
                "seed": st.integers(),
                "image_style_references": entries("image_url", urls, 10),
                "styles": entries("id", st.text(min_size=1, max_size=9), 10),
                "moodboards": entries("id", st.uuids().map(str), 1),
            },
        )
    )


@settings(deadline=None)
@given(body=valid_bodies(), field=st.sampled_from(BODY_FIELDS), value=json_values)
def test_valid_bodies_are_accepted(body: dict[str, Any], field: str, value: Any) -> None:
    """Every body that the API document allows is valid; the problem of an added value starts with its field."""
    assert validate_body(body, lenient=False) is None
    problem = validate_body(body | {field: value}, lenient=False)
    assert problem is None or problem.startswith((f"{field} ", f"unknown parameter {field!r}"))


# ---- jobs -----------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    workers=st.integers(1, 5),
    gaps=st.lists(st.integers(0, 20), min_size=1, max_size=40),
    latency=st.sampled_from(["fixed:10", "uniform:1,30", "bimodal:2,20,0.5"]),
    seed=st.integers(0, 99),
)
def test_no_more_jobs_running_than_workers(workers: int, gaps: list[int], latency: str, seed: int) -> None:
    """At most as many jobs as workers are PROCESSING at any time, and equal jobs start in order."""
    arrivals = [float(sum(gaps[: n + 1])) for n in range(len(gaps))]
    jobs = plan_jobs(JobPlanner(latency, 1.0, workers, 1), FaultInjector(seed, {}), *arrivals)
    for time_s in {at for job in jobs for at in (job.submitted_at, job.processing_at, job.done_at)}:
        current = [job.status(time_s) for job in jobs if job.submitted_at <= time_s]
        assert current.count("PROCESSING") <= workers
    if latency == "fixed:10":
        starts = [job.processing_at for job in jobs]
        assert starts == sorted(starts)


@settings(deadline=None)
@given(times_s=st.lists(st.floats(0, 100), max_size=20), seed=st.integers(0, 99))
def test_statuses_only_advance(times_s: list[float], seed: int) -> None:
    """At increasing times a job goes from QUEUED through PROCESSING to its final status, and never back."""
    (job,) = plan_jobs(
        JobPlanner("uniform:0,100", 1.0, 0, 1), FaultInjector(seed, {"job-failed": 0.3, "job-error": 0.3}), 0.0
    )
    statuses = [job.status(at) for at in sorted(times_s)]
    ranks = [("QUEUED", "PROCESSING", job.final_status).index(status) for status in statuses]
    assert ranks == sorted(ranks)
    assert job.status(job.done_at) == job.final_status
    assert job.submitted_at <= job.processing_at <= job.done_at


def test_latencies_do_not_depend_on_order() -> None:
    """Times and final status of a job depend on the seed, its body and its occurrence, not on earlier jobs."""

    def planned(order: list[int], seed: int = 3) -> dict[str, tuple[float, str]]:
        planner, injector = JobPlanner("lognormal:12,0.4", 1.0, 0, 1), FaultInjector(seed, {"job-failed": 0.5})
        jobs = [SimulatedJob("r", {}, 0.0, f"body {n // 2}", n % 2 + 1) for n in order]
        for job in jobs:
            planner.plan(job, injector)
        return {job.fault_key: (job.done_at, job.final_status) for job in jobs}

    assert planned(list(range(40))) == planned(list(reversed(range(40))))
    assert len(set(planned(list(range(40))).values())) == 40
    assert planned(list(range(40))) != planned(list(range(40)), seed=4)


# ---- accounting -----------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    ends=st.lists(st.tuples(st.integers(0, 50), st.sampled_from(["COMPLETED", "FAILED", "ERROR"])), max_size=30),
    balance=st.none() | st.integers(30, 60),
    times_s=st.lists(st.integers(0, 60), max_size=5),
)
def test_the_accounting_adds_up(ends: list[tuple[int, str]], balance: int | None, times_s: list[int]) -> None:
    """At any time exactly the jobs that have ended in ERROR are refunded, in counts, ledger and balance."""
    accounting = Accounting(balance)
    for n, (done_at, end) in enumerate(ends):
        job = SimulatedJob(f"r-{n}", {}, 0.0, "m", n + 1)
        job.done_at, job.final_status = float(done_at), end
        accounting.record_post(0.0, 202, {}, job)
    for now in sorted(times_s):
        ledger = accounting.ledger(now)
        refunded = sum(end == "ERROR" and done_at <= now for done_at, end in ends)
        assert ledger["totals"]["refunded"] == sum(post["refunded"] for post in ledger["posts"]) == refunded
        assert ledger["totals"]["charged"] == sum(post["charged"] for post in ledger["posts"]) == len(ends) - refunded
        assert accounting.balance == (None if balance is None else balance - len(ends) + refunded)
        json.dumps(ledger, allow_nan=False)


@given(times_s=st.lists(st.integers(0, 5000), max_size=60).map(sorted))
def test_max_posts_in_any_second(times_s: list[int]) -> None:
    """The maximum number of POSTs per second is that of the busiest second that starts with a POST."""
    accounting = Accounting(None)
    for at in times_s:
        accounting.record_post(at / 1024, 400, None, None)
    busiest = max((sum(at <= other < at + 1024 for other in times_s) for at in times_s), default=0)
    assert accounting.totals(9.0)["max_posts_per_second"] == busiest


# ---- settings and formats -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", -1),
        ("port", 65536),
        ("cdn_port", 65536),
        ("latency", "slow"),
        ("time_scale", 0.0),
        ("time_scale", math.nan),
        ("time_scale", math.inf),
        ("workers", -1),
        ("submit_limit", "10"),
        ("poll_limit", "10"),
        ("poll_limit", "jobs-in-process:5"),
        ("retry_after", ""),
        ("faults", {"x": 1.0}),
        ("fault_max_attempts", -1),
        ("slow_duration_s", math.nan),
        ("hang_duration_s", math.inf),
        ("balance", -1),
        ("outputs", 0),
        ("image_bytes", 1),
        ("revoke_after", -1),
    ],
)
def test_errors_name_the_setting(name: str, value: Any) -> None:
    """An invalid value is an error that names its setting."""
    with pytest.raises(SimulatorError) as raised:
        SimulatorSettings(**{name: value})
    assert raised.value.field == name
    assert str(raised.value) == f"{name}: {raised.value.problem}"


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (1774951200.0, "2026-03-31T10:00:00.000Z"),
        (1774951215.0625, "2026-03-31T10:00:15.062Z"),
    ],
)
def test_format_of_times(at: float, text: str) -> None:
    """Times have the format of the API document: UTC, with milliseconds and a Z."""
    assert format_instant(at) == text


def test_format_of_request_ids() -> None:
    """A request_id is the model's name and a UUID of version 7, and is unique."""
    ids = [new_request_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    for request_id in ids:
        model, _, text = request_id.partition("_")
        assert model == "krea-2-large-text-to-image"
        parsed = uuid.UUID(text)
        assert (str(parsed), parsed.version, parsed.variant) == (text, 7, uuid.RFC_4122)
