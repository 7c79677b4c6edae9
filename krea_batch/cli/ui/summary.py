"""The summary of a run, as text or JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import orjson

from krea_batch.cli.ui.error_messages import error_text
from krea_batch.cli.ui.explanations import further_reading
from krea_batch.cli.ui.formatting import format_bytes, format_duration, pluralize, printable
from krea_batch.errors import KreaBatchError
from krea_batch.jobs import State
from krea_batch.ledger import Charges, LedgerReader, LiveRun, read_ledger
from krea_batch.ledger.rows import iso
from krea_batch.storage.outputs import path_text
from krea_batch.storage.run_dir import IMAGES, RESULTS

FINAL_FIRST = sorted(State, key=lambda state: not state.info.final)
"""The states in the order of the summary."""


class RunTotals(msgspec.Struct, frozen=True):
    """The job counts and charges of a run directory."""

    out: Path
    counts: dict[State, int]
    charges: Charges
    workers: list[LiveRun] = []

    @classmethod
    def read(cls, out: Path) -> RunTotals:
        """Read them from the ledger. Raises RunDirError if there is none, LedgerError if it cannot be read."""
        with read_ledger(out) as store:
            return cls(out, *store.read(LedgerReader.counts, LedgerReader.charges, LedgerReader.workers))

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def all_succeeded(self) -> bool:
        return self.counts.get(State.SUCCEEDED, 0) == self.total

    def lines(self, *, simulated: bool = False) -> list[str]:
        """Return a line for each state that any job is in, then the charges."""
        width = max((len(f"{count:,}") for count in self.counts.values()), default=1)
        rows = [
            f"  {self.counts[state]:>{width},} {state.info.label}" for state in FINAL_FIRST if state in self.counts
        ]
        charges = self.charges
        known = f"{charges.charged:,} charged, {charges.refunded:,} refunded (ERROR)"
        label = "charges of the simulator" if simulated else "charges"
        rows.append(f"  {label}: {known}, {charges.unknown:,} unknown (ambiguous)")
        if charges.server_errors:
            submits = pluralize(charges.server_errors, "submit")
            rows.append(f"           {submits} answered with 500 or 503 (--count-server-errors counts them)")
        return rows

    def worker_lines(self) -> list[str]:
        """Return a line for each process that works on the run, if there are several."""
        if len(self.workers) < 2:
            return []
        return [
            f"  worker {printable(each.worker)} since {iso(each.started_at)}: {each.in_flight:,} in flight,"
            f" {each.pending:,} to be submitted"
            for each in self.workers
        ]

    def fields(self) -> dict[str, Any]:
        return {
            "out": path_text(self.out),
            "jobs": {state.value: count for state, count in self.counts.items()},
            "charges": msgspec.to_builtins(self.charges),
            "workers": [
                {
                    "worker": each.worker,
                    "started_at": iso(each.started_at),
                    "in_flight": each.in_flight,
                    "pending": each.pending,
                }
                for each in self.workers
            ],
        }


class RunSummary(msgspec.Struct, frozen=True):
    """The summary at the end of a run.

    `problem` is why it stopped early, or None. `found_limit` is the limit of the gateway that was found, in words.
    """

    totals: RunTotals
    seconds: float
    downloaded_bytes: int
    defects: int
    bad_lines: int
    simulated: bool
    not_started: int
    sink: str | None
    problem: KreaBatchError | None
    found_limit: str = ""

    def lines(self) -> list[str]:
        """Return the lines of the summary."""
        took = f"{format_duration(self.seconds)}, {format_bytes(self.downloaded_bytes)}"
        heading = f"{pluralize(self.totals.total, 'job')} in {took}" + (
            " (simulated, no cost)" if self.simulated else ""
        )
        lines = [heading, *self.totals.lines(simulated=self.simulated)]
        if self.found_limit:
            lines.append(f"  limit of the gateway: about {self.found_limit}")
        if self.not_started:
            lines.append(f"  {pluralize(self.not_started, 'job')} of the input not started")
        if self.bad_lines:
            lines.append(f"  {pluralize(self.bad_lines, 'invalid line')} skipped")
        if self.defects:
            lines.append(f"  {pluralize(self.defects, 'image')} not a valid PNG; see `defect` in the results")
        lines.append(f"images:   {self.sink or self.totals.out / IMAGES}")
        lines.append(f"results:  {self.totals.out / RESULTS}")
        if self.problem:
            reason = error_text(self.problem)
            lines += [f"stopped early: {reason}", *further_reading([reason])]
        return lines

    def as_json(self) -> str:
        fields = self.totals.fields() | {
            "seconds": round(self.seconds, 3),
            "downloaded_bytes": self.downloaded_bytes,
            "defects": self.defects,
            "bad_lines": self.bad_lines,
            "not_started": self.not_started,
            "simulated": self.simulated,
            "found_limit": self.found_limit or None,
            "stopped": error_text(self.problem) if self.problem else None,
        }
        return orjson.dumps(fields).decode()
