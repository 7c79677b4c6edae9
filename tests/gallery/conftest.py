"""Fixtures: a browser, pages whose errors fail the test, runs to show, and processes that show them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from krea_batch.jobs import State
from tests.engine_fixtures import ledger_states
from tests.gallery.gallery_fixtures import OpenPage, RunningView, SeedJob, StartView, make_run, sweep_jobs
from tests.processes import PROCESS_TIMEOUT_S, RunningSimulator, StartSimulator, run_command, write_jobs

BROWSER_ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
BROWSER_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PAGE_TIMEOUT_MS = 1000 * PROCESS_TIMEOUT_S / 4

expect.set_options(timeout=PAGE_TIMEOUT_MS)


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """One browser for all pages. It is closed with this package, because Playwright's event loop blocks others."""
    executable = next(filter(None, map(shutil.which, BROWSER_NAMES)), None)
    assert executable, (
        f"these tests need a browser ({', '.join(BROWSER_NAMES)}), and none is installed; apt-get install chromium"
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=BROWSER_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser, start_view: StartView) -> Iterator[OpenPage]:
    """Open pages. The test fails if one logs an error or a warning, throws, or sends a request to another server.

    Messages that contain one of `allowed_errors` are ignored. The fixture needs `start_view` so that pages are closed
    before their servers, which reset connections.
    """
    contexts: list[BrowserContext] = []
    page_errors: list[str] = []

    def open_checked_page(url: str, *, allowed_errors: tuple[str, ...] = (), **options: Any) -> Page:
        context = browser.new_context(**options)
        context.set_default_timeout(PAGE_TIMEOUT_MS)
        contexts.append(context)
        page = context.new_page()

        def record_error(message: str) -> None:
            if not any(pattern in message for pattern in allowed_errors):
                page_errors.append(message)

        def check_request(request_url: str) -> None:
            page_parts, request_parts = urlsplit(url), urlsplit(request_url)
            if request_parts.scheme not in ("data", "blob") and (page_parts.scheme, page_parts.netloc) != (
                request_parts.scheme,
                request_parts.netloc,
            ):
                page_errors.append(f"a request to {request_url}")

        page.on(
            "console", lambda message: record_error(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: record_error(str(error)))
        page.on("request", lambda request: check_request(request.url))
        page.goto(url)
        page.locator("body[data-ready='1']").wait_for()
        return page

    yield open_checked_page
    for context in contexts:
        context.close()
    assert not page_errors


@pytest.fixture
def start_view(tmp_path: Path) -> Iterator[StartView]:
    """Start `krea-batch view` for runs, each in its own process. They are stopped at the end of the test."""
    started: list[RunningView] = []

    def start(out: Path, **options: Any) -> RunningView:
        started.append(RunningView(out, **options))
        return started[-1]

    yield start
    for running_view in started:
        running_view.close()


HOSTILE_TEXT = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>"

WIDE_FIELDS = {"aspect_ratio": "16:9"}
INK_FIELDS = {"seed": 7, "styles": [{"id": "ink", "strength": 0.5}]}
MIXED_JOBS = (
    *sweep_jobs("owl", "An owl of wood", {"series": "wood"}),
    SeedJob(id="fox", prompt="A fox of glass", metadata={"series": "glass", "note": "try"}, fields=WIDE_FIELDS),
    SeedJob(id="cat", prompt="A cat\nin two images", files=2, fields=INK_FIELDS),
    SeedJob(id="bear", prompt="A bear that failed", status=State.FAILED),
    SeedJob(id="long", prompt="An elk too long", status=State.REJECTED, metadata={"series": "wood"}),
    SeedJob(id="lost", prompt="A lost worker", status=State.ERRORED),
    SeedJob(id="unsure", prompt="An ambiguous duck", status=State.AMBIGUOUS),
    SeedJob(id="soon", prompt="A stork in flight", status=State.ACCEPTED),
    SeedJob(id="later", prompt="A hare in the queue", status=State.PENDING, metadata={"deep": {"tags": ["a", "b"]}}),
)
JOB_NUMBERS = {job.id: job_no for job_no, job in enumerate(MIXED_JOBS, 1)}


@pytest.fixture(scope="package")
def mixed_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of MIXED_JOBS. Tests only read it."""
    return make_run(tmp_path_factory.mktemp("mixed") / "run", *MIXED_JOBS)


@pytest.fixture(scope="package")
def mixed_url(mixed_run: Path) -> Iterator[str]:
    """The URL at which the run of MIXED_JOBS is shown."""
    running_view = RunningView(mixed_run)
    yield running_view.url
    assert running_view.close() == (0, "")


@pytest.fixture
def gateway(simulate: StartSimulator) -> RunningSimulator:
    """A simulator at which each job ends in ERROR at first, and succeeds when it is resubmitted."""
    return simulate("--latency=fixed:0.1", "--tiny", "--fault", "job-first-error=1")


@pytest.fixture
def failed_run(gateway: RunningSimulator, tmp_path: Path) -> Path:
    """A run of three jobs that are all errored."""
    write_jobs(tmp_path / "jobs.jsonl", 3)
    options = ("--max-attempts=1", "--poll-interval=0.1", "--rate=20/s", "-q", "--gateway", gateway.gateway_url)
    run_command("run", "jobs.jsonl", "--out", "run", *options, cwd=tmp_path)
    assert set(ledger_states(tmp_path / "run").values()) == {State.ERRORED}
    return tmp_path / "run"
