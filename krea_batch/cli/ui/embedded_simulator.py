"""The simulator of `--simulate`, in the process of a command. It keeps its jobs in the run directory."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from pathlib import Path

import anyio

from krea_batch.cli.ui.optional_deps import require_simulator_extra
from krea_batch.errors import InputError, SettingsError
from krea_batch.storage.os_errors import next_step
from krea_batch.storage.outputs import open_for_append
from krea_batch.storage.run_dir import SIMULATOR_STATE_FILE, create_directory, unusable_directory

STATE_FILE_START = b'{"request_id":"'  # of each line; see `krea_batch.testing.simulator.job_log.LoggedJob`


async def start_simulator(stack: AsyncExitStack, out: Path, *, time_scale: float = 1.0) -> str:
    """Start the simulator on this event loop, and return its URL. `out` is the run directory.

    Raises InputError if Pillow is missing, SettingsError if the simulator cannot start, and RunDirError if the run
    directory cannot be created.
    """
    require_simulator_extra()
    from krea_batch.testing.simulator import Simulator, SimulatorError, SimulatorSettings

    try:
        await anyio.to_thread.run_sync(create_directory, out)
    except OSError as error:
        raise unusable_directory(out, error) from error
    try:
        check_state_file(out / SIMULATOR_STATE_FILE)
        simulator = Simulator(SimulatorSettings(time_scale=time_scale, state_file=str(out / SIMULATOR_STATE_FILE)))
        await stack.enter_async_context(simulator)
    except SimulatorError as error:
        raise SettingsError("simulate", "the simulator cannot start", str(error)) from None
    return simulator.gateway_url


def check_state_file(path: Path) -> None:
    """Raise InputError unless the simulator may append to the file: it is new, or has jobs of a simulator."""

    def is_own_line(line: bytes) -> bool:
        return line.startswith(STATE_FILE_START) or STATE_FILE_START.startswith(line)  # a kill may cut the line

    try:
        os.close(open_for_append(path, is_own_line, "state file"))
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror})", next_step(error)) from None
