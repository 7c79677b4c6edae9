"""What the stages require of a gateway, as protocols.

`gateway.client.GatewayClient` implements them for the API. Other implementations are the scripted gateway of
`testing`, the model of `forecast` and the recorder of `benchmark`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol, Self

from krea_batch.rules.verdicts import PollVerdict, PostVerdict


class ImageBody(Protocol):
    """The body of an image download, an async context manager.

    `offset` is the position of its first byte in the image. `etag` is a strong ETag, or None.
    """

    offset: int
    etag: str | None

    def chunks(self) -> AsyncIterator[bytes]: ...
    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, *_: object) -> None: ...


class Gateway(Protocol):
    """The requests that the stages send. A result that is not a success is a verdict, not an exception.

    `submit` POSTs a body; `callback` is the URL for callbacks, or empty. `poll` reads the status of a job. `download`
    requests an image from `offset` on, if it still has that `etag`; it raises DownloadError.
    """

    async def submit(self, body: bytes, *, callback: str = "") -> PostVerdict: ...
    async def poll(self, request_id: str) -> PollVerdict: ...
    async def download(self, url: str, *, offset: int = 0, etag: str | None = None) -> ImageBody: ...
