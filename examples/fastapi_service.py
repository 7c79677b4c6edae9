"""A web service that generates images for its users, and resumes after a crash.

    krea-batch simulate --port 8787                                    # a gateway that charges nothing
    KREA_GATEWAY=http://127.0.0.1:8787 PIXAZO_API_KEY=any uvicorn examples.fastapi_service:app --port 8000

    curl -X POST localhost:8000/images -H 'Content-Type: application/json' -d '{"prompt": "a cat"}'

A request is in the ledger before the response is sent, so its id stays valid. After a crash, the next process on the
same run directory resumes it, and nothing is charged twice. Several processes can share the run directory:

    uvicorn examples.fastapi_service:app --workers 4        # or: gunicorn -w 4 -k uvicorn.workers.UvicornWorker …

Each of them finds every image, even while another one generates it. They share one rate, and submit each image once.

Environment variables: PIXAZO_API_KEY; KREA_OUT, the run directory; KREA_GATEWAY; KREA_RATE; KREA_POLL_INTERVAL_S;
KREA_PUBLIC_URL, the URL at which the gateway reaches this service, for callbacks instead of polls. A callback may
reach a process that does not have the job, so callbacks help only if there is a single process.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
from fastapi import Body, FastAPI, Header, HTTPException, Request, Response
from fastapi.responses import FileResponse, StreamingResponse

from krea_batch import Engine, Handle, Job, JobError, KreaBatchError, Webhook
from krea_batch.events import Event

OUT = Path(os.environ.get("KREA_OUT", "service-data"))
PUBLIC_URL = os.environ.get("KREA_PUBLIC_URL", "")
CALLBACKS = "/krea"


def open_engine() -> Engine:
    """Return the engine of this service. It starts together with the service."""
    options: dict[str, Any] = {"rate": os.environ.get("KREA_RATE", "10/s"), "shared": True}
    if gateway := os.environ.get("KREA_GATEWAY"):
        options["gateway"] = gateway
    if interval_s := os.environ.get("KREA_POLL_INTERVAL_S"):
        options["poll_interval_s"] = float(interval_s)
    if PUBLIC_URL:
        options["webhook"] = Webhook(PUBLIC_URL.rstrip("/") + CALLBACKS)
    return Engine(OUT, **options)


engine = open_engine()


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Resume the jobs of an earlier process at the start, and leave unfinished jobs to the next one at the end."""
    await engine.start()
    yield
    await engine.aclose(detach=True)


app = FastAPI(title="Images", lifespan=lifespan)
if PUBLIC_URL:
    app.mount(CALLBACKS, engine.callbacks_app())


@app.exception_handler(JobError)
async def invalid_job(_: Request, error: JobError) -> Response:
    """Respond with 422: the request is invalid, or its id belongs to another request."""
    return _json_response({"error": str(error)}, status=422)


@app.exception_handler(KreaBatchError)
async def engine_stopped(_: Request, error: KreaBatchError) -> Response:
    """Respond with 503: the engine has stopped, for example without balance. Recorded requests stay in the ledger."""
    return _json_response({"error": str(error)}, status=503, headers={"Retry-After": "60"})


@app.post("/images", status_code=202)
async def create_image(
    job: Annotated[dict[str, Any], Body()], x_tenant: Annotated[str, Header()] = ""
) -> dict[str, str]:
    """Record a request. X-Tenant names the user, so that the requests of one user do not delay those of others."""
    try:
        parsed = msgspec.convert(job, Job)
    except msgspec.ValidationError as error:
        raise JobError(str(error), "see GET /docs and `krea-batch schema`", job_id=str(job.get("id", ""))) from None
    handle = await engine.enqueue(parsed, tenant=x_tenant)
    return {"id": handle.id, "url": f"/images/{handle.id}"}


@app.get("/images/{image_id}")
async def status(image_id: str) -> dict[str, Any]:
    """Return the state of an image."""
    handle = await _get_handle(image_id)
    body: dict[str, Any] = {"id": handle.id, "status": handle.status, "request_id": handle.request_id}
    if handle.outcome and handle.outcome.succeeded:
        body["file"] = f"/images/{handle.id}/file"
    elif handle.outcome and handle.outcome.error:
        body["error"] = handle.outcome.error.message
    return body


@app.get("/images/{image_id}/file")
async def image_file(image_id: str) -> FileResponse:
    """Return the image, once it is stored."""
    outcome = (await _get_handle(image_id)).outcome
    if not (outcome and outcome.succeeded):
        raise HTTPException(404, f"{image_id!r} has no image; see GET /images/{image_id}")
    return FileResponse(OUT / outcome.files[0].path, media_type=outcome.files[0].media_type)


@app.get("/images/{image_id}/events")
async def events(image_id: str) -> StreamingResponse:
    """Stream the events of an image as server-sent events, until its job ends."""
    return StreamingResponse(_stream(await _get_handle(image_id)), media_type="text/event-stream")


@app.get("/healthz")
async def health() -> dict[str, Any]:
    """Return the statistics of the engine; 503 once it has stopped."""
    if engine.stopped:
        raise engine.stopped
    return msgspec.to_builtins(engine.stats())  # type: ignore[no-any-return]


async def _get_handle(image_id: str) -> Handle:
    handle = await engine.get(image_id)
    if handle is None:
        raise HTTPException(404, f"no image {image_id!r}; request one with POST /images")
    return handle


async def _stream(handle: Handle) -> AsyncIterator[str]:
    try:
        async for event in handle:
            yield _sse(event)
    except KreaBatchError as error:  # the engine stops; the next process resumes the job
        yield f"event: Interrupted\ndata: {msgspec.json.encode(str(error)).decode()}\n\n"


def _sse(event: Event) -> str:
    return f"event: {type(event).__name__}\ndata: {msgspec.json.encode(event).decode()}\n\n"


def _json_response(body: dict[str, str], status: int, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body), status, headers, "application/json")
