"""Rate limits of the simulator: accepted requests, reported waits, syntax."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krea_batch.testing.simulator.request_limits import (
    FixedWindow,
    JobsInProcess,
    RequestLimit,
    SlidingWindow,
    TokenBucket,
    parse_limit,
    parse_poll_limit,
)

LIMITS_START_AT = 1774951200.0  # a minute of the clock starts here
TOLERANCE_S = 2e-6  # twice the tolerance of the limits

# Times in steps of a millisecond: many equal, some far apart.
arrivals = st.lists(st.integers(0, 3).flatmap(lambda size: st.integers(0, 10**size)), min_size=1, max_size=120).map(
    lambda gaps: [LIMITS_START_AT + sum(gaps[: n + 1]) / 1000 for n in range(len(gaps))]
)
counts = st.integers(1, 12)
windows_s = st.sampled_from([1.0, 2.0, 60.0])


def accepted_times(limit: RequestLimit, times_s: list[float]) -> list[float]:
    return [time_s for time_s in times_s if limit.take(time_s) == 0.0]


@st.composite
def limits(draw: st.DrawFn) -> RequestLimit:
    """Return any limit."""
    match draw(st.integers(0, 2)):
        case 0:
            return TokenBucket(draw(st.floats(0.01, 500)), draw(st.integers(1, 20)))
        case 1:
            return FixedWindow(draw(counts), draw(windows_s))
        case _:
            return SlidingWindow(draw(counts), draw(windows_s))


@settings(deadline=None)
@given(count=counts, window_s=windows_s, times_s=arrivals)
def test_a_sliding_window_never_accepts_more(count: int, window_s: float, times_s: list[float]) -> None:
    """Whenever requests arrive, no period of the window's length has more than allowed."""
    accepted = accepted_times(SlidingWindow(count, window_s), times_s)
    for first, after in zip(accepted, accepted[count:], strict=False):
        assert after - first >= window_s - TOLERANCE_S


@settings(deadline=None)
@given(count=counts, window_s=windows_s, times_s=arrivals)
def test_a_fixed_window_never_accepts_more(count: int, window_s: float, times_s: list[float]) -> None:
    """Whenever requests arrive, no window of the clock has more than allowed, and each is fully used."""
    accepted = accepted_times(FixedWindow(count, window_s), times_s)
    for window in {time_s // window_s for time_s in times_s}:
        arrived = sum(time_s // window_s == window for time_s in times_s)
        assert sum(time_s // window_s == window for time_s in accepted) == min(count, arrived)


@settings(deadline=None)
@given(per_s=st.floats(0.1, 200), burst=st.integers(1, 20), times_s=arrivals)
def test_a_bucket_never_accepts_more_than_burst_and_refill(per_s: float, burst: int, times_s: list[float]) -> None:
    """Between any two times a bucket accepts at most its burst and what is refilled in between."""
    accepted = accepted_times(TokenBucket(per_s, burst), times_s)
    for first in range(len(accepted)):
        for last in range(first, len(accepted)):
            maximum = burst + (accepted[last] - accepted[first]) * per_s
            assert last - first + 1 <= maximum + (last - first + 1) * 1e-6 * max(1.0, per_s)


@settings(deadline=None)
@given(limit=limits(), times_s=arrivals)
def test_the_reported_wait_is_enough_and_not_too_long(limit: RequestLimit, times_s: list[float]) -> None:
    """A request after the reported wait is accepted; shortly before its end it is refused."""
    now = LIMITS_START_AT
    for time_s in times_s:
        now = max(now, time_s)
        wait_s = limit.take(now)
        assert wait_s >= 0.0
        if wait_s > 0.01:
            assert limit.take(now + wait_s * 0.9) > 0.0
        if wait_s:
            now += wait_s
            assert limit.take(now) == 0.0


@settings(deadline=None)
@given(data=st.data(), times_s=arrivals)
def test_refused_requests_do_not_count(data: st.DataObject, times_s: list[float]) -> None:
    """Refused requests do not change which later requests are accepted."""
    kind, count, window_s = data.draw(st.integers(0, 2)), data.draw(counts), data.draw(windows_s)

    def new_limit() -> RequestLimit:
        return (TokenBucket(count / 4, count), FixedWindow(count, window_s), SlidingWindow(count, window_s))[kind]

    limit_with_refusals = new_limit()
    accepted = []
    for time_s in times_s:
        waits = [limit_with_refusals.take(time_s)]
        while waits[-1] > 0.0 and len(waits) < 4:
            waits.append(limit_with_refusals.take(time_s))
        assert len(set(waits)) == 1
        if waits == [0.0]:
            accepted.append(time_s)
    assert accepted_times(new_limit(), accepted) == accepted
    assert accepted_times(new_limit(), times_s) == accepted


def test_a_bucket_refills_with_time() -> None:
    """10/s with a burst of 3 accepts three immediately, then one per 100 ms, and never stores a fourth."""
    bucket = TokenBucket(10, 3)
    assert [bucket.take(100.0) for _ in range(5)] == pytest.approx([0, 0, 0, 0.1, 0.1])
    assert accepted_times(bucket, [100.05, 100.1, 100.15, 100.2]) == [100.1, 100.2]
    assert len(accepted_times(bucket, [500.0] * 10)) == 3


def test_a_bucket_with_a_clock_that_goes_back() -> None:
    """A clock that goes back neither refills nor empties the bucket."""
    bucket = TokenBucket(1, 1)
    assert bucket.take(100.0) == 0.0
    assert bucket.take(50.0) == pytest.approx(1.0)
    assert bucket.take(100.5) == pytest.approx(0.5)
    assert bucket.take(101.0) == 0.0


def test_a_fixed_window_allows_twice_its_count_around_its_end() -> None:
    """60 at the end of a minute and 60 at the start of the next are accepted; the wait ends with the minute."""
    limit = FixedWindow(60, 60.0)
    assert len(accepted_times(limit, [LIMITS_START_AT + 59.5] * 61)) == 60
    assert limit.take(LIMITS_START_AT + 59.5) == pytest.approx(0.5)
    assert len(accepted_times(limit, [LIMITS_START_AT + 60.5] * 61)) == 60


def test_a_sliding_window_does_not() -> None:
    """A sliding window that is full at the end of a minute stays full until its first request is a minute old."""
    limit = SlidingWindow(60, 60.0)
    assert len(accepted_times(limit, [LIMITS_START_AT + 59.5] * 61)) == 60
    assert limit.take(LIMITS_START_AT + 60.5) == pytest.approx(59.0)
    assert limit.take(LIMITS_START_AT + 119.5) == 0.0


@pytest.mark.parametrize(
    ("text", "per_s", "burst"),
    [
        ("token-bucket:10/s", 10, 10),
        ("token-bucket:10/s,20", 10, 20),
        ("token-bucket:0.5/s", 0.5, 1),
        ("token-bucket:60/m", 1, 1),
        ("token-bucket:90/min,3", 1.5, 3),
        ("token-bucket:7200/h", 2, 2),
        ("token-bucket:1.5/s,1", 1.5, 1),
        ("token-bucket:30/10s,4", 3, 4),
        ("gcra:60/s", 60, 1),
        ("gcra:60/s,5", 60, 5),
        ("gcra:60/m", 1, 1),
    ],
)
def test_syntax_of_buckets(text: str, per_s: float, burst: float) -> None:
    """The text of a bucket sets its rate and burst; the default burst is one second's worth, at least one."""
    limit = parse_limit(text)
    assert isinstance(limit, TokenBucket)
    assert (limit.per_s, limit.burst) == pytest.approx((per_s, burst))


@pytest.mark.parametrize(
    ("text", "kind", "count", "window_s"),
    [
        ("fixed-window:60/m", FixedWindow, 60, 60),
        ("fixed-window:60/min", FixedWindow, 60, 60),
        ("fixed-window:10.0/s", FixedWindow, 10, 1),
        ("sliding-window:10/s", SlidingWindow, 10, 1),
        ("sliding-window:100/h", SlidingWindow, 100, 3600),
        ("sliding-window:60/10s", SlidingWindow, 60, 10),
        ("sliding-window:60/2.5s+refused", SlidingWindow, 60, 2.5),
        ("fixed-window:300/5m", FixedWindow, 300, 300),
    ],
)
def test_syntax_of_windows(text: str, kind: type[FixedWindow | SlidingWindow], count: int, window_s: float) -> None:
    """The text of a window sets its kind, its length and its size."""
    limit = parse_limit(text)
    assert isinstance(limit, kind)
    assert limit.window_s == window_s
    assert len(accepted_times(limit, [LIMITS_START_AT] * (count + 5))) == count


def test_none_is_no_limit() -> None:
    """`none` is no limit."""
    assert parse_limit("none") is None


def test_a_window_that_is_never_full() -> None:
    """A limit larger than memory is valid and accepts requests."""
    limit = parse_limit(f"sliding-window:{10**20}/s")
    assert limit is not None
    assert limit.take(LIMITS_START_AT) == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "None",
        "10/s",
        "token-bucket",
        "token-bucket:",
        "token-bucket:10",
        "token-bucket:/s",
        "token-bucket:10/d",
        "token-bucket:10/ s",
        "token-bucket: 10/s",
        "token-bucket:0/s",
        "token-bucket:0.0/s",
        "token-bucket:-1/s",
        "token-bucket:1e3/s",
        "token-bucket:10/s,0",
        "token-bucket:10/s,00",
        "token-bucket:10/s,1.5",
        "token-bucket:10/s,",
        "token-bucket:10/s,20,30",
        "fixed-window:0/s",
        "fixed-window:1.5/s",
        "fixed-window:60/m,5",
        "sliding-window:0.5/s",
        "sliding-window:10/s,20",
        "leaky-bucket:10/s",
        "gcra:0/s",
        "fixed-window:60/0s",
        "fixed-window:60/-1s",
        "fixed-window:60/s+refused",
        "sliding-window:10/s+accepted",
        "jobs-in-process:0",
        "jobs-in-process:2.5",
        "jobs-in-process:20/s",
        "sliding-window:" + "9" * 400 + "/s",
    ],
)
def test_invalid_limits(text: str) -> None:
    """An invalid limit is refused with its text and the syntax."""
    with pytest.raises(ValueError, match="invalid limit ") as raised:
        parse_limit(text)
    assert repr(text) in str(raised.value)
    assert "-window" in str(raised.value)


@pytest.mark.parametrize("text", ["gcra:10/s+refused", "token-bucket:10/s,5+refused", "sliding-window:10/s+refused"])
def test_refused_requests_that_count(text: str) -> None:
    """With +refused, a client that never waits is not accepted again; one that waits for Retry-After is."""
    limit, plain = parse_limit(text), parse_limit(text.removesuffix("+refused"))
    assert limit is not None and plain is not None
    times_s = [LIMITS_START_AT + n / 100 for n in range(1000)]
    assert len(accepted_times(limit, times_s)) <= 10
    assert len(accepted_times(plain, times_s)) >= 90
    wait_s = limit.take(times_s[-1])
    assert limit.take(times_s[-1] + wait_s + TOLERANCE_S) == 0.0


def test_jobs_in_process() -> None:
    """Twenty jobs are accepted; the next one when the first of them has ended."""
    limit = parse_limit("jobs-in-process:20")
    assert isinstance(limit, JobsInProcess)
    for n in range(20):
        assert limit.take(LIMITS_START_AT) == 0.0
        limit.on_accepted(LIMITS_START_AT + 10 + n)
    assert limit.take(LIMITS_START_AT + 1) == pytest.approx(9.0)
    assert limit.take(LIMITS_START_AT + 10) == 0.0
    limit.on_accepted(LIMITS_START_AT + 50)
    assert limit.take(LIMITS_START_AT + 10.5) > 0.0
    limit.forget_jobs()
    assert limit.take(LIMITS_START_AT + 10.5) == 0.0


def test_a_request_that_is_not_accepted_is_no_job() -> None:
    """A request that passes the limit, and is refused for its body, does not count as a job."""
    limit = JobsInProcess(1)
    assert limit.take(LIMITS_START_AT) == limit.take(LIMITS_START_AT) == 0.0


def test_polls_are_no_jobs() -> None:
    """A limit on jobs in process cannot limit polls."""
    with pytest.raises(ValueError, match="limits submits only"):
        parse_poll_limit("jobs-in-process:20")
    assert isinstance(parse_poll_limit("gcra:60/s"), TokenBucket)
