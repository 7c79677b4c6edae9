"""Serves a page on this machine that shows the images of a run as they arrive.

Only files in the ledger are served. Every user of this machine can connect to the port, so each request needs the
secret of the URL that is printed. The first request sets it as a cookie. Requests for another host name (DNS
rebinding) and POSTs without the page's token, which other pages cannot read, are refused.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import msgspec
from aiohttp import web

from krea_batch.errors import InputError
from krea_batch.gallery.new_jobs import Changes
from krea_batch.gallery.page_commands import ExportFormat
from krea_batch.gallery.rendering import render_page, script_csp_source
from krea_batch.gallery.shown_run import ShownRun, sse_event
from krea_batch.storage.image_types import MEDIA_TYPES
from krea_batch.storage.outputs import path_text
from krea_batch.storage.ratings import Stars

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
    format: ExportFormat


class GalleryApp:
    """The HTTP handlers of the page. `closing` ends the event streams after their next event."""

    def __init__(self, run: ShownRun, other: ShownRun | None = None) -> None:
        self._run = run
        self._other = other  # the run with which this one is compared
        self._submission: asyncio.Task[None] | None = None  # the latest command that submits: there is one at a time
        self._is_exporting = False
        self._exported: tuple[str, Path] | None = None  # the name of its URL, and the file
        self.closing = False

    def build(self) -> web.Application:
        app = web.Application(middlewares=[_require_local_host, self._require_secret], client_max_size=MAX_BODY_BYTES)
        app.on_response_prepare.append(_add_security_headers)
        app.router.add_get("/", self.index)
        app.router.add_get("/items", partial(self.items, self._run))
        app.router.add_get("/events", self.events)
        self._add_image_routes(app, self._run)
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

    def _add_image_routes(self, app: web.Application, run: ShownRun, prefix: str = "") -> None:
        app.router.add_get(prefix + r"/image/{job_no:[0-9]+}/{file_index:[0-9]+}", partial(self.image, run))
        app.router.add_get(prefix + r"/thumbnail/{job_no:[0-9]+}", partial(self.thumbnail, run))

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
        response.set_cookie(cookie_name, self._run.secret, path="/", httponly=True, samesite="Strict")
        return response

    def _is_secret(self, text: str) -> bool:
        return secrets.compare_digest(_header_bytes(text), self._run.secret.encode())

    async def index(self, _: web.Request) -> web.Response:
        run = self._run
        text = render_page(
            title=path_text(Path(run.out.name)),
            live=True,
            other_title=path_text(Path(self._other.out.name)) if self._other else "",
            token=run.token,
            simulated=run.simulated,
            items="[]",
            charts=[],
            errors=[],
        )
        return web.Response(text=text, content_type="text/html", headers={"Cache-Control": "no-store"})

    async def items(self, run: ShownRun, _: web.Request) -> web.Response:
        return web.Response(body=run.items(), content_type="application/json")

    async def image(self, run: ShownRun, request: web.Request) -> web.StreamResponse:
        image = run.image(int(request.match_info["job_no"]), int(request.match_info["file_index"]))
        if image is None or not await anyio.Path(image.path).is_file():
            raise web.HTTPNotFound
        media_type = MEDIA_TYPES.get(image.path.suffix, "application/octet-stream")
        return web.FileResponse(image.path, headers={"Content-Type": media_type})

    async def thumbnail(self, run: ShownRun, request: web.Request) -> web.Response:
        image = run.image(int(request.match_info["job_no"]), 0)
        data = await anyio.to_thread.run_sync(run.thumbnail, image) if image else None
        if data is None:
            raise web.HTTPNotFound
        return web.Response(body=data, content_type="image/webp", headers={"Cache-Control": "private, max-age=60"})

    async def events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        async with self._run.subscribe() as queue:
            with suppress(ConnectionResetError):  # the page was closed
                await response.prepare(request)
                await response.write(sse_event("run_status", self._run.run_status))
                while not self.closing:
                    await response.write(await queue.get())
        return response

    async def _read_body(self, request: web.Request, type_: type[T]) -> T:
        """Return the body of a POST of the page itself. Raises HTTPForbidden, HTTPBadRequest."""
        token = _header_bytes(request.headers.get("X-Token", ""))
        if not secrets.compare_digest(token, self._run.token.encode()):
            raise web.HTTPForbidden
        try:
            return msgspec.json.decode(await request.read(), type=type_)
        except msgspec.DecodeError:
            raise web.HTTPBadRequest from None

    def _require_jobs(self, ids: list[str]) -> None:
        """Raise HTTPBadRequest unless each of these is the id of a job."""
        if not self._run.has_jobs(ids):
            raise web.HTTPBadRequest

    async def rate(self, request: web.Request) -> web.Response:
        """Keep a rating of jobs. 507 says why it cannot be kept."""
        body = await self._read_body(request, RatingBody)
        self._require_jobs(body.ids)
        try:
            await self._run.rate(body.ids, body.rating)
        except (OSError, InputError) as error:
            reason = error.strerror if isinstance(error, OSError) else error.problem
            return web.Response(status=507, text=reason)
        return web.Response(status=204)

    async def retry(self, request: web.Request) -> web.Response:
        run = self._run
        ids = await self._read_body(request, list[str])
        self._require_jobs(ids)
        if self._is_submitting or not ids:
            raise web.HTTPConflict
        return self._start(run.retry(ids))

    async def plan(self, request: web.Request) -> web.Response:
        """Plan new jobs, and return what they cost. 422 says why there are none. Nothing is submitted."""
        body = await self._read_body(request, PlanBody)
        self._require_jobs(body.ids)
        run = self._run
        try:
            plan = run.plan(body.ids, body.changes)
        except ValueError as error:
            return web.Response(status=422, text=str(error))
        charges = len(plan.jobs) + plan.pending
        cost = None if run.price is None else f"{charges * run.price:,.2f} at {run.price:g} per image"
        reply = {"plan": plan.name, "jobs": len(plan.jobs), "pending": plan.pending, "cost": cost}
        return web.Response(body=msgspec.json.encode(reply), content_type="application/json")

    async def submit(self, request: web.Request) -> web.Response:
        """Submit the jobs of the last plan. 410: it was submitted, or replaced."""
        body = await self._read_body(request, SubmitBody)
        if self._is_submitting:
            raise web.HTTPConflict
        plan = self._run.take_plan(body.plan)
        if plan is None:
            raise web.HTTPGone
        return self._start(self._run.submit(plan))

    @property
    def _is_submitting(self) -> bool:
        return self._submission is not None and not self._submission.done()

    def _start(self, command: Coroutine[Any, Any, None]) -> web.Response:
        """Start a command that submits."""
        self._submission = asyncio.create_task(command)
        return web.Response(status=202)

    async def export(self, request: web.Request) -> web.Response:
        """Export jobs into a file, and return the path of its URL. 422 has the last lines of a failed export."""
        body = await self._read_body(request, ExportBody)
        self._require_jobs(body.ids)
        if self._is_exporting or not body.ids:
            raise web.HTTPConflict
        self._is_exporting, self._exported = True, None
        try:
            path, text = await self._run.commands.export(body.ids, body.format)
        finally:
            self._is_exporting = False
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


async def serve(run: ShownRun, port: int, on_ready: Callable[[str], Any], other: ShownRun | None = None) -> None:
    """Serve until cancelled. `on_ready` is called with the URL, which has the secret.

    `other` is a run to compare with, as it is at the start.

    Raises OSError if it cannot listen on the port.
    """
    await run.refresh()
    if other:
        await other.refresh()
    app = GalleryApp(run, other)
    runner = web.AppRunner(app.build(), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        on_ready(f"http://127.0.0.1:{runner.addresses[0][1]}/?token={run.secret}")
        while True:
            await asyncio.sleep(REFRESH_INTERVAL_S)
            await run.refresh()
    finally:
        app.closing = True
        run.broadcast("end", None)  # the page ignores it; it wakes the event streams, which then end
        await runner.cleanup()
        run.commands.close()
