"""Nothing comes in; the Grafana dashboard that belongs to the metrics goes out, as JSON text to be imported."""

from __future__ import annotations

from importlib.resources import files


def dashboard() -> str:
    """The JSON of the dashboard. It asks for its Prometheus when it is imported."""
    return files("krea_batch.observe").joinpath("dashboard.json").read_text("utf-8")
