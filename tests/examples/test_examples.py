"""The examples as processes, started as their docstrings say: used over HTTP, under load, and killed during a run.

What the handlers answer is tested in `test_service_handlers`, without a process.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.processes import (
    PROCESS_TIMEOUT_S,
    RunningSimulator,
    StartSimulator,
    clean_environment,
    free_port,
    wait_until,
)

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
EXAMPLE_LATENCY_OPTIONS = ("--tiny", "--latency", "uniform:1,3")


def client_session(url: str) -> aiohttp.ClientSession:
    """Return a session without kept connections, which a service may close just when a request is sent."""
    return aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(force_close=True))


class ServiceProcess:
    """The web service in its own process. Each start uses the same port and the same run directory."""

    def __init__(
        self, out: Path, gateway: str, *, callbacks: bool = False, rate: str = "200/s", workers: int = 1
    ) -> None:
        self._workers = workers
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._environment = clean_environment(
            PIXAZO_API_KEY="test-key",
            KREA_OUT=str(out),
            KREA_GATEWAY=gateway,
            KREA_RATE=rate,
            KREA_POLL_INTERVAL_S="0.5",
            **({"KREA_PUBLIC_URL": self.url} if callbacks else {}),
        )

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        command = [sys.executable, "-m", "uvicorn", "examples.fastapi_service:app"]
        process = subprocess.Popen(
            [*command, "--port", str(self.port), "--log-level", "warning", "--workers", str(self._workers)],
            cwd=ROOT,
            env=self._environment,
        )
        try:
            self._wait(process)
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(PROCESS_TIMEOUT_S)

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        def is_listening() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self.port)) == 0

        wait_until(is_listening, process)


async def create_image(web: aiohttp.ClientSession, **job: Any) -> str:
    async with web.post("/images", json=job) as response:
        assert response.status == 202, await response.text()
        body = await response.json()
        assert body["url"] == f"/images/{body['id']}"
        return str(body["id"])


async def wait_until_ended(web: aiohttp.ClientSession, image_id: str) -> dict[str, Any]:
    """Read the events of an image until its job ends, and return its status."""
    async with web.get(f"/images/{image_id}/events") as response:
        assert response.status == 200
        assert response.headers["Content-Type"].startswith("text/event-stream")
        text = await response.text()
    assert "event: JobEnded" in text
    async with web.get(f"/images/{image_id}") as response:
        status: dict[str, Any] = await response.json()
        return status


def children_with_files_in(parent: int, folder: Path) -> list[int]:
    """Return the child processes that have files of a folder open, on Linux."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [
        int(child)
        for child in children
        if any(folder in fd.resolve().parents for fd in Path(f"/proc/{child}/fd").iterdir())
    ]


def charged_prompts(simulator: RunningSimulator) -> list[str]:
    """Return the prompts of all POSTs that were charged."""
    return [post["body"]["prompt"] for post in simulator.admin_request("/ledger")["posts"] if post["charged"]]


class TestService:
    @pytest.mark.parametrize("callbacks", [False, True], ids=["polls", "callbacks"])
    def test_from_request_to_image(self, simulate: StartSimulator, tmp_path: Path, callbacks: bool) -> None:
        """A request is answered with 202 and an id; its events end with its job; then the image can be fetched."""
        simulated = simulate(*EXAMPLE_LATENCY_OPTIONS)
        service = ServiceProcess(tmp_path, simulated.gateway_url, callbacks=callbacks)

        async def use_service() -> None:
            async with client_session(service.url) as web:
                image_id = await create_image(web, prompt="a cat", seed=7)
                final_status = await wait_until_ended(web, image_id)
                assert final_status["status"] == "succeeded"
                async with web.get(final_status["file"]) as response:
                    assert response.headers["Content-Type"] == "image/png"
                    assert (await response.read()).startswith(PNG_SIGNATURE)
                async with web.get("/healthz") as response:
                    stats = await response.json()
                    assert stats["ended_by_state"] == {"succeeded": 1}
                    assert (stats["callbacks"] > 0) == callbacks

        with service.running():
            asyncio.run(use_service())
        assert charged_prompts(simulated) == ["a cat"]

    def test_four_processes(self, simulate: StartSimulator, tmp_path: Path) -> None:
        """Four processes share a run directory: each finds every image, no id is charged twice, and one is killed."""
        simulated = simulate("--tiny", "--latency", "uniform:2,4")
        service = ServiceProcess(tmp_path, simulated.gateway_url, rate="40/s", workers=4)

        async def use_service(process: subprocess.Popen[bytes]) -> list[str]:
            async with client_session(service.url) as web:
                twice = [{"prompt": f"image {n}", "id": f"order-{n}"} for n in range(100)] * 2
                ids = await asyncio.gather(*(create_image(web, **job) for job in twice))
                os.kill(children_with_files_in(process.pid, tmp_path)[0], signal.SIGKILL)
                ended = await asyncio.gather(*(wait_until_ended(web, image_id) for image_id in ids))
                return [status["status"] for status in ended]

        with service.running() as process:
            statuses = asyncio.run(use_service(process))
        assert set(statuses) <= {"succeeded", "ambiguous"}  # ambiguous: POSTs of the process that was killed
        charged = charged_prompts(simulated)
        assert len(charged) == len(set(charged)) >= 90

    @pytest.mark.parametrize("callbacks", [False, True], ids=["polls", "callbacks"])
    def test_killed_with_hundreds_in_flight(self, simulate: StartSimulator, tmp_path: Path, callbacks: bool) -> None:
        """After a kill with 200 jobs in flight and more pending, every id is known, and none is charged twice."""
        simulated = simulate("--tiny", "--latency", "uniform:5,8")
        service = ServiceProcess(tmp_path, simulated.gateway_url, callbacks=callbacks, rate="150/s")
        ids: list[str] = []

        async def submit_all() -> None:
            async with client_session(service.url) as web:
                ids.extend(await asyncio.gather(*(create_image(web, prompt=f"image {n}") for n in range(250))))
                while True:
                    async with web.get("/healthz") as response:
                        if (await response.json())["accepted"] >= 200:
                            return
                    await asyncio.sleep(0.02)

        async def find_all() -> list[str]:
            async with client_session(service.url) as web:
                return [(await wait_until_ended(web, image_id))["status"] for image_id in ids]

        with service.running() as process:
            asyncio.run(submit_all())
            process.kill()
            process.wait()
        with service.running():
            statuses = asyncio.run(find_all())
        assert len(statuses) == 250
        assert set(statuses) <= {"succeeded", "ambiguous"}  # ambiguous: POSTs that were pending at the kill
        assert statuses.count("ambiguous") <= 60
        charged = charged_prompts(simulated)
        assert len(charged) == len(set(charged))


class TestWorker:
    @staticmethod
    def command(*arguments: str | Path) -> list[str]:
        return [sys.executable, str(ROOT / "examples/queue_worker.py"), *map(str, arguments)]

    def put_prompts(self, queue: Path, *prompts: str) -> None:
        subprocess.run(self.command("put", queue, *prompts), check=True, timeout=PROCESS_TIMEOUT_S)

    def start(self, tmp_path: Path, gateway: str, *extra_options: str) -> subprocess.Popen[bytes]:
        options = ("--out", tmp_path / "out", "--gateway", gateway, "--rate", "100/s", "--poll-interval", "0.5")
        command = self.command("work", tmp_path / "queue.db", *options, *extra_options)
        return subprocess.Popen(command, env=clean_environment(PIXAZO_API_KEY="test-key"))

    @staticmethod
    def messages(tmp_path: Path) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(tmp_path / "queue.db")) as queue:
            return queue.execute("SELECT prompt, status, result FROM messages ORDER BY id").fetchall()

    def test_queued_messages_become_images(self, simulate: StartSimulator, tmp_path: Path) -> None:
        """Each message gets its image, also one that arrives later; an invalid one is rejected."""
        simulated = simulate(*EXAMPLE_LATENCY_OPTIONS)
        self.put_prompts(tmp_path / "queue.db", *(f"image {n}" for n in range(30)), " ")
        worker = self.start(tmp_path, simulated.gateway_url)
        self.put_prompts(tmp_path / "queue.db", "a late one")
        self.wait(tmp_path, lambda done: done == 32)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(PROCESS_TIMEOUT_S) == 0
        results = {prompt: (status, result) for prompt, status, result in self.messages(tmp_path)}
        assert results.pop(" ")[0] == "rejected"
        assert {status for status, _ in results.values()} == {"succeeded"}
        paths = [tmp_path / "out" / result for _, result in results.values()]
        assert all(path.read_bytes().startswith(PNG_SIGNATURE) for path in paths)
        assert sorted(charged_prompts(simulated)) == sorted(results)

    @pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
    def test_stopped_with_jobs_in_flight(self, simulate: StartSimulator, tmp_path: Path, end: signal.Signals) -> None:
        """After SIGTERM or a kill, the next worker completes the unfinished jobs; no message is charged twice."""
        simulated = simulate("--tiny", "--latency", "uniform:2,4")
        self.put_prompts(tmp_path / "queue.db", *(f"image {n}" for n in range(200)))
        worker = self.start(tmp_path, simulated.gateway_url)
        self.wait(tmp_path, lambda done: done >= 20)
        worker.send_signal(end)
        worker.wait(PROCESS_TIMEOUT_S)
        assert any(status is None for _, status, _ in self.messages(tmp_path))
        assert self.start(tmp_path, simulated.gateway_url, "--once").wait(PROCESS_TIMEOUT_S) == 0
        statuses = [status for _, status, _ in self.messages(tmp_path)]
        assert set(statuses) <= ({"succeeded"} if end is signal.SIGTERM else {"succeeded", "ambiguous"})
        charged = charged_prompts(simulated)
        assert len(charged) == len(set(charged))

    def wait(self, tmp_path: Path, done: Any) -> None:
        wait_until(lambda: done(sum(status is not None for _, status, _ in self.messages(tmp_path))))
