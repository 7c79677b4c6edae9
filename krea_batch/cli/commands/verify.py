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
    from krea_batch.maintenance.verify import Mismatch, RepairGateway
    from krea_batch.settings import ApiKey


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

    with RunImages(out) as images:
        if repair:
            settings = Settings.from_options(out=out, gateway=gateway, allow_networks=allow_networks)
            checked, mismatches = _repair_run(images, settings, api_key_file, simulate=simulate)
        else:
            checked, mismatches = _check_all(images)
    _print_report(out, checked, mismatches, as_json=as_json, quiet=quiet)
    sys.exit(SOME_FAILED if any(not mismatch.repaired for mismatch in mismatches) else OK)


def _check_all(images: RunImages) -> tuple[int, list[Mismatch]]:
    checked, damaged = _find_damaged(images)
    return checked, [_mismatch(image, problem) for image, problem in damaged]


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
    from krea_batch.cli.options.run_settings import find_key
    from krea_batch.engine.event_loop import run_event_loop
    from krea_batch.settings import ApiKey
    from krea_batch.storage.run_dir import RunDir

    key = ApiKey("simulated") if simulate else find_key(str(api_key_file) if api_key_file else None)
    run_dir = RunDir(settings.out)
    run_dir.lock()
    try:
        checked, damaged = _find_damaged(images)
        repaired: list[Mismatch] = []

        async def repair_damaged() -> int:
            repaired.extend(await _repair_images(damaged, settings, key, simulate=simulate))
            return OK

        if damaged:
            run_event_loop(repair_damaged)
    finally:
        run_dir.unlock()
    return checked, repaired


async def _repair_images(
    damaged: list[tuple[ExportedImage, str]], settings: Settings, key: ApiKey, *, simulate: bool
) -> list[Mismatch]:
    import anyio

    from krea_batch.cli.ui.run_gateway import open_run_gateway
    from krea_batch.maintenance.verify import MAX_CONCURRENT_REPAIRS

    results: dict[int, Mismatch] = {}
    async with open_run_gateway(settings, key, simulate=simulate) as gateway:
        limiter = anyio.CapacityLimiter(MAX_CONCURRENT_REPAIRS)

        async def repair_one(n: int, image: ExportedImage, problem: str) -> None:
            async with limiter:
                results[n] = await _repair_image(image, problem, gateway)

        async with anyio.create_task_group() as group:
            for n, (image, problem) in enumerate(damaged):
                group.start_soon(repair_one, n, image, problem)
    return [results[n] for n in sorted(results)]


async def _repair_image(image: ExportedImage, problem: str, gateway: RepairGateway) -> Mismatch:
    from krea_batch.maintenance.verify import RepairFailed, repair

    try:
        await repair(image, gateway)
    except RepairFailed as error:
        return _mismatch(image, f"{problem}; {error}")
    return _mismatch(image, problem, repaired=True)


def _mismatch(image: ExportedImage, problem: str, *, repaired: bool = False) -> Mismatch:
    from krea_batch.maintenance.verify import Mismatch

    return Mismatch(image.outcome.id, image.file.path, image.outcome.request_id, problem, repaired)


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
