"""`krea-batch watch`: live progress of a run in another process."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from krea_batch.cli.app import OK, SOME_FAILED

WATCH_INTERVAL_S = 1.0  # chosen: often enough for people; reading costs the run nothing


@click.command()
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
def watch(out: Path) -> None:
    """Show live progress of a run in another process, in the run directory OUT, until it ends.

    The run is not changed. Ctrl-C ends the display, not the run.
    """
    import time

    from krea_batch.cli.ui.formatting import pluralize, say, show
    from krea_batch.cli.ui.progress import make_display
    from krea_batch.cli.ui.status_readers import LedgerStatusReader
    from krea_batch.cli.ui.summary import RunTotals
    from krea_batch.storage.run_dir import require_run

    require_run(out)
    status_reader, display = LedgerStatusReader(out), make_display(quiet=False)
    try:
        while True:
            display.show(status_reader.read())
            if not status_reader.is_running:
                break
            time.sleep(max(WATCH_INTERVAL_S, display.interval_s))
    except KeyboardInterrupt:
        display.close()
        say("Detached; the run continues.")
        return
    display.close()
    totals = RunTotals.read(out)
    show(f"{pluralize(totals.total, 'job')} in {out}; no process is working on it", *totals.lines())
    sys.exit(OK if totals.all_succeeded else SOME_FAILED)
