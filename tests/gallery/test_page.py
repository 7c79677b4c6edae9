"""The page of a run as people use it: in a browser, by mouse and by keyboard."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page, expect

from krea_batch.jobs import State
from tests.gallery.conftest import HOSTILE, MIXED, NUMBERS
from tests.gallery.gallery_fixtures import (
    AMBIGUOUS,
    ERRORED,
    FAILED,
    REJECTED,
    Look,
    Made,
    View,
    Viewed,
    colour,
    facts,
    is_colour,
    make_run,
    request_id,
    seen_colour,
    shown_ids,
    sweep,
    tile,
    width_px,
)

pytestmark = pytest.mark.slow

SMALL = {"viewport": {"width": 360, "height": 640}}


def counts(page: Page) -> Locator:
    return page.locator("#counts")


def lightbox(page: Page) -> Locator:
    return page.locator("#lightbox[open]")


def focused_id(page: Page) -> str | None:
    """The job whose tile holds the focus."""
    return page.evaluate("document.activeElement?.closest('.tile')?.dataset.id ?? null")  # type: ignore[no-any-return]


def choose(page: Page, **values: str) -> None:
    """Choose values of filters."""
    for name, value in values.items():
        page.get_by_label(name, exact=True).select_option(value)


def saved(page: Page, button: str) -> tuple[str, str]:
    """What a button of the footer downloads: the file's name and text."""
    with page.expect_download() as download:
        page.get_by_role("button", name=button).click()
    return download.value.suggested_filename, Path(download.value.path()).read_text("utf-8")


def cells(page: Page) -> dict[tuple[str, str], Locator]:
    """The cells of the grid by the words of their row and column."""
    columns = page.locator("table.sweep thead th").all_inner_texts()
    return {
        (row.locator("th").inner_text(), column): row.locator("td").nth(n)
        for row in page.locator("table.sweep tbody tr").all()
        for n, column in enumerate(columns)
    }


def grave_violations(page: Page) -> list[str]:
    """What axe calls serious or critical. In the dark, of colours alone: nothing else is another there."""
    options: dict[str, Any] = {"resultTypes": ["violations"]}
    if page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches"):
        options["runOnly"] = ["color-contrast"]
    found = Axe().run(page, options=options).response["violations"]
    return [
        f"{one['id']}: {node['html'][:200]} {node['failureSummary']}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


class TestLoading:
    def test_every_job_has_its_tile(self, mixed: str, look: Look) -> None:
        """Each job of the run stands in the page in the ledger's order, with its own picture or with its status."""
        page = look(mixed)
        assert shown_ids(page) == [job.id for job in MIXED]
        expect(counts(page)).to_have_text("16 jobs, 10 with a picture")
        for job in MIXED:
            if job.status is State.SUCCEEDED:
                assert is_colour(seen_colour(tile(page, job.id).locator("img")), NUMBERS[job.id])
            else:
                expect(tile(page, job.id).locator("img")).to_have_count(0)
                expect(tile(page, job.id)).to_contain_text(job.status.value)

    def test_an_empty_run_says_so(self, look: Look, view: View, tmp_path: Path) -> None:
        """A run without a job is a page that says that there is nothing yet."""
        page = look(view(make_run(tmp_path / "run")).url)
        expect(page.locator("#nothing")).to_have_text("Nothing to show yet.")
        expect(counts(page)).to_contain_text("0 jobs")

    def test_hostile_words_stay_words(self, look: Look, view: View, tmp_path: Path) -> None:
        """Markup in a prompt, a metadata name and value and a folder's name is shown as it is written."""
        job = Made(
            id="a <b>'\"& #%?🦉", prompt=HOSTILE, metadata={HOSTILE: HOSTILE, "__proto__": "p", "x": [HOSTILE]}
        )
        plain = Made(id="b", metadata={HOSTILE: "other"})
        page = look(view(make_run(tmp_path / "<img src=x onerror=hacked=1>", job, plain)).url)
        expect(page.locator("h1")).to_have_text("<img src=x onerror=hacked=1>")
        tile(page, job.id).locator(".open").click()
        said = facts(page)
        assert (said["id"], said[HOSTILE], said["__proto__"]) == (job.id, HOSTILE, "p")
        expect(page.locator("#lightbox h2")).to_have_text(HOSTILE)
        page.keyboard.press("Escape")
        page.keyboard.press("g")
        expect(page.locator("table.sweep")).to_be_visible()
        assert page.evaluate("window.hacked") is None


class TestFilters:
    def test_by_text(self, mixed: str, look: Look) -> None:
        """The words are looked for in prompts and in ids, however they are written."""
        page = look(mixed)
        for words, ids in {
            "glass": ["fox"],
            "GLASS": ["fox"],
            "creativity=raw": ["owl-creativity=raw-seed=1", "owl-creativity=raw-seed=2"],
            "bear": ["bear"],
        }.items():
            page.get_by_label("Search prompts and ids").fill(words)
            expect(counts(page)).to_contain_text(f"{len(ids)} shown of 16 jobs")
            expect(page.locator(".tile")).to_have_count(len(ids))
            assert shown_ids(page) == ids, words

    def test_by_values(self, mixed: str, look: Look) -> None:
        """Status, parameters and metadata narrow what is shown, each further one more."""
        page = look(mixed)
        found: list[tuple[dict[str, str], list[str]]] = [
            ({"status": "failed"}, ["bear"]),
            ({"aspect_ratio": "16:9"}, ["fox"]),
            ({"creativity": "high"}, ["owl-creativity=high-seed=1", "owl-creativity=high-seed=2"]),
            ({"seed": "7"}, ["cat"]),
            ({"series": "glass"}, ["fox"]),
            ({"series": "wood", "status": "rejected"}, ["long"]),
            ({"series": "wood", "seed": "2", "creativity": "low"}, ["owl-creativity=low-seed=2"]),
        ]
        for values, ids in found:
            choose(page, **values)
            expect(counts(page)).to_contain_text(f"{len(ids)} shown of 16 jobs")
            assert shown_ids(page) == ids, values
            choose(page, **dict.fromkeys(values, ""))
            expect(counts(page)).to_have_text("16 jobs, 10 with a picture")
            assert len(shown_ids(page)) == 16

    def test_words_and_values_together(self, mixed: str, look: Look) -> None:
        """Both have to be met; where nothing meets them the page says so, and not that the run is empty."""
        page = look(mixed)
        page.get_by_label("Search prompts and ids").fill("seed=1")
        choose(page, creativity="raw")
        expect(page.locator(".tile")).to_have_count(1)
        assert shown_ids(page) == ["owl-creativity=raw-seed=1"]
        choose(page, creativity="", status="failed")
        expect(counts(page)).to_contain_text("0 shown of 16 jobs")
        expect(page.locator(".tile")).to_have_count(0)
        expect(page.locator("#nothing")).to_be_visible()
        expect(page.locator("#nothing")).not_to_contain_text("yet")

    def test_the_grid_is_filtered_too(self, mixed: str, look: Look) -> None:
        """What the filters leave out stands in no cell."""
        page = look(mixed)
        choose(page, series="wood", status="succeeded")
        page.keyboard.press("g")
        expect(page.locator("table.sweep tbody th")).to_have_text(["An owl of wood"])


class TestLightbox:
    def test_it_shows_all_that_is_known(self, mixed: str, look: Look) -> None:
        """A click opens the picture itself, with its parameters, metadata, request_id and status."""
        page = look(mixed)
        tile(page, "owl-creativity=low-seed=2").locator(".open").click()
        n = NUMBERS["owl-creativity=low-seed=2"]
        said = facts(page)
        assert said["id"] == "owl-creativity=low-seed=2"
        assert (said["status"], said["request_id"]) == ("succeeded", request_id(n))
        assert (said["aspect_ratio"], said["creativity"], said["seed"], said["series"]) == ("1:1", "low", "2", "wood")
        assert (said["submits"], said["polls"]) == ("1", "3")
        original = lightbox(page).get_by_alt_text("An owl of wood")
        assert seen_colour(original) == colour(n)
        assert original.evaluate("image => image.naturalWidth") == width_px(n)
        assert said["size"] == f"{width_px(n)} × 200"

    def test_it_shows_what_went_wrong(self, mixed: str, look: Look) -> None:
        """A job without a picture has its error, and no link to a file."""
        page = look(mixed)
        for job_id, why in {"bear": FAILED, "long": REJECTED, "lost": ERRORED, "doubt": AMBIGUOUS}.items():
            tile(page, job_id).locator(".open").click()
            assert facts(page)["error"] == why.message
            expect(lightbox(page).get_by_role("link")).to_have_count(0)
            page.keyboard.press("Escape")

    def test_metadata_of_any_shape(self, mixed: str, look: Look) -> None:
        """Metadata and parameters that are lists or objects are shown as JSON."""
        page = look(mixed)
        tile(page, "later").locator(".open").click()
        assert json.loads(facts(page)["deep"]) == {"tags": ["a", "b"]}
        page.keyboard.press("Escape")
        tile(page, "cat").locator(".open").click()
        assert json.loads(facts(page)["styles"]) == [{"id": "ink", "strength": 0.5}]

    def test_arrows_go_to_the_neighbours(self, mixed: str, look: Look) -> None:
        """Keys and buttons go to the next and the previous job; at the ends they stay or go round, never nowhere."""
        page = look(mixed)
        tile(page, "fox").locator(".open").click()
        page.keyboard.press("ArrowRight")
        assert facts(page)["id"] == "cat"
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowLeft")
        assert facts(page)["id"] == "owl-creativity=high-seed=2"
        page.get_by_role("button", name="Next picture").click()
        assert facts(page)["id"] == "fox"
        page.get_by_role("button", name="Previous picture").click()
        assert facts(page)["id"] == "owl-creativity=high-seed=2"
        for _ in range(20):
            page.keyboard.press("ArrowRight")
            assert facts(page)["id"] in NUMBERS

    def test_buttons_by_keyboard(self, mixed: str, look: Look) -> None:
        """Enter on "next" can be pressed again and again: the focus stays on the button."""
        page = look(mixed)
        tile(page, "owl-creativity=raw-seed=1").locator(".open").click()
        page.get_by_role("button", name="Next picture").focus()
        page.keyboard.press("Enter")
        page.keyboard.press("Enter")
        assert facts(page)["id"] == "owl-creativity=low-seed=1"
        expect(page.get_by_role("button", name="Next picture")).to_be_focused()

    def test_metadata_named_like_fields(self, look: Look, view: View, tmp_path: Path) -> None:
        """Metadata called `status`, `id`, `seed` or `error` hides nothing of the job and is not hidden by it."""
        names = {"id": "mine", "status": "draft", "seed": "none", "request_id": "r", "error": "e", "toString": "t"}
        jobs = [
            Made(id="one", metadata=names, fields={"seed": 5}),
            Made(id="two", status=State.FAILED, metadata=names),
        ]
        page = look(view(make_run(tmp_path / "run", *jobs)).url)
        tile(page, "one").locator(".open").click()
        assert (facts(page)["id"], facts(page)["status"], facts(page)["seed"]) == ("one", "succeeded", "5")
        said = page.locator("#lightbox dl").inner_text()
        for word in ("mine", "draft", "none", request_id(1)):
            assert word in said.split()
        page.keyboard.press("ArrowRight")
        assert FAILED.message in page.locator("#lightbox dl").inner_text()
        page.keyboard.press("Escape")
        assert page.get_by_label("status").locator("option").all_inner_texts() == [
            "status: all",
            "succeeded",
            "failed",
        ]

    def test_neighbours_are_those_that_are_shown(self, mixed: str, look: Look) -> None:
        """With a filter, the arrows pass over what it leaves out."""
        page = look(mixed)
        choose(page, seed="2")
        tile(page, "owl-creativity=raw-seed=2").locator(".open").click()
        page.keyboard.press("ArrowRight")
        assert facts(page)["id"] == "owl-creativity=low-seed=2"

    @pytest.mark.parametrize("way", ["Escape", "button"])
    def test_the_focus_comes_back(self, way: str, mixed: str, look: Look) -> None:
        """It opens by Enter and closes by Escape or its button, and the focus is at the tile that was looked at."""
        page = look(mixed)
        tile(page, "fox").locator(".open").focus()
        page.keyboard.press("Enter")
        expect(lightbox(page)).to_be_visible()
        assert page.evaluate("document.activeElement.closest('dialog')?.id") == "lightbox"
        if way == "Escape":
            page.keyboard.press("Escape")
        else:
            page.get_by_role("button", name="Close").click()
        expect(lightbox(page)).to_have_count(0)
        assert focused_id(page) == "fox"

    def test_all_pictures_of_a_job(self, mixed: str, look: Look) -> None:
        """A job with two pictures has both in the lightbox, and its link opens the one that is shown."""
        page = look(mixed)
        tile(page, "cat").locator(".open").click()
        assert seen_colour(lightbox(page).locator(".stage img").last) == colour(NUMBERS["cat"])
        second = lightbox(page).get_by_role("button", name="2", exact=True)
        second.click()
        assert seen_colour(lightbox(page).locator(".stage img").last) == colour(NUMBERS["cat"], 2)
        expect(second).to_have_attribute("aria-pressed", "true")
        expect(lightbox(page).get_by_role("button", name="1", exact=True)).to_have_attribute("aria-pressed", "false")
        expect(lightbox(page).get_by_role("link")).to_have_attribute("href", f"/picture/{NUMBERS['cat']}/1")
        page.keyboard.press("m")
        expect(second).to_have_attribute("aria-pressed", "true")

    def test_pictures_in_an_object_store(self, look: Look, view: View, tmp_path: Path) -> None:
        """Pictures that are kept elsewhere have a tile, their address in the lightbox, and break nothing."""
        jobs = [Made(id=f"far-{n}", prefix="s3://bucket/folder/") for n in range(3)]
        page = look(view(make_run(tmp_path / "run", *jobs, Made(id="near"))).url)
        expect(page.locator(".tile")).to_have_count(4)
        tile(page, "far-1").locator(".open").click()
        expect(lightbox(page)).to_contain_text("s3://bucket/folder/far-1.png")
        page.keyboard.press("Escape")
        assert is_colour(seen_colour(tile(page, "near").locator("img")), 4)


class TestGrid:
    def test_rows_and_columns_are_chosen(self, mixed: str, look: Look) -> None:
        """Each picture stands in the cell of its own values, whichever two fields the sides are."""
        page = look(mixed)
        page.get_by_label("Search prompts and ids").fill("owl")
        page.get_by_role("button", name="Grid").click()
        for sides in (("creativity", "seed"), ("seed", "creativity")):
            page.get_by_label("Rows").select_option(sides[0])
            page.get_by_label("Columns").select_option(sides[1])
            found = cells(page)
            assert len(found) == 8
            for job in sweep("owl", "An owl of wood", {}):
                cell = found[str(job.fields[sides[0]]), str(job.fields[sides[1]])]
                expect(cell.locator("img")).to_have_count(1)
                assert is_colour(seen_colour(cell.locator("img")), NUMBERS[job.id])

    def test_a_cell_opens_its_picture(self, mixed: str, look: Look) -> None:
        """A click on a cell opens the lightbox there; Escape gives the focus back to the cell."""
        page = look(mixed)
        page.get_by_label("Search prompts and ids").fill("owl")
        page.get_by_role("button", name="Grid").click()
        page.get_by_label("Rows").select_option("creativity")
        page.get_by_label("Columns").select_option("seed")
        cells(page)["high", "1"].locator("button").first.click()
        assert facts(page)["id"] == "owl-creativity=high-seed=1"
        page.keyboard.press("Escape")
        assert page.evaluate("document.activeElement.closest('#grid') !== null")

    def test_the_order_is_that_of_the_values(self, look: Look, view: View, tmp_path: Path) -> None:
        """Seeds stand in the order of numbers: 2 before 10."""
        jobs = [Made(id=f"s{seed}", fields={"seed": seed}) for seed in (10, 2, 1)]
        page = look(view(make_run(tmp_path / "run", *jobs)).url)
        page.keyboard.press("g")
        page.get_by_label("Columns").select_option("seed")
        expect(page.locator("table.sweep thead th")).to_have_text(["1", "2", "10"])


class TestMarks:
    def mark(self, page: Page, *job_ids: str) -> None:
        for job_id in job_ids:
            tile(page, job_id).hover()
            page.get_by_role("button", name=f"Mark {job_id}", exact=True).click()

    def test_what_differs_is_shown(self, mixed: str, look: Look) -> None:
        """Marked pictures stand side by side; the fields in which they differ are told from the others."""
        page = look(mixed)
        self.mark(page, "owl-creativity=raw-seed=1", "owl-creativity=high-seed=1", "fox")
        expect(page.locator("#marks")).to_have_text("3 marked")
        page.get_by_role("button", name="Compare").click()
        expect(page.locator("#side-by-side h2")).to_have_count(3)
        differing = page.locator("#side-by-side dl").first.locator("dt:has(+ .differs)").all_inner_texts()
        assert {"aspect_ratio", "creativity", "series", "prompt", "seed"} <= set(differing)
        page.keyboard.press("Escape")
        self.mark(page, "fox")
        page.keyboard.press("c")
        dialog = page.locator("#side-by-side")
        assert dialog.locator("dl").first.locator("dt:has(+ .differs)").all_inner_texts() == ["creativity"]
        seen = [seen_colour(image) for image in dialog.locator("img").all()]
        assert seen == [colour(NUMBERS[f"owl-creativity={word}-seed=1"]) for word in ("raw", "high")]

    def test_only_one_has_what_the_other_lacks(self, mixed: str, look: Look) -> None:
        """A field that one of them does not have is a difference."""
        page = look(mixed)
        self.mark(page, "fox", "cat")
        page.keyboard.press("c")
        differing = page.locator("#side-by-side dt:has(+ .differs)").all_inner_texts()
        assert {"series", "note", "seed", "styles"} <= set(differing)

    def test_marks_live_through_filters(self, mixed: str, look: Look) -> None:
        """What is marked stays so while a filter hides it; "Unmark all" takes all marks away."""
        page = look(mixed)
        self.mark(page, "fox", "cat")
        choose(page, status="failed")
        expect(page.locator("#marks")).to_have_text("2 marked")
        page.keyboard.press("c")
        expect(page.locator("#side-by-side h2")).to_have_text(["fox", "cat"])
        page.keyboard.press("Escape")
        choose(page, status="")
        expect(page.get_by_role("button", name="Mark fox")).to_have_attribute("aria-pressed", "true")
        page.get_by_role("button", name="Unmark all").click()
        expect(page.locator("#marked")).to_be_hidden()
        expect(page.get_by_role("button", name="Mark fox")).to_have_attribute("aria-pressed", "false")

    def test_a_selection_is_saved(self, mixed: str, look: Look) -> None:
        """The ids come one a line, as `retry --ids-from` reads them; the JSON has all that is known of each."""
        page = look(mixed)
        self.mark(page, "cat", "owl-creativity=raw-seed=2", "bear")
        name, text = saved(page, "Save ids")
        assert name.endswith(".txt")
        assert sorted(text.splitlines()) == sorted(["cat", "owl-creativity=raw-seed=2", "bear"])
        assert text.endswith("\n")
        name, text = saved(page, "Save JSON")
        assert name.endswith(".json")
        rows: dict[str, dict[str, Any]] = {row["id"]: row for row in json.loads(text)}
        assert {*rows} == {"cat", "owl-creativity=raw-seed=2", "bear"}
        assert rows["owl-creativity=raw-seed=2"]["metadata"] == {"series": "wood"}
        assert rows["owl-creativity=raw-seed=2"]["parameters"]["seed"] == 2
        assert [file["path"] for file in rows["cat"]["files"]] == ["images/cat.png", "images/cat-2.png"]
        assert (rows["bear"]["status"], rows["bear"]["error"]) == ("failed", FAILED.message)


class TestKeyboard:
    def test_slash_searches(self, mixed: str, look: Look) -> None:
        """`/` goes to the search, where letters are letters and no commands."""
        page = look(mixed)
        page.keyboard.press("/")
        page.keyboard.type("magic")
        search = page.get_by_label("Search prompts and ids")
        expect(search).to_be_focused()
        expect(search).to_have_value("magic")
        expect(page.locator("#pictures")).to_be_visible()
        expect(page.locator("#marked")).to_be_hidden()

    def test_arrows_go_from_tile_to_tile(self, mixed: str, look: Look) -> None:
        """Right and left go one on, down and up a row; Enter opens what is focused."""
        page = look(mixed, viewport={"width": 1280, "height": 720})
        ids = [job.id for job in MIXED]
        across = page.evaluate(
            "() => { const all = [...document.querySelectorAll('.tile')].map(t => t.getBoundingClientRect().top);"
            " return all.filter(top => top === all[0]).length; }"
        )
        tile(page, ids[0]).locator(".open").focus()
        for key, place in (("ArrowRight", 1), ("ArrowDown", 1 + across), ("ArrowLeft", across), ("ArrowUp", 0)):
            page.keyboard.press(key)
            assert focused_id(page) == ids[place], key
        page.keyboard.press("ArrowLeft")
        assert focused_id(page) == ids[0]
        page.keyboard.press("End")
        assert focused_id(page) == ids[-1]
        page.keyboard.press("Home")
        assert focused_id(page) == ids[0]
        page.keyboard.press("Enter")
        assert facts(page)["id"] == ids[0]

    def test_letters(self, mixed: str, look: Look) -> None:
        """`m` marks what is focused or unmarks it, `c` compares two or more, `g` goes to the grid and back."""
        page = look(mixed)
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
        expect(page.locator("#pictures")).to_be_hidden()
        page.keyboard.press("g")
        expect(page.locator("#pictures")).to_be_visible()

    def test_commands_of_the_browser_are_left_alone(self, mixed: str, look: Look) -> None:
        """Ctrl+C copies, it does not compare."""
        page = look(mixed)
        for job_id in ("fox", "cat"):
            tile(page, job_id).locator(".open").focus()
            page.keyboard.press("m")
        page.keyboard.press("Control+c")
        page.keyboard.press("Control+g")
        expect(page.locator("#side-by-side[open]")).to_have_count(0)
        expect(page.locator("#pictures")).to_be_visible()

    def test_in_the_lightbox(self, mixed: str, look: Look) -> None:
        """`m` marks the picture that is looked at; other commands wait until it is closed."""
        page = look(mixed)
        tile(page, "fox").locator(".open").click()
        page.keyboard.press("m")
        page.keyboard.press("g")
        expect(lightbox(page)).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator("#marks")).to_have_text("1 marked")
        expect(page.locator("#pictures")).to_be_visible()
        expect(page.get_by_role("button", name="Mark fox")).to_have_attribute("aria-pressed", "true")


class TestSmallScreens:
    def overflow(self, page: Page) -> list[str]:
        """What sticks out sideways, of the page or of an open dialog."""
        found: list[str] = page.evaluate(
            """() => {
                const parts = document.querySelectorAll("html, dialog[open], header, footer, #filters");
                const tooWide = (part) => part.scrollWidth > Math.min(innerWidth, part.clientWidth + 1);
                return [...parts].filter(tooWide).map(part => part.id || part.tagName);
            }"""
        )
        return found

    def test_nothing_overflows_and_all_is_reached(self, mixed: str, look: Look) -> None:
        """At 360 x 640 no view is wider than the screen, and each button can be pressed."""
        page = look(mixed, **SMALL)
        assert self.overflow(page) == []
        for job_id in ("owl-creativity=raw-seed=1", "owl-creativity=raw-seed=2"):
            tile(page, job_id).locator(".open").focus()
            page.keyboard.press("m")
        assert self.overflow(page) == []
        tile(page, "owl-creativity=raw-seed=1").locator(".open").click()
        assert self.overflow(page) == []
        for name in ("Next picture", "Previous picture", "Unmark", "Mark", "Close"):
            page.locator("#lightbox").get_by_role("button", name=name, exact=True).click()
        page.get_by_role("button", name="Compare").click()
        assert self.overflow(page) == []
        page.locator("#side-by-side").get_by_role("button", name="Close").click()
        page.get_by_role("button", name="Grid").click()
        page.get_by_label("Rows").select_option("seed")
        page.get_by_label("Columns").select_option("creativity")
        assert self.overflow(page) == []
        page.get_by_role("button", name="Pictures").click()
        page.get_by_role("button", name="Retry failed").click()
        assert self.overflow(page) == []
        page.get_by_role("button", name="Leave it").click()

    def test_the_pictures_have_room(self, mixed: str, look: Look) -> None:
        """With filters, and marks, the pictures still have a third of a small screen."""
        page = look(mixed, **SMALL)
        tile(page, "owl-creativity=raw-seed=1").locator(".open").focus()
        page.keyboard.press("m")
        assert page.locator("#pictures").evaluate("e => e.clientHeight") > 640 / 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_grave(scheme: str, mixed: str, look: Look) -> None:
    """Pictures, marks, lightbox, comparison, question and grid have no serious or critical violation."""
    page = look(mixed, color_scheme=scheme)
    found = {"pictures": grave_violations(page)}
    for job_id in ("fox", "cat"):
        tile(page, job_id).locator(".open").focus()
        page.keyboard.press("m")
    found["marks"] = grave_violations(page)
    for job_id in ("cat", "bear"):
        tile(page, job_id).locator(".open").click()
        found[f"lightbox of {job_id}"] = grave_violations(page)
        page.keyboard.press("Escape")
    page.keyboard.press("c")
    found["compare"] = grave_violations(page)
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Retry failed").click()
    found["question"] = grave_violations(page)
    page.keyboard.press("Escape")
    page.keyboard.press("g")
    found["grid"] = grave_violations(page)
    choose(page, status="failed")
    page.get_by_label("Search prompts and ids").fill("nothing of this name")
    page.keyboard.press("Escape")
    found["nothing"] = grave_violations(page)
    assert found == {view: [] for view in found}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a run of 5,000 pictures is shown."""
    jobs = [Made(id=f"job-{n:05}", prompt=f"picture {n}", fields={"seed": n % 7}) for n in range(1, 5001)]
    viewed = Viewed(make_run(tmp_path_factory.mktemp("large") / "run", *jobs))
    yield viewed.url
    assert viewed.close() == (0, "")


class TestFiveThousand:
    def test_from_top_to_bottom(self, large: str, look: Look) -> None:
        """Every region shows its own pictures, the last job is reached, and the page never holds all at once."""
        page = look(large, viewport={"width": 1280, "height": 720})
        expect(counts(page)).to_have_text("5,000 jobs, 5,000 with a picture")
        pane = page.locator("#pictures")
        seen: set[str] = set()
        for tenth in range(11):
            pane.evaluate("(pane, share) => { pane.scrollTop = share * pane.scrollHeight; }", tenth / 10)
            near = max(1, min(4999, tenth * 500))
            expect(page.locator(f".tile[data-id^='job-{near // 100:03}']").first).to_be_attached()
            in_view = page.locator(".tile").evaluate_all(
                "all => all.filter(t => { const box = t.getBoundingClientRect();"
                " return box.top >= 200 && box.bottom <= innerHeight; }).map(t => t.dataset.id)"
            )
            for job_id in in_view[:2]:
                image = tile(page, job_id).locator("img")
                assert is_colour(seen_colour(image), int(job_id.removeprefix("job-")))
            seen.update(in_view)
            assert page.evaluate("document.querySelectorAll('*').length") < 2000
        assert len(seen) > 50
        expect(tile(page, "job-05000")).to_be_visible()
        pane.evaluate("pane => { pane.scrollTop -= 300; }")
        expect(page.locator(".tile")).not_to_have_count(0)
        assert shown_ids(page) == sorted(shown_ids(page))

    def test_by_keyboard_and_search(self, large: str, look: Look) -> None:
        """End goes to the last job; one among thousands is found by its id and by values."""
        page = look(large)
        tile(page, "job-00001").locator(".open").focus()
        page.keyboard.press("End")
        assert focused_id(page) == "job-05000"
        page.keyboard.press("Enter")
        assert facts(page)["id"] == "job-05000"
        page.keyboard.press("Escape")
        assert focused_id(page) == "job-05000"
        page.get_by_label("Search prompts and ids").fill("job-0321")
        expect(counts(page)).to_contain_text("10 shown of 5,000 jobs")
        choose(page, seed="3")
        expect(page.locator(".tile")).to_have_count(sum(n % 7 == 3 for n in range(3210, 3220)))

    def test_arrows_go_on_from_what_was_scrolled_away(self, large: str, look: Look) -> None:
        """Who looks elsewhere in between comes back to where he was, not to the first picture."""
        page = look(large)
        tile(page, "job-00001").locator(".open").focus()
        page.keyboard.press("ArrowRight")
        pane = page.locator("#pictures")
        pane.evaluate("pane => { pane.scrollTop = pane.scrollHeight / 2; }")
        expect(tile(page, "job-00002")).to_have_count(0)
        page.keyboard.press("ArrowRight")
        expect(tile(page, "job-00003").locator(".open")).to_be_focused()

    def test_the_grid_of_many(self, large: str, look: Look) -> None:
        """A grid of thousands of prompts keeps its nodes few."""
        page = look(large)
        page.keyboard.press("g")
        page.get_by_label("Columns").select_option("seed")
        expect(page.locator("table.sweep")).to_be_visible()
        assert page.evaluate("document.querySelectorAll('*').length") < 20_000
