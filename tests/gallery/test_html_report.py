"""Tests of the report: one HTML file, opened from disk in a browser."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from krea_batch.gallery.report import REPORT_MARK
from krea_batch.jobs import State
from tests.gallery.conftest import HOSTILE_TEXT, JOB_NUMBERS, MIXED_JOBS
from tests.gallery.gallery_fixtures import (
    OpenPage,
    SeedJob,
    dialog_details,
    is_colour,
    make_run,
    rendered_colour,
    tile,
    visible_ids,
)
from tests.gallery.test_page import (
    choose_filters,
    counts,
    focused_id,
    lightbox_dialog,
    saved_file,
    serious_violations,
)
from tests.processes import run_command

pytestmark = pytest.mark.slow


def write_report(out: Path, *options: str | Path) -> Path:
    """Write the report of a run. Returns its path."""
    done = run_command("report", out, *options, cwd=out.parent)
    assert (done.returncode, done.stderr) == (0, "")
    return out / "report.html"


@pytest.fixture(scope="module")
def mixed_report(mixed_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of MIXED_JOBS, in the directory of its images."""
    out = tmp_path_factory.mktemp("reported") / "run"
    shutil.copytree(mixed_run, out)
    return write_report(out)


class TestOneFile:
    def test_all_jobs_are_in_the_file(self, mixed_report: Path, open_page: OpenPage) -> None:
        """Opened from disk, it shows each job with its thumbnail or its status, and requests no other file."""
        page = open_page(mixed_report.as_uri())
        requested_urls: list[str] = []
        page.on("request", lambda request: requested_urls.append(request.url))
        page.reload()
        expect(counts(page)).to_have_text("16 jobs, 10 with an image")
        assert visible_ids(page) == [job.id for job in MIXED_JOBS]
        for job in MIXED_JOBS:
            if job.status is State.SUCCEEDED:
                assert is_colour(rendered_colour(tile(page, job.id).locator("img")), JOB_NUMBERS[job.id])
        assert [url for url in requested_urls if not url.startswith("data:")] == [mixed_report.as_uri()]
        assert sorted(path.name for path in mixed_report.parent.iterdir()) == [
            "images",
            "ledger.db",
            "report.html",
            "thumbnails",
        ]

    def test_the_originals(self, mixed_report: Path, open_page: OpenPage) -> None:
        """The lightbox shows each original of a job, from its file."""
        page = open_page(mixed_report.as_uri())
        tile(page, "cat").locator(".open").click()
        original = lightbox_dialog(page).locator(".lightbox-image img").last
        assert original.evaluate("async image => { await image.decode(); return image.naturalWidth; }") == 310
        lightbox_dialog(page).get_by_role("button", name="2", exact=True).click()
        original = lightbox_dialog(page).locator(".lightbox-image img").last
        assert original.evaluate("async image => { await image.decode(); return image.naturalWidth; }") == 311
        with page.context.expect_page() as opened:
            lightbox_dialog(page).get_by_role("link", name="Open file").click()
        assert opened.value.url == (mixed_report.parent / "images/cat-2.png").as_uri()

    def test_without_the_images(self, mixed_report: Path, open_page: OpenPage, tmp_path: Path) -> None:
        """A copy of the file without the images shows the thumbnails, also in the lightbox."""
        shutil.copy(mixed_report, tmp_path / "sent.html")
        page = open_page((tmp_path / "sent.html").as_uri(), allowed_errors=("ERR_FILE_NOT_FOUND",))
        assert is_colour(rendered_colour(tile(page, "fox").locator("img")), JOB_NUMBERS["fox"])
        tile(page, "fox").locator(".open").click()
        thumbnail = lightbox_dialog(page).locator(".lightbox-image img").first
        expect(thumbnail).to_be_visible()
        assert is_colour(rendered_colour(thumbnail), JOB_NUMBERS["fox"])
        assert dialog_details(page)["status"] == "succeeded"

    def test_filters_grid_marks(self, mixed_report: Path, open_page: OpenPage) -> None:
        """Filters, grid, comparison and saved selections work as in the live page; there is no retry."""
        page = open_page(mixed_report.as_uri())
        choose_filters(page, series="wood", status="succeeded")
        expect(counts(page)).to_contain_text("8 shown of 16 jobs")
        page.keyboard.press("g")
        expect(page.locator("table.sweep tbody th")).to_have_text(["An owl of wood"])
        page.keyboard.press("g")
        choose_filters(page, series="", status="")
        for job_id in ("fox", "cat"):
            tile(page, job_id).locator(".open").focus()
            page.keyboard.press("m")
        page.keyboard.press("c")
        expect(page.locator("#side-by-side h2")).to_have_text(["fox", "cat"])
        page.keyboard.press("Escape")
        assert focused_id(page) == "cat"
        assert saved_file(page, "Save ids")[1] == "fox\ncat\n"
        assert {row["id"] for row in json.loads(saved_file(page, "Save JSON")[1])} == {"fox", "cat"}
        expect(page.get_by_role("button", name="Retry failed")).to_be_hidden()

    def test_charts(self, mixed_report: Path, open_page: OpenPage) -> None:
        """The file has the charts of the run, and a table that counts each error."""
        page = open_page(mixed_report.as_uri())
        page.get_by_role("button", name="Charts").click()
        charts = page.locator("#charts")
        expect(charts.locator("figure svg").first).to_be_visible()
        assert charts.locator("figure").count() >= 3
        for svg in charts.locator("svg").all():
            box = svg.bounding_box()
            assert box is not None
            assert box["width"] > 100
            assert box["height"] > 50
        expect(charts.locator("tr", has_text="The model could not make this image.")).to_contain_text("1")

    def test_at_360_pixels(self, mixed_report: Path, open_page: OpenPage) -> None:
        """No view is wider than a small screen."""
        page = open_page(mixed_report.as_uri(), viewport={"width": 360, "height": 640})
        for name in ("Charts", "Grid", "Images"):
            page.get_by_role("button", name=name).click()
            assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
        page.get_by_role("button", name="Charts").click()
        assert page.locator("#charts").evaluate("e => e.scrollWidth <= e.clientWidth")

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_axe_finds_nothing_serious_in_a_report(
        self, scheme: str, mixed_report: Path, open_page: OpenPage
    ) -> None:
        """Images, charts, grid and lightbox of a report have no serious or critical violation."""
        page = open_page(mixed_report.as_uri(), color_scheme=scheme)
        found = {}
        for name in ("Images", "Charts", "Grid"):
            page.get_by_role("button", name=name).click()
            found[name] = serious_violations(page)
        page.get_by_role("button", name="Images").click()
        tile(page, "fox").locator(".open").click()
        found["lightbox"] = serious_violations(page)
        assert found == {view: [] for view in found}


class TestEscaping:
    def injected_value(self, page: Page) -> object:
        """Return what a script in the hostile text would have set, after a visit to each view."""
        for name in ("Charts", "Grid", "Images"):
            page.get_by_role("button", name=name).click()
        return page.evaluate("window.hacked")

    def test_hostile_text_in_a_report_is_escaped(self, open_page: OpenPage, tmp_path: Path) -> None:
        """Markup in a prompt, metadata, the name of the run directory and an error is shown as text."""
        lines = "a\u2028b\u2029c\ud83e\udd89".encode("utf-16", "surrogatepass").decode("utf-16")
        jobs = [
            SeedJob(
                id="one <b>&amp;", prompt=HOSTILE_TEXT, metadata={HOSTILE_TEXT: HOSTILE_TEXT, "constructor": "c"}
            ),
            SeedJob(id="two", prompt="<!--<script>", metadata={HOSTILE_TEXT: lines}),
            SeedJob(id="three", prompt=lines, status=State.FAILED, error_message=HOSTILE_TEXT),
        ]
        page = open_page(write_report(make_run(tmp_path / "<img src=x onerror=hacked=1>", *jobs)).as_uri())
        assert self.injected_value(page) is None
        expect(page.locator("h1")).to_have_text("<img src=x onerror=hacked=1>")
        assert page.title().startswith("<img src=x onerror=hacked=1>")
        expect(page.locator("#charts td", has_text=HOSTILE_TEXT)).to_have_count(1)
        for job in jobs:
            tile(page, job.id).locator(".open").click()
            assert dialog_details(page)["id"] == job.id
            assert page.locator("#lightbox h2").text_content() == job.prompt
            page.keyboard.press("Escape")
        assert page.evaluate("window.hacked") is None

    def test_unusual_file_names(self, open_page: OpenPage, tmp_path: Path) -> None:
        """A job whose id has characters with a meaning in URLs or paths opens its own image."""
        page = open_page(
            write_report(make_run(tmp_path / "run", *(SeedJob(id=job_id) for job_id in UNUSUAL_IDS))).as_uri()
        )
        for job_no, job_id in enumerate(UNUSUAL_IDS, 1):
            tile(page, job_id).locator(".open").click()
            original = lightbox_dialog(page).locator(".lightbox-image img").last
            width = original.evaluate("async image => { await image.decode(); return image.naturalWidth; }")
            assert width == 300 + job_no, job_id
            page.keyboard.press("Escape")

    def test_unusual_directory_names(self, open_page: OpenPage, tmp_path: Path) -> None:
        """A report in another directory opens the images, although the paths have characters special in URLs."""
        out = make_run(tmp_path / "50% of #1? ü" / "run", SeedJob(id="one"))
        (tmp_path / "else where").mkdir()
        output = tmp_path / "else where" / "r#1.html"
        done = run_command("report", out, "--output", output, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        page = open_page(output.as_uri())
        tile(page, "one").locator(".open").click()
        original = lightbox_dialog(page).locator(".lightbox-image img").last
        assert original.evaluate("async image => { await image.decode(); return image.naturalWidth; }") == 301


UNUSUAL_IDS = ["a#b", "50%", "100%25", "who?", "a b  c", 'it\'s "q"', "🦉 owl", "a&b=c;d", "a\\b", "-", "ü", "a:b"]


class TestFewAndMany:
    def test_no_job(self, open_page: OpenPage, tmp_path: Path) -> None:
        """The report of a run without jobs says so."""
        page = open_page(write_report(make_run(tmp_path / "run")).as_uri())
        expect(page.locator("#empty")).to_be_visible()
        expect(counts(page)).to_contain_text("0 jobs")

    def test_only_open_jobs(self, open_page: OpenPage, tmp_path: Path) -> None:
        """The report of a run has jobs that have not ended."""
        jobs = [SeedJob(id=state.value, status=state) for state in (State.PENDING, State.SUBMITTING, State.ACCEPTED)]
        page = open_page(write_report(make_run(tmp_path / "run", *jobs)).as_uri())
        assert visible_ids(page) == ["pending", "submitting", "accepted"]
        expect(counts(page)).to_have_text("3 jobs, 0 with an image")

    def test_images_that_are_missing(self, open_page: OpenPage, tmp_path: Path) -> None:
        """An image in an object store, a deleted and a damaged one have no thumbnail; the others have theirs."""
        jobs = [
            SeedJob(id="remote", prefix="s3://bucket/folder/"),
            *(SeedJob(id=job_id) for job_id in ("deleted", "damaged")),
            SeedJob(id="failed", status=State.FAILED),
            SeedJob(id="local"),
        ]
        out = make_run(tmp_path / "run", *jobs)
        (out / "images/deleted.png").unlink()
        (out / "images/damaged.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
        page = open_page(write_report(out).as_uri())
        assert is_colour(rendered_colour(tile(page, "local").locator("img")), 5)
        expect(page.locator(".tile img")).to_have_count(1)

    def test_many(self, open_page: OpenPage, tmp_path: Path) -> None:
        """In a report of several blocks, each thumbnail is that of its job; the page has few elements."""
        jobs = [
            SeedJob(id=f"job-{n:04}", status=State.FAILED if n % 9 == 0 else State.SUCCEEDED) for n in range(1, 421)
        ]
        page = open_page(write_report(make_run(tmp_path / "run", *jobs)).as_uri())
        for n in (1, 100, 101, 350, 419):
            page.locator("#text").fill(f"job-{n:04}")
            expect(page.locator(".tile")).to_have_count(1)
            assert is_colour(rendered_colour(tile(page, f"job-{n:04}").locator("img")), n)
        page.locator("#text").fill("")
        page.locator("#images").evaluate("pane => { pane.scrollTop = pane.scrollHeight; }")
        expect(tile(page, "job-0420")).to_be_visible()
        assert page.evaluate("document.querySelectorAll('body :not(#charts *)').length") < 2000


class TestWriting:
    def test_output(self, open_page: OpenPage, tmp_path: Path) -> None:
        """--output writes the report to another directory, where it still finds the images; the run is unchanged."""
        out = make_run(tmp_path / "runs" / "run", SeedJob(id="one"))
        (tmp_path / "reports").mkdir()
        done = run_command("report", "runs/run", "--output", "reports/one.html", cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert "1 image in reports/one.html" in done.stdout
        assert not (out / "report.html").exists()
        page = open_page((tmp_path / "reports/one.html").as_uri())
        tile(page, "one").locator(".open").click()
        assert (
            lightbox_dialog(page)
            .locator(".lightbox-image img")
            .last.evaluate("async i => { await i.decode(); return i.naturalWidth; }")
        )

    def test_a_second_report(self, tmp_path: Path) -> None:
        """A second report replaces the first and leaves no other file; --quiet prints nothing."""
        out = make_run(tmp_path / "run", SeedJob(id="one"))
        write_report(out)
        make_run(out, SeedJob(id="two"))
        done = run_command("report", out, "--quiet", cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert '"two"' in (out / "report.html").read_text()
        assert sorted(path.name for path in out.iterdir()) == ["images", "ledger.db", "report.html", "thumbnails"]

    def test_a_matplotlibrc(self, tmp_path: Path) -> None:
        """A matplotlibrc of the working directory changes nothing; it could have LaTeX run on a hostile preamble."""
        out = make_run(tmp_path / "run", SeedJob(id="one"), SeedJob(id="two"))
        assert run_command("report", out, "-o", "plain.html", cwd=tmp_path).returncode == 0
        (tmp_path / "matplotlibrc").write_text("text.usetex: True\ntext.latex.preamble: \\input{hostile}\n")
        done = run_command("report", out, "-o", "other.html", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "other.html").read_bytes() == (tmp_path / "plain.html").read_bytes()

    def test_a_missing_directory(self, tmp_path: Path) -> None:
        """If the report cannot be written, the command says so and exits with 2."""
        out = make_run(tmp_path / "run", SeedJob(id="one"))
        done = run_command("report", out, "--output", "none/report.html", cwd=tmp_path)
        assert done.returncode == 2
        assert "cannot write none/report.html" in done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.parametrize("folder", [".", "none"])
    def test_no_run(self, folder: str, tmp_path: Path) -> None:
        """For a directory without a run, the command exits with 2 and creates nothing."""
        done = run_command("report", folder, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert "not a run directory" in done.stderr
        assert list(tmp_path.iterdir()) == []

    def test_a_full_disk(self, tmp_path: Path) -> None:
        """A write that fails halfway leaves the old report unchanged, and no part of the new one."""
        out = make_run(tmp_path / "run", *(SeedJob(id=f"{n}") for n in range(50)))
        old_report = REPORT_MARK + b"the old report"
        (out / "report.html").write_bytes(old_report)
        done = run_command("report", out, cwd=tmp_path, PYTHONPATH=full_disk(tmp_path))
        assert done.returncode == 2
        assert "report.html (File too large)" in done.stderr
        assert (out / "report.html").read_bytes() == old_report
        assert sorted(path.name for path in out.iterdir()) == ["images", "ledger.db", "report.html"]

    def test_an_invalid_rate(self, tmp_path: Path) -> None:
        """For an invalid rate, the command exits with 2."""
        done = run_command("report", make_run(tmp_path / "run"), "--rate", "fast", cwd=tmp_path)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


def full_disk(folder: Path) -> str:
    """Return a PYTHONPATH with which no file can grow beyond 40 kB."""
    (folder / "full").mkdir()
    (folder / "full/sitecustomize.py").write_text(FULL_DISK_SCRIPT)
    return os.pathsep.join([str(folder / "full"), os.environ.get("PYTHONPATH", "")])


FULL_DISK_SCRIPT = """
import resource

resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
"""
