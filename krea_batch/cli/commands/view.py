"""`krea-batch view`: a local page that shows images as they arrive."""

from __future__ import annotations

from pathlib import Path

import click


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
def view(out: Path, port: int, open_: bool) -> None:
    """Show the images of the run in OUT in your browser. If the run is in progress, images appear as they arrive.

    The page is served to this machine only, and only to those who have the printed URL. Ctrl-C stops the server. The
    page changes nothing unless you rate images or retry failed jobs.
    """
    import tempfile

    import anyio

    from krea_batch.cli.ui.formatting import show
    from krea_batch.cli.ui.optional_deps import require_gallery_extra
    from krea_batch.engine.child_process import forget_key
    from krea_batch.errors import InputError
    from krea_batch.storage.run_dir import require_run

    require_run(out)
    with require_gallery_extra():
        from krea_batch.gallery.server import Gallery, serve

    gallery = Gallery(out)
    forget_key()  # only a retry needs it, and not the browser

    with tempfile.TemporaryDirectory(prefix="krea-batch-view-") as private_dir:

        def on_ready(url: str) -> None:
            show(f"Showing {out} at {url}  (press Ctrl-C to stop)")
            if open_:
                _launch(url, Path(private_dir))

        try:
            anyio.run(serve, gallery, port, on_ready)
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
