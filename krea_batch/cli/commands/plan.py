"""`krea-batch plan`: an estimate of time, polls and cost. Nothing is sent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from krea_batch.cli.options.headings import GroupedCommand
from krea_batch.cli.options.input_options import add_input_options
from krea_batch.cli.options.run_options import PRICE, forecast_options
from krea_batch.cli.options.selection_options import open_job_files, require_references

if TYPE_CHECKING:
    from krea_batch.settings import Settings


@click.command(cls=GroupedCommand)
@click.argument("jobs", nargs=-1, type=click.Path(), metavar="JOBS…")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Run directory; leave out the jobs that it has finished.",
)
@click.option("--price", type=PRICE, metavar="X", help="Price per image.")
@click.option(
    "--latency",
    metavar="DIST",
    help="Distribution of job latencies in seconds: 12s, 5s..30s, lognormal:12,0.3 (median, sigma), bimodal:5,25,0.3."
    "  [default: lognormal:12,0.3]",
)
@click.option(
    "--latency-from",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="RUN",
    help="Run directory from which to learn latencies and image sizes.",
)
@click.option("--gateway-limit", metavar="RATE", help="Rate limit of the gateway, if it is lower than --rate.")
@click.option(
    "--time-scale",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    metavar="X",
    help="As for `run --simulate`: generate images X times as fast.",
)
@forecast_options
@click.option("--skip-invalid", is_flag=True, help="Count the valid lines if others are invalid.")
@add_input_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def plan(
    jobs: tuple[str, ...],
    out: Path | None,
    price: float | None,
    latency: str | None,
    latency_from: Path | None,
    gateway_limit: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Estimate a run of the JOBS: images, time, polls, download size, cost, and what limits it. Nothing is sent.

    The estimate runs the real engine in virtual time, with the given settings, against a model of the gateway.
    """
    show_plan(
        jobs,
        options,
        out=out,
        price=price,
        latency=latency,
        latency_from=latency_from,
        gateway_limit=gateway_limit,
        as_json=as_json,
    )


def show_plan(
    jobs: tuple[str, ...],
    options: dict[str, Any],
    *,
    out: Path | None,
    price: float | None = None,
    latency: str | None = None,
    latency_from: Path | None = None,
    gateway_limit: str | None = None,
    as_json: bool,
    settings: Settings | None = None,
) -> None:
    """Print the estimate of a run with these options.

    With the `settings` of the run, raises SettingsError as the run would for local reference images.
    """
    import msgspec

    from krea_batch.cli.ui.forecast_output import forecast_lines, forecast_request, remaining_jobs
    from krea_batch.cli.ui.formatting import show, show_json
    from krea_batch.cli.ui.job_check import check_jobs
    from krea_batch.forecast import forecast
    from krea_batch.settings import Settings

    skip_invalid = options["skip_invalid"]
    # Mistakes in the options are reported before the job files are read.
    request = forecast_request(0, options, latency=latency, latency_from=latency_from, gateway_limit=gateway_limit)
    with open_job_files(jobs, options, skip_invalid=skip_invalid) as files:
        checked = check_jobs(files, Settings(out=out or Path()), skip_invalid=skip_invalid, quiet=as_json)
        if settings:
            require_references(files, settings)
    result = forecast(msgspec.structs.replace(request, jobs=remaining_jobs(checked, out)))
    if as_json:
        fields = msgspec.to_builtins(result) | {"cost": None if price is None else result.jobs * price}
        show_json(msgspec.json.encode(fields))
    else:
        show(*forecast_lines(result, price))
