"""Events and log records come in; metrics, traces and log lines go out, in the forms that other programs read.

    engine = Engine("runs/cats", listeners=[metrics := Metrics(), Traces()])

Newcomers: nothing here is needed for a run, and the core does not know of it. Metrics and traces each need a library
of their own (`krea-batch[metrics]`, `krea-batch[otel]`), which is imported when its listener is first asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from krea_batch.observability.logs import JsonLines, KeyValues
    from krea_batch.observability.metrics import Metrics
    from krea_batch.observability.traces import Traces
from importlib.resources import files

__all__ = ["JsonLines", "KeyValues", "Metrics", "Traces", "dashboard"]

_MODULES = {
    "JsonLines": "logs",
    "KeyValues": "logs",
    "Metrics": "metrics",
    "Traces": "traces",
    "dashboard": "grafana",
}


def __getattr__(name: str) -> Any:
    """Import a public name, and the library behind it, when it is first used."""
    from importlib import import_module

    if name not in _MODULES:
        raise AttributeError(f"module 'krea_batch.observability' has no attribute {name!r}")
    return getattr(import_module(f"krea_batch.observability.{_MODULES[name]}"), name)


def dashboard() -> str:
    """The JSON of the dashboard. Which Prometheus it asks, and about which runs, is chosen at its top."""
    return files("krea_batch.observability").joinpath("dashboard.json").read_text("utf-8")
