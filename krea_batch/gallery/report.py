"""Writes a run as one HTML file with its images and charts, which needs no other file.

The file is written incrementally, so memory holds the data of the jobs and a few images. Thumbnails are in blocks of
a hundred, which the page unpacks when they are scrolled into view.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, Any

import msgspec

from krea_batch.errors import InputError
from krea_batch.gallery import charts
from krea_batch.gallery.rendering import THUMBNAILS_PER_BLOCK, THUMBNAILS_PLACEHOLDER, item, render_page
from krea_batch.gallery.thumbnail_files import LocalImage, local_image, local_image_path
from krea_batch.gallery.thumbnails import WIDTH_PX, RunThumbnails
from krea_batch.ledger import snapshot_ledger
from krea_batch.ledger.paging import first_column, iter_rows
from krea_batch.storage.outputs import check_output, path_text, replacing_output
from krea_batch.storage.ratings import read_ratings
from krea_batch.storage.run_dir import require_run

REPORT_MARK = b'<meta name="generator" content="krea-batch report">'  # as in page.html.j2
MARK_BYTES = 4096  # chosen: the mark is in the head of the page, before the style sheet


def write_report(
    out: Path,
    output: Path,
    *,
    limit_per_s: float | None = None,
    width_px: int = WIDTH_PX,
    on_progress: Callable[[int], None] | None = None,
) -> int:
    """Write the report of a run atomically. Returns the number of images in it.

    `on_progress` is called for each image. Raises RunDirError, LedgerError, OSError, and InputError if `output` is an
    existing file that is no report, or part of a run.
    """
    require_run(out)
    if os.path.lexists(output):  # before the work, so that a mistake costs no time
        _check_report(check_output(output, run=out))
    chart_data, rows = charts.ChartData(), []
    images: list[LocalImage | None] = []
    ratings = read_ratings(out)
    with closing(snapshot_ledger(out)) as store:
        for job_no, outcome in iter_rows(store.jobs_page, first_column):
            chart_data.add_outcome(outcome)
            rows.append(_with_relative_paths(item(job_no, outcome, ratings.get(outcome.id)), out, output))
            images += [local_image(out, file) for file in outcome.files[:1]]
        chart_data.load(store)
    chart_data.limit_per_s = limit_per_s or chart_data.limit_per_s
    head, tail = render_page(
        title=path_text(Path(out.name)),
        live=False,
        other_title="",
        token="",
        simulated=False,
        items=_escape_script_json(msgspec.json.encode(rows).decode()),
        charts=charts.draw_charts(chart_data),
        errors=chart_data.errors.most_common(8),
    ).split(THUMBNAILS_PLACEHOLDER)
    del rows
    with replacing_output(output, _check_report, run=out) as part, part.open("w", encoding="utf-8") as text:
        text.write(head)
        _write_thumbnails(text, RunThumbnails(out, width_px).get_all(images), on_progress or (lambda _: None))
        text.write(tail)
    return len(images)


def _check_report(path: Path) -> None:
    """Raise InputError unless the existing file is a report."""
    with path.open("rb") as file:
        if REPORT_MARK not in file.read(MARK_BYTES):
            raise InputError(f"{path} exists and is not a report of krea-batch", "use another --output")


def _write_thumbnails(file: IO[str], thumbnails: Iterator[bytes | None], on_progress: Callable[[int], None]) -> None:
    index = -1
    for index, data in enumerate(thumbnails):
        if index % THUMBNAILS_PER_BLOCK == 0:
            file.write("</script>\n" if index else "")
            file.write(f'<script type="text/plain" id="thumbnails-{index // THUMBNAILS_PER_BLOCK}">')
        file.write((base64.b64encode(data).decode() if data else "") + "\n")
        on_progress(1)
    if index >= 0:
        file.write("</script>\n")


def _with_relative_paths(row: dict[str, Any], out: Path, output: Path) -> dict[str, Any]:
    """Change the paths of images on this disk to paths relative to the report. Returns the row."""
    for file in row["files"]:
        image_path = local_image_path(out, file["path"])
        if image_path:
            file["path"] = path_text(Path(os.path.relpath(image_path.absolute(), output.parent.absolute())))
    return row


def _escape_script_json(json: str) -> str:
    """Escape JSON so that it cannot end the script element that contains it."""
    return json.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
