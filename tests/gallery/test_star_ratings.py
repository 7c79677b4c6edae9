"""Star ratings in the page: kept with the run, shown again, filtered by, and exported."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from krea_batch.storage.ratings import append_ratings, read_ratings
from krea_batch.storage.run_dir import RATINGS
from tests.gallery.gallery_fixtures import OpenPage, SeedJob, StartView, make_run, tile, visible_ids
from tests.gallery.test_server import raw_request, token
from tests.processes import run_command

pytestmark = pytest.mark.slow


@pytest.fixture
def rated_run(tmp_path: Path) -> Path:
    """A run of three images, of which one has four stars."""
    out = make_run(tmp_path / "run", SeedJob(id="one"), SeedJob(id="two"), SeedJob(id="three"))
    append_ratings(out, ["two"], 4)
    return out


def test_by_keyboard_and_mouse(rated_run: Path, start_view: StartView, open_page: OpenPage) -> None:
    """Keys rate the tile that has the focus or the open image, buttons do the same, and 0 removes a rating."""
    running_view = start_view(rated_run)
    page = open_page(running_view.url)
    expect(tile(page, "two").get_by_label("4 stars")).to_be_visible()
    tile(page, "one").locator(".open").focus()
    page.keyboard.press("5")
    expect(tile(page, "one").get_by_label("5 stars")).to_be_visible()
    tile(page, "three").locator(".open").click()
    page.get_by_role("group", name="Rating").get_by_label("1 star").click()
    expect(page.get_by_role("group", name="Rating").get_by_label("1 star")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("0")
    page.keyboard.press("Escape")
    expect(tile(page, "two").locator(".stars")).to_have_count(0)
    assert read_ratings(rated_run) == {"one": 5, "three": 1}
    page.reload()
    expect(tile(page, "three").get_by_label("1 star")).to_be_visible()


def test_the_filter(rated_run: Path, start_view: StartView, open_page: OpenPage) -> None:
    """The filter of ratings shows the images that have one."""
    page = open_page(start_view(rated_run).url)
    page.get_by_label("rating", exact=True).select_option("4")
    assert visible_ids(page) == ["two"]


def test_a_run_that_cannot_be_written(rated_run: Path, start_view: StartView, open_page: OpenPage) -> None:
    """If the rating cannot be kept, the page says so and does not show it."""
    (rated_run / RATINGS).write_text("a letter to a friend\n")
    page = open_page(start_view(rated_run).url, allowed_errors=("507",))
    tile(page, "one").locator(".open").focus()
    page.keyboard.press("5")
    expect(page.locator("#message")).to_contain_text("ratings.jsonl exists and is no ratings file of krea-batch")
    expect(tile(page, "one").locator(".stars")).to_have_count(0)


def test_in_a_report(rated_run: Path, open_page: OpenPage) -> None:
    """A report shows the ratings and cannot change them."""
    assert run_command("report", rated_run, cwd=rated_run.parent).returncode == 0
    page = open_page((rated_run / "report.html").as_uri())
    tile(page, "two").locator(".open").click()
    page.keyboard.press("1")
    expect(page.locator("#lightbox").get_by_label("4 stars")).to_have_text("★★★★☆")
    expect(page.locator("#lightbox .rating")).to_have_count(0)


def test_exports(rated_run: Path, tmp_path: Path) -> None:
    """Exports have the rating of each image, and none for an image without one."""
    for format_ in ("csv", "imagefolder", "zip", "webdataset", "parquet"):
        done = run_command("export", rated_run, "--format", format_, "--output", f"export-{format_}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    with (tmp_path / "export-csv").open(newline="") as file:
        assert [row["rating"] for row in csv.DictReader(file)] == ["", "4", ""]
    rows = (tmp_path / "export-imagefolder" / "metadata.jsonl").read_text().splitlines()
    assert [json.loads(row)["rating"] for row in rows] == [None, 4, None]
    parquet = pytest.importorskip("pyarrow.parquet")
    assert parquet.read_table(tmp_path / "export-parquet")["rating"].to_pylist() == [None, 4, None]


def test_other_pages_cannot_rate(rated_run: Path, start_view: StartView) -> None:
    """Without the page's token, for unknown jobs, and for other numbers, nothing is written."""
    url = start_view(rated_run).url
    before = (rated_run / RATINGS).read_bytes()
    good = {"ids": ["one"], "rating": 5}
    for body, headers in (
        (good, {}),
        (good, {"X_Token": "x"}),
        (good | {"ids": ["none"]}, {"X_Token": token(url)}),
        (good | {"rating": 6}, {"X_Token": token(url)}),
        (good | {"rating": "5"}, {"X_Token": token(url)}),
        ({"ids": ["one"]}, {"X_Token": token(url)}),
    ):
        arguments: dict[str, Any] = {"body": json.dumps(body), **headers}
        assert raw_request(url, "/ratings", "POST", **arguments).status in (400, 403)
    assert (rated_run / RATINGS).read_bytes() == before
