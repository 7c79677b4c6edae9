"""An estimate in words, for `plan` and for the start of `run`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from krea_batch.cli.options.run_options import given_settings
from krea_batch.cli.ui.formatting import format_bytes, format_duration, pluralize, say
from krea_batch.errors import RunDirError, SettingsError
from krea_batch.forecast import Forecast, ForecastRequest, forecast
from krea_batch.forecast.estimate import MAX_SIMULATED_JOBS, MAX_SIMULATED_JOBS_QUICK, SIMULATED_IMAGE_BYTES
from krea_batch.forecast.latency_model import DEFAULT_LATENCY, Latencies, empirical, parse_latencies, scaled
from krea_batch.ledger import LedgerReader, read_ledger
from krea_batch.rules.lifecycle import count_ended
from krea_batch.settings import Rate, Settings
from krea_batch.sources import CheckResult
from krea_batch.storage.run_dir import has_ledger, require_run

MAX_LATENCY_SAMPLES = 5000  # chosen: enough for a stable distribution


def forecast_request(
    jobs: int,
    options: dict[str, Any],
    *,
    latency: str | None = None,
    latency_from: Path | None = None,
    gateway_limit: str | None = None,
    max_jobs: int = MAX_SIMULATED_JOBS,
) -> ForecastRequest:
    """Return what to estimate, from the options. Raises SettingsError, RunDirError."""
    if latency and latency_from:
        raise SettingsError("latency_from", "cannot be combined with --latency")
    latencies, image_bytes = (
        _latencies_of_run(latency_from)
        if latency_from
        else (parse_latencies(latency or DEFAULT_LATENCY), SIMULATED_IMAGE_BYTES)
    )
    if not latency_from and (scale := options.get("time_scale") or 1.0) != 1.0:
        latencies = scaled(latencies, 1 / scale)
    return ForecastRequest(
        jobs=jobs,
        latencies=latencies,
        settings=given_settings(options, forecast_only=True),
        limit_per_s=Rate.parse(gateway_limit, "gateway_limit").per_s if gateway_limit else None,
        image_bytes=image_bytes,
        max_simulated_jobs=max_jobs,
    )


def _latencies_of_run(out: Path) -> tuple[Latencies, float]:
    """Return the latencies of an earlier run, and the mean size of its images in bytes."""
    require_run(out)
    with read_ledger(out) as store:
        (samples,) = store.read(lambda store: store.latencies(MAX_LATENCY_SAMPLES))
        (page, _) = store.read(lambda store: store.outcomes(0, MAX_LATENCY_SAMPLES))[0]
    if not samples:
        raise RunDirError(out, "no job has completed, so there are no latencies", "use --latency")
    sizes = [file.bytes for outcome in page for file in outcome.files]
    return empirical([took_s for _, took_s in samples]), sum(sizes) / len(sizes) if sizes else SIMULATED_IMAGE_BYTES


def remaining_jobs(checked: CheckResult, out: Path | None) -> int:
    """Return how many jobs a run has to do: those that are not in the run directory, and its unfinished ones."""
    if out is None or not has_ledger(out):
        return checked.jobs
    with read_ledger(out) as store:
        (counts,) = store.read(LedgerReader.counts)
    unfinished: int = sum(counts.values()) - count_ended(counts)
    return max(0, checked.jobs - checked.recorded) + unfinished


def forecast_lines(result: Forecast, price: float | None) -> list[str]:
    """Return the lines of an estimate."""
    rows = [
        ("images", f"{result.jobs:,}"),
        ("time", f"about {format_duration(result.seconds)}, {result.per_s:.1f} images/s"),
        ("limited by", result.bottleneck),
        ("in flight", f"at most {result.in_flight:,}"),
        ("polls", f"{result.polls:,}, {result.polls / result.jobs:.2f} per job" if result.jobs else "0"),
        ("download", f"about {format_bytes(result.bytes)}"),
    ]
    if result.rate_limited:
        rows.insert(5, ("429s", f"{result.rate_limited:,} rate-limited submits (not charged)"))
    if price is not None:
        rows.append(("cost", f"{result.jobs * price:,.2f} at {price:g} per image"))
    if result.simulated_jobs < result.jobs:
        rows.append(("", f"from {pluralize(result.simulated_jobs, 'job')} simulated, the rest extrapolated"))
    return [f"{name:<11}{value}" for name, value in rows]


def show_forecast(checked: CheckResult, settings: Settings, options: dict[str, Any]) -> Forecast | None:
    """Show an estimate in a terminal and return it; None elsewhere, or if no jobs are left."""
    if options["quiet"] or not sys.stderr.isatty():
        return None
    jobs_left = remaining_jobs(checked, settings.out)
    if not jobs_left:
        return None
    request = forecast_request(
        jobs_left, options, max_jobs=MAX_SIMULATED_JOBS_QUICK, latency_from=_run_with_latencies(settings.out)
    )
    result = forecast(request)
    say(f"{pluralize(jobs_left, 'image')}, about {format_duration(result.seconds)}; limited by {result.bottleneck}")
    return result


def confirm_charges(result: Forecast | None, options: dict[str, Any]) -> bool:
    """Ask for confirmation, in a terminal, if more images will be charged than --confirm-above."""
    threshold = options["confirm_above"]
    if result is None or options["simulate"] or options["yes"] or threshold is None:
        return True
    if result.jobs <= threshold or not sys.stdin.isatty():
        return True
    if click.confirm(f"Up to {pluralize(result.jobs, 'image')} will be charged. Continue?", err=True):
        return True
    say("Nothing was submitted.")
    return False


def _run_with_latencies(out: Path) -> Path | None:
    """Return the run directory if it has latencies to learn from."""
    if not has_ledger(out):
        return None
    with read_ledger(out) as store:
        (samples,) = store.read(lambda store: store.latencies(1))
    return out if samples else None
