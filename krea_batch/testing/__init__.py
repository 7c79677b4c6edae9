"""A test kit for code that uses krea-batch: replacements for the gateway and for the clock, and kills.

    from krea_batch.testing import ACCEPT, ErrorResponse, ScriptedGateway, run_virtual

scripted_gateway   a gateway in the same process that gives the responses a test has scripted
script_entries     the entries of its scripts: accept, an HTTP error, a connection that is cut, an image
virtual_time       an event loop whose clock jumps to the next timer instead of waiting
kill               a process that is killed at a moment of virtual time
simulator          the gateway and its CDN as HTTP servers: `krea-batch simulate`, `--simulate`
simulator_thread   a simulator in a thread, for tests without asyncio and for child processes
fixtures           fixtures for pytest: `pytest_plugins = ["krea_batch.testing.fixtures"]`

The engine does not depend on this package, and only `fixtures` needs pytest. A name is imported at its first use,
because the simulator shares no code with the engine and starts without it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from krea_batch.testing.kill import run_until_killed as run_until_killed
    from krea_batch.testing.script_entries import ACCEPT as ACCEPT
    from krea_batch.testing.script_entries import ACCEPT_AND_CUT as ACCEPT_AND_CUT
    from krea_batch.testing.script_entries import CUT as CUT
    from krea_batch.testing.script_entries import FINISH as FINISH
    from krea_batch.testing.script_entries import IMAGE as IMAGE
    from krea_batch.testing.script_entries import PROCESSING as PROCESSING
    from krea_batch.testing.script_entries import QUEUED as QUEUED
    from krea_batch.testing.script_entries import Errored as Errored
    from krea_batch.testing.script_entries import ErrorResponse as ErrorResponse
    from krea_batch.testing.script_entries import Failed as Failed
    from krea_batch.testing.script_entries import ScriptedDownload as ScriptedDownload
    from krea_batch.testing.script_entries import make_png as make_png
    from krea_batch.testing.scripted_gateway import ScriptedGateway as ScriptedGateway
    from krea_batch.testing.simulator import Simulator as Simulator
    from krea_batch.testing.simulator import SimulatorSettings as SimulatorSettings
    from krea_batch.testing.simulator_thread import SimulatorThread as SimulatorThread
    from krea_batch.testing.virtual_time import VirtualTimeLoop as VirtualTimeLoop
    from krea_batch.testing.virtual_time import run_virtual as run_virtual

_LAZY_MODULES = {
    "ACCEPT": "script_entries",
    "ACCEPT_AND_CUT": "script_entries",
    "CUT": "script_entries",
    "ErrorResponse": "script_entries",
    "Errored": "script_entries",
    "FINISH": "script_entries",
    "Failed": "script_entries",
    "IMAGE": "script_entries",
    "PROCESSING": "script_entries",
    "QUEUED": "script_entries",
    "ScriptedDownload": "script_entries",
    "ScriptedGateway": "scripted_gateway",
    "Simulator": "simulator",
    "SimulatorSettings": "simulator",
    "SimulatorThread": "simulator_thread",
    "VirtualTimeLoop": "virtual_time",
    "make_png": "script_entries",
    "run_until_killed": "kill",
    "run_virtual": "virtual_time",
}
"""Every public name, and the module that defines it. The imports above repeat the names for type checkers only."""

if not TYPE_CHECKING:  # Type checkers take the exported names from the imports above.
    __all__ = list(_LAZY_MODULES)


def __getattr__(name: str) -> Any:
    """Import a public name at its first use."""
    from importlib import import_module

    if name not in _LAZY_MODULES:
        raise AttributeError(f"module 'krea_batch.testing' has no attribute {name!r}")
    return getattr(import_module(f"krea_batch.testing.{_LAZY_MODULES[name]}"), name)
