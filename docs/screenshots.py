"""Makes the images of the documentation: `make screenshots`, or `python -m docs.screenshots`.

All that they show is fixed: prompts and seeds, which decide what the simulator draws, the size of the window, and the
numbers of the terminal. The browser may still smooth a rounded corner differently, by a few levels of 255: keep the
old file if nothing else differs.
"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO, StringIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright
from rich.console import Console

from krea_batch.cli.commands.demo import CONTACT_SHEET
from krea_batch.cli.ui.run_status import RunStatus

DOCS = Path(__file__).parent
KREA_BATCH = [sys.executable, "-m", "krea_batch"]
BROWSER_FLAGS = ["--no-sandbox", "--disable-gpu", "--force-color-profile=srgb", "--hide-scrollbars"]
JPEG_QUALITY = 80

ANIMALS = ("An owl", "A fox", "A bear", "A hare", "A stork")
MATERIALS = ("carved from oak", "of blown glass", "folded from paper")
STATUS = RunStatus(
    total=500, done=212, succeeded=209, in_flight=104, downloading=3, unsuccessful=3, submitted=316,
    submits_per_s=9.8, limit_per_s=10.0, polls=611, downloaded_bytes=431_000_000, remaining_s=31.0,
    submits_each_second=(*range(1, 11), *([10.0] * 18), 4.0, 0.0, 0.0, 6.0, *([10.0] * 8)),
    top_errors=(("the gateway refused the submit: 429 Too Many Requests", 4), ("prompt: too long", 3)),
)  # fmt: skip
"""What the display of a run shows."""

DECODE_IMAGES = """() => Promise.all([...document.images].map((image) => {
    image.loading = "eager";
    return image.decode().catch(() => null);
}))"""


def run(jobs: list[dict[str, object]], out: Path, *options: str) -> None:
    """Run jobs with the simulator."""
    job_file = out.with_suffix(".jsonl")
    job_file.write_text("".join(json.dumps(job) + "\n" for job in jobs))
    command = [*KREA_BATCH, "run", str(job_file), "--out", str(out), "--simulate", "--time-scale=50", "--rate=50/s"]
    subprocess.run([*command, "--quiet", *options], check=True)  # noqa: S603 - our own command


@contextmanager
def shown(browser: Browser, out: Path, width: int, height: int) -> Iterator[Page]:
    """Open the report of a run in a window of this size."""
    subprocess.run([*KREA_BATCH, "report", str(out), "--quiet"], check=True)  # noqa: S603 - our own command
    page = browser.new_page(
        viewport={"width": width, "height": height}, color_scheme="light", reduced_motion="reduce"
    )
    page.goto((out / "report.html").as_uri())
    page.locator("body[data-ready='1']").wait_for()
    yield page
    page.close()


def save(page: Page, name: str) -> None:
    """Save what a window shows, once its images are drawn."""
    page.evaluate(DECODE_IMAGES)
    Image.open(BytesIO(page.screenshot())).convert("RGB").save(DOCS / name, quality=JPEG_QUALITY, optimize=True)


def make_gallery(browser: Browser, folder: Path) -> None:
    """Show ninety images with their filters."""
    jobs = [
        {"id": f"{number:03}", "prompt": f"{animal} {material}", "seed": seed, "metadata": {"material": material}}
        for number, (seed, animal, material) in enumerate(itertools.product(range(1, 7), ANIMALS, MATERIALS), 1)
    ]
    run(jobs, folder / "cats")
    with shown(browser, folder / "cats", 1280, 800) as page:
        save(page, "gallery.jpg")


def make_sweep(browser: Browser, folder: Path) -> None:
    """Show a sweep as a grid, and two of its values side by side."""
    jobs: list[dict[str, object]] = [{"id": animal[-3:], "prompt": f"{animal} {MATERIALS[0]}"} for animal in ANIMALS]
    run(jobs, folder / "grid", "--sweep=creativity=raw,low,medium,high", "--seeds=1..2")
    with shown(browser, folder / "grid", 1000, 560) as page:
        page.keyboard.press("g")
        page.locator("#rows").select_option("prompt")
        page.locator("#columns").select_option("creativity")
        save(page, "grid.jpg")
        page.keyboard.press("b")
        page.locator("#ab-axis").select_option("creativity")
        page.locator("#ab-b").select_option("high")
        save(page, "comparison.jpg")


def make_demo(folder: Path) -> None:
    """Show the contact sheet of `krea-batch demo`."""
    subprocess.run([*KREA_BATCH, "demo", str(folder / "demo")], check=True)  # noqa: S603 - our own command
    shutil.copyfile(folder / "demo" / CONTACT_SHEET, DOCS / "demo.jpg")


def make_terminal(browser: Browser) -> None:
    """Show the display of a run in a terminal."""
    console = Console(record=True, width=100, file=StringIO(), force_terminal=True, color_system="truecolor")
    console.print(STATUS.render("utf-8"))
    page = browser.new_page(viewport={"width": 1260, "height": 400})
    page.context.set_offline(True)  # the style sheet names a font of another host; the local one is used
    page.set_content(f"<body style='margin:0'>{console.export_svg(title='krea-batch run')}</body>")
    page.locator("svg").first.screenshot(path=DOCS / "terminal.png")
    page.close()


def main() -> None:
    """Make all images."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_demo(folder)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=BROWSER_FLAGS)
            make_terminal(browser)
            make_gallery(browser, folder)
            make_sweep(browser, folder)
            browser.close()


if __name__ == "__main__":
    main()
