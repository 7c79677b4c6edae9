"""A run's folder comes in; a page on this machine goes out, that shows its pictures as they arrive.

Newcomers: the ledger is looked at once a second, from the first job on that has not ended, and what has changed is
sent to every page that is open. Only files that the ledger lists are given out, and only to pages of this server: a
name that leads here from elsewhere (DNS rebinding) is refused, and so is a POST without the page's token.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import msgspec
from aiohttp import web

from krea_batch.gallery.items import item, place_of
from krea_batch.gallery.report import page, script_source
from krea_batch.gallery.thumbnails import Kept
from krea_batch.jobs import FINAL, Outcome
from krea_batch.ledger import Store
from krea_batch.ledger.paging import all_rows, number_of
from krea_batch.storage.run_dir import LEDGER, check_run, is_at_work

LOOK_EVERY_S = 1.0  # chosen: as live as anybody needs
MOST_IDS_BYTES = 64 * 1024 * 1024  # chosen: 300,000 of the longest
SAID_LINES = 5  # chosen: a run's summary, or the end of what went wrong
SIMULATED = "simulated.jsonl"
POLICY = (
    f"default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; script-src {script_source()}; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SEALS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",  # no page elsewhere shows pictures of a run
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Gallery:
    """The run of one folder, and those who listen to what becomes of it."""

    def __init__(self, out: Path) -> None:
        check_run(out)
        self.out = out
        self.token = secrets.token_urlsafe()
        self.retrying = False
        self._anew = False  # look at all jobs, those that had ended too
        self.standing: dict[str, Any] = {}  # how many jobs there are to be, and whether a process works on them
        self._outcomes: dict[int, Outcome] = {}
        self._listeners: set[asyncio.Queue[bytes]] = set()
        self._kept = Kept()

    @property
    def simulated(self) -> bool:
        return (self.out / SIMULATED).is_file()

    def items(self) -> bytes:
        """All jobs, as JSON."""
        return msgspec.json.encode([item(n, outcome) for n, outcome in self._outcomes.items()])

    def place(self, n: int, k: int) -> Path | None:
        """The file of a job's picture, counted from 0; None where there is none on this disk."""
        outcome = self._outcomes.get(n)
        if outcome is None or not 0 <= k < len(outcome.files):
            return None
        return place_of(self.out, outcome.files[k].path)

    def thumbnail(self, place: Path) -> bytes | None:
        return self._kept.get(place)

    async def look(self) -> None:
        """See what has changed since the last look, and tell it."""
        before = self.standing
        changed = await anyio.to_thread.run_sync(self._read)
        if self.standing != before:
            self.tell("standing", self.standing)
        if changed:
            self.tell("items", [item(n, outcome) for n, outcome in changed])

    def tell(self, event: str, what: object) -> None:
        message = as_event(event, what)
        for queue in self._listeners:
            queue.put_nowait(message)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[asyncio.Queue[bytes]]:
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._listeners.add(queue)
        try:
            yield queue
        finally:
            self._listeners.discard(queue)

    def _read(self) -> list[tuple[int, Outcome]]:
        at_work = is_at_work(self.out)  # looked at first: what its end wrote is then seen
        with closing(Store.open(self.out / LEDGER, read_only=True)) as store:
            counts, run = store.read(Store.counts, Store.latest_run)
            ended = Counter(outcome.status for outcome in self._outcomes.values() if outcome.status in FINAL)
            again = self._anew or any(count > counts.get(state, 0) for state, count in ended.items())  # ends no more
            self._anew = False
            still = (n for n, outcome in self._outcomes.items() if outcome.status not in FINAL)
            after = 0 if again else next(still, len(self._outcomes) + 1) - 1
            rows = all_rows(partial(_glimpses, store), number_of, after)
            changed = [row for row in rows if self._outcomes.get(row[0]) != row[1]]
        self._outcomes.update(changed)
        self.standing = {"jobs": run.jobs if run else None, "at_work": at_work}
        return changed

    async def retry(self, ids: list[str]) -> None:
        """Have these jobs submitted again by a process of its own, and tell how it went."""
        simulate = ["--simulate"] if self.simulated else []
        command = [sys.executable, "-m", "krea_batch", "retry", str(self.out), "--yes", "--ids-from=-", *simulate]
        self.retrying = True
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C in the terminal reaches it through `_stop` alone
            )
            try:
                said, _ = await process.communicate("\n".join(ids).encode())
            except asyncio.CancelledError:
                await _stop(process)
                raise
        finally:
            self.retrying = False
            self._anew = True
        lines = said.decode("utf-8", "replace").strip().splitlines()
        self.tell("said", {"ok": process.returncode in (0, 1), "text": "\n".join(lines[-SAID_LINES:])})


def _glimpses(store: Store, after_n: int, limit: int) -> list[tuple[int, Outcome]]:
    """A page of jobs as of one moment. Raises LedgerError."""
    (page,) = store.read(lambda store: store.glimpses(after_n, limit))
    return page  # type: ignore[no-any-return]


async def _stop(process: asyncio.subprocess.Process) -> None:
    """End a retry as two Ctrl-C would: at once, with no POST in doubt, since asyncio would kill it."""
    for name in (signal.SIGINT, signal.SIGTERM):  # two of one name may arrive as one
        with suppress(ProcessLookupError):
            process.send_signal(name)
    await process.wait()


def as_event(name: str, what: object) -> bytes:
    """A server-sent event."""
    return f"event: {name}\ndata: ".encode() + msgspec.json.encode(what) + b"\n\n"


class Pages:
    """What is answered to the browser."""

    def __init__(self, gallery: Gallery) -> None:
        self._gallery = gallery
        self._tasks: set[asyncio.Task[None]] = set()
        self.closing = False

    def application(self) -> web.Application:
        app = web.Application(middlewares=[_guard], client_max_size=MOST_IDS_BYTES)
        app.on_response_prepare.append(_seal)
        app.router.add_get("/", self.index)
        app.router.add_get("/items", self.items)
        app.router.add_get("/events", self.events)
        app.router.add_get(r"/picture/{n:[0-9]+}/{k:[0-9]+}", self.picture)
        app.router.add_get(r"/thumbnail/{n:[0-9]+}", self.thumbnail)
        app.router.add_post("/retry", self.retry)
        return app

    async def index(self, _: web.Request) -> web.Response:
        gallery = self._gallery
        text = page(
            title=gallery.out.name,
            live=True,
            token=gallery.token,
            simulated=gallery.simulated,
            items="[]",
            charts=[],
            errors=[],
        )
        return web.Response(text=text, content_type="text/html")

    async def items(self, _: web.Request) -> web.Response:
        return web.Response(body=self._gallery.items(), content_type="application/json")

    async def picture(self, request: web.Request) -> web.StreamResponse:
        place = self._gallery.place(int(request.match_info["n"]), int(request.match_info["k"]))
        if place is None or not await anyio.Path(place).is_file():
            raise web.HTTPNotFound
        return web.FileResponse(place, headers={"Content-Type": "image/png"})

    async def thumbnail(self, request: web.Request) -> web.Response:
        place = self._gallery.place(int(request.match_info["n"]), 0)
        data = await anyio.to_thread.run_sync(self._gallery.thumbnail, place) if place else None
        if data is None:
            raise web.HTTPNotFound
        return web.Response(body=data, content_type="image/webp", headers={"Cache-Control": "private, max-age=60"})

    async def events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        async with self._gallery.listening() as queue:
            with suppress(ConnectionResetError):  # the page was closed
                await response.prepare(request)
                await response.write(as_event("standing", self._gallery.standing))
                while not self.closing:
                    await response.write(await queue.get())
        return response

    async def retry(self, request: web.Request) -> web.Response:
        gallery = self._gallery
        if not secrets.compare_digest(_bytes(request.headers.get("X-Token", "")), gallery.token.encode()):
            raise web.HTTPForbidden
        try:
            ids = msgspec.json.decode(await request.read(), type=list[str])
        except msgspec.DecodeError:
            raise web.HTTPBadRequest from None
        if gallery.retrying or not ids:
            raise web.HTTPConflict
        task = asyncio.create_task(gallery.retry(ids))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return web.Response(status=202)


def _bytes(header: str) -> bytes:
    return header.encode("utf-8", "surrogateescape")  # as it came


@web.middleware
async def _guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer only who speaks to this machine by its own name."""
    try:
        name = urlsplit(f"//{request.host}").hostname
    except ValueError:
        name = None
    if name not in ("127.0.0.1", "localhost", "::1"):
        raise web.HTTPMisdirectedRequest
    return await handler(request)


async def _seal(_: web.Request, response: web.StreamResponse) -> None:
    """Every answer, of an error too, says that the page is this server's alone."""
    response.headers.update(SEALS)


async def serve(gallery: Gallery, port: int, ready: Callable[[str], Any]) -> None:
    """Serve until cancelled. `ready` hears the address. Raises OSError where the port is in use."""
    await gallery.look()
    pages = Pages(gallery)
    runner = web.AppRunner(pages.application(), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        ready(f"http://127.0.0.1:{runner.addresses[0][1]}/")
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await gallery.look()
    finally:
        pages.closing = True
        gallery.tell("end", None)
        await runner.cleanup()
