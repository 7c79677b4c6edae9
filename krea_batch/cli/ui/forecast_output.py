"""Checked jobs and settings come in; a forecast goes out, in words."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from krea_batch.cli.options.run_options import given_settings
from krea_batch.cli.ui.formatting import clock_time, counted, say, size
from krea_batch.errors import RunDirError, SettingsError
from krea_batch.forecast import Forecast, Question, forecast
from krea_batch.forecast.estimate import FEW_JOBS, MOST_JOBS, PICTURE_BYTES
from krea_batch.forecast.latency_model import USUAL, Latencies, latencies_of, like, scaled
from krea_batch.ledger import Store
from krea_batch.rules.lifecycle import ended
from krea_batch.settings import Rate, Settings
from krea_batch.sources import Checked
from krea_batch.storage.run_dir import LEDGER, check_run

LIKE_LAST = 5000  # chosen: latencies of an earlier run that are drawn from


def question_of(
    jobs: int,
    options: dict[str, Any],
    *,
    latency: str | None = None,
    same_as: Path | None = None,
    limit: str | None = None,
    most_jobs: int = MOST_JOBS,
) -> Question:
    """What is to be forecast, from a command's options. Raises SettingsError, RunFolderError."""
    if latency and same_as:
        raise SettingsError("like", "it tells the latency, and so does --latency", "give one of the two")
    latencies, picture_bytes = _learnt(same_as) if same_as else (latencies_of(latency or USUAL), PICTURE_BYTES)
    if not same_as and (scale := options.get("time_scale") or 1.0) != 1.0:
        latencies = scaled(latencies, 1 / scale)
    return Question(
        jobs=jobs,
        latencies=latencies,
        settings=given_settings(options, forecast_only=True),
        limit_per_s=Rate.parse(limit, "limit").per_s if limit else None,
        picture_bytes=picture_bytes,
        most_jobs=most_jobs,
    )


def _learnt(out: Path) -> tuple[Latencies, float]:
    """The latencies of an earlier run, and the mean size of its pictures."""
    check_run(out)
    with closing(Store.open(out / LEDGER, read_only=True)) as store:
        (seen,) = store.read(lambda store: store.latencies(LIKE_LAST))
        (page, _) = store.read(lambda store: store.outcomes(0, LIKE_LAST))[0]
    if not seen:
        raise RunDirError(out, "no job of it has finished, so nothing can be learnt", "give --latency")
    sizes = [file.bytes for outcome in page for file in outcome.files]
    return like([took_s for _, took_s in seen]), sum(sizes) / len(sizes) if sizes else PICTURE_BYTES


def left_of(jobs: int, out: Path | None) -> int:
    """How many of the jobs have not ended in the run's folder."""
    if out is None or not (out / LEDGER).is_file():
        return jobs
    with closing(Store.open(out / LEDGER, read_only=True)) as store:
        (counts,) = store.read(Store.counts)
    return max(0, jobs - ended(counts))


def as_lines(found: Forecast, price: float | None) -> list[str]:
    """The forecast for people."""
    rows = [
        ("images", f"{found.jobs:,}"),
        ("time", f"about {clock_time(found.seconds)}, {found.per_s:.1f} images a second"),
        ("limited by", found.binds),
        ("in flight", f"{found.in_flight:,} at most"),
        ("polls", f"{found.polls:,}, {found.polls / found.jobs:.2f} a job" if found.jobs else "0"),
        ("bytes", f"about {size(found.bytes)}"),
    ]
    if found.refused_429:
        rows.insert(5, ("refused", f"{found.refused_429:,} submits (429, not charged)"))
    if price is not None:
        rows.append(("cost", f"{found.jobs * price:,.2f} at {price:g} an image"))
    if found.simulated_jobs < found.jobs:
        rows.append(("", f"from {counted(found.simulated_jobs, 'job')} in virtual time; the rest goes on the same"))
    return [f"{name:<11}{value}" for name, value in rows]


def outlook(checked: Checked, settings: Settings, options: dict[str, Any]) -> Forecast | None:
    """Show the forecast of a run where people look; None where they do not, or nothing is left to do."""
    if options["quiet"] or not sys.stderr.isatty():
        return None
    left = left_of(checked.jobs, settings.out)
    if not left:
        return None
    question = question_of(left, options, most_jobs=FEW_JOBS, same_as=_seen_before(settings.out))
    found = forecast(question)
    say(f"{counted(left, 'image')}, about {clock_time(found.seconds)}; limited by {found.binds}")
    return found


def agreed(found: Forecast | None, options: dict[str, Any]) -> bool:
    """Ask, where people look, whether more is to be paid for than --confirm-above says."""
    most = options["confirm_above"]
    if found is None or options["simulate"] or options["yes"] or most is None:
        return True
    if found.jobs <= most or not sys.stdin.isatty():
        return True
    if click.confirm(f"Pay for up to {counted(found.jobs, 'image')}?", err=True):
        return True
    say("Nothing was submitted.")
    return False


def _seen_before(out: Path) -> Path | None:
    """The run's folder, where its latencies can be learnt from."""
    if not (out / LEDGER).is_file():
        return None
    with closing(Store.open(out / LEDGER, read_only=True)) as store:
        (seen,) = store.read(lambda store: store.latencies(1))
    return out if seen else None
