"""`krea-batch verify`: compares images with the ledger, and repairs them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from krea_batch.cli.app import OK, SOME_FAILED
from krea_batch.cli.options.run_options import api_key_file_option, setting_option
from krea_batch.cli.ui.formatting import pluralize, say, show, show_json
from krea_batch.settings import KEY_VARIABLE, Settings

if TYPE_CHECKING:
    from krea_batch.maintenance.export.run_images import ExportedImage, RunImages
    from krea_batch.maintenance.verify import Mismatch


@click.command()
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--repair", is_flag=True, help="Re-download damaged or missing images. Free of charge; nothing is resubmitted."
)
@setting_option("gateway")
@setting_option("allow_networks")
@api_key_file_option(help=f"Read the API key from a file instead of {KEY_VARIABLE}; only --repair needs it.")
@click.option("--simulate", is_flag=True, help="With --repair: the run used --simulate.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--quiet", "-q", is_flag=True, help="Print only mismatches.")
def verify(
    out: Path,
    repair: bool,
    gateway: str,
    allow_networks: tuple[str, ...],
    api_key_file: Path | None,
    simulate: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Check every image of the run in OUT against the ledger: present, complete, and with the recorded content.

    The exit code is 0 if all images are correct or repaired, else 1.
    """
    from krea_batch.maintenance.export.run_images import RunImages
    from krea_batch.maintenance.verify import mismatch_of

    with RunImages(out) as images:
        if repair:
            settings = Settings.from_options(out=out, gateway=gateway, allow_networks=allow_networks)
            checked, mismatches = _repair_run(images, settings, api_key_file, simulate=simulate)
        else:
            checked, damaged = _find_damaged(images)
            mismatches = [mismatch_of(image, problem) for image, problem in damaged]
    _print_report(out, checked, mismatches, as_json=as_json, quiet=quiet)
    sys.exit(SOME_FAILED if any(not mismatch.repaired for mismatch in mismatches) else OK)


def _find_damaged(images: RunImages) -> tuple[int, list[tuple[ExportedImage, str]]]:
    """Return the number of images, and those that do not match; with a progress bar on a terminal."""
    from krea_batch.maintenance.verify import check_images

    checked, damaged = 0, []
    with click.progressbar(
        check_images(images), length=images.count(), label="verify", file=sys.stderr, hidden=not sys.stderr.isatty()
    ) as results:
        for image, problem in results:
            checked += 1
            if problem:
                damaged.append((image, problem))
    return checked, damaged


def _repair_run(
    images: RunImages, settings: Settings, api_key_file: Path | None, *, simulate: bool
) -> tuple[int, list[Mismatch]]:
    """Check all images and re-download damaged ones. The run directory is locked meanwhile."""
    from krea_batch.cli.options.run_settings import gateway_key
    from krea_batch.cli.ui.run_gateway import open_run_gateway
    from krea_batch.engine.event_loop import run_event_loop
    from krea_batch.maintenance.verify import repair_all
    from krea_batch.storage.run_dir import RunDir

    key = gateway_key(api_key_file, simulate=simulate)
    run_dir = RunDir(settings.out)
    run_dir.lock()

    async def repair_damaged() -> list[Mismatch]:
        async with open_run_gateway(settings, key, simulate=simulate) as gateway:
            return await repair_all(damaged, gateway)

    try:
        checked, damaged = _find_damaged(images)
        return checked, run_event_loop(repair_damaged) if damaged else []
    finally:
        run_dir.unlock()


def _print_report(out: Path, checked: int, mismatches: list[Mismatch], *, as_json: bool, quiet: bool) -> None:
    import msgspec

    repaired = sum(mismatch.repaired for mismatch in mismatches)
    if as_json:
        fields = {"images": checked, "mismatches": len(mismatches), "repaired": repaired, "details": mismatches}
        show_json(msgspec.json.encode(fields))
        return
    for mismatch in mismatches:
        say(f"{out / mismatch.path}: {mismatch.problem}{'; repaired' if mismatch.repaired else ''}")
    if quiet:
        return
    result = f"{len(mismatches):,} damaged or missing" if mismatches else "all correct"
    show(f"{pluralize(checked, 'image')}, {result}{f', {repaired:,} repaired' if repaired else ''}")
    if mismatches and not repaired:
        show("krea-batch verify OUT --repair downloads them again, free of charge")
