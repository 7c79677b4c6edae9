"""Deliberate bugs of the engine, each of which the simulation must find.

Each function plants one bug and says what it breaks. `PLANTED_FAULTS` has the message of the violation that it must
lead to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from krea_batch.gateway import client, evidence, wire
from krea_batch.gateway.wire import Answer, PolledStatus
from krea_batch.jobs import State, StoredFile
from krea_batch.ledger import Ledger, consistency, waiting
from krea_batch.ledger.sqlite import SqliteLedger
from krea_batch.maintenance.resolve import AmbiguousJobs
from krea_batch.maintenance.retry import RetryPlan
from krea_batch.pipeline.charge_budget import ChargeBudget
from krea_batch.pipeline.emitter import EventEmitter
from krea_batch.pipeline.executor import TransitionExecutor
from krea_batch.pipeline.in_flight_job import InFlightJob
from krea_batch.rules import lifecycle
from krea_batch.rules.circuit_breaker import CircuitBreaker
from krea_batch.rules.lifecycle import Action, Stage, Transition
from krea_batch.rules.verdicts import Ambiguous, NotSent
from krea_batch.storage import image_file, results_file, spill
from krea_batch.storage.image_file import ImageFile
from krea_batch.storage.run_dir import RESULTS

Plant = Callable[[pytest.MonkeyPatch], None]


class PlantedFault(NamedTuple):
    """A bug, and a part of the message of the violation. `first` is the first seed, chosen to find it soon."""

    plant: Plant
    message: str
    first: int = 0


# ---- POSTs -----------------------------------------------------------------------------------------------


def retry_a_cut_post(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cut POST is retried as if it had not been sent."""
    after_post = lifecycle.after_post

    def requeue_cut_post(verdict: Any, **known: Any) -> Transition:
        return after_post(NotSent(verdict.reason) if isinstance(verdict, Ambiguous) else verdict, **known)

    monkeypatch.setattr(lifecycle, "after_post", requeue_cut_post)


def forget_an_acceptance(monkeypatch: pytest.MonkeyPatch) -> None:
    """An accepted POST is recorded as refused."""

    def forget_acceptances(self: SqliteLedger, accepted: Sequence[tuple[int, str, float]]) -> list[bool]:
        for job_no, _, _ in accepted:
            self.revert_intent(job_no, "refused")
        return [False] * len(accepted)

    monkeypatch.setattr(SqliteLedger, "mark_accepted_many", forget_acceptances)


def poll_before_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job is polled before its request_id is recorded."""
    apply = TransitionExecutor.apply

    async def poll_first(self: TransitionExecutor, job: InFlightJob, transition: Transition) -> bool:
        if transition.action is Action.ACCEPT:
            await self._run.gateway.poll(transition.request_id)
        return await apply(self, job, transition)

    monkeypatch.setattr(TransitionExecutor, "apply", poll_first)


def drop_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The request_id in a damaged answer is not looked for."""
    monkeypatch.setattr(wire, "in_doubt", lambda reason, _: Ambiguous(reason))


def believe_one_of_two_request_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two request_ids in an answer, the one in its place becomes the candidate."""
    find_all = wire._named_ids

    def find_first(body: bytes) -> set[str]:
        fields = wire._decode(body)
        return {fields.request_id} if fields and wire.is_request_id(fields.request_id) else find_all(body)

    monkeypatch.setattr(wire, "_named_ids", find_first)


def give_up_late_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that comes after the time-out is not read."""
    monkeypatch.setattr(client, "LATE_ANSWER_S", 0.0)


def never_look_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that stalled gives up the answers that arrived in the meantime."""
    monkeypatch.setattr(client, "LAST_LOOK_S", 0.0)


def count_charges_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A POST counts against max_charges when it is answered, not when it is sent."""
    monkeypatch.setattr(ChargeBudget, "reserve", lambda _: None)
    monkeypatch.setattr(ChargeBudget, "release", lambda self: self._changed.set())


def never_open_the_breaker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Submits are not held in an outage."""
    monkeypatch.setattr(CircuitBreaker, "is_open", False)


# ---- polls and downloads ---------------------------------------------------------------------------------


def believe_another_requests_status(monkeypatch: pytest.MonkeyPatch) -> None:
    """A status is believed whichever request it names."""
    read_poll_answer = wire.read_poll_answer

    def read_any(answer: Answer, request_id: str, **options: Any) -> PolledStatus:
        named = evidence.find_request_ids(answer.body) or {request_id}
        return read_poll_answer(answer, named.pop(), **options)

    monkeypatch.setattr(wire, "read_poll_answer", read_any)


def keep_every_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection is kept that has brought an answer to another request."""
    read_poll_answer = wire.read_poll_answer

    def name_any(answer: Answer, request_id: str, **options: Any) -> PolledStatus:
        return read_poll_answer(answer, request_id, **options)._replace(names_request=True)

    monkeypatch.setattr(wire, "read_poll_answer", name_any)


def wait_after_unknown_final_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job with an unknown status is polled although the gateway says when it was completed."""
    monkeypatch.setattr(wire, "_parse_timestamp", lambda _: None)


def resubmit_for_fresh_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job whose URLs have expired is submitted again instead of polled."""
    apply = TransitionExecutor.apply

    async def resubmit(self: TransitionExecutor, job: InFlightJob, transition: Transition) -> bool:
        if transition.action is Action.REFRESH:
            await apply(self, job, msgspec.structs.replace(transition, next_stage=None))
            transition = Transition(action=Action.REQUEUE, old=State.ACCEPTED, next_stage=Stage.SUBMITTER)
        return await apply(self, job, transition)

    monkeypatch.setattr(TransitionExecutor, "apply", resubmit)


# ---- the ledger and the files ----------------------------------------------------------------------------


def rename_before_the_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image gets its name before it is synced."""
    commit_name, stored_by_image = ImageFile.commit_name, dict[ImageFile, StoredFile]()

    def name_before_sync(self: ImageFile) -> None:
        stored_by_image[self] = commit_name(self)

    def sync_after_name(self: ImageFile) -> StoredFile:
        disk = vars(image_file)["os"]
        fd = disk.open(Path(self.images_dir).parent / stored_by_image[self].path, disk.O_WRONLY)
        disk.fsync(fd)
        disk.close(fd)
        return stored_by_image.pop(self)

    monkeypatch.setattr(ImageFile, "sync", name_before_sync)
    monkeypatch.setattr(ImageFile, "commit_name", sync_after_name)


def write_the_row_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The row of a job is in results.jsonl before its end is in the ledger."""
    apply = TransitionExecutor.apply

    async def append_row_first(self: TransitionExecutor, job: InFlightJob, transition: Transition) -> bool:
        if transition.action is Action.STORE:
            outcome = await self._run.record(Ledger.find_job, job.id)
            assert outcome
            row = msgspec.structs.replace(outcome, status=State.SUCCEEDED, files=transition.files)
            results_file._append(self._run.settings.out / RESULTS, [results_file.encode_row(row)])
            await asyncio.sleep(0.1)
        return await apply(self, job, transition)

    monkeypatch.setattr(TransitionExecutor, "apply", append_row_first)


def write_no_spill(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request_id that the ledger cannot take is written nowhere."""
    monkeypatch.setattr(spill, "write_spill", lambda *_: None)


def adopt_no_spill(monkeypatch: pytest.MonkeyPatch) -> None:
    """unrecorded.jsonl is not read at the start of a run."""
    monkeypatch.setattr(consistency, "adopt_spill", lambda *_: None)


def wait_for_no_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run ends as soon as another program has locked its ledger."""
    monkeypatch.setattr(waiting, "MAX_WAIT_S", 0.0)


# ---- commands --------------------------------------------------------------------------------------------


def retry_all_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A retry of some jobs submits all that ended without an image."""
    resubmit = RetryPlan.resubmit
    monkeypatch.setattr(RetryPlan, "resubmit", lambda self, _: resubmit(self, self.jobs()))


def adopt_for_another_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """The request_id that the user gives for one job is recorded for another."""
    adopt = AmbiguousJobs.adopt

    def adopt_for_first(self: AmbiguousJobs, request_ids: Mapping[str, str]) -> None:
        (request_id,) = request_ids.values()
        adopt(self, {self.jobs[0].job_id: request_id})

    monkeypatch.setattr(AmbiguousJobs, "adopt", adopt_for_first)


# ---- listeners -------------------------------------------------------------------------------------------


def let_listeners_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exception of a listener reaches the stage that has emitted the event."""

    def emit(self: EventEmitter, event: Any) -> None:
        for listener in self._listeners:
            listener(event)

    monkeypatch.setattr(EventEmitter, "emit", emit)


PLANTED_FAULTS = [
    PlantedFault(retry_a_cut_post, "was charged 2 times", first=6),
    PlantedFault(forget_an_acceptance, "is not recorded", first=11),
    PlantedFault(poll_before_recording, "which is not recorded"),
    PlantedFault(drop_evidence, "was not used"),
    PlantedFault(believe_one_of_two_request_ids, "does not belong to", first=24),
    PlantedFault(give_up_late_answers, "was given up after"),
    PlantedFault(never_look_again, "had arrived, and was not read"),
    PlantedFault(count_charges_late, "exceed the limit", first=11),
    PlantedFault(never_open_the_breaker, "an outage", first=7),
    PlantedFault(believe_another_requests_status, "does not belong to"),
    PlantedFault(keep_every_connection, "a connection was used again"),
    PlantedFault(wait_after_unknown_final_words, "jobs are open"),
    PlantedFault(resubmit_for_fresh_urls, "was charged 2 times"),
    PlantedFault(rename_before_the_sync, "PngError", first=4),
    PlantedFault(write_the_row_first, "is ahead of the ledger", first=97),
    PlantedFault(write_no_spill, "is lost", first=9),
    PlantedFault(adopt_no_spill, "was not adopted", first=9),
    PlantedFault(wait_for_no_lock, "another program has locked the ledger", first=4),
    PlantedFault(retry_all_jobs, "was charged 2 times"),
    PlantedFault(adopt_for_another_job, "does not belong to"),
    PlantedFault(let_listeners_raise, "ListenerError"),
]
