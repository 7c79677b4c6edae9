"""`krea-batch view`: a run's folder comes in; a page on this machine goes out, that shows images as they arrive."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--port", type=click.IntRange(0, 65535), default=8788, show_default=True, help="0 takes any free one.")
@click.option("--open/--no-open", "open_", default=True, help="Open it in the browser.  [default: open]")
def view(out: Path, port: int, open_: bool) -> None:
    """Show the images of the run in OUT in a browser, as they arrive; also of a run that is going on elsewhere.

    The page is for this machine alone. Ctrl-C ends it; the run is not touched, unless you have it retry what failed.
    """
    import anyio

    from krea_batch.cli.ui.optional_deps import require_gallery_extra
    from krea_batch.errors import InputError
    from krea_batch.storage.run_dir import require_run

    require_run(out)
    with require_gallery_extra():
        from krea_batch.gallery.server import Gallery, serve

    def on_ready(url: str) -> None:
        click.echo(f"{out} is shown at {url}  (Ctrl-C ends it)")
        if open_:
            click.launch(url)

    try:
        anyio.run(serve, Gallery(out), port, on_ready)
    except KeyboardInterrupt:
        return
    except OSError as error:
        raise InputError(f"port {port} cannot be had ({error.strerror})", "give another --port, or 0") from None
