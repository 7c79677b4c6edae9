"""`krea-batch status`: job counts and charges, also while the run is in progress."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(out: Path, as_json: bool) -> None:
    """Show how many jobs of the run in OUT are in each state, and what was charged."""
    import orjson

    from krea_batch.cli.ui.formatting import pluralize, show, show_json
    from krea_batch.cli.ui.summary import RunTotals
    from krea_batch.storage.run_dir import require_run

    require_run(out)
    totals = RunTotals.read(out)
    if as_json:
        show_json(orjson.dumps(totals.fields()))
    else:
        show(f"{pluralize(totals.total, 'job')} in {out}", *totals.lines(), *totals.worker_lines())
