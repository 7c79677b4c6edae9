"""`krea-batch dashboard`: a Grafana dashboard for the metrics of `--metrics-port`."""

from __future__ import annotations

import click


@click.command()
def dashboard() -> None:
    """Print a Grafana dashboard for `krea-batch run --metrics-port`, as JSON to import."""
    from krea_batch import observability

    click.echo(observability.dashboard(), nl=False)
