"""Tests of the page of a run in a browser, with mouse and keyboard."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page, expect

from krea_batch.cli.options.job_id_file import read_ids
from krea_batch.jobs import State
from tests.gallery.conftest import HOSTILE_TEXT, JOB_NUMBERS, MIXED_JOBS
from tests.gallery.gallery_fixtures import (
    AMBIGUOUS_ERROR,
    ERRORED_ERROR,
    FAILED_ERROR,
    REJECTED_ERROR,
    OpenPage,
    RunningView,
    SeedJob,
    StartView,
    colour,
    dialog_details,
    is_colour,
    make_run,
    rendered_colour,
    request_id,
    sweep_jobs,
    tile,
    visible_ids,
    width_px,
)

pytestmark = pytest.mark.slow

SMALL_SCREEN = {"viewport": {"width": 360, "height": 640}}


def counts(page: Page) -> Locator:
    return page.locator("#counts")


def lightbox_dialog(page: Page) -> Locator:
    return page.locator("#lightbox[open]")


def focused_id(page: Page) -> str | None:
    """Return the id of the job whose tile has the focus."""
    return page.evaluate("document.activeElement?.closest('.tile')?.dataset.id ?? null")  # type: ignore[no-any-return]


def choose_filters(page: Page, **values: str) -> None:
    """Choose values of filters."""
    for name, value in values.items():
        page.get_by_label(name, exact=True).select_option(value)


def saved_file(page: Page, button: str) -> tuple[str, str]:
    """Press a button of the footer. Returns the name and the text of the file that it downloads."""
    with page.expect_download() as download:
        page.get_by_role("button", name=button).click()
    return download.value.suggested_filename, Path(download.value.path()).read_text("utf-8")


def cells(page: Page) -> dict[tuple[str, str], Locator]:
    """Return the cells of the grid by the headers of their row and column."""
    columns = page.locator("table.sweep thead th").all_inner_texts()
    return {
        (row.locator("th").inner_text(), column): row.locator("td").nth(n)
        for row in page.locator("table.sweep tbody tr").all()
        for n, column in enumerate(columns)
    }


def serious_violations(page: Page) -> list[str]:
    """Return the violations that axe rates as serious or critical. In dark mode only colours are checked.

    Nothing else differs from light mode.
    """
    options: dict[str, Any] = {"resultTypes": ["violations"]}
    if page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches"):
        options["runOnly"] = ["color-contrast"]
    violations = Axe().run(page, options=options).response["violations"]
    return [
        f"{violation['id']}: {node['html'][:200]} {node['failureSummary']}"
        for violation in violations
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]


class TestLoading:
    def test_every_job_has_its_tile(self, mixed_url: str, open_page: OpenPage) -> None:
        """The page shows each job of the run, in the order of the ledger, with its image or its status."""
        page = open_page(mixed_url)
        assert visible_ids(page) == [job.id for job in MIXED_JOBS]
        expect(counts(page)).to_have_text("16 jobs, 10 with an image")
        for job in MIXED_JOBS:
            if job.status is State.SUCCEEDED:
                assert is_colour(rendered_colour(tile(page, job.id).locator("img")), JOB_NUMBERS[job.id])
            else:
                expect(tile(page, job.id).locator("img")).to_have_count(0)
                expect(tile(page, job.id)).to_contain_text(job.status.value)

    def test_an_empty_run_says_so(self, open_page: OpenPage, start_view: StartView, tmp_path: Path) -> None:
        """The page of a run without jobs says that there are none yet."""
        page = open_page(start_view(make_run(tmp_path / "run")).url)
        expect(page.locator("#empty")).to_have_text("No jobs yet.")
        expect(counts(page)).to_contain_text("0 jobs")

    def test_hostile_text_is_escaped(self, open_page: OpenPage, start_view: StartView, tmp_path: Path) -> None:
        """Markup in a prompt, in metadata and in the name of the run directory is shown as text."""
        job = SeedJob(
            id="a <b>'\"& #%?🦉",
            prompt=HOSTILE_TEXT,
            metadata={HOSTILE_TEXT: HOSTILE_TEXT, "__proto__": "p", "x": [HOSTILE_TEXT]},
        )
        plain = SeedJob(id="b", metadata={HOSTILE_TEXT: "other"})
        page = open_page(start_view(make_run(tmp_path / "<img src=x onerror=hacked=1>", job, plain)).url)
        expect(page.locator("h1")).to_have_text("<img src=x onerror=hacked=1>")
        tile(page, job.id).locator(".open").click()
        details = dialog_details(page)
        assert (details["id"], details[HOSTILE_TEXT], details["__proto__"]) == (job.id, HOSTILE_TEXT, "p")
        expect(page.locator("#lightbox h2")).to_have_text(HOSTILE_TEXT)
        page.keyboard.press("Escape")
        page.keyboard.press("g")
        expect(page.locator("table.sweep")).to_be_visible()
        assert page.evaluate("window.hacked") is None


class TestFilters:
    def test_by_text(self, mixed_url: str, open_page: OpenPage) -> None:
        """The search finds words in prompts and ids, in upper or lower case."""
        page = open_page(mixed_url)
        for query, ids in {
            "glass": ["fox"],
            "GLASS": ["fox"],
            "creativity=raw": ["owl-creativity=raw-seed=1", "owl-creativity=raw-seed=2"],
            "bear": ["bear"],
        }.items():
            page.get_by_label("Search prompts and ids").fill(query)
            expect(counts(page)).to_contain_text(f"{len(ids)} shown of 16 jobs")
            expect(page.locator(".tile")).to_have_count(len(ids))
            assert visible_ids(page) == ids, query

    def test_by_values(self, mixed_url: str, open_page: OpenPage) -> None:
        """Status, parameters and metadata filter the jobs, also in combination."""
        page = open_page(mixed_url)
        cases: list[tuple[dict[str, str], list[str]]] = [
            ({"status": "failed"}, ["bear"]),
            ({"aspect_ratio": "16:9"}, ["fox"]),
            ({"creativity": "high"}, ["owl-creativity=high-seed=1", "owl-creativity=high-seed=2"]),
            ({"seed": "7"}, ["cat"]),
            ({"series": "glass"}, ["fox"]),
            ({"series": "wood", "status": "rejected"}, ["long"]),
            ({"series": "wood", "seed": "2", "creativity": "low"}, ["owl-creativity=low-seed=2"]),
        ]
        for values, ids in cases:
            choose_filters(page, **values)
            expect(counts(page)).to_contain_text(f"{len(ids)} shown of 16 jobs")
            assert visible_ids(page) == ids, values
            choose_filters(page, **dict.fromkeys(values, ""))
            expect(counts(page)).to_have_text("16 jobs, 10 with an image")
            assert len(visible_ids(page)) == 16

    def test_text_and_values_together(self, mixed_url: str, open_page: OpenPage) -> None:
        """A job has to match both; if none does, the page says so, and not that the run has no jobs."""
        page = open_page(mixed_url)
        page.get_by_label("Search prompts and ids").fill("seed=1")
        choose_filters(page, creativity="raw")
        expect(page.locator(".tile")).to_have_count(1)
        assert visible_ids(page) == ["owl-creativity=raw-seed=1"]
        choose_filters(page, creativity="", status="failed")
        expect(counts(page)).to_contain_text("0 shown of 16 jobs")
        expect(page.locator(".tile")).to_have_count(0)
        expect(page.locator("#empty")).to_be_visible()
        expect(page.locator("#empty")).not_to_contain_text("yet")

    def test_the_grid_is_filtered_too(self, mixed_url: str, open_page: OpenPage) -> None:
        """Jobs that do not match the filters are in no cell."""
        page = open_page(mixed_url)
        choose_filters(page, series="wood", status="succeeded")
        page.keyboard.press("g")
        expect(page.locator("table.sweep tbody th")).to_have_text(["An owl of wood"])


class TestLightbox:
    def test_it_shows_all_details(self, mixed_url: str, open_page: OpenPage) -> None:
        """A click opens the original, with its parameters, metadata, request_id and status."""
        page = open_page(mixed_url)
        tile(page, "owl-creativity=low-seed=2").locator(".open").click()
        job_no = JOB_NUMBERS["owl-creativity=low-seed=2"]
        details = dialog_details(page)
        assert details["id"] == "owl-creativity=low-seed=2"
        assert (details["status"], details["request_id"]) == ("succeeded", request_id(job_no))
        assert [details[name] for name in ("aspect_ratio", "creativity", "seed", "series")] == [
            "1:1", "low", "2", "wood",
        ]  # fmt: skip
        assert (details["submits"], details["polls"]) == ("1", "3")
        original = lightbox_dialog(page).get_by_alt_text("An owl of wood")
        assert rendered_colour(original) == colour(job_no)
        assert original.evaluate("image => image.naturalWidth") == width_px(job_no)
        assert details["size"] == f"{width_px(job_no)} × 200"

    def test_it_shows_errors(self, mixed_url: str, open_page: OpenPage) -> None:
        """The lightbox of a job without an image shows its error, and has no link to a file."""
        page = open_page(mixed_url)
        for job_id, error in {
            "bear": FAILED_ERROR,
            "long": REJECTED_ERROR,
            "lost": ERRORED_ERROR,
            "unsure": AMBIGUOUS_ERROR,
        }.items():
            tile(page, job_id).locator(".open").click()
            assert dialog_details(page)["error"] == error.message
            expect(lightbox_dialog(page).get_by_role("link")).to_have_count(0)
            page.keyboard.press("Escape")

    def test_metadata_of_any_shape(self, mixed_url: str, open_page: OpenPage) -> None:
        """Lists and objects in metadata and parameters are shown as JSON."""
        page = open_page(mixed_url)
        tile(page, "later").locator(".open").click()
        assert json.loads(dialog_details(page)["deep"]) == {"tags": ["a", "b"]}
        page.keyboard.press("Escape")
        tile(page, "cat").locator(".open").click()
        assert json.loads(dialog_details(page)["styles"]) == [{"id": "ink", "strength": 0.5}]

    def test_arrows_go_to_the_neighbours(self, mixed_url: str, open_page: OpenPage) -> None:
        """Keys and buttons open the next and the previous job; at the last job, a key still shows a job."""
        page = open_page(mixed_url)
        tile(page, "fox").locator(".open").click()
        page.keyboard.press("ArrowRight")
        assert dialog_details(page)["id"] == "cat"
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowLeft")
        assert dialog_details(page)["id"] == "owl-creativity=high-seed=2"
        page.get_by_role("button", name="Next image").click()
        assert dialog_details(page)["id"] == "fox"
        page.get_by_role("button", name="Previous image").click()
        assert dialog_details(page)["id"] == "owl-creativity=high-seed=2"
        for _ in range(20):
            page.keyboard.press("ArrowRight")
            assert dialog_details(page)["id"] in JOB_NUMBERS

    def test_buttons_by_keyboard(self, mixed_url: str, open_page: OpenPage) -> None:
        """The button for the next image keeps the focus, so Enter can be pressed repeatedly."""
        page = open_page(mixed_url)
        tile(page, "owl-creativity=raw-seed=1").locator(".open").click()
        page.get_by_role("button", name="Next image").focus()
        page.keyboard.press("Enter")
        page.keyboard.press("Enter")
        assert dialog_details(page)["id"] == "owl-creativity=low-seed=1"
        expect(page.get_by_role("button", name="Next image")).to_be_focused()

    def test_metadata_named_like_fields(self, open_page: OpenPage, start_view: StartView, tmp_path: Path) -> None:
        """Metadata named `status`, `id`, `seed` or `error` does not hide the job's own fields, and is shown too."""
        names = {"id": "mine", "status": "draft", "seed": "none", "request_id": "r", "error": "e", "toString": "t"}
        jobs = [
            SeedJob(id="one", metadata=names, fields={"seed": 5}),
            SeedJob(id="two", status=State.FAILED, metadata=names),
        ]
        page = open_page(start_view(make_run(tmp_path / "run", *jobs)).url)
        tile(page, "one").locator(".open").click()
        details = dialog_details(page)
        assert (details["id"], details["status"], details["seed"]) == ("one", "succeeded", "5")
        words = page.locator("#lightbox dl").inner_text().split()
        for text in ("mine", "draft", "none", request_id(1)):
            assert text in words
        page.keyboard.press("ArrowRight")
        assert FAILED_ERROR.message in page.locator("#lightbox dl").inner_text()
        page.keyboard.press("Escape")
        assert page.get_by_label("status").locator("option").all_inner_texts() == [
            "status: all",
            "succeeded",
            "failed",
        ]

    def test_arrows_skip_filtered_jobs(self, mixed_url: str, open_page: OpenPage) -> None:
        """With a filter, the arrow keys skip jobs that do not match it."""
        page = open_page(mixed_url)
        choose_filters(page, seed="2")
        tile(page, "owl-creativity=raw-seed=2").locator(".open").click()
        page.keyboard.press("ArrowRight")
        assert dialog_details(page)["id"] == "owl-creativity=low-seed=2"

    @pytest.mark.parametrize("control", ["Escape", "button"])
    def test_the_focus_returns(self, control: str, mixed_url: str, open_page: OpenPage) -> None:
        """Enter opens the lightbox; Escape or its button closes it, and the focus returns to the tile."""
        page = open_page(mixed_url)
        tile(page, "fox").locator(".open").focus()
        page.keyboard.press("Enter")
        expect(lightbox_dialog(page)).to_be_visible()
        assert page.evaluate("document.activeElement.closest('dialog')?.id") == "lightbox"
        if control == "Escape":
            page.keyboard.press("Escape")
        else:
            page.get_by_role("button", name="Close").click()
        expect(lightbox_dialog(page)).to_have_count(0)
        assert focused_id(page) == "fox"

    def test_all_images_of_a_job(self, mixed_url: str, open_page: OpenPage) -> None:
        """The lightbox of a job with two images shows each of them, and its link opens the one shown."""
        page = open_page(mixed_url)
        tile(page, "cat").locator(".open").click()
        assert rendered_colour(lightbox_dialog(page).locator(".lightbox-image img").last) == colour(
            JOB_NUMBERS["cat"]
        )
        second = lightbox_dialog(page).get_by_role("button", name="2", exact=True)
        second.click()
        assert rendered_colour(lightbox_dialog(page).locator(".lightbox-image img").last) == colour(
            JOB_NUMBERS["cat"], 2
        )
        expect(second).to_have_attribute("aria-pressed", "true")
        expect(lightbox_dialog(page).get_by_role("button", name="1", exact=True)).to_have_attribute(
            "aria-pressed", "false"
        )
        expect(lightbox_dialog(page).get_by_role("link")).to_have_attribute("href", f"/image/{JOB_NUMBERS['cat']}/1")
        page.keyboard.press("m")
        expect(second).to_have_attribute("aria-pressed", "true")

    def test_images_in_an_object_store(self, open_page: OpenPage, start_view: StartView, tmp_path: Path) -> None:
        """Images in an object store have a tile that says so, and their URL in the lightbox."""
        jobs = [SeedJob(id=f"remote-{n}", prefix="s3://bucket/folder/") for n in range(3)]
        page = open_page(start_view(make_run(tmp_path / "run", *jobs, SeedJob(id="local"))).url)
        expect(page.locator(".tile")).to_have_count(4)
        expect(tile(page, "remote-1")).to_contain_text("in an object store")
        tile(page, "remote-1").locator(".open").click()
        expect(lightbox_dialog(page)).to_contain_text("s3://bucket/folder/remote-1.png")
        page.keyboard.press("Escape")
        assert is_colour(rendered_colour(tile(page, "local").locator("img")), 4)


class TestGrid:
    def test_rows_and_columns_are_chosen(self, mixed_url: str, open_page: OpenPage) -> None:
        """Each image is in the cell of its values, for any two fields as rows and columns."""
        page = open_page(mixed_url)
        page.get_by_label("Search prompts and ids").fill("owl")
        page.get_by_role("button", name="Grid").click()
        for rows, columns in (("creativity", "seed"), ("seed", "creativity")):
            page.get_by_label("Rows").select_option(rows)
            page.get_by_label("Columns").select_option(columns)
            grid = cells(page)
            assert len(grid) == 8
            for job in sweep_jobs("owl", "An owl of wood", {}):
                cell = grid[str(job.fields[rows]), str(job.fields[columns])]
                expect(cell.locator("img")).to_have_count(1)
                assert is_colour(rendered_colour(cell.locator("img")), JOB_NUMBERS[job.id])

    def test_a_cell_opens_its_image(self, mixed_url: str, open_page: OpenPage) -> None:
        """A click on a cell opens its image in the lightbox; after Escape the focus is in the grid again."""
        page = open_page(mixed_url)
        page.get_by_label("Search prompts and ids").fill("owl")
        page.get_by_role("button", name="Grid").click()
        page.get_by_label("Rows").select_option("creativity")
        page.get_by_label("Columns").select_option("seed")
        cells(page)["high", "1"].locator("button").first.click()
        assert dialog_details(page)["id"] == "owl-creativity=high-seed=1"
        page.keyboard.press("Escape")
        assert page.evaluate("document.activeElement.closest('#grid') !== null")

    def test_numbers_are_sorted(self, open_page: OpenPage, start_view: StartView, tmp_path: Path) -> None:
        """Columns of numbers are in numeric order: 2 before 10."""
        jobs = [SeedJob(id=f"s{seed}", fields={"seed": seed}) for seed in (10, 2, 1)]
        page = open_page(start_view(make_run(tmp_path / "run", *jobs)).url)
        page.keyboard.press("g")
        page.get_by_label("Columns").select_option("seed")
        expect(page.locator("table.sweep thead th")).to_have_text(["1", "2", "10"])


class TestMarks:
    def mark_jobs(self, page: Page, *job_ids: str) -> None:
        for job_id in job_ids:
            tile(page, job_id).hover()
            page.get_by_role("button", name=f"Mark {job_id}", exact=True).click()

    def test_differences_are_highlighted(self, mixed_url: str, open_page: OpenPage) -> None:
        """The comparison shows marked images side by side, and highlights the fields in which they differ."""
        page = open_page(mixed_url)
        self.mark_jobs(page, "owl-creativity=raw-seed=1", "owl-creativity=high-seed=1", "fox")
        expect(page.locator("#marks")).to_have_text("3 marked")
        page.get_by_role("button", name="Compare").click()
        expect(page.locator("#side-by-side h2")).to_have_count(3)
        differing = page.locator("#side-by-side dl").first.locator("dt:has(+ .differs)").all_inner_texts()
        assert {"aspect_ratio", "creativity", "series", "prompt", "seed"} <= set(differing)
        page.keyboard.press("Escape")
        self.mark_jobs(page, "fox")
        page.keyboard.press("c")
        dialog = page.locator("#side-by-side")
        assert dialog.locator("dl").first.locator("dt:has(+ .differs)").all_inner_texts() == ["creativity"]
        colours = [rendered_colour(image) for image in dialog.locator("img").all()]
        assert colours == [colour(JOB_NUMBERS[f"owl-creativity={name}-seed=1"]) for name in ("raw", "high")]

    def test_a_field_that_only_one_image_has(self, mixed_url: str, open_page: OpenPage) -> None:
        """A field that only one of the compared images has is a difference."""
        page = open_page(mixed_url)
        self.mark_jobs(page, "fox", "cat")
        page.keyboard.press("c")
        differing = page.locator("#side-by-side dt:has(+ .differs)").all_inner_texts()
        assert {"series", "note", "seed", "styles"} <= set(differing)

    def test_marks_survive_filters(self, mixed_url: str, open_page: OpenPage) -> None:
        """An image stays marked while a filter hides it; "Unmark all" removes all marks."""
        page = open_page(mixed_url)
        self.mark_jobs(page, "fox", "cat")
        choose_filters(page, status="failed")
        expect(page.locator("#marks")).to_have_text("2 marked")
        page.keyboard.press("c")
        expect(page.locator("#side-by-side h2")).to_have_text(["fox", "cat"])
        page.keyboard.press("Escape")
        choose_filters(page, status="")
        expect(page.get_by_role("button", name="Mark fox")).to_have_attribute("aria-pressed", "true")
        page.get_by_role("button", name="Unmark all").click()
        expect(page.locator("#marked")).to_be_hidden()
        expect(page.get_by_role("button", name="Mark fox")).to_have_attribute("aria-pressed", "false")

    def test_a_selection_is_saved(self, mixed_url: str, open_page: OpenPage) -> None:
        """Ids are saved one per line, as `retry --ids-from` reads them; the JSON has all details of each job."""
        page = open_page(mixed_url)
        self.mark_jobs(page, "cat", "owl-creativity=raw-seed=2", "bear")
        name, text = saved_file(page, "Save ids")
        assert name.endswith(".txt")
        assert sorted(text.splitlines()) == sorted(["cat", "owl-creativity=raw-seed=2", "bear"])
        assert text.endswith("\n")
        name, text = saved_file(page, "Save JSON")
        assert name.endswith(".json")
        rows: dict[str, dict[str, Any]] = {row["id"]: row for row in json.loads(text)}
        assert {*rows} == {"cat", "owl-creativity=raw-seed=2", "bear"}
        assert rows["owl-creativity=raw-seed=2"]["metadata"] == {"series": "wood"}
        assert rows["owl-creativity=raw-seed=2"]["parameters"]["seed"] == 2
        assert [file["path"] for file in rows["cat"]["files"]] == ["images/cat.png", "images/cat-2.png"]
        assert (rows["bear"]["status"], rows["bear"]["error"]) == ("failed", FAILED_ERROR.message)

    def test_saved_ids_are_read_back(self, start_view: StartView, open_page: OpenPage, tmp_path: Path) -> None:
        """`--ids-from` reads exactly the ids that the page saves, with spaces and separators of lines in them."""
        ids = ["cat", " cat", "cat ", "a\u2028b", "a", "b", "\ufeffcat", "=1"]
        out = make_run(tmp_path / "run", *(SeedJob(id=job_id) for job_id in ids))
        page = open_page(start_view(out).url)
        page.evaluate("ids => ids.forEach(toggleMark)", ids)
        _, text = saved_file(page, "Save ids")
        (tmp_path / "ids.txt").write_text(text, "utf-8", newline="")
        assert read_ids(str(tmp_path / "ids.txt"), out) == ids


class TestKeyboard:
    def test_slash_searches(self, mixed_url: str, open_page: OpenPage) -> None:
        """`/` moves the focus to the search, where letters are text and not commands."""
        page = open_page(mixed_url)
        page.keyboard.press("/")
        page.keyboard.type("magic")
        search = page.get_by_label("Search prompts and ids")
        expect(search).to_be_focused()
        expect(search).to_have_value("magic")
        expect(page.locator("#images")).to_be_visible()
        expect(page.locator("#marked")).to_be_hidden()

    def test_arrows_move_the_focus(self, mixed_url: str, open_page: OpenPage) -> None:
        """Right and left move the focus by one tile, down and up by one row; Enter opens the focused image."""
        page = open_page(mixed_url, viewport={"width": 1280, "height": 720})
        ids = [job.id for job in MIXED_JOBS]
        columns = page.evaluate(
            "() => { const all = [...document.querySelectorAll('.tile')].map(t => t.getBoundingClientRect().top);"
            " return all.filter(top => top === all[0]).length; }"
        )
        tile(page, ids[0]).locator(".open").focus()
        for key, index in (("ArrowRight", 1), ("ArrowDown", 1 + columns), ("ArrowLeft", columns), ("ArrowUp", 0)):
            page.keyboard.press(key)
            assert focused_id(page) == ids[index], key
        page.keyboard.press("ArrowLeft")
        assert focused_id(page) == ids[0]
        page.keyboard.press("End")
        assert focused_id(page) == ids[-1]
        page.keyboard.press("Home")
        assert focused_id(page) == ids[0]
        page.keyboard.press("Enter")
        assert dialog_details(page)["id"] == ids[0]

    def test_the_list_of_keys(self, mixed_url: str, open_page: OpenPage) -> None:
        """`?` shows the keys, and Escape closes the list."""
        page = open_page(mixed_url)
        page.keyboard.press("?")
        expect(page.locator("#keys")).to_contain_text("mark all shown images")
        page.keyboard.press("Escape")
        expect(page.locator("#keys")).to_be_hidden()

    def test_letters(self, mixed_url: str, open_page: OpenPage) -> None:
        """`m` marks or unmarks the focused image, `c` compares two or more, `g` switches to the grid and back."""
        page = open_page(mixed_url)
        tile(page, "fox").locator(".open").focus()
        page.keyboard.press("m")
        expect(page.locator("#marks")).to_have_text("1 marked")
        page.keyboard.press("c")
        expect(page.locator("#side-by-side[open]")).to_have_count(0)
        page.keyboard.press("ArrowRight")
        page.keyboard.press("m")
        page.keyboard.press("c")
        expect(page.locator("#side-by-side h2")).to_have_text(["fox", "cat"])
        page.keyboard.press("Escape")
        page.keyboard.press("m")
        expect(page.locator("#marks")).to_have_text("1 marked")
        page.keyboard.press("g")
        expect(page.locator("#grid")).to_be_visible()
        expect(page.locator("#images")).to_be_hidden()
        page.keyboard.press("g")
        expect(page.locator("#images")).to_be_visible()

    def test_shortcuts_of_the_browser_still_work(self, mixed_url: str, open_page: OpenPage) -> None:
        """Ctrl+C does not compare, and Ctrl+G does not open the grid."""
        page = open_page(mixed_url)
        for job_id in ("fox", "cat"):
            tile(page, job_id).locator(".open").focus()
            page.keyboard.press("m")
        page.keyboard.press("Control+c")
        page.keyboard.press("Control+g")
        expect(page.locator("#side-by-side[open]")).to_have_count(0)
        expect(page.locator("#images")).to_be_visible()

    def test_in_the_lightbox(self, mixed_url: str, open_page: OpenPage) -> None:
        """`m` marks the open image; other commands do nothing while the lightbox is open."""
        page = open_page(mixed_url)
        tile(page, "fox").locator(".open").click()
        page.keyboard.press("m")
        page.keyboard.press("g")
        expect(lightbox_dialog(page)).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator("#marks")).to_have_text("1 marked")
        expect(page.locator("#images")).to_be_visible()
        expect(page.get_by_role("button", name="Mark fox")).to_have_attribute("aria-pressed", "true")


class TestSmallScreens:
    def overflow(self, page: Page) -> list[str]:
        """Return the parts of the page or of an open dialog that are wider than the screen."""
        overflowing: list[str] = page.evaluate(
            """() => {
                const parts = document.querySelectorAll("html, dialog[open], header, footer, #filters");
                const tooWide = (part) => part.scrollWidth > Math.min(innerWidth, part.clientWidth + 1);
                return [...parts].filter(tooWide).map(part => part.id || part.tagName);
            }"""
        )
        return overflowing

    def test_nothing_overflows(self, mixed_url: str, open_page: OpenPage) -> None:
        """At 360 x 640 pixels no view is wider than the screen, and each button can be pressed."""
        page = open_page(mixed_url, **SMALL_SCREEN)
        assert self.overflow(page) == []
        for job_id in ("owl-creativity=raw-seed=1", "owl-creativity=raw-seed=2"):
            tile(page, job_id).locator(".open").focus()
            page.keyboard.press("m")
        assert self.overflow(page) == []
        tile(page, "owl-creativity=raw-seed=1").locator(".open").click()
        assert self.overflow(page) == []
        for name in ("Next image", "Previous image", "Unmark", "Mark", "Close"):
            page.locator("#lightbox").get_by_role("button", name=name, exact=True).click()
        page.get_by_role("button", name="Compare").click()
        assert self.overflow(page) == []
        page.locator("#side-by-side").get_by_role("button", name="Close").click()
        page.get_by_role("button", name="Grid").click()
        page.get_by_label("Rows").select_option("seed")
        page.get_by_label("Columns").select_option("creativity")
        assert self.overflow(page) == []
        page.get_by_role("button", name="Images").click()
        page.get_by_role("button", name="Retry failed").click()
        assert self.overflow(page) == []
        page.get_by_role("button", name="Cancel").click()

    def test_the_images_have_room(self, mixed_url: str, open_page: OpenPage) -> None:
        """With filters and marks, more than a third of a small screen is left for the images."""
        page = open_page(mixed_url, **SMALL_SCREEN)
        tile(page, "owl-creativity=raw-seed=1").locator(".open").focus()
        page.keyboard.press("m")
        assert page.locator("#images").evaluate("e => e.clientHeight") > 640 / 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(scheme: str, mixed_url: str, open_page: OpenPage) -> None:
    """Images, marks, lightbox, comparison, retry dialog and grid have no serious or critical violation."""
    page = open_page(mixed_url, color_scheme=scheme)
    found = {"images": serious_violations(page)}
    for job_id in ("fox", "cat"):
        tile(page, job_id).locator(".open").focus()
        page.keyboard.press("m")
    found["marks"] = serious_violations(page)
    for job_id in ("cat", "bear"):
        tile(page, job_id).locator(".open").click()
        found[f"lightbox of {job_id}"] = serious_violations(page)
        page.keyboard.press("Escape")
    page.keyboard.press("c")
    found["compare"] = serious_violations(page)
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Retry failed").click()
    found["retry dialog"] = serious_violations(page)
    page.keyboard.press("Escape")
    page.keyboard.press("v")
    found["new images"] = serious_violations(page)
    page.get_by_role("button", name="Show the price").click()
    page.locator("#new-jobs-price").wait_for()
    found["price"] = serious_violations(page)
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    found["keys"] = serious_violations(page)
    page.keyboard.press("Escape")
    page.keyboard.press("b")
    page.locator("#ab-axis").select_option("creativity")
    page.locator("#ab-b").select_option("low")
    found["pairs"] = serious_violations(page)
    page.get_by_role("button", name="Blind test").click()
    found["blind test"] = serious_violations(page)
    page.get_by_role("button", name="Left is better").click()
    page.get_by_role("button", name="Stop and show the result").click()
    found["result"] = serious_violations(page)
    page.get_by_role("button", name="Back to the pairs").click()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Grid").click()
    found["grid"] = serious_violations(page)
    choose_filters(page, status="failed")
    page.get_by_label("Search prompts and ids").fill("no such job")
    page.keyboard.press("Escape")
    found["no match"] = serious_violations(page)
    assert found == {view: [] for view in found}


@pytest.fixture(scope="module")
def large_run_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL at which a run of 5,000 images is shown."""
    jobs = [SeedJob(id=f"job-{n:05}", prompt=f"image {n}", fields={"seed": n % 7}) for n in range(1, 5001)]
    running_view = RunningView(make_run(tmp_path_factory.mktemp("large") / "run", *jobs))
    yield running_view.url
    assert running_view.close() == (0, "")


class TestFiveThousand:
    def test_from_top_to_bottom(self, large_run_url: str, open_page: OpenPage) -> None:
        """Each part of the page shows its own images, to the last job, and the page never has many elements."""
        page = open_page(large_run_url, viewport={"width": 1280, "height": 720})
        expect(counts(page)).to_have_text("5,000 jobs, 5,000 with an image")
        pane = page.locator("#images")
        visible: set[str] = set()
        for tenth in range(11):
            pane.evaluate("(pane, share) => { pane.scrollTop = share * pane.scrollHeight; }", tenth / 10)
            job_no = max(1, min(4999, tenth * 500))
            expect(page.locator(f".tile[data-id^='job-{job_no // 100:03}']").first).to_be_attached()
            in_view = page.locator(".tile").evaluate_all(
                "all => all.filter(t => { const box = t.getBoundingClientRect();"
                " return box.top >= 200 && box.bottom <= innerHeight; }).map(t => t.dataset.id)"
            )
            for job_id in in_view[:2]:
                image = tile(page, job_id).locator("img")
                assert is_colour(rendered_colour(image), int(job_id.removeprefix("job-")))
            visible.update(in_view)
            assert page.evaluate("document.querySelectorAll('*').length") < 2000
        assert len(visible) > 50
        expect(tile(page, "job-05000")).to_be_visible()
        pane.evaluate("pane => { pane.scrollTop -= 300; }")
        expect(page.locator(".tile")).not_to_have_count(0)
        shown = visible_ids(page)  # read once, because the page may render between two reads
        assert shown == sorted(shown)

    def test_by_keyboard_and_search(self, large_run_url: str, open_page: OpenPage) -> None:
        """End moves the focus to the last job; one of thousands is found by its id and its values."""
        page = open_page(large_run_url)
        tile(page, "job-00001").locator(".open").focus()
        page.keyboard.press("End")
        assert focused_id(page) == "job-05000"
        page.keyboard.press("Enter")
        assert dialog_details(page)["id"] == "job-05000"
        page.keyboard.press("Escape")
        assert focused_id(page) == "job-05000"
        page.get_by_label("Search prompts and ids").fill("job-0321")
        expect(counts(page)).to_contain_text("10 shown of 5,000 jobs")
        choose_filters(page, seed="3")
        expect(page.locator(".tile")).to_have_count(sum(n % 7 == 3 for n in range(3210, 3220)))

    def test_arrows_continue_after_scrolling(self, large_run_url: str, open_page: OpenPage) -> None:
        """After the focused tile was scrolled out of view, an arrow key continues from it, not from the first."""
        page = open_page(large_run_url)
        tile(page, "job-00001").locator(".open").focus()
        page.keyboard.press("ArrowRight")
        pane = page.locator("#images")
        pane.evaluate("pane => { pane.scrollTop = pane.scrollHeight / 2; }")
        expect(tile(page, "job-00002")).to_have_count(0)
        page.keyboard.press("ArrowRight")
        expect(tile(page, "job-00003").locator(".open")).to_be_focused()

    def test_the_grid_of_many(self, large_run_url: str, open_page: OpenPage) -> None:
        """A grid of thousands of prompts has a limited number of elements."""
        page = open_page(large_run_url)
        page.keyboard.press("g")
        page.get_by_label("Columns").select_option("seed")
        expect(page.locator("table.sweep")).to_be_visible()
        assert page.evaluate("document.querySelectorAll('*').length") < 20_000
