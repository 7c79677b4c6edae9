"""`krea-batch report`: one HTML file with the run's images and charts."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command()
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="File to write.  [default: OUT/report.html]",
)
@click.option(
    "--rate", metavar="RATE", help="Rate limit to draw in the throughput chart.  [default: --rate of the run]"
)
@click.option(
    "--thumbnails",
    type=click.IntRange(32, 1024),
    default=240,
    show_default=True,
    metavar="PX",
    help="Maximum width and height of a thumbnail in pixels.",
)
@click.option("--quiet", "-q", is_flag=True, help="Print only errors.")
def report(out: Path, output: Path | None, rate: str | None, thumbnails: int, quiet: bool) -> None:
    """Write the images of the run in OUT, their metadata and the run's charts into one HTML file.

    The file works offline and without other files. It has filters, a grid of sweeps, and a lightbox. It links to the
    full-size images by relative paths, which work as long as the file is not moved.
    """
    from krea_batch.cli.ui.formatting import format_bytes, pluralize, show
    from krea_batch.cli.ui.optional_deps import require_gallery_extra
    from krea_batch.engine.child_process import forget_key
    from krea_batch.settings import Rate
    from krea_batch.storage.outputs import unwritable_output
    from krea_batch.storage.run_dir import require_run

    require_run(out)
    forget_key()  # matplotlib may start programs that look for fonts
    limit_per_s = Rate.parse(rate, "rate").per_s if rate else None
    output_path = output or out / "report.html"
    with require_gallery_extra():
        from krea_batch.gallery.report import write_report
    try:
        if quiet or not sys.stderr.isatty():
            count = write_report(out, output_path, limit_per_s=limit_per_s, width_px=thumbnails)
        else:
            with click.progressbar(length=_image_count(out), label="report", file=sys.stderr) as bar:
                count = write_report(
                    out, output_path, limit_per_s=limit_per_s, width_px=thumbnails, on_progress=bar.update
                )
    except OSError as error:
        raise unwritable_output(output_path, error) from None
    if not quiet:
        show(f"{pluralize(count, 'image')} in {output_path}, {format_bytes(output_path.stat().st_size)}")


def _image_count(out: Path) -> int:
    from krea_batch.cli.ui.summary import RunTotals
    from krea_batch.jobs import State

    return RunTotals.read(out).counts.get(State.SUCCEEDED, 0)
