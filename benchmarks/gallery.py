"""How long does it take to write a page of 5,000 images, and when is it usable? The first time, and the second.

    python -m benchmarks.gallery                       5,000 images of 1024 pixels, of which 40 differ
    python -m benchmarks.gallery --images 8          the short form

The simulator draws a few images, and the ledger lists them under many names, each with a SHA-256 of its own, so that
each has its own thumbnail. `krea-batch report` runs in its own process. Headless Chromium opens the page from its
file and from `krea-batch view`. The page is usable once all visible images are drawn and a filter takes effect.

The first time, the run directory has no thumbnails, as after a run with --no-thumbnails. The second time, it has
those that the first time has kept, as after a run that made them while images arrived.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from playwright.sync_api import Browser, sync_playwright

from benchmarks.report import report_goal
from krea_batch import Engine, Job
from krea_batch.jobs import StoredFile
from krea_batch.ledger.sqlite import SqliteLedger
from krea_batch.rules.verdicts import Finished
from krea_batch.storage.run_dir import THUMBNAILS
from krea_batch.testing import Simulator, SimulatorSettings
from tests.processes import COMMAND

DRAWN_IMAGES = 40
MAX_REPORT_S, MAX_SECOND_REPORT_S, MAX_REPORT_MB = 60.0, 10.0, 300.0
MAX_USABLE_S, MAX_SECOND_VIEW_S = 2.0, 3.0
CHROMIUM_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
ALL_IMAGES_LOADED = """() => {
    const images = [...document.querySelectorAll("#images img")];
    return images.length > 0 && images.every((image) => image.complete && image.naturalWidth > 0);
}"""


class ReportCost(NamedTuple):
    """The cost of writing the report, and the size of its file."""

    seconds: float
    peak_mb: float
    file_mb: float


async def draw_images(out: Path, count: int) -> None:
    """Make a run directory with images that the simulator draws."""
    async with (
        Simulator(SimulatorSettings(time_scale=100)) as simulator,
        Engine(out, gateway=simulator.gateway_url, api_key="benchmark", rate="100/s", poll_interval_s=0.5) as engine,
    ):
        await engine.run(Job(prompt=f"a harbour at dawn, number {n}", id=f"{n:05}", seed=n) for n in range(count))


def copy_jobs(out: Path, count: int) -> None:
    """Add jobs to the ledger until there are `count`; they share the images that were drawn."""
    store = SqliteLedger.open(out / "ledger.db")
    drawn = store.outcomes(0, DRAWN_IMAGES)[0]

    def insert_jobs(store: SqliteLedger) -> None:
        for n in range(len(drawn), count):
            source = drawn[n % len(drawn)]
            (file,) = source.files
            path = f"images/{n:05}.png"
            os.link(out / file.path, out / path)
            body = json.dumps(source.request | {"prompt": f"a harbour at dawn, number {n}", "seed": n}).encode()
            number = store.record_intent(f"{n:05}", body, bytes(32), b"{}", 1e9 + n / 50, "")
            store.mark_accepted(number, f"krea-2-large-text-to-image_{n}", 1e9 + n / 50)
            store.mark_finished(
                number, Finished(("https://a/b.png",), "image/png", took_s=12.0), 1e9 + n / 50 + 13, 1
            )
            stored = StoredFile(
                path, file.bytes, sha256(path.encode()).hexdigest(), file.width, file.height, file.media_type
            )
            store.mark_stored(number, (stored,), 1e9 + n / 50 + 14)

    store.transaction(insert_jobs)
    store.close()


def make_report(out: Path) -> ReportCost:
    """Write the report in a process of its own, and measure its time and memory."""
    started_s = time.perf_counter()
    process = subprocess.Popen([*COMMAND, "report", str(out), "--quiet"])
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0
    seconds = time.perf_counter() - started_s
    return ReportCost(seconds, usage.ru_maxrss * 1024 / 1e6, (out / "report.html").stat().st_size / 1e6)


@contextmanager
def live_page(out: Path) -> Iterator[str]:
    """Serve the live page of a run, and give its address."""
    process = subprocess.Popen(
        [*COMMAND, "view", str(out), "--port", "0", "--no-open"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield next(word for word in process.stdout.readline().split() if word.startswith("http://"))
    finally:
        process.terminate()
        process.wait()


def open_page(browser: Browser, url: str, count: int) -> float:
    """Return the seconds until the page at that address is usable."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    started_s = time.perf_counter()
    page.goto(url, wait_until="commit")
    page.wait_for_selector("body[data-ready='1']", state="attached")
    page.wait_for_function(ALL_IMAGES_LOADED)
    page.fill("#text", f"number {count - 1}")
    page.wait_for_function("document.querySelectorAll('.tile').length === 1")
    seconds = time.perf_counter() - started_s
    page.close()
    return seconds


def open_view(browser: Browser, out: Path, count: int) -> float:
    """Return the seconds from the start of `krea-batch view` until its page is usable."""
    started_s = time.perf_counter()
    with live_page(out) as url:
        started_in_s = time.perf_counter() - started_s
        return started_in_s + open_page(browser, url, count)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=5000)
    count = parser.parse_args().images
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        out = Path(folder) / "run"
        asyncio.run(draw_images(out, min(DRAWN_IMAGES, count)))
        copy_jobs(out, count)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM_FLAGS)
            live_s = [open_view(browser, out, count) for _ in range(2)]
            shutil.rmtree(out / THUMBNAILS)
            report_costs = [make_report(out) for _ in range(2)]
            from_file_s = open_page(browser, (out / "report.html").as_uri(), count)
            browser.close()
    print("| images | time | report written in | peak memory | its size | file usable after | view usable after |")
    print("|---|---|---|---|---|---|---|")
    for name, cost, view_s in zip(("first", "second"), report_costs, live_s, strict=True):
        print(
            f"| {count:,} | {name} | {cost.seconds:.1f} s | {cost.peak_mb:.0f} MB | {cost.file_mb:.1f} MB "
            f"| {from_file_s:.2f} s | {view_s:.2f} s |",
            flush=True,
        )
    for name, max_s, cost in zip(("first", "second"), (MAX_REPORT_S, MAX_SECOND_REPORT_S), report_costs, strict=True):
        report_goal(
            f"{name} report of {count:,} images",
            f"≤ {max_s:.0f} s, ≤ {MAX_REPORT_MB:.0f} MB",
            f"{cost.seconds:.1f} s, {cost.peak_mb:.0f} MB",
            met=cost.seconds <= max_s and cost.peak_mb <= MAX_REPORT_MB,
        )
    report_goal(
        f"report of {count:,} images: usable after",
        f"≤ {MAX_USABLE_S:g} s",
        f"{from_file_s:.2f} s",
        met=from_file_s <= MAX_USABLE_S,
    )
    report_goal(
        f"second view of {count:,} images: usable after its start",
        f"≤ {MAX_SECOND_VIEW_S:g} s",
        f"{live_s[1]:.2f} s",
        met=live_s[1] <= MAX_SECOND_VIEW_S,
    )


if __name__ == "__main__":
    main()
