"""Test rules.poll_trials: what polls show about when jobs end."""

from __future__ import annotations

from copy import deepcopy
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krea_batch.rules.poll_trials import MAX_TRIALS, PollTrials

MAX_CELLS = 600


def trials_of(*polls: tuple[int, int, int, int]) -> PollTrials:
    """Return trials from tuples: the ages of the earlier poll and of the poll, and how many found what."""
    trials = PollTrials()
    for earlier, age, completed, unfinished in polls:
        for n in range(completed + unfinished):
            trials.add(earlier, age, completed=n < completed)
    return trials


@pytest.mark.parametrize(
    ("polls", "survival"),
    [
        ([], [1.0]),
        ([(0, 2, 0, 5)], [1.0, 1.0, 1.0]),
        ([(0, 2, 3, 1)], [1.0, 0.625, 0.25]),  # between the ages, jobs end evenly
        ([(0, 1, 1, 3), (0, 2, 2, 2)], [1.0, 0.75, 0.5]),
        ([(0, 1, 3, 1), (0, 2, 1, 3)], [1.0, 0.5, 0.5]),  # the shares would rise, so they are pooled
        ([(0, 1, 1, 3), (1, 3, 1, 2)], [1.0, 0.75, 0.625, 0.5]),  # a second poll counts from what the first left
        ([(0, 2, 4, 0)], [1.0, 0.5, 0.0]),
    ],
)
def test_small_samples(polls: list[tuple[int, int, int, int]], survival: list[float]) -> None:
    """The share of jobs that take longer is the one computed by hand."""
    assert trials_of(*polls).survival(1, MAX_CELLS) == pytest.approx(survival)


def test_wider_cells() -> None:
    """In cells of two units, ages are rounded up."""
    assert trials_of((0, 3, 1, 1), (3, 7, 1, 1)).survival(2, MAX_CELLS) == pytest.approx(
        [1.0, 0.75, 0.5, 0.375, 0.25]
    )


def test_jobs_are_spread_as_expected() -> None:
    """A job that ended between two polls is spread by the share expected in each cell."""
    trials = trials_of((0, 4, 8, 0))
    assert trials.completed_by_cell([1.0, 1.0, 0.25, 0.25, 0.0], 1, MAX_CELLS) == pytest.approx(
        [0, 0, 6, 0, 2], abs=0.01
    )
    assert PollTrials().completed_by_cell([1.0], 1, MAX_CELLS) == []


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 2000), st.booleans()), max_size=50),
    st.sampled_from([1, 2, 8]),
    st.integers(1, 100),
)
def test_any_trials(polls: list[tuple[int, int, bool]], cell_units: int, max_cells: int) -> None:
    """Whatever was found, shares fall from 1 and stay above 0, and every completed job is spread over the cells."""
    trials = PollTrials()
    for earlier, age, completed in polls:
        trials.add(earlier, age, completed=completed)
    survival = trials.survival(cell_units, max_cells)
    assert 1 <= len(survival) <= max_cells
    assert survival[0] <= 1.0
    assert all(1.0 >= before >= after >= 0.0 for before, after in pairwise(survival))
    spread = trials.completed_by_cell(survival, cell_units, max_cells)
    assert sum(spread) == pytest.approx(sum(completed for _, _, completed in polls))
    assert min(spread, default=0.0) >= -1e-9


def test_old_trials_count_less() -> None:
    """Old trials are discounted and then forgotten, so the memory is bounded and a change is followed."""
    random, trials = Random(4), PollTrials()
    for _ in range(20_000):
        trials.add(0, random.randrange(1, 100_000), completed=True)
    assert len(trials.completed) <= 3 * MAX_TRIALS
    for _ in range(20_000):
        trials.add(0, 50, completed=False)
    assert trials.survival(1, MAX_CELLS)[50] > 0.99
    assert sum(trials.completed.values()) < 0.01 * MAX_TRIALS


def test_a_copy_takes_its_own_trials() -> None:
    """What is added to a copy is not added to the original."""
    trials = trials_of((0, 2, 3, 1))
    copied = deepcopy(trials)
    copied.add(0, 2, completed=True)
    assert trials.survival(1, MAX_CELLS)[2] == pytest.approx(0.25)
    assert copied.survival(1, MAX_CELLS)[2] == pytest.approx(0.2)
