"""`krea-batch export`: images in the formats of other tools."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from krea_batch.maintenance.export import RunImages
    from krea_batch.maintenance.export.writers import ExportOptions

EXPORT_FORMATS = ("imagefolder", "parquet", "webdataset", "csv", "zip")


@click.command()
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--format", "format_", type=click.Choice(EXPORT_FORMATS), required=True, help="Format to write.")
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), required=True, metavar="DEST", help="File or folder to write."
)
@click.option(
    "--ids-from",
    type=click.Path(),
    metavar="FILE",
    help="Export only the jobs whose ids are in FILE, one per line; - for standard input.",
)
@click.option("--embed-metadata", is_flag=True, help="Write prompt, parameters and request_id into each PNG.")
@click.option(
    "--shard-size",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    metavar="N",
    help="Images per shard of a WebDataset.",
)
@click.option(
    "--raw-cells",
    is_flag=True,
    help="With csv: write texts that begin with =, +, - or @ as they are. By default, they get an apostrophe, since "
    "spreadsheets would evaluate them as formulas.",
)
@click.option(
    "--name",
    default="",
    metavar="TEMPLATE",
    help="Name the images in the export: '{id}_{seed}', '{animal}/{prompt}'; a slash makes a folder. More "
    "fields: {output}, {number}, {width}, {height} and {sha256}.",
)
@click.option(
    "--portable-names", is_flag=True, help="Name images with lower-case ASCII letters, digits and . _ - only."
)
@click.option("--force", is_flag=True, help="Replace DEST if it is an export of krea-batch with nothing else in it.")
@click.option("--quiet", "-q", is_flag=True, help="Print only errors.")
def export(
    out: Path,
    format_: str,
    output: Path,
    ids_from: str | None,
    embed_metadata: bool,
    shard_size: int,
    raw_cells: bool,
    name: str,
    portable_names: bool,
    force: bool,
    quiet: bool,
) -> None:
    """Write the images of the run in OUT in a format for other tools. The run may be in progress, and is not changed.

    \b
    imagefolder   a folder with metadata.jsonl: datasets.load_dataset("imagefolder", data_dir=DEST)
    parquet       one file with the images in it: datasets.load_dataset("parquet", data_files=DEST)
    webdataset    a folder of tar shards
    csv           one row per image, for spreadsheets and pandas; the images are not copied
    zip           images and metadata.jsonl in one file
    """
    from krea_batch.cli.options.job_id_file import read_ids
    from krea_batch.cli.ui.formatting import pluralize, say, show
    from krea_batch.maintenance.export import RunImages
    from krea_batch.maintenance.export.writers import ExportOptions
    from krea_batch.storage.outputs import left_parts, unwritable_output
    from krea_batch.storage.run_dir import DUPLICATES

    _check_options(
        format_,
        raw_cells=raw_cells,
        copy_options={"--name": name, "--portable-names": portable_names, "--embed-metadata": embed_metadata},
    )
    options = ExportOptions(
        embed=embed_metadata,
        shard_images=shard_size,
        force=force,
        raw_cells=raw_cells,
        name=name,
        portable_names=portable_names,
        on_notice=(lambda _: None) if quiet else say,
    )
    with RunImages(out, read_ids(ids_from, out)) as images:
        try:
            count = _export_with_progress(images, format_, output, options, quiet=quiet)
        except OSError as error:
            raise unwritable_output(output, error) from None
    if quiet:
        return
    show(f"{pluralize(count, 'image')} in {output}")
    if (duplicates := out / DUPLICATES).is_file():
        say(f"jobs that --dedupe left out are not exported; {duplicates} has the job that each of them repeats")
    for part in left_parts(output):
        say(f"{part} was left by an export that was killed; delete it, unless another export is running")


def _check_options(format_: str, *, raw_cells: bool, copy_options: Mapping[str, object]) -> None:
    """Raise click.UsageError for options without an effect in this format. `copy_options` are about copied images."""
    if format_ != "csv":
        if raw_cells:
            raise click.UsageError("--raw-cells can be used with csv only; other formats leave texts unchanged")
        return
    for option, value in copy_options.items():
        if value:
            raise click.UsageError(f"{option} cannot be used with csv, which does not copy the images")


def _export_with_progress(
    images: RunImages, format_: str, output: Path, options: ExportOptions, *, quiet: bool
) -> int:
    """Export with a progress bar if standard error is a terminal."""
    from krea_batch.maintenance.export import export as write

    if quiet or not sys.stderr.isatty():
        return write(images, format_, output, options)
    with click.progressbar(length=images.count(), label=f"{format_:11}", file=sys.stderr) as bar:
        return write(images, format_, output, options, bar.update)
