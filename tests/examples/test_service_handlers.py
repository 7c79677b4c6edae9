"""The handlers of the example service, with a scripted gateway and in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from krea_batch import Engine
from krea_batch.testing import ACCEPT, ErrorResponse, Failed, ScriptedGateway, make_png, run_virtual
from tests.asgi_client import AsgiResponse, request_asgi

T = TypeVar("T")
Request = Callable[..., Awaitable[AsgiResponse]]


@asynccontextmanager
async def started_service(
    out: Path, gateway: ScriptedGateway, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Request]:
    """Start the service on a scripted gateway, and yield a function that sends it a request."""
    monkeypatch.setenv("PIXAZO_API_KEY", "any")  # the module opens an engine, which the next lines replace
    from examples import fastapi_service

    monkeypatch.setattr(fastapi_service, "OUT", out)
    monkeypatch.setattr(fastapi_service, "engine", Engine(out, gateway_client=gateway))
    app = fastapi_service.app
    async with app.router.lifespan_context(app):

        async def request(method: str, path: str, json: Any = None) -> AsgiResponse:
            return await request_asgi(app, method, path, json=json)

        yield request


async def wait_until_ended(request: Request, image_id: str) -> AsgiResponse:
    """Read the events of an image until its job ends, and return the response to GET."""
    assert (await request("GET", f"/images/{image_id}/events")).status == 200
    return await request("GET", f"/images/{image_id}")


def test_from_request_to_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that is rate-limited for a minute becomes an image, which the service returns."""
    gateway = ScriptedGateway()
    gateway.submit_script["a cat"] = [ErrorResponse(429, retry_after_s=60), ACCEPT]

    async def main() -> AsgiResponse:
        async with started_service(tmp_path, gateway, monkeypatch) as request:
            created = await request("POST", "/images", {"prompt": "a cat"})
            assert created.status == 202
            ended = await wait_until_ended(request, created.json["id"])
            assert ended.json["status"] == "succeeded"
            return await request("GET", ended.json["file"])

    image = run_virtual(main())
    assert (image.status, image.headers["content-type"]) == (200, "image/png")
    assert image.body == make_png(text=b"a cat")
    assert list(gateway.charged.values()) == ["a cat"]


def test_a_failed_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed job has the error of the gateway, and no image."""
    gateway = ScriptedGateway()
    gateway.poll_script["a cat"] = [Failed("the prompt was refused")]

    async def main() -> None:
        async with started_service(tmp_path, gateway, monkeypatch) as request:
            image_id = (await request("POST", "/images", {"prompt": "a cat"})).json["id"]
            ended = await wait_until_ended(request, image_id)
            assert (ended.json["status"], ended.json["error"]) == ("failed", "the prompt was refused")
            assert (await request("GET", f"/images/{image_id}/file")).status == 404

    run_virtual(main())


@pytest.mark.parametrize(
    ("job", "named"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": "x", "creativity": "wild"}, "creativity"),
        ({"promt": "x"}, "prom"),
        ({"prompt": "x", "id": "../x"}, "id"),
    ],
    ids=["empty", "value", "field", "id"],
)
def test_invalid_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: dict[str, str], named: str) -> None:
    """An invalid job is answered with 422 and the error; nothing is submitted."""
    gateway = ScriptedGateway()

    async def main() -> AsgiResponse:
        async with started_service(tmp_path, gateway, monkeypatch) as request:
            return await request("POST", "/images", job)

    response = run_virtual(main())
    assert response.status == 422
    assert named in response.json["error"]
    assert gateway.submitted_bodies == []


@pytest.mark.parametrize("path", ["/images/unknown", "/images/unknown/file", "/images/unknown/events"])
def test_an_unknown_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """An unknown id is answered with 404."""

    async def main() -> int:
        async with started_service(tmp_path, ScriptedGateway(), monkeypatch) as request:
            return (await request("GET", path)).status

    assert run_virtual(main()) == 404


def test_no_balance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without balance, requests and the health check are answered with 503, requests with the reason."""
    gateway = ScriptedGateway()
    gateway.submit_script["two"] = [ErrorResponse(402)]

    async def main() -> None:
        async with started_service(tmp_path, gateway, monkeypatch) as request:
            first = (await request("POST", "/images", {"prompt": "one"})).json["id"]
            assert (await wait_until_ended(request, first)).json["status"] == "succeeded"
            second = (await request("POST", "/images", {"prompt": "two"})).json["id"]
            assert b"Interrupted" in (await request("GET", f"/images/{second}/events")).body
            third = await request("POST", "/images", {"prompt": "three"})
            assert third.status == 503
            assert "402" in third.json["error"]
            assert (await request("GET", "/healthz")).status == 503

    run_virtual(main())
