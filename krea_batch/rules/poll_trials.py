"""Estimate from polls when jobs end, for gateways that do not report it. Each poll is a trial.

A poll at one age, of a job that was unfinished at an earlier age, finds it completed or unfinished. Of the jobs that
were unfinished at the earlier age, the share that the poll finds unfinished estimates how many take longer. Isotonic
regression (Ayer et al., 1955) makes these shares fall with the age; for jobs that are polled once, this is the
maximum likelihood estimate. Ages are in units, and a cell of a plan is some units wide.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from itertools import pairwise
from typing import NamedTuple

MAX_TRIALS = 1000.0  # chosen: polls; at one or two polls per job, about as many jobs as count with timestamps
DISCOUNTED_AT = 1.1  # chosen: times MAX_TRIALS; discounting every hundred polls costs little
MIN_KEPT_TRIALS = 0.1  # chosen: trials that were discounted to less are forgotten, which bounds the memory
MIN_CELL_WEIGHT = 1e-4  # chosen: no cell is excluded because the estimate expects no job to end there


class _Block(NamedTuple):
    """Some consecutive cells in which the trials show the same share of unfinished jobs."""

    first: int
    last: int
    weight: float
    share: float


class PollTrials:
    """The latest polls, by the age of the poll before (0 if there was none) and their own. Older ones count less."""

    __slots__ = ("_weight", "completed", "unfinished")

    def __init__(self) -> None:
        self.completed: dict[tuple[int, int], float] = {}
        self.unfinished: dict[tuple[int, int], float] = {}
        self._weight = 0.0

    def add(self, earlier: int, age: int, *, completed: bool) -> None:
        """Add a poll at `age` of a job that was unfinished at the age `earlier`."""
        trials = self.completed if completed else self.unfinished
        ages = min(earlier, age), age
        trials[ages] = trials.get(ages, 0.0) + 1.0
        self._weight += 1.0
        if self._weight > DISCOUNTED_AT * MAX_TRIALS:
            factor = MAX_TRIALS / self._weight
            self.completed, self.unfinished = (
                _discounted(self.completed, factor),
                _discounted(self.unfinished, factor),
            )
            self._weight = sum(self.completed.values()) + sum(self.unfinished.values())

    def survival(self, cell_units: int, max_cells: int) -> list[float]:
        """Return, by cell, the share of jobs that take longer, up to the last cell with a trial."""
        blocks = self._blocks(cell_units, max_cells)
        survival = [1.0] * min(max_cells, blocks[-1].last + 1)
        for block, following in pairwise([*blocks, blocks[-1]]):
            for cell in range(block.first, min(len(survival), block.last + 1)):
                survival[cell] = block.share
            # Between two ages with trials, jobs are taken to end evenly.
            gap = following.first - block.last
            for cell in range(block.last + 1, min(len(survival), following.first)):
                survival[cell] = block.share + (following.share - block.share) * (cell - block.last) / gap
        return survival

    def _blocks(self, cell_units: int, max_cells: int) -> list[_Block]:
        """Return blocks with falling shares, by pooling neighbours whose shares rise. The first begins at age 0."""
        trials_by_cell: dict[int, list[tuple[int, float, bool]]] = defaultdict(list)
        for trials, unfinished in ((self.completed, False), (self.unfinished, True)):
            for (earlier, age), count in trials.items():
                cell, earlier_cell = (min(max_cells, -(-units // cell_units)) for units in (age, earlier))
                trials_by_cell[cell].append((earlier_cell, count, unfinished))
        blocks, first_cells = [_Block(0, 0, 1.0, 1.0)], [0]
        for cell, cell_trials in sorted(trials_by_cell.items()):
            weight = sum(count for _, count, _ in cell_trials)
            surviving = sum(
                count * blocks[bisect_right(first_cells, earlier_cell) - 1].share
                for earlier_cell, count, unfinished in cell_trials
                if unfinished
            )
            block = _Block(cell, cell, weight, surviving / weight)
            while blocks and blocks[-1].share <= block.share:
                before = blocks.pop()
                first_cells.pop()
                weight = before.weight + block.weight
                share = (before.weight * before.share + block.weight * block.share) / weight
                block = _Block(before.first, block.last, weight, share)
            blocks.append(block)
            first_cells.append(block.first)
        return blocks

    def completed_by_cell(self, survival: list[float], cell_units: int, max_cells: int) -> list[float]:
        """Return, by cell, the jobs that ended between two polls, spread over the cells as `survival` expects it."""
        if not self.completed:
            return []
        last = max(1, min(max_cells, -(-max(age for _, age in self.completed) // cell_units)))
        survival = survival + [survival[-1]] * (last + 1 - len(survival))
        steps = [0.0] * (last + 2)  # by cell: how much more to spread per share of jobs than in the cell before
        for (earlier, age), count in self.completed.items():
            end = max(1, min(last, -(-age // cell_units)))
            begin = min(-(-earlier // cell_units), end - 1)
            expected = survival[begin] - survival[end] + MIN_CELL_WEIGHT * (end - begin)
            steps[begin + 1] += count / expected
            steps[end + 1] -= count / expected
        spread, per_share = [0.0], 0.0
        for cell in range(1, last + 1):
            per_share += steps[cell]
            spread.append(per_share * (survival[cell - 1] - survival[cell] + MIN_CELL_WEIGHT))
        return spread


def _discounted(trials: dict[tuple[int, int], float], factor: float) -> dict[tuple[int, int], float]:
    return {ages: count * factor for ages, count in trials.items() if count * factor > MIN_KEPT_TRIALS}
