"""Renders the page from its template, style sheet and scripts, and encodes jobs for the scripts."""

from __future__ import annotations

import base64
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any

import msgspec
from jinja2 import Environment, PackageLoader

from krea_batch.gallery.new_jobs import MAX_NEW_SEEDS
from krea_batch.jobs import ASPECT_RATIOS, CREATIVITIES, STATES, Outcome

THUMBNAILS_PER_BLOCK = 100  # chosen: thumbnails that are decoded together, about 600 kB
THUMBNAILS_PLACEHOLDER = "<!-- thumbnails -->"  # as in page.html.j2
SCRIPTS = (
    "state.js",
    "image_urls.js",
    "filters.js",
    "tiles.js",
    "grid.js",
    "lightbox.js",
    "marks.js",
    "ratings.js",
    "server.js",
    "retry.js",
    "new_jobs.js",
    "exports.js",
    "ab_rules.js",
    "ab.js",
    "key_help.js",
    "keys.js",
    "data.js",
)
"""The files of the page's script, in this order. They are one script, which has one hash in the security policy."""


def render_page(**values: Any) -> str:
    """Render the page with these values."""
    environment = Environment(loader=PackageLoader("krea_batch.gallery", "page"), autoescape=True)
    return environment.get_template("page.html.j2").render(
        style=_page_file("page.css"),
        script=_script(),
        script_csp_source=script_csp_source(),
        thumbnails_per_block=THUMBNAILS_PER_BLOCK,
        choices=msgspec.json.encode(
            {"aspect_ratio": ASPECT_RATIOS, "creativity": CREATIVITIES, "max_seeds": MAX_NEW_SEEDS}
        ).decode(),
        states=msgspec.json.encode(STATES).decode(),
        **values,
    )


def script_csp_source() -> str:
    """Return the Content-Security-Policy source that allows the page's own script and no other."""
    return f"'sha256-{base64.b64encode(sha256(_script().encode()).digest()).decode()}'"


@cache
def _script() -> str:
    return "\n".join(_page_file(name) for name in SCRIPTS)


def _page_file(name: str) -> str:
    return files("krea_batch.gallery").joinpath("page", name).read_text("utf-8")


PARAMETERS = ("aspect_ratio", "creativity", "seed", "styles", "moodboards", "image_style_references")


def item(job_no: int, outcome: Outcome, rating: int | None = None) -> dict[str, Any]:
    """Return a job as the page's scripts read it. `parameters` has only the parameters with a value."""
    request = outcome.request
    return {
        "job_no": job_no,
        "id": outcome.id,
        "status": outcome.status.value,
        "rating": rating,
        "prompt": request["prompt"],
        "parameters": {name: request[name] for name in PARAMETERS if request.get(name) not in (None, [])},
        "metadata": outcome.metadata,
        "request_id": outcome.request_id,
        "error": outcome.error.message if outcome.error else None,
        "attempts": outcome.attempts,
        "polls": outcome.polls,
        "submitted_at": outcome.submitted_at,
        "stored_at": outcome.stored_at,
        "files": [{"path": file.path, "width": file.width, "height": file.height} for file in outcome.files],
    }
