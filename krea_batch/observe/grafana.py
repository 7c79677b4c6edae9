"""Nothing comes in; the Grafana dashboard that belongs to the metrics goes out, as JSON text to be imported."""

from __future__ import annotations

from importlib.resources import files


def dashboard() -> str:
    """The JSON of the dashboard. Which Prometheus it asks, and about which runs, is chosen at its top."""
    return files("krea_batch.observe").joinpath("dashboard.json").read_text("utf-8")
