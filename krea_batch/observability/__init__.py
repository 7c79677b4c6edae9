"""Logs, metrics and traces of a run.

    engine = Engine("runs/cats", listeners=[metrics := MetricsListener(), TracingListener()])

logs            formatters for the standard library's logging
metrics         a listener that counts for Prometheus
metrics_server  serves the metrics over HTTP
traces          a listener that records OpenTelemetry spans

A run does not depend on this package. Metrics and traces each need a library of their own (`krea-batch[metrics]`,
`krea-batch[otel]`), which is imported when the listener is first used.
"""

from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from krea_batch.observability.logs import JsonFormatter, LogfmtFormatter
    from krea_batch.observability.metrics import MetricsListener
    from krea_batch.observability.traces import TracingListener

__all__ = ["JsonFormatter", "LogfmtFormatter", "MetricsListener", "TracingListener", "dashboard"]

_LAZY_MODULES = {
    "JsonFormatter": "logs",
    "LogfmtFormatter": "logs",
    "MetricsListener": "metrics",
    "TracingListener": "traces",
}


def __getattr__(name: str) -> Any:
    """Import a public name, and the library behind it, at its first use."""
    from importlib import import_module

    if name not in _LAZY_MODULES:
        raise AttributeError(f"module 'krea_batch.observability' has no attribute {name!r}")
    return getattr(import_module(f"krea_batch.observability.{_LAZY_MODULES[name]}"), name)


def dashboard() -> str:
    """Return the JSON of the Grafana dashboard. Its variables choose the Prometheus server and the runs."""
    return files("krea_batch.observability").joinpath("dashboard.json").read_text("utf-8")
