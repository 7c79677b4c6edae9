"""A gateway for tests that gives scripted responses: verdicts for submits and polls, bytes or errors for downloads.

Pass it to an engine instead of an HTTP client. Without a script every job is accepted, polled twice and downloaded:

    from krea_batch import Engine, Job
    from krea_batch.testing.scripted_gateway import ACCEPT, Refusal, Refused, ScriptedGateway
    from krea_batch.testing.virtual_time import run_virtual

    def test_a_rate_limited_job_succeeds(tmp_path):
        gateway = ScriptedGateway()
        gateway.submit_script["a fox"] = [Refused(Refusal.RATE_LIMITED, 429, "slow down", retry_after_s=30), ACCEPT]

        async def main():
            async with Engine(tmp_path / "out", gateway_client=gateway) as engine:
                return await engine.generate(Job(prompt="a fox"))

        assert run_virtual(main()).status == "succeeded"
        assert list(gateway.charged.values()) == ["a fox"]

It charges as the real gateway does: `charged` holds every accepted POST, even if its response was lost.
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Final, Self

import orjson

from krea_batch.gateway.url_policy import DownloadError
from krea_batch.rules.verdicts import (
    Accepted,
    Ambiguous,
    Errored,
    Failed,
    Finished,
    NotSent,
    PollFailed,
    PollVerdict,
    PostVerdict,
    Refusal,
    Refused,
    Waiting,
)
from krea_batch.storage.png import SIGNATURE, make_chunk

__all__ = [
    "ACCEPT",
    "FINISH",
    "Accepted",
    "Ambiguous",
    "DownloadError",
    "Errored",
    "Failed",
    "Finished",
    "NotSent",
    "PollFailed",
    "Refusal",
    "Refused",
    "ScriptedDownload",
    "ScriptedGateway",
    "Waiting",
    "make_png",
]

ACCEPT: Final = object()
"""Entry of a submit script: accept the job with a new request_id."""

FINISH: Final = Finished
"""Entry of a poll script: the job has finished, with the default image URLs."""


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


class ScriptedDownload:
    """A download that sends these pieces in order: bytes are sent, a float waits (seconds), an exception is raised.

    `offset` is where the first byte lies in the image, as a 206 response says it. `etag` is None if there is none.
    `is_sized` is whether the response has a Content-Length, or the last byte of the image in its Content-Range.
    """

    def __init__(
        self,
        pieces: Iterable[bytes | Exception | float],
        offset: int = 0,
        etag: str | None = '"e"',
        *,
        is_sized: bool = False,
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
            if isinstance(piece, bytes):
                yield piece


class ScriptedGateway:
    """Responds to each prompt from `submit_script`, `poll_script` and `download_script`.

    A script is a list of entries by prompt; each request takes the next entry, and the last entry is repeated. An
    entry is one of

    - a verdict, such as `Refused(…)` or `Waiting("QUEUED")`; `ACCEPT` and `FINISH` are the usual ones;
    - for a download: a `ScriptedDownload`, or the list of its pieces;
    - an exception, which is raised;
    - a pair `(seconds, entry)`, which waits first.

    Without a script a job is accepted, is PROCESSING at its first poll and has finished at its second, and its
    image is that of `image`.

    What the engine did: `submitted_bodies`, `submitted_prompts`, `submit_times_s`, `poll_times_s` (by request_id),
    `downloads` (URL and offset), `charged` (prompt by request_id), `pending_submits`, `peak_pending_submits`.
    Times are those of the event loop. `on_submit` and `on_poll` are called with the prompt or the request_id
    before the response; they may raise.
    """

    def __init__(self) -> None:
        self.submit_script: dict[str, list[Any]] = defaultdict(list)
        self.poll_script: dict[str, list[Any]] = defaultdict(list)
        self.download_script: dict[str, list[Any]] = defaultdict(list)
        self.submitted_bodies: list[dict[str, Any]] = []
        self.submit_times_s: list[float] = []
        self.poll_times_s: dict[str, list[float]] = defaultdict(list)
        self.downloads: list[tuple[str, int]] = []
        self.charged: dict[str, str] = {}  # prompts by request_id
        self.submit_duration_s = 0.1
        self.pending_submits = 0
        self.peak_pending_submits = 0
        self.on_submit: Callable[[str], None] = lambda _prompt: None
        self.on_poll: Callable[[str], None] = lambda _request_id: None

    async def submit(
        self, body: bytes, *, callback: str = "", on_sending: Callable[[], str | None] | None = None
    ) -> PostVerdict:
        """Return the next verdict for a POST, after `submit_duration_s`. The callback path is ignored."""
        request = orjson.loads(body)
        self.on_submit(request["prompt"])
        self.submitted_bodies.append(request)
        self.submit_times_s.append(asyncio.get_running_loop().time())
        script = self.submit_script[request["prompt"]]
        will_send = not (script and isinstance(script[0], NotSent))
        if on_sending and will_send and (reason := on_sending()):
            return NotSent(reason)
        self.pending_submits += 1
        self.peak_pending_submits = max(self.peak_pending_submits, self.pending_submits)
        try:
            await asyncio.sleep(self.submit_duration_s)
            entry = await _next_entry(script, ACCEPT)
        finally:
            self.pending_submits -= 1
        if entry is not ACCEPT:
            if isinstance(entry, Accepted):
                self.charged[entry.request_id] = request["prompt"]
            return entry  # type: ignore[no-any-return]
        return self.accept(request["prompt"])

    @property
    def submitted_prompts(self) -> list[str]:
        """Return the prompts of all POSTs in order."""
        return [body["prompt"] for body in self.submitted_bodies]

    def accept(self, prompt: str) -> Accepted:
        """Charge a new job and return its verdict."""
        request_id = f"krea-2-large-text-to-image_{len(self.charged):08d}"
        self.charged[request_id] = prompt
        return Accepted(request_id, Waiting("QUEUED"))

    async def poll(self, request_id: str) -> PollVerdict:
        """Return the next verdict for a poll."""
        prompt = self.charged[request_id]
        times_s = self.poll_times_s[request_id]
        times_s.append(asyncio.get_running_loop().time())
        self.on_poll(request_id)
        await asyncio.sleep(0.05)
        finished = self.finished(request_id)
        default = Waiting("PROCESSING") if len(times_s) < 2 else finished
        entry = await _next_entry(self.poll_script[prompt], default)
        return finished if entry is FINISH else entry

    def finished(self, request_id: str, outputs: int = 1) -> Finished:
        """Return the verdict of a finished job with this many images."""
        return Finished(
            tuple(f"https://cdn.example/{request_id}/{n}.png" for n in range(1, outputs + 1)), "image/png"
        )

    async def download(self, url: str, *, offset: int = 0, etag: str | None = None) -> ScriptedDownload:
        """Return the next download of an image; with the matching ETag it starts at `offset`."""
        self.downloads.append((url, offset))
        await asyncio.sleep(0.05)
        request_id = url.split("/")[-2]
        entry = await _next_entry(self.download_script[self.charged[request_id]], None)
        if entry is None:
            data = self.image(request_id)
            start = offset if etag == '"e"' else 0
            return ScriptedDownload([data[start:]], offset=start)
        return entry if isinstance(entry, ScriptedDownload) else ScriptedDownload(entry)

    def image(self, request_id: str) -> bytes:
        """Return the image of a job. Override it to serve other images."""
        return make_png(text=self.charged[request_id].encode())


async def _next_entry(script: list[Any], default: Any) -> Any:
    if not script:
        return default
    entry = script.pop(0) if len(script) > 1 else script[0]
    if isinstance(entry, tuple):
        await asyncio.sleep(entry[0])
        entry = entry[1]
    if isinstance(entry, Exception):
        raise entry
    return entry
