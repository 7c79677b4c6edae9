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
    """Show the images of the run in OUT in your browser as they arrive, also while another process runs it.

    The page is served to this machine only. Ctrl-C stops it. The run is only read, unless you retry failed jobs.
    """
    import anyio

    from krea_batch.cli.ui.formatting import show
    from krea_batch.cli.ui.optional_deps import require_gallery_extra
    from krea_batch.errors import InputError
    from krea_batch.storage.run_dir import require_run

    require_run(out)
    with require_gallery_extra():
        from krea_batch.gallery.server import Gallery, serve

    def on_ready(url: str) -> None:
        show(f"Showing {out} at {url}  (press Ctrl-C to stop)")
        if open_:
            click.launch(url)

    try:
        anyio.run(serve, Gallery(out), port, on_ready)
    except KeyboardInterrupt:
        return
    except OSError as error:
        problem = f"cannot listen on port {port} ({error.strerror})"
        raise InputError(problem, "use another --port, or 0 for any free port") from None
