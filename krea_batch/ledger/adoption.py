"""Records the request_ids that the ledger could not take when they arrived; `storage.spill` has their file."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from krea_batch.jobs import State
from krea_batch.ledger.protocol import Ledger
from krea_batch.storage.spill import SPILL, SpilledId, keep_spill, read_spill

log = logging.getLogger("krea_batch")


def adopt_spill(ledger: Ledger, out: Path) -> None:
    """Record the request_ids of OUT/unrecorded.jsonl in the ledger, and remove the file when that is durable.

    A line stays in the file if no submission of its job is pending or ambiguous, or it cannot be read. Idempotent.
    Blocks.
    Call it before any decision about ambiguous jobs. Raises OSError, LedgerError.
    """
    lines = read_spill(out)
    if not lines:
        return
    adopted = ledger.transaction(partial(adopt_spilled, spilled=[line.spilled for line in lines]))
    remaining = [line for line, done in zip(lines, adopted, strict=True) if not done]
    for line in remaining:
        log.warning("! request_id not recorded file=%s line=%s", out / SPILL, line.data.decode("utf-8", "replace"))
    if len(remaining) < len(lines):
        keep_spill(out, remaining)


def adopt_spilled(ledger: Ledger, spilled: Sequence[SpilledId | None]) -> list[bool]:
    """Record that jobs were accepted whose result is unknown. Return for each whether the ledger now has the id."""
    return [each is not None and _adopt(ledger, each) for each in spilled]


def _adopt(ledger: Ledger, spilled: SpilledId) -> bool:
    found = ledger.submission_of(spilled.request_id)
    if found is not None:
        return found == spilled.job_id
    job = ledger.find_numbered_job(spilled.job_id)
    if job is None:
        return False
    job_no, state = job
    match state:
        case State.SUBMITTING:
            return ledger.mark_accepted(job_no, spilled.request_id, spilled.at)
        case State.AMBIGUOUS:
            return ledger.adopt(job_no, spilled.request_id, spilled.at)
        case _:  # Another run may have submitted the job again before anyone read the file. The charge counts.
            return ledger.record_late_result(None, job_no, "accepted", spilled.request_id, spilled.at)
