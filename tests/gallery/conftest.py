"""A browser, pages whose every trouble is the test's, and runs to look at."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from krea_batch.jobs import State
from tests.engine_fixtures import states
from tests.gallery.gallery_fixtures import Look, Made, View, Viewed, make_run, sweep
from tests.processes import SimulatorProcess, StartSimulator, run_command, write_jobs

OPTIONS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE_MS = 10_000.0


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """One browser for all pages. It ends with this package: its event loop would be in the way of others'."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    assert found, f"the page is tried in a browser, and there is none ({', '.join(NAMES)}): apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def look(browser: Browser) -> Iterator[Look]:
    """Open pages; the test fails by what they log, throw or fetch from elsewhere, but for what it `bears`."""
    contexts: list[BrowserContext] = []
    troubles: list[str] = []

    def open_page(url: str, *, bears: tuple[str, ...] = (), **options: Any) -> Page:
        context = browser.new_context(**options)
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()

        def note(trouble: str) -> None:
            if not any(borne in trouble for borne in bears):
                troubles.append(trouble)

        def note_request(to: str) -> None:
            here, there = urlsplit(url), urlsplit(to)
            if there.scheme not in ("data", "blob") and (here.scheme, here.netloc) != (there.scheme, there.netloc):
                troubles.append(f"a request to {to}")

        page.on("console", lambda said: note(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: note(str(error)))
        page.on("request", lambda request: note_request(request.url))
        page.goto(url)
        page.locator("body[data-ready='1']").wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not troubles


@pytest.fixture
def view() -> Iterator[View]:
    """Show runs, each in a process; they end with the test."""
    started: list[Viewed] = []

    def start(out: Path, **options: Any) -> Viewed:
        started.append(Viewed(out, **options))
        return started[-1]

    yield start
    for viewed in started:
        viewed.close()


HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>"

WIDE = {"aspect_ratio": "16:9"}
INK = {"seed": 7, "styles": [{"id": "ink", "strength": 0.5}]}
MIXED = (
    *sweep("owl", "An owl of wood", {"series": "wood"}),
    Made(id="fox", prompt="A fox of glass", metadata={"series": "glass", "note": "try"}, fields=WIDE),
    Made(id="cat", prompt="A cat\nin two pictures", files=2, fields=INK),
    Made(id="bear", prompt="A bear that failed", status=State.FAILED),
    Made(id="long", prompt="An elk too long", status=State.REJECTED, metadata={"series": "wood"}),
    Made(id="lost", prompt="A lost worker", status=State.ERRORED),
    Made(id="doubt", prompt="A doubtful duck", status=State.AMBIGUOUS),
    Made(id="soon", prompt="A stork to come", status=State.ACCEPTED),
    Made(id="later", prompt="A hare in the queue", status=State.PENDING, metadata={"deep": {"tags": ["a", "b"]}}),
)
NUMBERS = {job.id: n for n, job in enumerate(MIXED, 1)}


@pytest.fixture(scope="package")
def mixed_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of MIXED, to be looked at alone."""
    return make_run(tmp_path_factory.mktemp("mixed") / "run", *MIXED)


@pytest.fixture(scope="package")
def mixed(mixed_run: Path) -> Iterator[str]:
    """Where it is shown."""
    viewed = Viewed(mixed_run)
    yield viewed.url
    assert viewed.close() == (0, "")


@pytest.fixture
def gateway(simulate: StartSimulator) -> SimulatorProcess:
    """One at which the first POST of a job ends in ERROR, and the second is well."""
    return simulate("--latency=fixed:0.1", "--tiny", "--fault", "job-first-error=1")


@pytest.fixture
def failed(gateway: SimulatorProcess, tmp_path: Path) -> Path:
    """A run whose three jobs have all come to nothing."""
    write_jobs(tmp_path / "jobs.jsonl", 3)
    options = ("--max-attempts=1", "--poll-interval=0.1", "--rate=20/s", "-q", "--gateway", gateway.gateway)
    run_command("run", "jobs.jsonl", "--out", "run", *options, cwd=tmp_path)
    assert set(states(tmp_path / "run").values()) == {State.ERRORED}
    return tmp_path / "run"
