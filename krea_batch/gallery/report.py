"""A run's folder comes in; one HTML file with its pictures and charts goes out, that needs nothing beside it.

Newcomers: the file is written as it is made, and so are the thumbnails in it, some hundred to a block that the page
opens when they are looked at. Memory holds what is known of the jobs, and a few pictures.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from contextlib import closing
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import IO, Any

import msgspec
from jinja2 import Environment, PackageLoader

from krea_batch.gallery import charts
from krea_batch.gallery.items import item, place_of
from krea_batch.gallery.thumbnails import WIDTH_PX, thumbnails
from krea_batch.ledger import Store
from krea_batch.ledger.paging import all_rows, number_of
from krea_batch.storage.run_dir import LEDGER, check_run

BLOCK = 100  # chosen: thumbnails that are unpacked together, some 600 kB
MARK = "<!-- thumbnails -->"


def page(**values: Any) -> str:
    """The page with these values."""
    environment = Environment(loader=PackageLoader("krea_batch.gallery", "page"), autoescape=True)
    return environment.get_template("page.html.j2").render(
        style=_part("page.css"), script=_part("page.js"), script_source=script_source(), block=BLOCK, **values
    )


def script_source() -> str:
    """What a policy says to let the page's own script run, and none that came into it with a text of the run."""
    return f"'sha256-{base64.b64encode(sha256(_part('page.js').encode()).digest()).decode()}'"


def write_report(
    out: Path,
    to: Path,
    *,
    limit_per_s: float | None = None,
    width_px: int = WIDTH_PX,
    seen: Callable[[int], None] | None = None,
) -> int:
    """Write the report of a run, whole or not at all. Returns how many pictures are in it.

    `seen` hears of each picture, 1 at a time. Raises RunFolderError, LedgerError, OSError.
    """
    check_run(out)
    times, rows, places = charts.Times(), [], []
    with closing(Store.snapshot(out / LEDGER)) as store:
        for n, outcome in all_rows(store.glimpses, number_of):
            times.count(outcome)
            rows.append(_linked(item(n, outcome), out, to))
            places += [place_of(out, file.path) for file in outcome.files[:1]]
        times.read(store)
    times.limit_per_s = limit_per_s or times.limit_per_s
    head, tail = page(
        title=out.name,
        live=False,
        token="",
        simulated=False,
        items=_inert(msgspec.json.encode(rows).decode()),
        charts=charts.draw(times),
        errors=times.errors.most_common(8),
    ).split(MARK)
    del rows
    part = to.with_name(f".{to.name}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(head)
            _write_thumbnails(file, places, width_px, seen or (lambda _: None))
            file.write(tail)
        os.replace(part, to)  # noqa: PTH105 - the same name, in one step
    finally:
        part.unlink(missing_ok=True)
    return len(places)


def _write_thumbnails(file: IO[str], places: list[Path | None], width_px: int, seen: Callable[[int], None]) -> None:
    for n, data in enumerate(thumbnails(places, width_px)):
        if n % BLOCK == 0:
            file.write("</script>\n" if n else "")
            file.write(f'<script type="text/plain" id="thumbnails-{n // BLOCK}">')
        file.write((base64.b64encode(data).decode() if data else "") + "\n")
        seen(1)
    if places:
        file.write("</script>\n")


def _linked(row: dict[str, Any], out: Path, to: Path) -> dict[str, Any]:
    """The row with paths as they are seen from where the report lies."""
    for file in row["files"]:
        place = place_of(out, file["path"])
        if place:
            file["path"] = Path(os.path.relpath(place.absolute(), to.parent.absolute())).as_posix()
    return row


def _inert(json: str) -> str:
    """JSON that can stand in a script element, whatever its texts say."""
    return json.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _part(name: str) -> str:
    return files("krea_batch.gallery").joinpath("page", name).read_text("utf-8")
