"""`krea-batch dashboard`: a Grafana dashboard for the metrics of `--metrics-port`."""

from __future__ import annotations

import click


@click.command()
def dashboard() -> None:
    """Print a Grafana dashboard for `krea-batch run --metrics-port`, as JSON to import."""
    from krea_batch import observability
    from krea_batch.cli.ui.formatting import show_json

    show_json(observability.dashboard().rstrip("\n"))
