"""What a notebook shows for an outcome: its first image, or a text.

Notebooks call an object's `_repr_mimebundle_`, and show the richest of the formats that it returns. This does not
need IPython, so IPython is not imported.
"""

from __future__ import annotations

import base64
from functools import partial
from pathlib import Path
from typing import Any

from krea_batch.errors import escape_unprintable
from krea_batch.jobs import Outcome

MAX_EMBEDDED_BYTES = 8 << 20  # chosen: a notebook keeps the image in its file, a third larger than it is
MAX_WIDTH = 512  # chosen: in pixels; two fit beside each other. The complete image is embedded
_MEDIA_TYPES = ("image/png", "image/jpeg", "image/gif", "image/webp")  # those that every browser shows

MimeBundle = tuple[dict[str, str], dict[str, Any]]
"""Data by media type, and metadata by media type."""


def show_in_notebooks(outcome: Outcome, run_dir: Path) -> None:
    """Let notebooks show the image. This sets no field of the outcome, so it is not compared, encoded or copied."""
    outcome.__dict__["display"] = partial(outcome_display, run_dir)


def outcome_display(run_dir: Path, outcome: Outcome) -> MimeBundle:
    """Return the first image of a job, if it is stored locally; a text with it, for terminals and as a fallback."""
    text = {"text/plain": _text(outcome)}
    if not outcome.files:
        return text, {}
    stored = outcome.files[0]
    if stored.media_type not in _MEDIA_TYPES or stored.bytes > MAX_EMBEDDED_BYTES:
        return text, {}
    try:
        image = (run_dir / stored.path).read_bytes()
    except (OSError, ValueError):  # It is in an object store, was moved, or a sink returned no path.
        return text, {}
    if len(image) != stored.bytes:
        return text, {}
    size = {"width": min(stored.width, MAX_WIDTH)} if stored.width else {}
    return text | {stored.media_type: base64.b64encode(image).decode()}, {stored.media_type: size}


def _text(outcome: Outcome) -> str:
    """Return the outcome in one line; that of a failed job says why."""
    if outcome.error is None:
        return repr(outcome)
    problem = f"{outcome.id}: {outcome.status.value}: {outcome.error.message} ({outcome.error.kind})"
    # The gateway wrote the message, and a terminal would follow its control characters.
    return escape_unprintable(problem)
