"""What must hold after each run, by the accounts of the gateway, the ledger and the files.

- a job is charged once, and once more only for each ERROR, each resubmission by the user, and each ambiguous POST
  with `ambiguous="resubmit"`; `max_charges` is never exceeded;
- each charged request_id is recorded for its job, or its job has an ambiguous POST; no job has that of another one;
- a request_id that arrived is in the ledger, in unrecorded.jsonl or on standard error; one that may be in a damaged
  answer is polled, recorded if the poll proves it, and else named in the error of its job;
- unrecorded.jsonl is adopted by the next run;
- in an outage at most 25 jobs become ambiguous or rejected, and one more for each probe;
- every image under images/ is complete and belongs to its job; files of the user are unchanged;
- results.jsonl, the charges and the exit code agree with the ledger; after a crash, no row is ahead of it.

The gateway (`random_gateway`) checks each request: there is no POST without a recorded intent, no poll of an
unrecorded request_id, no request on a connection that has brought a reply to another one, and no answer to a POST is
given up early.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from krea_batch.cli.ui.summary import RunTotals
from krea_batch.jobs import FINAL
from krea_batch.storage.png import PngValidator
from krea_batch.storage.run_dir import RESULTS
from krea_batch.storage.spill import SPILL, read_spill
from tests.engine_fixtures import rows_by_id
from tests.simulation.answers import CANDIDATE, CLEAR, CONFLICT, NOTHING
from tests.simulation.client_process import ClientProcess
from tests.simulation.outages import Outage
from tests.simulation.random_cdn import image_bytes
from tests.simulation.random_gateway import Post

if TYPE_CHECKING:
    from tests.simulation.scenario import Scenario

FOREIGN_FILES = {"notes.txt": b"mine", "images/b.png": b"my own b", "images/c-2.png": b"", "images/e.png.part": b"e"}
MAX_IN_DOUBT = 25  # jobs in an outage, besides the probes


class Invariants:
    """The checks of one scenario. Each raises AssertionError."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._out = scenario.out
        self._gateway = scenario.gateway
        self._ledger = scenario.ledger
        self.doubted: dict[int, str] = {}  # job ids by the number of a submission whose result was unknown

    def check_always(self) -> None:
        """Check what holds after every run and every decision of the user."""
        assert not self._gateway.violations, self._gateway.violations
        for name, data in FOREIGN_FILES.items():
            assert (self._out / name).read_bytes() == data, f"{name} was changed"
        self._check_charges()
        self._check_images()

    def check_run(self, *, has_ended: bool, ledger_failed: bool, stderr: str) -> None:
        """Check a run. It may have crashed, so that it has not ended, or have ended early because of its ledger."""
        for outage in self._gateway.outages:
            self._check_outage(outage)
        if has_ended:
            assert all(line.startswith("krea-batch: ") for line in stderr.splitlines()), stderr
            self._check_arrived(stderr, self._gateway.process, ledger_failed=ledger_failed)
        if has_ended and not ledger_failed:
            self._check_adopted()
            self.check_results()
        else:
            self._check_rows()

    def check_all_ended(self) -> None:
        """Check, after the last run, that every job has ended for good."""
        states = self._ledger.states()
        assert set(states) == set(self._scenario.job_ids), "jobs are missing"
        final = {"succeeded", "failed", "errored", "rejected", "ambiguous", "cancelled"}
        assert set(states.values()) <= final, "jobs are open"

    # ---- charges -----------------------------------------------------------------------------------------

    def _check_charges(self) -> None:
        scenario, charged = self._scenario, Counter(self._gateway.charged.values())
        sql = "SELECT submission_no, job_id, result, s.request_id FROM submissions s JOIN jobs USING (job_no)"
        posts = self._ledger.query(sql)
        recorded = {request_id: job_id for _, job_id, _, request_id in posts if request_id}
        in_doubt = {number: job_id for number, job_id, result, _ in posts if result in (None, "ambiguous")}
        ambiguous = Counter(in_doubt.values())
        doubted = Counter((self.doubted | in_doubt).values())
        unrecorded = Counter(
            prompt for request_id, prompt in self._gateway.charged.items() if request_id not in recorded
        )
        for request_id, job_id in recorded.items():
            assert self._gateway.charged.get(request_id) == job_id, f"{request_id} does not belong to {job_id}"
        for job_id in scenario.job_ids:
            errors = len(self._gateway.statuses.reported_errors.get(job_id, ()))
            allowed_resubmits = (
                doubted[job_id] + scenario.user_retries[job_id]
                if scenario.may_resubmit
                else scenario.resubmit_decisions[job_id]
            )
            assert charged[job_id] <= 1 + errors + allowed_resubmits, f"{job_id} was charged {charged[job_id]} times"
            assert unrecorded[job_id] <= ambiguous[job_id], f"a charged POST of {job_id} is not recorded"
        if scenario.max_charges is not None:
            ((refunded,),) = self._ledger.query("SELECT count(*) FROM submissions WHERE refunded") or [(0,)]
            maximum = max(len(recorded) + ambiguous.total(), charged.total()) - refunded
            assert maximum <= scenario.max_charges, f"{maximum} charges exceed the limit of {scenario.max_charges}"

    def _check_arrived(self, stderr: str, process: ClientProcess, *, ledger_failed: bool) -> None:
        """Check that every request_id that a process has read is kept, and was used."""
        spill = self._out / SPILL
        kept = stderr + (spill.read_text("utf-8") if spill.exists() else "")
        kept += str(self._ledger.query("SELECT error_message FROM jobs"))
        recorded = {request_id for (request_id,) in self._ledger.query("SELECT request_id FROM submissions")}
        for post in self._gateway.posts:
            request_id, is_read = post.request_id, post.is_read and post.process is process
            if request_id and is_read and post.finds != NOTHING and request_id not in recorded:
                if ledger_failed:
                    is_kept = request_id in kept or self._may_be_forgotten(post)
                    assert is_kept, f"{request_id} of {post.prompt} is lost"
                else:
                    assert self._is_in_doubt(post), f"{request_id} of {post.prompt} was not used"

    def _check_adopted(self) -> None:
        """Check that nothing is left of unrecorded.jsonl but request_ids that came in the wrong answer."""
        for _, spilled in read_spill(self._out):
            assert spilled, f"{SPILL} cannot be read"
            owner = self._gateway.charged[spilled.request_id]
            assert owner != spilled.job_id, f"{spilled.request_id} of {owner} was not adopted"

    def _is_in_doubt(self, post: Post) -> bool:
        """Return whether polls could not prove the request_id of a damaged answer, and its job says so."""
        request_id, gateway = post.request_id, self._gateway
        if post.finds == CLEAR:
            return False
        if post.finds == CANDIDATE:
            was_polled = post.process.polled[request_id] or post.process.gives_up_early
            # The answer to a later POST may name it as well, and is then proven or not for that job.
            names_it_too = any(other.finds == CONFLICT and other.other == request_id for other in gateway.posts)
            if not was_polled or (request_id in post.process.proven and not names_it_too):
                return False
        errors = self._ledger.query("SELECT error_message FROM jobs WHERE job_id = ?", post.prompt)
        return self._may_be_forgotten(post) or request_id in str(errors)

    def _may_be_forgotten(self, post: Post) -> bool:
        """Return whether the user prefers to submit a job in doubt again."""
        return self._scenario.may_resubmit and post.finds != CLEAR

    def _check_outage(self, outage: Outage) -> None:
        """Check that submits were held soon, if there are enough jobs that would have been submitted."""
        if not outage.prompts_s or not self._gateway.few_faults:
            return
        states = self._ledger.states()
        prompts = {prompt for prompt, _ in outage.prompts_s}
        in_doubt = sum(states[prompt] in ("ambiguous", "rejected", "submitting") for prompt in prompts)
        first_s = outage.prompts_s[0][1]
        probes = sum(at_s > first_s + outage.answers_after_s + 1.0 for _, at_s in outage.prompts_s)
        assert in_doubt <= MAX_IN_DOUBT + probes, f"an outage ({outage.kind}) left {in_doubt} jobs in doubt"
        assert probes <= MAX_IN_DOUBT, f"there were {probes} probes in an outage ({outage.kind})"

    # ---- files -------------------------------------------------------------------------------------------

    def _check_images(self) -> None:
        for path in (self._out / "images").glob("*.png"):
            if f"images/{path.name}" not in FOREIGN_FILES:
                validator = PngValidator()
                validator.feed(path.read_bytes())
                validator.finish()
        for job_id, files in self._ledger.query("SELECT job_id, files FROM jobs WHERE state = 'succeeded'"):
            assert files != "[]", f"{job_id} succeeded without an image"

    def _check_rows(self) -> None:
        """Check, after a crash, that results.jsonl is not ahead of the ledger."""
        path = self._out / RESULTS
        states = self._ledger.states()
        recorded = {request_id for (request_id,) in self._ledger.query("SELECT request_id FROM submissions")}
        for line in path.read_bytes().splitlines() if path.exists() else []:
            row = orjson.loads(line)
            is_known = row["request_id"] is None or row["request_id"] in recorded
            is_recorded = row["status"] != "succeeded" or states[row["id"]] == "succeeded"
            assert is_known and is_recorded, f"the row of {row['id']} is ahead of the ledger"

    def check_results(self) -> None:
        """Check, after a process that ended by itself, that results and files agree with the ledger."""
        in_ledger = self._ledger.states()
        by_id = rows_by_id(self._out)
        final = {job_id: state for job_id, state in in_ledger.items() if state in FINAL}
        assert {job_id: row["status"] for job_id, row in by_id.items()} == final
        paths: list[str] = []
        for job_id, row in by_id.items():
            for n, file in enumerate(row["files"], 1):
                paths.append(file["path"])
                _check_file(self._out, job_id, n, file)
            assert bool(row["files"]) == (row["status"] == "succeeded")
        assert len(set(paths)) == len(paths), "two jobs have the same image"
        self._check_summary(in_ledger)

    def _check_summary(self, in_ledger: dict[str, str]) -> None:
        summary = RunTotals.read(self._out)
        assert {state.value: count for state, count in summary.counts.items()} == Counter(in_ledger.values())
        assert summary.all_succeeded == (set(in_ledger.values()) <= {"succeeded"})
        posts = self._ledger.query("SELECT result, refunded, request_id FROM submissions")
        assert summary.charges.charged + summary.charges.refunded == sum(1 for *_, request_id in posts if request_id)
        assert summary.charges.refunded == sum(refunded for _, refunded, _ in posts)
        assert summary.charges.unknown == sum(result in (None, "ambiguous") for result, *_ in posts)
        settled = summary.charges.charged + summary.charges.refunded
        charged = len(self._gateway.charged)
        assert settled <= charged <= settled + summary.charges.unknown, "the charges do not add up"


def _check_file(out: Path, job_id: str, n: int, file: dict[str, Any]) -> None:
    data = (out / file["path"]).read_bytes()
    assert data == image_bytes(job_id, n), f"{file['path']} does not belong to {job_id}"
    assert hashlib.sha256(data).hexdigest() == file["sha256"]
    assert len(data) == file["bytes"]
