"""What must hold with several workers, besides `invariants`, after each commit and after each round.

- no run POSTs after it was fenced, or a job that another run has submitted since (`workers_gateway` checks it);
- a run is fenced only if another one has watched it for a whole lease, and its beat stood still, or if its worker
  has crashed, or has closed its run, and the file of its lock is in its place;
- what is charged and what is reserved never exceed `max_charges`, over all runs;
- the counters of the runs agree with the submissions;
- a request_id that arrived is recorded, also by a worker that was taken for dead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from krea_batch.rules.lease import LEASE_S
from tests.simulation.invariants import Invariants
from tests.simulation.worker_faults import WorkerFiles

if TYPE_CHECKING:
    from tests.simulation.workers_scenario import WorkersScenario

TOLERANCE_S = 1e-6  # timers of the loop may be that early


class WorkerInvariants(Invariants):
    """The checks of one scenario with several workers. Each raises AssertionError."""

    def __init__(self, scenario: WorkersScenario) -> None:
        super().__init__(scenario)
        self._workers_scenario = scenario
        self._last_beat_s: dict[int, float] = {}  # when each run has committed for the last time
        self._known_fenced: set[int] = set()

    def check_commit(self, files: WorkerFiles, beat_of: int | None) -> None:
        """Check the ledger after a commit of a worker."""
        try:
            self._check_counters()
            self._check_fences(files, beat_of)
        except AssertionError as error:  # The engine would take it for its own.
            self._gateway.violations.append(str(error))
        for submission_no, job_id in self._ledger.query(
            "SELECT submission_no, job_id FROM submissions JOIN jobs USING (job_no) WHERE result = 'ambiguous'"
        ):
            self.doubted[submission_no] = job_id

    def check_workers(self, stderr: str) -> None:
        """Check a round, in which every worker has ended or crashed."""
        scenario = self._workers_scenario
        files = scenario.gateway.files
        assert all(line.startswith("krea-batch: ") for line in stderr.splitlines()), stderr
        for worker in scenario.workers:
            if not worker.has_crashed:
                self._check_arrived(stderr, worker, ledger_failed=files[worker].was_cut_off)
        ended = [worker for worker in scenario.workers if worker.has_ended]
        failed = [
            worker for worker in ended if files[worker].was_cut_off or files[worker].run_no in self._known_fenced
        ]
        is_clean = len(ended) == len(scenario.workers) and not failed
        last_was_alone = any(files[worker].was_alone_at_end for worker in ended)
        if is_clean:
            assert last_was_alone, "no worker wrote the results"
            self.check_results()
        else:
            self._check_rows()
        if self._gateway.no_faults:
            self._check_adopted()

    def _check_counters(self) -> None:
        query = self._ledger.query
        ((charged, reserved),) = query(
            "SELECT sum(charged), sum(reserved) FILTER (WHERE ended_at IS NULL AND NOT fenced) FROM runs"
        )
        ((counted,),) = query(
            "SELECT count(*) FROM submissions"
            " WHERE result IS NULL OR result = 'ambiguous' OR (result = 'accepted' AND NOT refunded)"
        )
        assert (charged or 0) == counted, f"the runs count {charged} charges, but there are {counted}"
        max_charges = self._workers_scenario.max_charges
        if max_charges is not None:
            total = counted + (reserved or 0)
            assert total <= max_charges, f"{total} charges exceed the limit of {max_charges}"

    def _check_fences(self, files: WorkerFiles, beat_of: int | None) -> None:
        now_s = self._workers_scenario.now_s()
        if beat_of is not None:
            self._last_beat_s[beat_of] = now_s
        fenced = {run_no for (run_no,) in self._ledger.query("SELECT run_no FROM runs WHERE fenced")}
        new, self._known_fenced = fenced - self._known_fenced, fenced
        for run_no in new:
            if run_no not in self._last_beat_s or files.is_opening_alone or self._has_released_its_lock(run_no):
                continue
            watched_s = files.worker.watched_s(self._last_beat_s[run_no])
            assert watched_s >= LEASE_S - TOLERANCE_S, f"run {run_no} was fenced after only {watched_s:.1f} s"

    def _has_released_its_lock(self, run_no: int) -> bool:
        files = self._workers_scenario.gateway.files.values()
        return any(
            (run_no in own.closed_runs or (own.run_no == run_no and own.worker.has_crashed))
            and not own.loses_lock_file
            for own in files
        )
