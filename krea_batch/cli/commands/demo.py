"""`krea-batch demo`: ten simulated images and a contact sheet, from an installed package alone."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

import click

from krea_batch.cli.app import OK
from krea_batch.cli.commands.run import run, run_jobs

JOB_FILE = Path(__file__).parents[1] / "demo.jsonl"
FAST = ("--time-scale", "10", "--poll-interval", "1")  # chosen: ten images in four seconds
CONTACT_SHEET = "contact-sheet.jpg"


@click.command()
@click.argument("out", type=click.Path(path_type=Path, file_okay=False), default="krea-batch-demo")
def demo(out: Path) -> None:
    """Generate ten simulated images in OUT (default: krea-batch-demo), and show them on a contact sheet.

    It needs no API key and no network, and nothing is charged: the built-in simulator draws the images. Six of them
    are a sweep of one prompt: three values of creativity, two seeds each.
    """
    from krea_batch.cli.ui.formatting import show
    from krea_batch.cli.ui.optional_deps import has_gallery_extra, install_command, require_simulator_extra
    from krea_batch.storage.outputs import unwritable_output

    require_simulator_extra()
    _require_no_other_run(out)
    from krea_batch.gallery.contact_sheet import write_contact_sheet
    from krea_batch.maintenance.export.run_images import RunImages

    # Neither the environment nor krea-batch.toml applies: a --sink of real runs would get these images.
    options = ["--out", str(out), "--simulate", *FAST]
    with run.make_context("run", [str(JOB_FILE), *options], auto_envvar_prefix=None) as context:
        exit_code = run_jobs(context.params.pop("jobs"), context.params)
    if exit_code != OK:
        sys.exit(exit_code)
    sheet = out / CONTACT_SHEET
    try:
        with RunImages(out) as run_images:
            write_contact_sheet([image.path for image in run_images.images()], sheet)
    except OSError as error:
        raise unwritable_output(sheet, error) from None
    command = _command_in_this_shell()
    view = f"{command} view {shlex.quote(str(out))}"
    if not has_gallery_extra():
        view = f"{install_command('gallery')} && {view}"
    show(
        "",
        "The simulator drew these images. Nothing was sent to the API, and nothing was charged.",
        f"all on one sheet:   {sheet}",
        f"in your browser:    {view}",
        f"your own prompt:    {command} run --prompt 'a red kite' --out out --simulate",
    )


def _command_in_this_shell() -> str:
    """Return how to call krea-batch here: by its name, or as it was called, if the shell does not find the name."""
    if shutil.which("krea-batch"):
        return "krea-batch"
    called = Path(sys.argv[0])
    return f"{shlex.quote(sys.executable)} -m krea_batch" if called.stem == "__main__" else shlex.quote(str(called))


def _require_no_other_run(out: Path) -> None:
    """Raise RunDirError if the directory has a run that was not simulated: its jobs would be simulated, too."""
    from krea_batch.errors import RunDirError
    from krea_batch.storage.run_dir import SIMULATOR_STATE_FILE, has_ledger

    if has_ledger(out) and not (out / SIMULATOR_STATE_FILE).exists():
        raise RunDirError(out, "this directory has a run that was not simulated", "use another directory")
