"""Simulators for tests, each in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.processes import Simulate, Simulated


@pytest.fixture
def simulate() -> Iterator[Simulate]:
    """Start simulators; they end with the test."""
    started: list[Simulated] = []

    def start(*options: str) -> Simulated:
        started.append(Simulated(*options))
        return started[-1]

    yield start
    for simulator in started:
        simulator.close()
