"""`krea-batch simulate`: a simulated gateway."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from krea_batch.cli.options.run_options import DURATION
from krea_batch.cli.ui.formatting import show, show_json

if TYPE_CHECKING:
    from krea_batch.testing.simulator import Simulator, SimulatorError, SimulatorSettings


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8787, show_default=True, help="Port of the gateway; 0: any free port.")
@click.option("--cdn-port", default=0, help="Port of the CDN.  [default: any free port]")
@click.option(
    "--latency",
    default="lognormal:12,0.3",
    show_default=True,
    metavar="DIST",
    help="Distribution of job latencies in seconds: fixed:15, uniform:5,30, lognormal:12,0.4 or bimodal:5,25,0.3.",
)
@click.option(
    "--time-scale",
    default=1.0,
    show_default=True,
    metavar="X",
    help="Complete jobs X times as fast. Limits and Retry-After stay in real time.",
)
@click.option("--workers", default=0, metavar="N", help="Maximum concurrent jobs.  [default: no limit]")
@click.option(
    "--limit",
    "--rate-limit",
    "--submit-limit",
    "submit_limit",
    default="none",
    metavar="LIMIT",
    help="Limit of submits: token-bucket:10/s or 10/s,20 (burst), gcra:60/s, fixed-window:300/m, "
    "sliding-window:60/10s or jobs-in-process:20. With +refused, refused submits count, too.",
)
@click.option("--poll-limit", default="none", metavar="LIMIT", help="Rate limit of polls.")
@click.option("--shared-limit", is_flag=True, help="Count polls against the limit of submits.")
@click.option(
    "--retry-after",
    default="seconds",
    show_default=True,
    metavar="FORM",
    help="Form of Retry-After in a 429: seconds, date or none.",
)
@click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="NAME=P",
    help="Inject fault NAME with probability P, e.g. submit-500=0.1 (repeatable). --fault list shows all.",
)
@click.option(
    "--fault-max-attempts",
    default=0,
    metavar="N",
    help="Inject faults only into the first N attempts of a request.  [default: all]",
)
@click.option("--balance", type=int, metavar="N", help="Credits, one per accepted submit.  [default: unlimited]")
@click.option("--outputs", default=1, show_default=True, metavar="N", help="Images per job, 1 to 4.")
@click.option("--tiny", is_flag=True, help="Serve small images, which take no time to draw.")
@click.option("--image-bytes", default=0, metavar="N", help="Serve noise images of exactly N bytes.")
@click.option("--key", default="", help="The only API key to accept.  [default: any]")
@click.option("--revoke-after", default=0, metavar="N", help="Refuse every key after N accepted submits.")
@click.option("--lenient", is_flag=True, help="Accept unknown fields in a body.")
@click.option("--allow-remote-webhooks", is_flag=True, help="Send webhooks to other hosts than this one.")
@click.option(
    "--slow-duration",
    type=DURATION,
    default=1.0,
    show_default=True,
    metavar="TIME",
    help="Duration of the fault cdn-slow: 1s, 2m.",
)
@click.option(
    "--hang-duration",
    type=DURATION,
    default=30.0,
    show_default=True,
    metavar="TIME",
    help="Duration of the faults submit-hang and poll-hang: 30s, 2m.",
)
@click.option(
    "--state-file", type=click.Path(), default="", metavar="FILE", help="Keep accepted jobs in FILE across restarts."
)
@click.option("--seed", default=0, show_default=True, help="Random seed.")
@click.option("--json", "as_json", is_flag=True, help="Print the addresses as one JSON object.")
def simulate(faults: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Simulate the Krea 2 Large gateway and its CDN offline, as the API document specifies them.

    /_admin/totals and /_admin/ledger at the gateway's address show what was charged.
    """
    from krea_batch.engine.event_loop import run_event_loop
    from krea_batch.testing.simulator import SimulatorError
    from krea_batch.testing.simulator.faults import FAULTS

    if "list" in faults:
        show(*(f"{name:<16} {meaning}" for name, meaning in FAULTS.items()))
        return
    if options["state_file"]:
        _check_state_file(Path(options["state_file"]))
    try:
        run_event_loop(_serve, simulator_settings(faults, **options), as_json)
    except SimulatorError as problem:
        raise _usage_error(problem) from None


def simulator_settings(
    faults: tuple[str, ...], slow_duration: float, hang_duration: float, **options: Any
) -> SimulatorSettings:
    """Return the settings that the options of the command give. Raises SimulatorError and click's errors."""
    from krea_batch.testing.simulator import SimulatorSettings

    return SimulatorSettings(
        faults=dict(map(_parse_fault, faults)),
        slow_duration_s=slow_duration,
        hang_duration_s=hang_duration,
        **options,
    )


def _check_state_file(path: Path) -> None:
    from krea_batch.cli.ui.embedded_simulator import check_state_file
    from krea_batch.errors import InputError
    from krea_batch.storage.outputs import check_output
    from krea_batch.storage.run_dir import SIMULATOR_STATE_FILE

    try:
        if path.name != SIMULATOR_STATE_FILE:  # a run's own state file may be continued
            check_output(path)
        check_state_file(path)
    except InputError as error:
        raise click.BadParameter(str(error), param_hint="'--state-file'") from None


async def _serve(settings: SimulatorSettings, as_json: bool) -> None:
    import signal

    from krea_batch.engine.signal_receiver import receive_signals
    from krea_batch.testing.simulator import Simulator

    with receive_signals(signal.SIGINT, signal.SIGTERM) as signals:
        async with Simulator(settings) as simulator:
            _print_urls(simulator, as_json)
            async for _ in signals:
                break
    if not as_json:
        totals = simulator.totals()
        counts = (f"{totals[name]:,} {name}" for name in ("accepted", "charged", "polls", "downloads"))
        show("", ", ".join(counts))


def _print_urls(simulator: Simulator, as_json: bool) -> None:
    """Print the addresses; each line is flushed."""
    urls = {name: getattr(simulator, name) for name in ("gateway_url", "cdn_url", "admin_url")}
    if as_json:
        import orjson

        show_json(orjson.dumps(urls))
        return
    show(f"gateway  {urls['gateway_url']}")
    show(f"images   {urls['cdn_url']}")
    show(f"admin    {urls['admin_url']}/totals")
    show(f"PIXAZO_API_KEY=any krea-batch run JOBS --out DIR --gateway {urls['gateway_url']}")
    show("Press Ctrl-C to stop.")


def _parse_fault(text: str) -> tuple[str, float]:
    name, _, probability = text.partition("=")
    try:
        return name, float(probability or 1)
    except ValueError:
        hint = "'--fault'"
        raise click.BadParameter(
            f"invalid value {text!r}; use NAME=P, e.g. submit-500=0.1", param_hint=hint
        ) from None


def _usage_error(problem: SimulatorError) -> click.UsageError:
    """Return the error in terms of the command line."""
    names = {"submit_limit": "limit", "faults": "fault"}
    option = names.get(problem.field, problem.field.removesuffix("_s").replace("_", "-"))
    if not option:
        return click.UsageError(str(problem))
    return click.BadParameter(problem.problem, param_hint=f"'--{option}'")
