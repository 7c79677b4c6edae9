"""A gateway for tests that gives scripted responses to submits, polls and downloads.

Pass it to an engine instead of an HTTP client. Without a script every job is accepted, polled twice and downloaded:

    from krea_batch import Engine, Job
    from krea_batch.testing import ACCEPT, ErrorResponse, ScriptedGateway, run_virtual

    def test_a_rate_limited_job_succeeds(tmp_path):
        gateway = ScriptedGateway()
        gateway.submit_script["a fox"] = [ErrorResponse(429, retry_after_s=30), ACCEPT]

        async def main():
            async with Engine(tmp_path / "out", gateway_client=gateway) as engine:
                return await engine.generate(Job(prompt="a fox"))

        assert run_virtual(main()).status == "succeeded"
        assert list(gateway.charged.values()) == ["a fox"]

It charges as the real gateway does, when a POST arrives: `charged` holds every accepted POST, even if its response is
lost because the connection is cut or the process is killed.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar

import orjson

from krea_batch.gateway.url_policy import DownloadError
from krea_batch.rules.verdicts import (
    Accepted,
    Ambiguous,
    Finished,
    NotSent,
    PollFailed,
    PollVerdict,
    PostVerdict,
)
from krea_batch.testing.script_entries import (
    ACCEPT,
    CUT_REASON,
    ETAG,
    FINISH,
    IMAGE,
    PROCESSING,
    QUEUED,
    DownloadStep,
    ErrorResponse,
    PollStep,
    ScriptedDownload,
    ScriptStep,
    SubmitStep,
    make_png,
)

__all__ = ["ScriptedGateway"]

S = TypeVar("S")

ANSWER_S = 0.05  # chosen: a poll or a download is answered faster than a POST


class Script(Generic[S]):
    """The entries for each prompt. Assign a list: `script["a fox"] = [QUEUED, (5.0, FINISH)]`; `[]` removes it."""

    def __init__(self) -> None:
        self._entries: dict[str, list[tuple[float, S]]] = {}

    def __setitem__(self, prompt: str, entries: Iterable[S | tuple[float, S]]) -> None:
        self._entries[prompt] = [entry if isinstance(entry, tuple) else (0.0, entry) for entry in entries]

    def update(self, entries: Mapping[str, Iterable[S | tuple[float, S]]]) -> None:
        """Assign the lists of several prompts."""
        for prompt, each in entries.items():
            self[prompt] = each

    def clear(self) -> None:
        """Remove the entries of all prompts."""
        self._entries.clear()

    def remaining(self, prompt: str) -> int:
        """Return how many entries are left: at least 1, because the last one stays, or 0 without a script."""
        return len(self._entries.get(prompt, []))

    def peek(self, prompt: str, default: S) -> S:
        """Return the next entry."""
        return (self._entries.get(prompt) or [(0.0, default)])[0][1]

    def take(self, prompt: str, default: S) -> tuple[float, S]:
        """Return the next entry and the seconds before it, and go on to the one after it unless it is the last."""
        entries = self._entries.get(prompt) or [(0.0, default)]
        return entries.pop(0) if len(entries) > 1 else entries[0]


class ScriptedGateway:
    """Responds to each prompt from `submit_script`, `poll_script` and `download_script`.

    A script is a list of entries by prompt (`krea_batch.testing.script_entries`); each request takes the next entry,
    and the last entry is repeated. Without a script a job is accepted, is PROCESSING at its first poll and has
    finished at its second, and its image is that of `image`. `job_durations_s`, by prompt, is how long after the
    acceptance a job without a poll script is PROCESSING.

    What the engine did: `submitted_bodies`, `submitted_prompts`, `submit_times_s`, `poll_times_s` (by request_id),
    `downloads` (URL and offset), `charged` (prompt by request_id), `pending_submits`, `peak_pending_submits`.
    Times are those of the event loop. `on_submit` and `on_poll` are called with the prompt or the request_id
    before the response; they may raise. A POST takes `submit_duration_s`.

    Use one gateway for all engines on a run directory: a gateway knows only the jobs that it has accepted.
    """

    def __init__(self) -> None:
        self.submit_script: Script[SubmitStep] = Script()
        self.poll_script: Script[PollStep] = Script()
        self.download_script: Script[DownloadStep] = Script()
        self.job_durations_s: dict[str, float] = {}
        self.submitted_bodies: list[dict[str, Any]] = []
        self.submit_times_s: list[float] = []
        self.poll_times_s: dict[str, list[float]] = defaultdict(list)
        self.downloads: list[tuple[str, int]] = []
        self.charged: dict[str, str] = {}  # prompts by request_id
        self._accepted_s: dict[str, float] = {}  # times by request_id
        self.submit_duration_s = 0.1
        self.pending_submits = 0
        self.peak_pending_submits = 0
        self.on_submit: Callable[[str], None] = lambda _prompt: None
        self.on_poll: Callable[[str], None] = lambda _request_id: None

    async def submit(
        self, body: bytes, *, callback: str = "", on_sending: Callable[[], Awaitable[str | None]] | None = None
    ) -> PostVerdict:
        """Return the next verdict for a POST, after `submit_duration_s`. The callback path is ignored."""
        request = orjson.loads(body)
        prompt = request["prompt"]
        self.on_submit(prompt)
        self.submitted_bodies.append(request)
        self.submit_times_s.append(asyncio.get_running_loop().time())
        will_send = not isinstance(self.submit_script.peek(prompt, ACCEPT), NotSent)
        if on_sending and will_send and (reason := await on_sending()):
            return NotSent(reason)
        self.pending_submits += 1
        self.peak_pending_submits = max(self.peak_pending_submits, self.pending_submits)
        try:
            wait_s, step = self.submit_script.take(prompt, ACCEPT)
            verdict = self._receive(step, prompt)
            if isinstance(verdict, Accepted):
                self._accepted_s[verdict.request_id] = self.submit_times_s[-1]
            await asyncio.sleep(self.submit_duration_s + wait_s)
        finally:
            self.pending_submits -= 1
        if isinstance(verdict, Exception):
            raise verdict
        return verdict

    @property
    def submitted_prompts(self) -> list[str]:
        """Return the prompts of all POSTs in order."""
        return [body["prompt"] for body in self.submitted_bodies]

    def accept(self, prompt: str) -> Accepted:
        """Charge a new job and return its verdict."""
        request_id = f"krea-2-large-text-to-image_{len(self.charged):08d}"
        self.charged[request_id] = prompt
        return Accepted(request_id, QUEUED)

    async def poll(self, request_id: str) -> PollVerdict:
        """Return the next verdict for a poll."""
        prompt = self._prompt_of(request_id)
        times_s = self.poll_times_s[request_id]
        times_s.append(asyncio.get_running_loop().time())
        self.on_poll(request_id)
        wait_s, step = self.poll_script.take(prompt, FINISH if self._is_done(request_id) else PROCESSING)
        await asyncio.sleep(ANSWER_S + wait_s)
        match step:
            case Exception():
                raise step
            case ScriptStep.FINISH:
                return self.finished(request_id)
            case ScriptStep.CUT:
                return PollFailed(CUT_REASON)
            case ErrorResponse():
                return step.to_poll(request_id)
            case ScriptStep():
                raise _misplaced(step, "poll_script")
            case _:
                return step

    def finished(self, request_id: str, outputs: int = 1) -> Finished:
        """Return the verdict of a finished job with this many images."""
        return Finished(
            tuple(f"https://cdn.example/{request_id}/{n}.png" for n in range(1, outputs + 1)), "image/png"
        )

    async def download(self, url: str, *, offset: int = 0, etag: str | None = None) -> ScriptedDownload:
        """Return the next download of an image; with the matching ETag it starts at `offset`."""
        self.downloads.append((url, offset))
        request_id = url.split("/")[-2]
        wait_s, step = self.download_script.take(self._prompt_of(request_id), IMAGE)
        await asyncio.sleep(ANSWER_S + wait_s)
        match step:
            case Exception():
                raise step
            case ScriptStep.CUT:
                raise DownloadError(CUT_REASON)
            case ErrorResponse():
                raise step.to_download()
            case ScriptedDownload():
                return step
            case list():
                return ScriptedDownload(step)
            case ScriptStep.IMAGE:
                data = self.image(request_id)
            case ScriptStep():
                raise _misplaced(step, "download_script")
            case bytes():
                data = step
        start = offset if etag == ETAG else 0
        return ScriptedDownload([data[start:]], offset=start)

    def image(self, request_id: str) -> bytes:
        """Return the image of a job. Override it to serve other images."""
        return make_png(text=self._prompt_of(request_id).encode())

    def _receive(self, step: SubmitStep, prompt: str) -> PostVerdict | Exception:
        """Charge what is to be charged when a POST arrives, and return the verdict for later."""
        match step:
            case ScriptStep.ACCEPT:
                return self.accept(prompt)
            case ScriptStep.ACCEPT_AND_CUT:
                self.accept(prompt)
                return Ambiguous(CUT_REASON)
            case ScriptStep.CUT:
                return Ambiguous(CUT_REASON)
            case ErrorResponse():
                return step.to_post()
            case Accepted():
                self.charged[step.request_id] = prompt
                return step
            case ScriptStep():
                raise _misplaced(step, "submit_script")
            case _:
                return step

    def _is_done(self, request_id: str) -> bool:
        """Return whether a job without a poll script has finished at the poll that is now answered."""
        duration_s = self.job_durations_s.get(self.charged[request_id])
        if duration_s is None:
            return len(self.poll_times_s[request_id]) > 1
        return self.poll_times_s[request_id][-1] >= self._accepted_s[request_id] + duration_s

    def _prompt_of(self, request_id: str) -> str:
        if request_id not in self.charged:
            raise LookupError(
                f"this gateway has not accepted {request_id}; pass the gateway that accepted it to each engine on "
                "the run directory"
            )
        return self.charged[request_id]


def _misplaced(step: ScriptStep, script: str) -> TypeError:
    return TypeError(f"{step.name} has no meaning in {script}; see krea_batch.testing.script_entries")
