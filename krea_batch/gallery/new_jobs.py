"""Makes new jobs from images of a run: with other parameters, or with other seeds. Decides only; nothing is sent.

The jobs are made once, when their number and price are shown. What is submitted after the confirmation is exactly
these, so nothing that happens in between makes it more.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from itertools import chain, count
from typing import Annotated, Any

import msgspec

from krea_batch.jobs import MAX_ID_BYTES, AspectRatio, Creativity, Job, Outcome

MAX_NEW_SEEDS = 16  # chosen: as many as can be compared on a screen
MAX_NEW_JOBS = 1000  # chosen: for more, a job file is easier to check
SEEDS = 1 << 31  # chosen: seeds are drawn below this, so that every program can read them
VARIATION_OF = "variation_of"  # the key of metadata that names the job from which another one was made


class Changes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What differs in the new jobs. None keeps a parameter. `seeds` is the number of new seeds; 0 keeps the seed."""

    prompt: str | None = None
    aspect_ratio: AspectRatio | None = None
    creativity: Creativity | None = None
    seeds: Annotated[int, msgspec.Meta(ge=0, le=MAX_NEW_SEEDS)] = 0


def make_jobs(
    outcomes: Iterable[Outcome], changes: Changes, taken_ids: Collection[str], random_seed: Callable[[], int]
) -> list[Job]:
    """Return the new jobs of each outcome, in order. `taken_ids` are those of the run.

    Raises ValueError with a sentence: nothing would differ, there are too many jobs, or a request has a local
    reference image, whose file only its job file names.
    """
    fields = {name: value for name in ("prompt", "aspect_ratio", "creativity") if (value := getattr(changes, name))}
    if not fields and not changes.seeds:
        raise ValueError("Change at least one parameter, or ask for new seeds.")
    jobs: list[Job] = []
    ids = set(taken_ids)
    for outcome in outcomes:
        if "reference_files" in outcome.metadata:
            raise ValueError(f"{outcome.id} has a local reference image; run it again from its job file.")
        for seed_fields in [{"seed": random_seed()} for _ in range(changes.seeds)] or [{}]:
            values = fields | seed_fields
            job = _make_job(outcome, values, ids)
            ids.add(job.id)
            jobs.append(job)
        if len(jobs) > MAX_NEW_JOBS:
            raise ValueError(f"These would be more than {MAX_NEW_JOBS:,} jobs. Mark fewer images, or use a job file.")
    return jobs


def job_line(job: Job) -> bytes:
    """Return a job as a line of a JSONL job file."""
    return msgspec.json.encode(job) + b"\n"


def _make_job(outcome: Outcome, values: dict[str, Any], taken_ids: Collection[str]) -> Job:
    suffix = "".join(f"-{name}={_slug(value)}" for name, value in values.items() if name != "prompt")
    metadata = outcome.metadata | {VARIATION_OF: outcome.id}
    fields = outcome.request | values | {"id": _free_id(outcome.id, suffix, taken_ids), "metadata": metadata}
    return msgspec.convert({name: value for name, value in fields.items() if value is not None}, Job)


def _free_id(base: str, suffix: str, taken_ids: Collection[str]) -> str:
    """Return an id that no job has. A base that would be too long is cut. `suffix` is ASCII."""
    ends = chain([suffix], (f"{suffix}-{number}" for number in count(2)))
    ids = (base.encode()[: MAX_ID_BYTES - len(end)].decode("utf-8", "ignore") + end for end in ends)
    return next(job_id for job_id in ids if job_id not in taken_ids)


def _slug(value: object) -> str:
    return str(value).replace(":", "x")
