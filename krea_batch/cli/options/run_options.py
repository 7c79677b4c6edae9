"""Options that say how a run goes: the same for every command that submits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

KEY_VARIABLE = "PIXAZO_API_KEY"

_PACE_OPTIONS = (
    click.option(
        "--rate",
        default="10/s",
        show_default=True,
        metavar="RATE",
        help="Most submits: 10/s, 600/min, 5000/h; auto finds the limit.",
    ),
    click.option(
        "--max-in-flight", default=500, show_default=True, metavar="N", help="Most jobs between submit and stored."
    ),
    click.option(
        "--poll-interval",
        default=5.0,
        show_default=True,
        metavar="S",
        help="Least seconds between two polls of one job.",
    ),
    click.option("--poll-rate", metavar="RATE", help="Most polls over all jobs.  [default: as many as needed]"),
    click.option("--shared-quota", is_flag=True, help="Polls and submits count against one limit, --rate."),
    click.option(
        "--poll-eagerness",
        default=1.0,
        show_default=True,
        metavar="X",
        help="How many polls it is worth to see a job's end one interval sooner.",
    ),
)

_MORE_OPTIONS = (
    click.option(
        "--job-timeout",
        default=1800.0,
        show_default=True,
        metavar="S",
        help="Seconds to wait for an accepted job in this run; the next run asks again.",
    ),
    click.option(
        "--max-attempts",
        default=3,
        show_default=True,
        metavar="N",
        help="Most submits of a job whose status came to ERROR (not charged).",
    ),
    click.option(
        "--ambiguous",
        type=click.Choice(["hold", "resubmit"]),
        default="hold",
        show_default=True,
        help="What to do where a submit may or may not have been paid.",
    ),
    click.option(
        "--max-charges",
        type=int,
        metavar="N",
        help="Stop before more than N submits are paid, all runs of the folder together.",
    ),
    click.option(
        "--max-same-failures",
        default=20,
        show_default=True,
        metavar="N",
        help="Stop when the first N jobs all fail in one way, or N in a row are ambiguous; 0 never does.",
    ),
    click.option(
        "--sink",
        metavar="URL",
        help="Keep pictures in an object store: s3://bucket/folder, gs://…, az://….  [default: OUT/images]",
    ),
    click.option(
        "--gateway", default="https://gateway.pixazo.ai", show_default=True, metavar="URL", help="Where the API is."
    ),
    click.option(
        "--api-key-file",
        type=click.Path(path_type=Path, dir_okay=False),
        help=f"Read the API key from a file instead of {KEY_VARIABLE}.",
    ),
    click.option(
        "--webhook-listen",
        metavar="HOST:PORT",
        help="Open a server there, which the gateway calls when a job ends, so that fewer polls are needed.",
    ),
    click.option(
        "--webhook-url", metavar="URL", help="How the gateway reaches that server: https, but for loopback."
    ),
    click.option("--simulate", is_flag=True, help="Use the built-in offline gateway: real PNGs, no key, no cost."),
    click.option(
        "--time-scale",
        type=click.FloatRange(min=0, min_open=True),
        default=1.0,
        metavar="X",
        help="With --simulate: generation takes 1/X of the time.",
    ),
    click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors."),
    click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object on standard output."),
    click.option("--verbose", "-v", count=True, help="Log to standard error; twice for every move of every job."),
    click.option(
        "--log-file",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Log to the end of a file instead; -vv for every move of every job.",
    ),
    click.option(
        "--log-format",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help="A line of the log: key=value, or a JSON object.",
    ),
    click.option(
        "--metrics-port",
        metavar="[HOST:]PORT",
        help="Serve metrics for Prometheus during the run, to this machine alone unless HOST is given; "
        "0: any free port.",
    ),
)


def pace_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Those that say how fast it goes."""
    for option in reversed(_PACE_OPTIONS):
        command = option(command)
    return command


def running_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """All of them, for a command that runs an engine."""
    for option in reversed(_MORE_OPTIONS):
        command = option(command)
    return pace_options(command)
