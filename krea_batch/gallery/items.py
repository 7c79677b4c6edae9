"""Rows of the ledger come in; what the page knows of each job goes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from krea_batch.jobs import Outcome

PARAMETERS = ("aspect_ratio", "creativity", "seed", "styles", "moodboards", "image_style_references")


def item(job_no: int, outcome: Outcome) -> dict[str, Any]:
    """A job as the page has it. `files` holds names and sizes; what is empty is left out of `parameters`."""
    request = outcome.request
    return {
        "n": job_no,
        "id": outcome.id,
        "status": outcome.status.value,
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


def local_image_path(out: Path, path: str) -> Path | None:
    """The file of a picture; None where it is kept in an object store, or would lie outside of the run's folder."""
    inside = "://" not in path and not Path(path).is_absolute() and ".." not in Path(path).parts
    return out / path if inside else None
