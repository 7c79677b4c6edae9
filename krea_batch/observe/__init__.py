"""Events and log records come in; metrics, traces and log lines go out, in the forms that other programs read.

    engine = Engine("runs/cats", listeners=[metrics := Metrics(), Traces()])

Newcomers: nothing here is needed for a run, and the core does not know of it. Metrics and traces each need a library
of their own (`krea-batch[metrics]`, `krea-batch[otel]`), which is imported when its listener is first asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from krea_batch.observe.grafana import dashboard
    from krea_batch.observe.logs import JsonLines, KeyValues
    from krea_batch.observe.metrics import Metrics
    from krea_batch.observe.traces import Traces

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
        raise AttributeError(f"module 'krea_batch.observe' has no attribute {name!r}")
    return getattr(import_module(f"krea_batch.observe.{_MODULES[name]}"), name)
