"""Fixtures for pytest. Nothing loads them by itself; write this in the `conftest.py` at the top of your tests:

    pytest_plugins = ["krea_batch.testing.fixtures"]

`krea_simulator` is a running simulator. To change its settings, override `krea_simulator_settings`:

    @pytest.fixture
    def krea_simulator_settings():
        return SimulatorSettings(tiny=True, latency="fixed:0.1", faults={"submit-500": 0.5})
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from krea_batch.testing.simulator import SimulatorSettings
from krea_batch.testing.simulator_thread import SimulatorThread

__all__ = ["krea_simulator", "krea_simulator_settings"]


@pytest.fixture
def krea_simulator_settings() -> SimulatorSettings:
    """Return the settings of `krea_simulator`: small images, after a tenth of a second."""
    return SimulatorSettings(tiny=True, latency="fixed:0.1")


@pytest.fixture
def krea_simulator(krea_simulator_settings: SimulatorSettings) -> Iterator[SimulatorThread]:
    """Start a simulator for one test. It answers at `gateway_url`; `charged` has the prompts that were paid for."""
    with SimulatorThread(krea_simulator_settings) as simulator:
        yield simulator
