"""Serves a page on this machine that shows the images of a run as they arrive.

The ledger is read once a second, from the first job that has not ended, and changes are sent to every open page.

Only files in the ledger are served. Every user of this machine can connect to the port, so each request needs the
secret of the URL that is printed. The first request sets it as a cookie. Requests for another host name (DNS
rebinding) and POSTs without the page's token, which other pages cannot read, are refused.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import msgspec
from aiohttp import web

from krea_batch.errors import InputError
from krea_batch.gallery.new_jobs import SEEDS, Changes, job_line, make_jobs
from krea_batch.gallery.page_commands import PageCommands
from krea_batch.gallery.rendering import item, render_page, script_csp_source
from krea_batch.gallery.thumbnail_files import LocalImage, local_image
from krea_batch.gallery.thumbnails import ThumbnailCache
from krea_batch.jobs import FINAL, Job, Outcome, State
from krea_batch.ledger import LedgerReader, RunObserver, read_ledger
from krea_batch.ledger.paging import first_column, iter_rows
from krea_batch.ledger.rows import RunRecord
from krea_batch.storage.image_types import MEDIA_TYPES
from krea_batch.storage.outputs import path_text
from krea_batch.storage.ratings import Stars, append_ratings, read_ratings
from krea_batch.storage.run_dir import SIMULATOR_STATE_FILE, require_run

REFRESH_INTERVAL_S = 1.0  # chosen: short enough for a person who watches
MAX_BODY_BYTES = 64 * 1024 * 1024  # chosen: 300,000 of the longest ids
CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; script-src {script_csp_source()}; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",  # no other site can show the images of a run
}
FORBIDDEN_TEXT = (
    "Open the URL that krea-batch view printed. It has a secret, since other users of this machine could connect."
)
# The browser then goes to the page without the secret, so that it is in no history. A redirect would not do: if the
# URL was opened from another page, browsers send no SameSite=Strict cookie with the redirected request.
OPENING_PAGE = (
    '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0;url=/">'
    '<link rel="icon" href="data:,"><title>krea-batch</title>'
)

T = TypeVar("T")

RequestHandler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class RatingBody(msgspec.Struct, frozen=True):
    """The body of a POST to /ratings. None removes ratings."""

    ids: list[str]
    rating: Stars | None


class PlanBody(msgspec.Struct, frozen=True):
    """The body of a POST to /plan."""

    ids: list[str]
    changes: Changes


class SubmitBody(msgspec.Struct, frozen=True):
    """The body of a POST to /submit."""

    plan: str


class ExportBody(msgspec.Struct, frozen=True):
    """The body of a POST to /export."""

    ids: list[str]
    format: Literal["zip", "csv", "parquet"]


class JobPlan(msgspec.Struct, frozen=True):
    """New jobs that were shown with their price, under a name that cannot be guessed.

    `pending` is the number of jobs of the run that are submitted with them.
    """

    name: str
    jobs: tuple[Job, ...]
    pending: int


class Gallery:
    """The run of one directory, and the pages that follow it."""

    def __init__(self, out: Path, *, price: float | None = None, run_variables: Collection[str] = ()) -> None:
        require_run(out)
        self.out = out
        self.price = price
        self._observer = RunObserver(out)
        self.secret = secrets.token_urlsafe()
        self.token = secrets.token_urlsafe()
        self.submitting = False
        self.exporting = False
        self.commands = PageCommands(out, with_key=not self.simulated, run_variables=run_variables)
        self._plan: JobPlan | None = None
        self._latest_run: RunRecord | None = None
        self._reread_all = False  # read all jobs again, including those that had ended
        self.ratings = read_ratings(out)
        self.run_status: dict[str, Any] = {}  # the number of jobs, and whether a process is running
        self._outcomes: dict[int, Outcome] = {}
        self._subscribers: set[asyncio.Queue[bytes]] = set()
        self._thumbnail_cache = ThumbnailCache(out)

    @property
    def simulated(self) -> bool:
        return (self.out / SIMULATOR_STATE_FILE).is_file()

    def has_jobs(self, ids: list[str]) -> bool:
        """Return whether each of these is the id of a job."""
        return {outcome.id for outcome in self._outcomes.values()}.issuperset(ids)

    def items(self) -> bytes:
        """Return all jobs as JSON."""
        return msgspec.json.encode([self._item(job_no, outcome) for job_no, outcome in self._outcomes.items()])

    def _item(self, job_no: int, outcome: Outcome) -> dict[str, Any]:
        return item(job_no, outcome, self.ratings.get(outcome.id))

    async def rate(self, ids: list[str], rating: int | None) -> None:
        """Give these jobs a rating, or none, and send it to the pages. Raises OSError, InputError."""
        await anyio.to_thread.run_sync(append_ratings, self.out, ids, rating)
        for job_id in ids:
            self.ratings.pop(job_id, None)
            if rating is not None:
                self.ratings[job_id] = rating
        chosen = set(ids)
        rated = [(job_no, outcome) for job_no, outcome in self._outcomes.items() if outcome.id in chosen]
        self.broadcast("items", [self._item(job_no, outcome) for job_no, outcome in rated])

    def image(self, job_no: int, file_index: int) -> LocalImage | None:
        """Return an image of a job, with `file_index` from 0; None if it is not in the run directory."""
        outcome = self._outcomes.get(job_no)
        if outcome is None or not 0 <= file_index < len(outcome.files):
            return None
        return local_image(self.out, outcome.files[file_index])

    def thumbnail(self, image: LocalImage) -> bytes | None:
        """Return the thumbnail of an image; None if it cannot be read. Blocks."""
        return self._thumbnail_cache.get(image)

    async def refresh(self) -> None:
        """Read what has changed since the last refresh, and send it to the pages."""
        before = self.run_status
        changed = await anyio.to_thread.run_sync(self._read_changes)
        if self.run_status != before:
            self.broadcast("run_status", self.run_status)
        if changed:
            self.broadcast("items", [self._item(job_no, outcome) for job_no, outcome in changed])

    def broadcast(self, event: str, data: object) -> None:
        """Send an event to every open page."""
        message = sse_event(event, data)
        for queue in self._subscribers:
            queue.put_nowait(message)

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[asyncio.Queue[bytes]]:
        """Yield a queue of the events that are broadcast from now on, encoded."""
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._subscribers.add(queue)
        try:
            yield queue
        finally:
            self._subscribers.discard(queue)

    def _read_changes(self) -> list[tuple[int, Outcome]]:
        with read_ledger(self.out) as store:
            running = self._observer.is_running(store)
            counts, run = store.read(LedgerReader.counts, LedgerReader.latest_run)
            ended = Counter(outcome.status for outcome in self._outcomes.values() if outcome.status in FINAL)
            # If a final state has fewer jobs than before, jobs that had ended were resubmitted.
            reread_all = self._reread_all or any(count > counts.get(state, 0) for state, count in ended.items())
            self._reread_all = False
            open_jobs = (job_no for job_no, outcome in self._outcomes.items() if outcome.status not in FINAL)
            after_job_no = 0 if reread_all else next(open_jobs, len(self._outcomes) + 1) - 1
            rows = iter_rows(partial(_jobs_page, store), first_column, after_job_no)
            changed = [row for row in rows if self._outcomes.get(row[0]) != row[1]]
        self._outcomes.update(changed)
        self._latest_run = run
        self.run_status = {
            "expected_jobs": run.expected_jobs if run else None,
            "max_charges": run.max_charges if run else None,
            "running": running,
        }
        return changed

    def plan(self, ids: list[str], changes: Changes) -> JobPlan:
        """Plan new jobs, which replace the last plan. Raises ValueError with the reason why there are none."""
        chosen = set(ids)
        outcomes = [outcome for outcome in self._outcomes.values() if outcome.id in chosen]
        taken_ids = {outcome.id for outcome in self._outcomes.values()}
        jobs = make_jobs(outcomes, changes, taken_ids, lambda: secrets.randbelow(SEEDS))
        pending = sum(outcome.status is State.PENDING for outcome in self._outcomes.values())
        self._plan = JobPlan(secrets.token_urlsafe(), tuple(jobs), pending)
        return self._plan

    def take_plan(self, name: str) -> JobPlan | None:
        """Return the plan of this name, once; None if there is no such plan any more."""
        if self._plan is None or not secrets.compare_digest(name.encode(), self._plan.name.encode()):
            return None
        plan, self._plan = self._plan, None
        return plan

    async def retry(self, ids: list[str]) -> None:
        """Resubmit these jobs, and send the last lines to the pages. Set `submitting` before."""
        await self._broadcast_output(self.commands.retry(ids))

    async def submit(self, plan: JobPlan) -> None:
        """Submit the jobs of a plan, and send the last lines to the pages. Set `submitting` before."""
        lines = b"".join(map(job_line, plan.jobs))
        await self._broadcast_output(self.commands.submit(lines, self._latest_run))

    async def _broadcast_output(self, command: Coroutine[Any, Any, tuple[bool, str]]) -> None:
        try:
            ok, text = await command
        finally:
            self.submitting = False
            self._reread_all = True
        self.broadcast("command_output", {"ok": ok, "text": text})


def _jobs_page(store: LedgerReader, after_job_no: int, limit: int) -> list[tuple[int, Outcome]]:
    """Read a page of jobs in one transaction. Raises LedgerError."""
    (page,) = store.read(lambda store: store.jobs_page(after_job_no, limit))
    return page  # type: ignore[no-any-return]


def sse_event(name: str, data: object) -> bytes:
    """Encode a server-sent event."""
    return f"event: {name}\ndata: ".encode() + msgspec.json.encode(data) + b"\n\n"


class GalleryApp:
    """The HTTP handlers of the page. `closing` ends the event streams after their next event."""

    def __init__(self, gallery: Gallery, other: Gallery | None = None) -> None:
        self._gallery = gallery
        self._other = other  # the run with which this one is compared
        self._tasks: set[asyncio.Task[None]] = set()
        self._exported: tuple[str, Path] | None = None  # the name of its URL, and the file
        self.closing = False

    def build(self) -> web.Application:
        app = web.Application(middlewares=[_require_local_host, self._require_secret], client_max_size=MAX_BODY_BYTES)
        app.on_response_prepare.append(_add_security_headers)
        app.router.add_get("/", self.index)
        app.router.add_get("/items", partial(self.items, self._gallery))
        app.router.add_get("/events", self.events)
        self._add_image_routes(app, self._gallery)
        if self._other:
            app.router.add_get("/other/items", partial(self.items, self._other))
            self._add_image_routes(app, self._other, "/other")
        app.router.add_post("/retry", self.retry)
        app.router.add_post("/ratings", self.rate)
        app.router.add_post("/plan", self.plan)
        app.router.add_post("/submit", self.submit)
        app.router.add_post("/export", self.export)
        app.router.add_get("/exports/{name}", self.exported)
        return app

    def _add_image_routes(self, app: web.Application, gallery: Gallery, prefix: str = "") -> None:
        app.router.add_get(prefix + r"/image/{job_no:[0-9]+}/{file_index:[0-9]+}", partial(self.image, gallery))
        app.router.add_get(prefix + r"/thumbnail/{job_no:[0-9]+}", partial(self.thumbnail, gallery))

    @web.middleware
    async def _require_secret(self, request: web.Request, handler: RequestHandler) -> web.StreamResponse:
        """Refuse requests without the secret, in a cookie or in the query of the page's URL."""
        cookie_name = f"krea-batch-{request.url.port}"  # cookies are shared by all ports of a host
        is_opened = (
            request.path == "/" and request.method == "GET" and self._is_secret(request.query.get("token", ""))
        )
        if not is_opened:
            if not self._is_secret(request.cookies.get(cookie_name, "")):
                raise web.HTTPForbidden(text=FORBIDDEN_TEXT)
            return await handler(request)
        response = web.Response(text=OPENING_PAGE, content_type="text/html", headers={"Cache-Control": "no-store"})
        response.set_cookie(cookie_name, self._gallery.secret, path="/", httponly=True, samesite="Strict")
        return response

    def _is_secret(self, text: str) -> bool:
        return secrets.compare_digest(_header_bytes(text), self._gallery.secret.encode())

    async def index(self, _: web.Request) -> web.Response:
        gallery = self._gallery
        text = render_page(
            title=path_text(Path(gallery.out.name)),
            live=True,
            other_title=path_text(Path(self._other.out.name)) if self._other else "",
            token=gallery.token,
            simulated=gallery.simulated,
            items="[]",
            charts=[],
            errors=[],
        )
        return web.Response(text=text, content_type="text/html", headers={"Cache-Control": "no-store"})

    async def items(self, gallery: Gallery, _: web.Request) -> web.Response:
        return web.Response(body=gallery.items(), content_type="application/json")

    async def image(self, gallery: Gallery, request: web.Request) -> web.StreamResponse:
        image = gallery.image(int(request.match_info["job_no"]), int(request.match_info["file_index"]))
        if image is None or not await anyio.Path(image.path).is_file():
            raise web.HTTPNotFound
        media_type = MEDIA_TYPES.get(image.path.suffix, "application/octet-stream")
        return web.FileResponse(image.path, headers={"Content-Type": media_type})

    async def thumbnail(self, gallery: Gallery, request: web.Request) -> web.Response:
        image = gallery.image(int(request.match_info["job_no"]), 0)
        data = await anyio.to_thread.run_sync(gallery.thumbnail, image) if image else None
        if data is None:
            raise web.HTTPNotFound
        return web.Response(body=data, content_type="image/webp", headers={"Cache-Control": "private, max-age=60"})

    async def events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        async with self._gallery.subscribe() as queue:
            with suppress(ConnectionResetError):  # the page was closed
                await response.prepare(request)
                await response.write(sse_event("run_status", self._gallery.run_status))
                while not self.closing:
                    await response.write(await queue.get())
        return response

    async def _read_body(self, request: web.Request, type_: type[T]) -> T:
        """Return the body of a POST of the page itself. Raises HTTPForbidden, HTTPBadRequest."""
        token = _header_bytes(request.headers.get("X-Token", ""))
        if not secrets.compare_digest(token, self._gallery.token.encode()):
            raise web.HTTPForbidden
        try:
            return msgspec.json.decode(await request.read(), type=type_)
        except msgspec.DecodeError:
            raise web.HTTPBadRequest from None

    def _require_jobs(self, ids: list[str]) -> None:
        """Raise HTTPBadRequest unless each of these is the id of a job."""
        if not self._gallery.has_jobs(ids):
            raise web.HTTPBadRequest

    async def rate(self, request: web.Request) -> web.Response:
        """Keep a rating of jobs. 507 says why it cannot be kept."""
        body = await self._read_body(request, RatingBody)
        self._require_jobs(body.ids)
        try:
            await self._gallery.rate(body.ids, body.rating)
        except (OSError, InputError) as error:
            reason = error.strerror if isinstance(error, OSError) else error.problem
            return web.Response(status=507, text=reason)
        return web.Response(status=204)

    async def retry(self, request: web.Request) -> web.Response:
        gallery = self._gallery
        ids = await self._read_body(request, list[str])
        self._require_jobs(ids)
        if gallery.submitting or not ids:
            raise web.HTTPConflict
        return self._start(gallery.retry(ids))

    async def plan(self, request: web.Request) -> web.Response:
        """Plan new jobs, and return what they cost. 422 says why there are none. Nothing is submitted."""
        body = await self._read_body(request, PlanBody)
        self._require_jobs(body.ids)
        gallery = self._gallery
        try:
            plan = gallery.plan(body.ids, body.changes)
        except ValueError as error:
            return web.Response(status=422, text=str(error))
        charges = len(plan.jobs) + plan.pending
        cost = None if gallery.price is None else f"{charges * gallery.price:,.2f} at {gallery.price:g} per image"
        reply = {"plan": plan.name, "jobs": len(plan.jobs), "pending": plan.pending, "cost": cost}
        return web.Response(body=msgspec.json.encode(reply), content_type="application/json")

    async def submit(self, request: web.Request) -> web.Response:
        """Submit the jobs of the last plan. 410: it was submitted, or replaced."""
        body = await self._read_body(request, SubmitBody)
        if self._gallery.submitting:
            raise web.HTTPConflict
        plan = self._gallery.take_plan(body.plan)
        if plan is None:
            raise web.HTTPGone
        return self._start(self._gallery.submit(plan))

    def _start(self, command: Coroutine[Any, Any, None]) -> web.Response:
        """Start a command that submits."""
        self._gallery.submitting = True  # here, not in the task, which starts later: two requests would start two
        task = asyncio.create_task(command)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return web.Response(status=202)

    async def export(self, request: web.Request) -> web.Response:
        """Export jobs into a file, and return the path of its URL. 422 has the last lines of a failed export."""
        body = await self._read_body(request, ExportBody)
        self._require_jobs(body.ids)
        if self._gallery.exporting or not body.ids:
            raise web.HTTPConflict
        self._gallery.exporting, self._exported = True, None
        try:
            path, text = await self._gallery.commands.export(body.ids, body.format)
        finally:
            self._gallery.exporting = False
        if path is None:
            return web.Response(status=422, text=text)
        name = secrets.token_urlsafe()
        self._exported = (name, path)
        return web.Response(text=f"/exports/{name}")

    async def exported(self, request: web.Request) -> web.StreamResponse:
        """Return the exported file."""
        if self._exported is None or not secrets.compare_digest(
            _header_bytes(request.match_info["name"]), self._exported[0].encode()
        ):
            raise web.HTTPNotFound
        path = self._exported[1]
        return web.FileResponse(path, headers={"Content-Disposition": f'attachment; filename="{path.name}"'})


def _header_bytes(header: str) -> bytes:
    return header.encode("utf-8", "surrogateescape")  # aiohttp decodes headers in the same way


@web.middleware
async def _require_local_host(request: web.Request, handler: RequestHandler) -> web.StreamResponse:
    """Refuse requests whose Host is not this machine."""
    try:
        name = urlsplit(f"//{request.host}").hostname
    except ValueError:
        name = None
    if name not in ("127.0.0.1", "localhost", "::1"):
        raise web.HTTPMisdirectedRequest
    return await handler(request)


async def _add_security_headers(_: web.Request, response: web.StreamResponse) -> None:
    """Add security headers to every response, including errors."""
    response.headers.update(SECURITY_HEADERS)


async def serve(gallery: Gallery, port: int, on_ready: Callable[[str], Any], other: Gallery | None = None) -> None:
    """Serve until cancelled. `on_ready` is called with the URL, which has the secret.

    `other` is a run to compare with, as it is at the start.

    Raises OSError if it cannot listen on the port.
    """
    await gallery.refresh()
    if other:
        await other.refresh()
    app = GalleryApp(gallery, other)
    runner = web.AppRunner(app.build(), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        on_ready(f"http://127.0.0.1:{runner.addresses[0][1]}/?token={gallery.secret}")
        while True:
            await asyncio.sleep(REFRESH_INTERVAL_S)
            await gallery.refresh()
    finally:
        app.closing = True
        gallery.broadcast("end", None)  # the page ignores it; it wakes the event streams, which then end
        await runner.cleanup()
        gallery.commands.close()
