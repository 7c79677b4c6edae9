"""Shared by all tests: simulators as processes, child processes that can be interrupted, and Hypothesis' settings."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.processes import SimulatorProcess, StartSimulator, let_children_be_interrupted

let_children_be_interrupted()

# On a busy machine an example may take any time. The other settings are those of the current profile (on CI: "ci").
settings.register_profile(
    "without deadline", settings.get_profile(settings.get_current_profile_name()), deadline=None
)
settings.load_profile("without deadline")


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
