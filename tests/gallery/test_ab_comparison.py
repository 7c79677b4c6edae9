"""The A/B comparison: its rules, the pairs of a sweep and of two runs, and the blind test by keyboard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.gallery.gallery_fixtures import OpenPage, SeedJob, StartView, is_colour, make_run, rendered_colour
from tests.gallery.test_page import saved_file
from tests.gallery.test_server import raw_request
from tests.processes import PROCESS_TIMEOUT_S, run_command

pytestmark = pytest.mark.slow

PROMPTS = ("an owl", "a fox", "a bear")


@pytest.fixture
def swept_run(tmp_path: Path) -> Path:
    """A run of three prompts with three creativities each, of which one image is missing."""
    jobs = [
        SeedJob(id=f"{prompt[-3:]}-{creativity}", prompt=prompt, fields={"creativity": creativity, "seed": 1})
        for prompt in PROMPTS
        for creativity in ("raw", "low", "high")
        if (prompt, creativity) != ("a bear", "high")
    ]
    return make_run(tmp_path / "run", *jobs)


@pytest.fixture
def page_of_rules(swept_run: Path, start_view: StartView, open_page: OpenPage) -> Page:
    return open_page(start_view(swept_run).url)


def pairs(page: Page) -> Locator:
    return page.locator("#ab .pair")


def choose(page: Page, axis: str, a: str = "", b: str = "") -> None:
    """Open the comparison and choose an axis and two of its values."""
    page.get_by_role("button", name="A/B").click()
    page.locator("#ab-axis").select_option(axis)
    if a:
        page.locator("#ab-a").select_option(a)
        page.locator("#ab-b").select_option(b)


class TestRulesOfComparison:
    @pytest.mark.parametrize(
        ("count", "total", "low", "high"),
        # Newcombe 1998, table I, method 3; and no votes
        [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718),
         (20, 20, 0.8389, 1.0), (0, 0, 0.0, 1.0)],
    )  # fmt: skip
    def test_intervals(self, count: int, total: int, low: float, high: float, page_of_rules: Page) -> None:
        """Intervals are those that the literature gives for Wilson's score."""
        interval = page_of_rules.evaluate("([count, total]) => wilsonInterval(count, total)", [count, total])
        assert interval == pytest.approx([low, high], abs=6e-5)

    def test_sides_are_random(self, page_of_rules: Page) -> None:
        """Over many trials, A is on each side about half of the time, and every pair occurs once."""
        trials: list[dict[str, Any]] = page_of_rules.evaluate(
            "() => makeTrials(Array.from({ length: 2000 }, (_, n) => [n, n + 0.5]), Math.random)"
        )
        assert sorted(min(trial["left"], trial["right"]) for trial in trials) == list(range(2000))
        assert [trial["left"] for trial in trials] != sorted(trial["left"] for trial in trials)
        assert 800 < sum(trial["leftIs"] == "a" for trial in trials) < 1200
        assert all((trial["leftIs"] == "a") == (trial["left"] % 1 == 0) for trial in trials)

    @pytest.mark.parametrize(
        ("left_is", "side", "meaning"),
        [("a", "left", "a"), ("a", "right", "b"), ("b", "left", "b"), ("b", "right", "a"), ("b", "equal", "equal")],
    )
    def test_votes(self, left_is: str, side: str, meaning: str, page_of_rules: Page) -> None:
        """A vote for a side counts for what was shown there."""
        assert page_of_rules.evaluate("([leftIs, side]) => meaningOf({ leftIs }, side)", [left_is, side]) == meaning


class TestPairs:
    def test_of_a_sweep(self, page_of_rules: Page) -> None:
        """The images that differ in nothing but the chosen parameter are side by side."""
        choose(page_of_rules, "creativity", "raw", "high")
        expect(pairs(page_of_rules)).to_have_count(2)
        expect(pairs(page_of_rules).first.locator("figcaption")).to_have_text(["raw owl-raw", "high owl-high"])
        images = pairs(page_of_rules).first.locator("img")
        assert is_colour(rendered_colour(images.nth(0)), 1)
        assert is_colour(rendered_colour(images.nth(1)), 3)
        page_of_rules.locator("#ab-b").select_option("raw")
        expect(pairs(page_of_rules).first.locator("figcaption").last).to_have_text("raw owl-raw")

    def test_filters_apply(self, page_of_rules: Page) -> None:
        """Only visible jobs are compared."""
        choose(page_of_rules, "creativity", "raw", "low")
        page_of_rules.get_by_label("Search prompts and ids").fill("fox")
        expect(pairs(page_of_rules)).to_have_count(1)
        page_of_rules.get_by_label("Search prompts and ids").fill("high")
        expect(page_of_rules.locator("#ab")).to_contain_text("No pairs")
        expect(page_of_rules.get_by_role("button", name="Blind test")).to_be_disabled()

    def test_of_two_runs(self, swept_run: Path, start_view: StartView, open_page: OpenPage, tmp_path: Path) -> None:
        """With --compare-with, jobs of two runs with the same id are side by side, each with its own image."""
        other = make_run(tmp_path / "other", SeedJob(id="none"), SeedJob(id="fox-raw"))
        url = start_view(swept_run, KREA_BATCH_COMPARE_WITH=str(other)).url
        page = open_page(url)
        choose(page, "two runs")
        expect(pairs(page)).to_have_count(1)
        expect(pairs(page).locator("figcaption")).to_have_text(["run fox-raw", "other fox-raw"])
        assert is_colour(rendered_colour(pairs(page).locator("img").nth(0)), 4)
        assert is_colour(rendered_colour(pairs(page).locator("img").nth(1)), 2)
        for path in ("/other/items", "/other/image/1/0", "/other/thumbnail/1"):
            assert raw_request(url, path).status == 200
            assert raw_request(url, path, with_cookie=False, Cookie="").status == 403

    def test_no_run_to_compare_with(self, swept_run: Path, tmp_path: Path) -> None:
        """A directory without a run is refused."""
        done = run_command("view", swept_run, "--no-open", "--compare-with", tmp_path / "none", cwd=tmp_path)
        assert (done.returncode, "not a run directory" in done.stderr) == (2, True)

    def test_in_a_report(self, swept_run: Path, open_page: OpenPage) -> None:
        """A report compares the values of a sweep, with the thumbnails if the images are gone."""
        assert run_command("report", swept_run, cwd=swept_run.parent).returncode == 0
        (swept_run / "images" / "owl-raw.png").unlink()
        page = open_page((swept_run / "report.html").as_uri(), allowed_errors=("ERR_FILE_NOT_FOUND",))
        choose(page, "creativity", "raw", "high")
        expect(pairs(page)).to_have_count(2)
        page.wait_for_function("document.querySelector('#ab img').src.startsWith('data:')")
        assert is_colour(rendered_colour(pairs(page).locator("img").first), 1)


class TestBlindTest:
    def test_names_are_hidden_until_the_end(self, page_of_rules: Page) -> None:
        """During the test, nothing in the page says which image is which; afterwards, votes are counted by name."""
        page = page_of_rules
        choose(page, "creativity", "raw", "low")
        page.get_by_role("button", name="Blind test").click()
        for n in range(3):
            expect(page.locator("#ab-progress")).to_contain_text(f"Pair {n + 1} of 3")
            visible_text = page.locator("#ab").inner_text() + "".join(
                page.locator("#ab img").evaluate_all("all => all.map((image) => image.alt + image.title)")
            )
            assert "raw" not in visible_text
            assert "low" not in visible_text
            expect(page.locator("#ab-controls")).to_be_hidden()
            # Vote for A wherever it is; the jobs with creativity "raw" are the first of their prompt.
            left_is_raw = page.locator("#ab img").first.get_attribute("src") in (
                "/image/1/0",
                "/image/4/0",
                "/image/7/0",
            )
            page.keyboard.press("ArrowLeft" if left_is_raw else "ArrowRight")
        cells = page.locator("#ab-result tbody tr").all_inner_texts()
        assert [cell.split("\t") for cell in cells] == [
            ["raw", "3", "100 %", "44 % to 100 %"], ["low", "0", "0 %", "0 % to 56 %"], ["equal", "0", "", ""],
        ]  # fmt: skip
        expect(page.locator("#ab")).to_contain_text("No clear preference")
        name, text = saved_file(page, "Save JSON")
        result = json.loads(text)
        assert (name, result["counts"]) == ("ab.json", {"a": 3, "b": 0, "equal": 0})
        assert {"a": "owl-raw", "b": "owl-low", "better": "a"} in result["votes"]
        page.get_by_role("button", name="Back to the pairs").click()
        expect(pairs(page)).to_have_count(3)
        expect(page.locator("#ab-axis")).to_be_focused()

    def test_a_test_that_is_stopped(self, page_of_rules: Page) -> None:
        """The result of a stopped test counts the votes until then."""
        page = page_of_rules
        page.keyboard.press("b")
        choose(page, "creativity", "raw", "low")
        page.get_by_role("button", name="Blind test").click()
        page.get_by_role("button", name="Equal").click()
        page.get_by_role("button", name="Stop and show the result").click()
        expect(page.locator("#ab-result caption")).to_have_text("1 of 3 pairs")
        expect(page.locator("#ab-result")).to_contain_text("equal")

    def test_new_images_do_not_disturb_it(self, swept_run: Path, start_view: StartView, open_page: OpenPage) -> None:
        """Images that arrive during a test do not change it."""
        page = open_page(start_view(swept_run).url)
        choose(page, "creativity", "raw", "low")
        page.get_by_role("button", name="Blind test").click()
        page.keyboard.press("ArrowDown")
        make_run(swept_run, SeedJob(id="late", fields={"creativity": "low", "seed": 1}))
        expect(page.locator("#counts")).to_contain_text("9 jobs", timeout=1000 * PROCESS_TIMEOUT_S)
        expect(page.locator("#ab-progress")).to_contain_text("Pair 2 of 3")
