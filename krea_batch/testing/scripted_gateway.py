"""A gateway that answers what a test wrote down: verdicts for POSTs and polls, bytes or errors for downloads.

Newcomers: it charges like the real one. `charged` holds the request_ids of accepted POSTs, whether or not the
answer arrived.
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Self

import orjson

from krea_batch.rules.verdicts import Accepted, Finished, PollVerdict, PostVerdict, Waiting

Accept = object()
"""In a script of POSTs: accept, with a new request_id."""


def png(width: int = 4, height: int = 3, text: bytes = b"") -> bytes:
    """A whole PNG, by hand."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + b"\x40\x80\xc0" * width) * height
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + (chunk(b"tEXt", b"prompt\0" + text) if text else b"")
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


class ScriptedMedia:
    """A body that comes in pieces, and may break off (an exception) or make one wait (seconds)."""

    def __init__(
        self, pieces: Iterable[bytes | Exception | float], offset: int = 0, etag: str | None = '"e"'
    ) -> None:
        self._pieces = list(pieces)
        self.offset = offset
        self.etag = etag

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def chunks(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            await asyncio.sleep(piece if isinstance(piece, float) else 0)
            if isinstance(piece, Exception):
                raise piece
            if isinstance(piece, bytes):
                yield piece


class ScriptedGateway:
    """Answers by prompt from `posts`, `polls` and `media`; without a script it accepts, waits once, finishes.

    A script entry is a verdict, an exception to raise, or (seconds, entry) to wait first. The last entry of a
    script is repeated.
    """

    def __init__(self) -> None:
        self.posts: dict[str, list[Any]] = defaultdict(list)
        self.polls: dict[str, list[Any]] = defaultdict(list)
        self.media: dict[str, list[Any]] = defaultdict(list)
        self.bodies: list[dict[str, Any]] = []
        self.post_times_s: list[float] = []
        self.poll_times_s: dict[str, list[float]] = defaultdict(list)
        self.fetched: list[tuple[str, int]] = []
        self.charged: dict[str, str] = {}  # request_id → prompt
        self.post_s = 0.1
        self.in_air = 0
        self.most_in_air = 0
        self.on_post: Callable[[str], None] = lambda _prompt: None
        self.on_poll: Callable[[str], None] = lambda _request_id: None

    async def submit(self, body: bytes, *, callback: str = "") -> PostVerdict:
        request = orjson.loads(body)
        self.on_post(request["prompt"])
        self.bodies.append(request)
        self.post_times_s.append(asyncio.get_running_loop().time())
        self.in_air += 1
        self.most_in_air = max(self.most_in_air, self.in_air)
        try:
            await asyncio.sleep(self.post_s)
            entry = await _play(self.posts[request["prompt"]], Accept)
        finally:
            self.in_air -= 1
        if entry is not Accept:
            if isinstance(entry, Accepted):
                self.charged[entry.request_id] = request["prompt"]
            return entry  # type: ignore[no-any-return]
        return self.accept(request["prompt"])

    @property
    def prompts(self) -> list[str]:
        """The prompts of all POSTs, in their order."""
        return [body["prompt"] for body in self.bodies]

    def accept(self, prompt: str) -> Accepted:
        request_id = f"krea-2-large-text-to-image_{len(self.charged):08d}"
        self.charged[request_id] = prompt
        return Accepted(request_id, Waiting("QUEUED"))

    async def poll(self, request_id: str) -> PollVerdict:
        prompt = self.charged[request_id]
        times_s = self.poll_times_s[request_id]
        times_s.append(asyncio.get_running_loop().time())
        self.on_poll(request_id)
        await asyncio.sleep(0.05)
        done = self.finished(request_id)
        default = Waiting("PROCESSING") if len(times_s) < 2 else done
        entry = await _play(self.polls[prompt], default)
        return done if entry is Finished else entry

    def finished(self, request_id: str, outputs: int = 1) -> Finished:
        return Finished(
            tuple(f"https://cdn.example/{request_id}/{n}.png" for n in range(1, outputs + 1)), "image/png"
        )

    async def fetch(self, url: str, *, offset: int = 0, etag: str | None = None) -> ScriptedMedia:
        self.fetched.append((url, offset))
        await asyncio.sleep(0.05)
        request_id = url.split("/")[-2]
        entry = await _play(self.media[self.charged[request_id]], None)
        if entry is None:
            whole = self.picture(request_id)
            start = offset if etag == '"e"' else 0
            return ScriptedMedia([whole[start:]], offset=start)
        return entry if isinstance(entry, ScriptedMedia) else ScriptedMedia(entry)

    def picture(self, request_id: str) -> bytes:
        return png(text=self.charged[request_id].encode())


async def _play(script: list[Any], default: Any) -> Any:
    if not script:
        return default
    entry = script.pop(0) if len(script) > 1 else script[0]
    if isinstance(entry, tuple):
        await asyncio.sleep(entry[0])
        entry = entry[1]
    if isinstance(entry, Exception):
        raise entry
    return entry
