"""`krea-batch doctor`: diagnoses problems before a run."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from krea_batch.cli.app import BAD_INPUT, OK, SOME_FAILED
from krea_batch.cli.options.run_options import api_key_file_option, setting_option
from krea_batch.settings import KEY_VARIABLE

EXIT_CODE_OF_STATE = {"ok": OK, "warn": SOME_FAILED, "fail": BAD_INPUT}


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=".",
    help="Planned run directory.  [default: the working directory]",
)
@setting_option("gateway")
@setting_option("allow_networks")
@api_key_file_option(help=f"Check this file's API key instead of {KEY_VARIABLE}. The key is not sent.")
@setting_option("max_in_flight")
@setting_option("ledger", help="Check this database, too.")
@setting_option("batch")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(
    out: Path,
    gateway: str,
    allow_networks: tuple[str, ...],
    api_key_file: Path | None,
    max_in_flight: int,
    ledger: str | None,
    batch: str | None,
    as_json: bool,
) -> None:
    """Check the API key, disk, clock, connection to the gateway, installed packages, and the database of a ledger
    in PostgreSQL. Nothing is charged.

    The exit code is 0 if everything is fine, 1 if there are warnings, and 2 if a run is not possible.
    """
    import msgspec

    from krea_batch.cli.ui.diagnostics import run_diagnostics
    from krea_batch.cli.ui.formatting import show, show_json, show_state

    findings = run_diagnostics(out, gateway, api_key_file, max_in_flight, allow_networks, ledger, batch)
    worst = max((finding.state for finding in findings), key=list(EXIT_CODE_OF_STATE).index)
    if as_json:
        show_json(msgspec.json.encode({"state": worst, "findings": findings}))
    else:
        for finding in findings:
            show_state(finding.state, f"{finding.check:8} {finding.detail}")
            if finding.hint:
                show(f"              {finding.hint}")
    sys.exit(EXIT_CODE_OF_STATE[worst])
