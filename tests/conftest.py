"""Simulators for tests, each in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.processes import SimulatorProcess, StartSimulator


@pytest.fixture
def simulate() -> Iterator[StartSimulator]:
    """Start simulators; they end with the test."""
    started: list[SimulatorProcess] = []

    def start(*options: str) -> SimulatorProcess:
        started.append(SimulatorProcess(*options))
        return started[-1]

    yield start
    for simulator in started:
        simulator.close()
