"""`krea-batch inspect`: the metadata in PNG files."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from krea_batch.cli.app import BAD_INPUT, OK
from krea_batch.cli.ui.formatting import say, show, show_json
from krea_batch.storage.outputs import path_text

MAX_KEYWORD_CHARS = 79  # PNG specification, 11.3.3.1


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE…")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per file.")
def inspect(files: tuple[Path, ...], as_json: bool) -> None:
    """Show the text metadata of PNG files, for example what `export --embed-metadata` wrote.

    The exit code is 2 if a file is not a complete PNG.
    """
    import msgspec

    from krea_batch.maintenance.export.png_metadata import read_texts
    from krea_batch.storage.png import PngError

    code = OK
    for path in files:
        try:
            texts = read_texts(path.read_bytes())
        except (OSError, PngError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            say(f"krea-batch: {path}: {reason}")
            code = BAD_INPUT
            continue
        if as_json:
            show_json(msgspec.json.encode({"file": path_text(path), "texts": texts}))
        else:
            show(str(path), *_lines(texts))
    sys.exit(code)


def _lines(texts: dict[str, str]) -> list[str]:
    """Return a line for each text; the text of krea-batch is shown as its parts."""
    import msgspec

    from krea_batch.maintenance.export.png_metadata import DETAILS_KEYWORD

    if not texts:
        return ["  no text metadata (krea-batch export --embed-metadata writes some)"]
    shown = {keyword: text for keyword, text in texts.items() if keyword != DETAILS_KEYWORD}
    try:
        details = msgspec.json.decode(texts.get(DETAILS_KEYWORD, "{}"), type=dict[str, object])
    except (msgspec.DecodeError, RecursionError):  # the text may have been written by anyone
        details = {DETAILS_KEYWORD: texts[DETAILS_KEYWORD]}
    request = details.pop("request", {})
    if isinstance(request, dict):
        details |= {key: value for key, value in request.items() if key != "prompt"}
    shown |= {key: msgspec.json.encode(value).decode().strip('"') for key, value in details.items() if value}
    width = min(max(map(len, shown), default=0), MAX_KEYWORD_CHARS)
    return [f"  {keyword:<{width}}  {text}" for keyword, text in shown.items()]
