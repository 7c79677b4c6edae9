"""A gateway with its CDN that sends one answer too many: before, inside, after, or long after the right one."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

from krea_batch.testing import make_png
from tests.gateway.test_client import RawRequest, RawServer, http_response

Place = Literal["before", "inside", "after", "later", "nowhere"]
Kind = Literal["POST", "poll", "image"]
TIMEOUT_PAGE = http_response(504, b"<html>504 Gateway Time-out</html>")


class SurplusGateway:
    """Answers as the API document says, with a surplus answer at a place of every `every`-th answer of some kinds.

    The surplus answer is the latest answer of that kind to another job. Before the answer to a POST and before an
    image it is a proxy's error page: these have a connection of their own, on which the first answer is theirs.
    """

    def __init__(self, place: Place, kinds: set[Kind], *, every: int = 1) -> None:
        self._place = place
        self._kinds = kinds
        self._every = every
        self._latest: dict[Kind, tuple[str, bytes]] = {}  # the answer, and whose it is
        self._answers = 0
        self._polls: dict[str, int] = {}
        self.url = ""
        self.cdn_url = ""  # of the images; by default the gateway's
        self.prompts: list[str] = []  # of each POST
        self.request_ids: dict[str, str] = {}  # by prompt

    def image_of(self, prompt: str) -> bytes:
        return make_png(text=prompt.encode())

    async def __call__(self, request: RawRequest, writer: asyncio.StreamWriter) -> None:
        kind, job, answer = self._answer(request)
        surplus = self._surplus(kind, job)
        self._latest[kind] = job, answer
        self._answers += 1
        if surplus is None or self._answers % self._every:
            writer.write(answer)
            return
        head, _, body = answer.partition(b"\r\n\r\n")
        match self._place:
            case "before":
                writer.write(surplus + answer)
            case "inside":
                writer.write(head + b"\r\n\r\n" + (body[: len(body) // 2] + surplus + body[len(body) // 2 :]))
            case "after":
                writer.write(answer + surplus)
            case "later":  # when the answer has been read, so that the connection is idle or closed
                writer.write(answer)
                asyncio.get_running_loop().call_later(0.01, _write_if_open, writer, surplus)
            case "nowhere":
                writer.write(answer)

    def _surplus(self, kind: Kind, job: str) -> bytes | None:
        if kind not in self._kinds:
            return None
        if kind != "poll" and self._place == "before":
            return TIMEOUT_PAGE
        owner, answer = self._latest.get(kind, ("", TIMEOUT_PAGE))
        return answer if owner != job else TIMEOUT_PAGE

    def _answer(self, request: RawRequest) -> tuple[Kind, str, bytes]:
        name = request.path.rpartition("/")[2].removesuffix(".png")
        if request.method == "POST":
            prompt = json.loads(request.body)["prompt"]
            self.prompts.append(prompt)
            request_id = f"krea-2-large-text-to-image_{UUID(int=len(self.prompts))}"
            self.request_ids.setdefault(prompt, request_id)
            status_url = f"{self.url}/v2/requests/status/{request_id}"
            body = {"request_id": request_id, "status": "QUEUED", "polling_url": status_url}
            return "POST", request_id, http_response(202, json.dumps(body).encode())
        prompts = {request_id: prompt for prompt, request_id in self.request_ids.items()}
        if request.path.endswith(".png"):
            return "image", name, http_response(200, self.image_of(prompts[name]), "Content-Type: image/png")
        self._polls[name] = self._polls.get(name, 0) + 1
        status: dict[str, Any] = {"request_id": name, "status": "PROCESSING", "output": None}
        if self._polls[name] > 1:
            output = {
                "media_url": [f"{self.cdn_url or self.url}/images/{name}.png"],
                "media_type": "image/png",
            }
            status |= {"status": "COMPLETED", "output": output}
        return "poll", name, http_response(200, json.dumps(status).encode())


def _write_if_open(writer: asyncio.StreamWriter, data: bytes) -> None:
    if not writer.is_closing():
        writer.write(data)


@contextmanager
def serving(gateway: SurplusGateway, pem: Path | None = None) -> Iterator[str]:
    """Serve a gateway in a thread, with TLS if there is a certificate for localhost, and yield its URL."""
    context = None
    if pem:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
    loop = asyncio.new_event_loop()
    stopping, ready = asyncio.Event(), threading.Event()

    async def serve() -> None:
        async with RawServer(gateway, tls=context) as server:
            gateway.url = server.url
            ready.set()
            await stopping.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    ready.wait()
    try:
        yield gateway.url
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join()
        loop.close()
