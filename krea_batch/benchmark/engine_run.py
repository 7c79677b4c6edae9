"""Runs a case with the engine, used as a library, and records it.

The engine's gateway client is wrapped to record the responses. The wrapper does not change the engine's behaviour.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

from krea_batch.benchmark.cases import Case
from krea_batch.benchmark.recorder import Recorder, measure_loop_lag
from krea_batch.engine.engine import Engine
from krea_batch.engine.signal_receiver import INTERRUPT_REASON, receive_signals
from krea_batch.errors import KreaBatchError
from krea_batch.events import Event, JobEnded
from krea_batch.gateway.client import GatewayClient
from krea_batch.jobs import Job
from krea_batch.pipeline.protocols import Gateway, ImageBody
from krea_batch.rules.verdicts import Accepted, Finished, PollVerdict, PostVerdict, Refused
from krea_batch.settings import KEY_VARIABLE, ApiKey, Settings
from krea_batch.storage.operating_system import INTERRUPTS


class RecordingGateway:
    """A gateway that passes requests on to another one, and records its verdicts."""

    def __init__(self, gateway: Gateway, recorder: Recorder) -> None:
        self._gateway = gateway
        self._recorder = recorder

    async def submit(
        self, body: bytes, *, callback: str = "", on_sending: Callable[[], Awaitable[str | None]] | None = None
    ) -> PostVerdict:
        verdict = await self._gateway.submit(body, callback=callback, on_sending=on_sending)
        match verdict:
            case Accepted(request_id):
                self._recorder.record_accepted(request_id)
            case Refused(_, 429):
                self._recorder.record_rate_limited()
            case _:
                pass
        return verdict

    async def poll(self, request_id: str) -> PollVerdict:
        self._recorder.record_poll()
        verdict = await self._gateway.poll(request_id)
        if isinstance(verdict, Finished):
            self._recorder.record_finished(request_id, verdict.took_s)
        return verdict

    async def download(self, url: str, *, offset: int = 0, etag: str | None = None) -> ImageBody:
        return await self._gateway.download(url, offset=offset, etag=etag)


async def run_engine(case: Case, recorder: Recorder) -> None:
    """Run the jobs of a case. The first Ctrl-C stops the run and waits for jobs in flight; the second aborts it."""
    settings = Settings.from_options(
        Path(case.out),
        gateway=case.gateway,
        allow_networks=case.allow_networks,
        rate=case.rate,
        poll_interval_s=case.poll_interval_s,
        max_in_flight=case.max_in_flight,
        max_charges=case.jobs,  # never more than the command announced
        max_identical_failures=20,  # as in `krea-batch run`, so that a mistake does not cost a whole benchmark
    )
    try:
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(GatewayClient(settings, _key(case)))
            engine = Engine(
                settings=settings,
                gateway_client=RecordingGateway(client, recorder),
                listeners=[lambda event: _on_event(event, recorder)],
            )
            lag_task = asyncio.create_task(measure_loop_lag(recorder.record.loop_lags_ms))
            stack.callback(lag_task.cancel)
            async with engine:
                with receive_signals(*INTERRUPTS) as received:
                    interrupts_task = asyncio.create_task(_handle_interrupts(received, engine))
                    stack.callback(interrupts_task.cancel)
                    await engine.run(_jobs(case))
    except KreaBatchError as error:
        recorder.record.problem = str(error)


def _key(case: Case) -> ApiKey:
    if case.simulated:
        return ApiKey("simulated")
    if case.key_file is None:
        return ApiKey(os.environ.get(KEY_VARIABLE, ""))
    return ApiKey(Path(case.key_file).read_text("utf-8").strip())


def _jobs(case: Case) -> Iterator[Job]:
    """Yield the jobs. They are the same each time, so that a second run of the command finds them in the ledger."""
    for index in range(case.jobs):
        yield Job(id=f"{index + 1:06d}", prompt=case.prompt, seed=index)


def _on_event(event: Event, recorder: Recorder) -> None:
    if isinstance(event, JobEnded):
        recorder.record_stored()


async def _handle_interrupts(received: AsyncIterator[object], engine: Engine) -> None:
    async for _ in received:
        if engine.stopped is None:
            engine.stop(INTERRUPT_REASON)
        else:
            engine.abort(INTERRUPT_REASON)
