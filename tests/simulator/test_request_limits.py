"""Rate limits of the simulator: what they let through, what they tell those who wait, and how they are written."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krea_batch.testing.simulator.request_limits import (
    FixedWindow,
    RequestLimit,
    SlidingWindow,
    TokenBucket,
    parse_limit,
)

LIMITS_START_AT = 1774951200.0  # a minute of the clock begins here
TOLERANCE_S = 2e-6  # what limits grant for rounding, twice

# Instants in steps of a millisecond: many at once, some far apart.
arrivals = st.lists(st.integers(0, 3).flatmap(lambda size: st.integers(0, 10**size)), min_size=1, max_size=120).map(
    lambda gaps: [LIMITS_START_AT + sum(gaps[: n + 1]) / 1000 for n in range(len(gaps))]
)
counts = st.integers(1, 12)
windows_s = st.sampled_from([1.0, 2.0, 60.0])


def allowed_count(limit: RequestLimit, instants: list[float]) -> list[float]:
    return [instant for instant in instants if limit.take(instant) == 0.0]


@st.composite
def limits(draw: st.DrawFn) -> RequestLimit:
    """Any limit."""
    match draw(st.integers(0, 2)):
        case 0:
            return TokenBucket(draw(st.floats(0.01, 500)), draw(st.integers(1, 20)))
        case 1:
            return FixedWindow(draw(counts), draw(windows_s))
        case _:
            return SlidingWindow(draw(counts), draw(windows_s))


@settings(deadline=None)
@given(count=counts, window_s=windows_s, instants=arrivals)
def test_a_sliding_window_never_holds_more(count: int, window_s: float, instants: list[float]) -> None:
    """However requests arrive, no stretch of the window's length holds more than allowed."""
    passed = allowed_count(SlidingWindow(count, window_s), instants)
    for first, after in zip(passed, passed[count:], strict=False):
        assert after - first >= window_s - TOLERANCE_S


@settings(deadline=None)
@given(count=counts, window_s=windows_s, instants=arrivals)
def test_a_fixed_window_never_holds_more(count: int, window_s: float, instants: list[float]) -> None:
    """However requests arrive, no window of the clock holds more than allowed, and each is used to the full."""
    passed = allowed_count(FixedWindow(count, window_s), instants)
    for window in {instant // window_s for instant in instants}:
        came = sum(instant // window_s == window for instant in instants)
        assert sum(instant // window_s == window for instant in passed) == min(count, came)


@settings(deadline=None)
@given(per_s=st.floats(0.1, 200), burst=st.integers(1, 20), instants=arrivals)
def test_a_bucket_never_gives_more_than_burst_and_refill(per_s: float, burst: int, instants: list[float]) -> None:
    """Between any two instants a bucket lets through its burst and what flows in meanwhile, and no more."""
    passed = allowed_count(TokenBucket(per_s, burst), instants)
    for first in range(len(passed)):
        for last in range(first, len(passed)):
            most = burst + (passed[last] - passed[first]) * per_s
            assert last - first + 1 <= most + (last - first + 1) * 1e-6 * max(1.0, per_s)


@settings(deadline=None)
@given(limit=limits(), instants=arrivals)
def test_the_reported_wait_is_enough_and_not_too_long(limit: RequestLimit, instants: list[float]) -> None:
    """Who comes back after the wait that was told passes; shortly before its end nobody does."""
    now = LIMITS_START_AT
    for instant in instants:
        now = max(now, instant)
        wait_s = limit.take(now)
        assert wait_s >= 0.0
        if wait_s > 0.01:
            assert limit.take(now + wait_s * 0.9) > 0.0
        if wait_s:
            now += wait_s
            assert limit.take(now) == 0.0


@settings(deadline=None)
@given(data=st.data(), instants=arrivals)
def test_refused_requests_count_for_nothing(data: st.DataObject, instants: list[float]) -> None:
    """Knocking on a closed door any number of times changes nothing for those who come later."""
    kind, count, window_s = data.draw(st.integers(0, 2)), data.draw(counts), data.draw(windows_s)

    def fresh() -> RequestLimit:
        return (TokenBucket(count / 4, count), FixedWindow(count, window_s), SlidingWindow(count, window_s))[kind]

    eager = fresh()
    passed = []
    for instant in instants:
        waits = [eager.take(instant)]
        while waits[-1] > 0.0 and len(waits) < 4:
            waits.append(eager.take(instant))
        assert len(set(waits)) == 1
        if waits == [0.0]:
            passed.append(instant)
    assert allowed_count(fresh(), passed) == passed
    assert allowed_count(fresh(), instants) == passed


def test_a_bucket_refills_with_time() -> None:
    """10/s with a burst of 3 gives three at once, then one each tenth of a second, and never stores a fourth."""
    bucket = TokenBucket(10, 3)
    assert [bucket.take(100.0) for _ in range(5)] == pytest.approx([0, 0, 0, 0.1, 0.1])
    assert allowed_count(bucket, [100.05, 100.1, 100.15, 100.2]) == [100.1, 100.2]
    assert len(allowed_count(bucket, [500.0] * 10)) == 3


def test_a_bucket_forgives_a_clock_that_goes_back() -> None:
    """An instant before the last one neither refills nor empties the bucket."""
    bucket = TokenBucket(1, 1)
    assert bucket.take(100.0) == 0.0
    assert bucket.take(50.0) == pytest.approx(1.0)
    assert bucket.take(100.5) == pytest.approx(0.5)
    assert bucket.take(101.0) == 0.0


def test_a_fixed_window_allows_twice_its_count_around_its_turn() -> None:
    """60 at the end of a minute and 60 at the beginning of the next pass, and the wait ends with the minute."""
    limit = FixedWindow(60, 60.0)
    assert len(allowed_count(limit, [LIMITS_START_AT + 59.5] * 61)) == 60
    assert limit.take(LIMITS_START_AT + 59.5) == pytest.approx(0.5)
    assert len(allowed_count(limit, [LIMITS_START_AT + 60.5] * 61)) == 60


def test_a_sliding_window_has_no_such_turn() -> None:
    """The same 60 at the end of a minute close a sliding window until the first of them is a minute old."""
    limit = SlidingWindow(60, 60.0)
    assert len(allowed_count(limit, [LIMITS_START_AT + 59.5] * 61)) == 60
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
    ],
)
def test_buckets_as_written(text: str, per_s: float, burst: float) -> None:
    """A bucket's text gives its refill in a second and its burst, a second's worth but at least one if unnamed."""
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
    ],
)
def test_windows_as_written(text: str, kind: type[FixedWindow | SlidingWindow], count: int, window_s: float) -> None:
    """A window's text gives its kind, its length, and how many pass at once."""
    limit = parse_limit(text)
    assert isinstance(limit, kind)
    assert limit.window_s == window_s
    assert len(allowed_count(limit, [LIMITS_START_AT] * (count + 5))) == count


def test_none_is_no_limit() -> None:
    """The word none lets everything through."""
    assert parse_limit("none") is None


def test_a_window_that_is_never_full() -> None:
    """A number that no memory could hold is a limit all the same, and lets requests through."""
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
        "sliding-window:" + "9" * 400 + "/s",
    ],
)
def test_texts_that_are_no_limit(text: str) -> None:
    """A text that says no limit is refused with the text itself and with how to write one."""
    with pytest.raises(ValueError, match="is no limit; ") as raised:
        parse_limit(text)
    assert repr(text) in str(raised.value)
    assert "-window:10/s" in str(raised.value)
