"""What the stages require of a gateway and of each other, as protocols.

`gateway.client.GatewayClient` implements `Gateway` for the API. Other implementations are the scripted gateway of
`testing`, the model of `forecast` and the recorder of `benchmark`. `pipeline.pipeline.Pipeline` implements `Stages`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol, Self

from krea_batch.jobs import Outcome
from krea_batch.pipeline.in_flight_job import InFlightJob
from krea_batch.rules.verdicts import PollVerdict, PostVerdict, Progress


class ImageBody(Protocol):
    """The body of an image download, an async context manager.

    `offset` is the position of its first byte in the image. `etag` is a strong ETag, or None. `is_sized` is whether
    the response says where the image ends, so that `chunks` raises if it breaks off.
    """

    offset: int
    etag: str | None
    is_sized: bool

    def chunks(self) -> AsyncIterator[bytes]: ...
    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, *_: object) -> None: ...


class Gateway(Protocol):
    """The requests that the stages send. A result that is not a success is a verdict, not an exception.

    `submit` POSTs a body; `callback` is the URL for callbacks, or empty. When there is a connection, it awaits
    `on_sending` once, just before the first byte can leave. If that returns a reason, or `submit` is cancelled
    earlier, nothing is sent. It may wait for a late answer for longer than `request_timeout_s`; if it is cancelled
    then, the answer is lost. `poll` reads the status of a job. `download` requests an image from `offset` on, if it
    still has that `etag`; it raises DownloadError.
    """

    async def submit(
        self, body: bytes, *, callback: str = "", on_sending: Callable[[], Awaitable[str | None]] | None = None
    ) -> PostVerdict: ...
    async def poll(self, request_id: str) -> PollVerdict: ...
    async def download(self, url: str, *, offset: int = 0, etag: str | None = None) -> ImageBody: ...


class Stages(Protocol):
    """Where a job goes next. The stages hand jobs over through this protocol, so they do not know each other."""

    def submit(self, job: InFlightJob, wait_s: float = 0.0) -> None:
        """Take a pending job that has a slot, to be submitted after `wait_s` seconds at the earliest."""

    def poll(self, job: InFlightJob, progress: Progress) -> None:
        """Take an accepted job, with the status that is known of it."""

    def download(self, job: InFlightJob) -> None:
        """Take a finished job."""

    def end(self, job: InFlightJob, outcome: Outcome) -> None:
        """Take a job that has ended for this run."""

    def defer(self, job: InFlightJob) -> None:
        """Take a job that stays in the ledger for the next run."""
