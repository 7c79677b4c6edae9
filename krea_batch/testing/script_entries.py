"""The entries of the scripts of a `ScriptedGateway`: what it does with one request.

| entry | submit | poll | download |
|---|---|---|---|
| `ACCEPT` | the job is accepted and charged | | |
| `ACCEPT_AND_CUT` | as `ACCEPT`, but the response is lost | | |
| `QUEUED`, `PROCESSING` | | the job has not ended | |
| `FINISH` | | the images can be downloaded | |
| `Failed(text)` | | the job failed, and is charged | |
| `Errored(text)` | | the gateway failed, and charges nothing | |
| `IMAGE` | | | the image that `ScriptedGateway.image` makes |
| bytes | | | these bytes as the image |
| `ScriptedDownload(pieces)`, or a list of pieces | | | an image that arrives in pieces, or not completely |
| `ErrorResponse(status)` | an HTTP error, read as the engine reads it | the same | the same |
| `CUT` | the connection is cut; nothing is charged, which the engine cannot know | it is cut | it is cut |
| another verdict of `krea_batch.rules.verdicts` | is returned | is returned | |
| an exception | is raised | is raised | is raised |
| `(seconds, entry)` | the entry, later | the same | the same |
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime
from enum import Enum
from http import HTTPStatus
from typing import Final, Self, TypeAlias

import msgspec
import orjson

from krea_batch.gateway.url_policy import DownloadError
from krea_batch.gateway.wire import Answer, read_poll_answer, read_post_answer
from krea_batch.rules.verdicts import Errored, Failed, PollVerdict, PostVerdict, Waiting
from krea_batch.storage.png import SIGNATURE, make_chunk

__all__ = [
    "ACCEPT",
    "ACCEPT_AND_CUT",
    "CUT",
    "FINISH",
    "IMAGE",
    "PROCESSING",
    "QUEUED",
    "DownloadStep",
    "ErrorResponse",
    "Errored",
    "Failed",
    "PollStep",
    "ScriptedDownload",
    "SubmitStep",
    "make_png",
]


class ScriptStep(Enum):
    """Entries without parameters, which the gateway fills in."""

    ACCEPT = "accept"
    ACCEPT_AND_CUT = "accept and cut"
    CUT = "cut"
    FINISH = "finish"
    IMAGE = "image"


ACCEPT: Final = ScriptStep.ACCEPT
ACCEPT_AND_CUT: Final = ScriptStep.ACCEPT_AND_CUT
CUT: Final = ScriptStep.CUT
FINISH: Final = ScriptStep.FINISH
IMAGE: Final = ScriptStep.IMAGE
QUEUED: Final = Waiting("QUEUED")
PROCESSING: Final = Waiting("PROCESSING")


class ErrorResponse(msgspec.Struct, frozen=True):
    """An HTTP error. The engine's own rules decide what it means, as with the real gateway.

    `body` is the JSON error body of the API document unless it is given, for example as the page of a proxy.
    """

    status: int
    retry_after_s: float | None = None
    body: bytes | None = None

    def as_answer(self) -> Answer:
        """Return the response as the HTTP client passes it on."""
        body = self.body
        if body is None:
            phrase = HTTPStatus(self.status).phrase
            body = orjson.dumps({"error": phrase, "message": f"{phrase} (from the script of a test)"})
        retry_after = None if self.retry_after_s is None else f"{self.retry_after_s:g}"
        return Answer(self.status, body, retry_after)

    def to_post(self) -> PostVerdict:
        """Return what the response to a POST means."""
        return read_post_answer(self.as_answer(), now=datetime.now(UTC))

    def to_poll(self, request_id: str) -> PollVerdict:
        """Return what the response to a poll means."""
        return read_poll_answer(self.as_answer(), request_id, now=datetime.now(UTC)).verdict

    def to_download(self) -> DownloadError:
        """Return the error of a download."""
        return DownloadError(f"HTTP {self.status}", status=self.status, retry_after_s=self.retry_after_s)


ETAG: Final = '"e"'
CUT_REASON: Final = "the connection was cut"
Piece: TypeAlias = bytes | float | Exception | ScriptStep


class ScriptedDownload:
    """A download that sends these pieces in order.

    Bytes are sent, a float waits (seconds), `CUT` cuts the connection, and an exception is raised. `offset` is where
    the first byte lies in the image, as a 206 response says it. `etag` is None if there is none. `is_sized` is
    whether the response has a Content-Length, or the last byte of the image in its Content-Range.
    """

    def __init__(
        self, pieces: Iterable[Piece], offset: int = 0, etag: str | None = ETAG, *, is_sized: bool = False
    ) -> None:
        self._pieces = list(pieces)
        self.offset = offset
        self.etag = etag
        self.is_sized = is_sized

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def chunks(self) -> AsyncIterator[bytes]:
        """Send the pieces."""
        for piece in self._pieces:
            await asyncio.sleep(piece if isinstance(piece, float) else 0)
            if isinstance(piece, Exception):
                raise piece
            if piece is CUT:
                raise DownloadError(CUT_REASON)
            if isinstance(piece, bytes):
                yield piece


SubmitStep: TypeAlias = PostVerdict | ErrorResponse | ScriptStep | Exception
PollStep: TypeAlias = PollVerdict | ErrorResponse | ScriptStep | Exception
DownloadStep: TypeAlias = bytes | list[Piece] | ScriptedDownload | ErrorResponse | ScriptStep | Exception


def make_png(width: int = 4, height: int = 3, text: bytes = b"") -> bytes:
    """Return a small valid PNG; images with different `text` differ in their bytes."""
    rows = (b"\0" + b"\x40\x80\xc0" * width) * height
    return (
        SIGNATURE
        + make_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + (make_chunk(b"tEXt", b"prompt\0" + text) if text else b"")
        + make_chunk(b"IDAT", zlib.compress(rows))
        + make_chunk(b"IEND", b"")
    )
