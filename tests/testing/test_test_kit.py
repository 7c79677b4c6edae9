"""The public test kit, used as an application's own tests would use it: the kit and the public API, nothing else."""

from __future__ import annotations

import asyncio
import inspect
import socket
from collections.abc import Iterable
from pathlib import Path
from textwrap import dedent
from types import ModuleType

import pytest

from krea_batch import Engine, Job, Outcome
from krea_batch.testing import scripted_gateway, virtual_time
from krea_batch.testing.scripted_gateway import (
    ACCEPT,
    FINISH,
    Ambiguous,
    DownloadError,
    Failed,
    NotSent,
    PollFailed,
    Refusal,
    Refused,
    ScriptedDownload,
    ScriptedGateway,
    Waiting,
    make_png,
)
from krea_batch.testing.virtual_time import VirtualTimeLoop, run_virtual


async def make_posters(out: Path, gateway: ScriptedGateway, titles: Iterable[str]) -> dict[str, str]:
    """The application under test: one image for each title. Returns a status by title."""
    async with Engine(out, gateway_client=gateway, rate="10/s") as engine:
        outcomes: list[Outcome] = [
            outcome async for outcome in engine.stream(Job(prompt=title, id=title) for title in titles)
        ]
    return {outcome.id: outcome.status.value for outcome in outcomes}


def test_jobs_succeed_without_a_script(tmp_path: Path) -> None:
    """Every job is charged once, and its image is the gateway's."""
    gateway = ScriptedGateway()
    titles = ["a fox", "an owl"]
    assert run_virtual(make_posters(tmp_path / "out", gateway, titles)) == dict.fromkeys(titles, "succeeded")
    assert sorted(gateway.charged.values()) == sorted(gateway.submitted_prompts) == titles
    images = {path.read_bytes() for path in (tmp_path / "out" / "images").iterdir()}
    assert (
        images
        == {gateway.image(request_id) for request_id in gateway.charged}
        == {make_png(text=title.encode()) for title in titles}
    )


def test_errors_of_the_gateway_are_retried(tmp_path: Path) -> None:
    """A job with a transient error in each of its stages succeeds, is charged once, and no time really passes."""
    gateway = ScriptedGateway()
    gateway.submit_script["a fox"] = [
        NotSent("no connection"),
        Refused(Refusal.RATE_LIMITED, 429, "slow down", 60.0),
        ACCEPT,
    ]
    gateway.poll_script["a fox"] = [PollFailed("HTTP 500", 500), (5.0, Waiting("PROCESSING")), FINISH]
    cut = ScriptedDownload([make_png(text=b"a fox")[:30], 2.0, DownloadError("the connection was cut")])
    rest = ScriptedDownload([make_png(text=b"a fox")[30:]], offset=30)
    gateway.download_script["a fox"] = [DownloadError("HTTP 503", status=503), cut, rest]

    assert run_virtual(make_posters(tmp_path / "out", gateway, ["a fox"])) == {"a fox": "succeeded"}
    assert gateway.submit_times_s[-1] - gateway.submit_times_s[0] >= 60.0
    assert list(gateway.charged.values()) == ["a fox"]
    assert len(gateway.submitted_bodies) == 3
    assert [offset for _, offset in gateway.downloads] == [0, 0, 30]


def test_a_lost_response_is_not_resubmitted(tmp_path: Path) -> None:
    """A job whose POST may have been charged stays ambiguous, and a failed one stays failed."""
    gateway = ScriptedGateway()
    gateway.submit_script["a fox"] = [Ambiguous("the connection was cut")]
    gateway.poll_script["an owl"] = [Failed("the prompt was rejected")]
    found = run_virtual(make_posters(tmp_path / "out", gateway, ["a fox", "an owl"]))
    assert found == {"a fox": "ambiguous", "an owl": "failed"}
    assert gateway.submitted_prompts == ["a fox", "an owl"]


def test_slow_threads_take_virtual_time(tmp_path: Path) -> None:
    """With a duration for calls in executors a run takes that much virtual time longer."""

    async def main() -> float:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        await make_posters(tmp_path / "out", ScriptedGateway(), ["a fox"])
        return float(loop.time())

    assert run_virtual(main(), lambda: 100.0) > 1400.0


@pytest.mark.parametrize("module", [scripted_gateway, virtual_time])
def test_the_example_in_the_docstring_works(module: ModuleType, tmp_path: Path) -> None:
    """The code in a module's docstring runs as it is written, and its test passes."""
    blocks = [block for block in (inspect.getdoc(module) or "").split("\n\n") if block.startswith("    ")]
    names: dict[str, object] = {}
    exec(dedent("\n\n".join(blocks)), names)  # noqa: S102 - our own docstring
    (test,) = (value for name, value in names.items() if name.startswith("test_"))
    assert callable(test)
    test(**({"tmp_path": tmp_path} if "tmp_path" in inspect.signature(test).parameters else {}))


@pytest.mark.parametrize("module", [scripted_gateway, virtual_time])
def test_public_names_exist(module: ModuleType) -> None:
    """Every name in `__all__` exists."""
    assert set(module.__all__) <= set(vars(module))


def test_no_name_server_is_asked_in_virtual_time() -> None:
    """Name look-ups fail as on a machine without network, and no time really passes."""

    async def look_up() -> None:
        await asyncio.get_running_loop().getaddrinfo("gateway.pixazo.ai", 443)

    with pytest.raises(socket.gaierror, match="no network in virtual time"):
        run_virtual(look_up())
