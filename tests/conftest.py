"""Shared by all tests: simulators as processes, and child processes that can be interrupted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.processes import SimulatorProcess, StartSimulator, let_children_be_interrupted

let_children_be_interrupted()


@pytest.fixture
def simulate() -> Iterator[StartSimulator]:
    """Start simulators, which are stopped at the end of the test."""
    started: list[SimulatorProcess] = []

    def start(*options: str) -> SimulatorProcess:
        started.append(SimulatorProcess(*options))
        return started[-1]

    yield start
    for simulator in started:
        simulator.close()
