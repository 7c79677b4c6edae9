"""`krea-batch view`: a local page that shows images as they arrive."""

from __future__ import annotations

from pathlib import Path

import click

from krea_batch.cli.options.run_options import PRICE


@click.command()
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8788,
    show_default=True,
    help="Port to listen on; 0: any free port.",
)
@click.option("--open/--no-open", "open_", default=True, help="Open the page in the browser.  [default: open]")
@click.option(
    "--price", type=PRICE, metavar="X", help="Price per image, to show the cost before new jobs are submitted."
)
@click.option(
    "--compare-with",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="OTHER",
    help="Another run directory, whose images are compared with those of OUT by their ids.",
)
def view(out: Path, port: int, open_: bool, price: float | None, compare_with: Path | None) -> None:
    """Show the images of the run in OUT in your browser. If the run is in progress, images appear as they arrive.

    The page is served to this machine only, and only to those who have the printed URL. Ctrl-C stops the server. The
    page changes nothing unless you rate images, retry failed jobs or submit new ones.
    """
    import tempfile

    import anyio

    from krea_batch.cli.app import ENV_PREFIX
    from krea_batch.cli.options.run_options import run_option_names
    from krea_batch.cli.ui.formatting import show
    from krea_batch.cli.ui.optional_deps import require_gallery_extra
    from krea_batch.engine.child_process import forget_key
    from krea_batch.errors import InputError
    from krea_batch.storage.run_dir import require_run

    require_run(out)
    with require_gallery_extra():
        from krea_batch.gallery.server import serve
        from krea_batch.gallery.shown_run import ShownRun

    run = ShownRun(
        out, price=price, run_variables=[f"{ENV_PREFIX}_{option.upper()}" for option in run_option_names()]
    )
    other = ShownRun(compare_with) if compare_with else None
    forget_key()  # only commands that submit need it, and not the browser

    with tempfile.TemporaryDirectory(prefix="krea-batch-view-") as private_dir:

        def on_ready(url: str) -> None:
            show(f"Showing {out} at {url}  (press Ctrl-C to stop)")
            if open_:
                _launch(url, Path(private_dir))

        try:
            anyio.run(serve, run, port, on_ready, other)
        except KeyboardInterrupt:
            return
        except OSError as error:
            problem = f"cannot listen on port {port} ({error.strerror})"
            raise InputError(problem, "use another --port, or 0 for any free port") from None


def _launch(url: str, private_dir: Path) -> None:
    """Open the URL in the browser by way of a file that only this user can read.

    The arguments of a process are visible to all users, and the URL has a secret.
    """
    page = private_dir / "open.html"
    page.write_text(f'<!doctype html><meta http-equiv="refresh" content="0;url={url}"><title>krea-batch</title>')
    click.launch(page.as_uri())
