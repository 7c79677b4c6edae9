"""New jobs from images of a run: the rules alone, and the page that shows their price before anything is spent."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from krea_batch.gallery.new_jobs import MAX_NEW_JOBS, Changes, job_line, make_jobs
from krea_batch.jobs import MAX_ID_BYTES, Job, Outcome, State
from tests.engine_fixtures import ledger_states
from tests.gallery.gallery_fixtures import OpenPage, SeedJob, StartView, make_run, tile
from tests.gallery.test_server import EventReader, raw_request, token
from tests.processes import RunningSimulator, StartSimulator, run_command, write_jobs


def outcome(job_id: str = "owl", metadata: dict[str, Any] | None = None, **request: Any) -> Outcome:
    """Return the outcome of a job with this request."""
    return Outcome(
        id=job_id, status=State.SUCCEEDED, request_id="r", files=(), error=None,
        request={"prompt": "an owl", "aspect_ratio": "1:1", "creativity": "low"} | request, metadata=metadata or {},
        polls=1, attempts=1, submitted_at=None, accepted_at=None, finished_at=None, stored_at=None,
    )  # fmt: skip


def new_jobs(changes: Changes, *outcomes: Outcome, taken: frozenset[str] = frozenset()) -> list[Job]:
    """Return the new jobs, whose seeds are 1, 2, 3, …"""
    seeds = count(1)
    return make_jobs(outcomes, changes, taken, lambda: next(seeds))


class TestRules:
    def test_new_seeds(self) -> None:
        """Each image gets as many jobs as asked for, which differ in their seeds, and name their origin."""
        jobs = new_jobs(Changes(seeds=2), outcome(metadata={"series": "wood"}, seed=9), outcome("fox"))
        assert [(job.id, job.seed) for job in jobs] == [
            ("owl-seed=1", 1), ("owl-seed=2", 2), ("fox-seed=3", 3), ("fox-seed=4", 4),
        ]  # fmt: skip
        assert jobs[0].metadata == {"series": "wood", "variation_of": "owl"}

    def test_changed_parameters(self) -> None:
        """Parameters that are given replace those of the request; the others and the seed stay."""
        changes = Changes(creativity="high", aspect_ratio="16:9", prompt="a hawk")
        (job,) = new_jobs(changes, outcome(seed=9, styles=[{"id": "ink", "strength": 0.5}]))
        assert (job.id, job.prompt, job.seed, job.creativity) == (
            "owl-aspect_ratio=16x9-creativity=high", "a hawk", 9, "high",
        )  # fmt: skip
        assert job.styles[0].id == "ink"
        assert b'"seed":9' in job_line(job)

    @pytest.mark.parametrize(
        "job_id", ["owl", "o" * MAX_ID_BYTES, "🦉" * (MAX_ID_BYTES // 4)], ids=["short", "long", "wide"]
    )
    def test_ids_are_free(self, job_id: str) -> None:
        """An id that the run has is not used again, and none is too long."""
        taken = frozenset(job.id for job in new_jobs(Changes(creativity="high"), outcome(job_id)))
        (job,) = new_jobs(Changes(creativity="high"), outcome(job_id), taken=taken)
        assert job.id not in taken
        same = new_jobs(Changes(prompt="x"), outcome("a"), outcome("a"), taken=frozenset({"a"}))
        assert [job.id for job in same] == ["a-2", "a-3"]

    @pytest.mark.parametrize(
        ("make", "reason"),
        [
            (lambda: new_jobs(Changes(), outcome()), "Change at least one parameter"),
            (
                lambda: new_jobs(Changes(seeds=1), outcome(metadata={"reference_files": ["a"]})),
                "local reference image",
            ),
            (lambda: new_jobs(Changes(seeds=1), *[outcome()] * (MAX_NEW_JOBS + 1)), "more than 1,000 jobs"),
            (lambda: new_jobs(Changes(prompt=" "), outcome()), "prompt"),
        ],
    )
    def test_refusals(self, make: Callable[[], object], reason: str) -> None:
        """What cannot be submitted, or would be the same again, is refused with a sentence."""
        with pytest.raises(ValueError, match=reason):
            make()


@pytest.fixture
def quick_gateway(simulate: StartSimulator) -> RunningSimulator:
    return simulate("--latency=fixed:0.1", "--tiny")


@pytest.fixture
def charged_run(quick_gateway: RunningSimulator, tmp_path: Path) -> Path:
    """A run of two images, which may be charged for up to three."""
    write_jobs(tmp_path / "jobs.jsonl", 2)
    options = ("--poll-interval=0.1", "-q", "--max-charges=3", "--gateway", quick_gateway.gateway_url)
    run_command("run", "jobs.jsonl", "--out", "run", *options, cwd=tmp_path)
    return tmp_path / "run"


@pytest.fixture
def start_paid_view(start_view: StartView, quick_gateway: RunningSimulator) -> StartView:
    """Start `view` with the gateway of the run, a price, and variables that would multiply jobs."""
    return partial(
        start_view, KREA_BATCH_GATEWAY=quick_gateway.gateway_url, KREA_BATCH_POLL_INTERVAL="0.1",
        KREA_BATCH_PRICE="0.05", KREA_BATCH_SEEDS="1..5", KREA_BATCH_SWEEP="creativity=raw,low,high",
    )  # fmt: skip


@pytest.mark.slow
class TestNewJobsInThePage:
    def test_the_price_is_shown_first(
        self, charged_run: Path, quick_gateway: RunningSimulator, start_paid_view: StartView, open_page: OpenPage
    ) -> None:
        """Variations of an image are submitted after the price was shown, exactly as many as it said."""
        page = open_page(start_paid_view(charged_run).url)
        tile(page, "00001").locator(".open").focus()
        page.keyboard.press("v")
        page.get_by_label("New seeds for each").fill("1")
        page.get_by_role("button", name="Show the price").click()
        price = page.locator("#new-jobs-price")
        expect(price).to_contain_text("1 job to submit. Up to 1 charge: 0.05 at 0.05 per image.")
        expect(price).to_contain_text("limited to 3 charges in all")
        expect(page.locator("#cancel-new-jobs")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator("#new-jobs")).to_be_hidden()
        assert len(ledger_states(charged_run)) == 2
        page.keyboard.press("v")
        page.get_by_label("New seeds for each").fill("1")
        page.get_by_role("button", name="Show the price").click()
        page.locator("#confirm-new-jobs").dblclick()
        expect(page.locator("#counts")).to_have_text("3 jobs, 3 with an image")
        assert quick_gateway.admin_request("/totals")["charged"] == 3

    def test_nothing_to_change(self, charged_run: Path, start_paid_view: StartView, open_page: OpenPage) -> None:
        """Without a change, the dialog says what is missing, and submits nothing."""
        page = open_page(start_paid_view(charged_run).url, allowed_errors=("422",))
        page.keyboard.press("a")
        page.get_by_role("button", name="More like these").click()
        page.get_by_label("New seeds for each").fill("0")
        page.get_by_role("button", name="Show the price").click()
        expect(page.get_by_role("alert")).to_contain_text("Change at least one parameter")
        assert len(ledger_states(charged_run)) == 2

    def test_the_limit_of_the_run(
        self, charged_run: Path, quick_gateway: RunningSimulator, start_paid_view: StartView
    ) -> None:
        """New jobs keep to --max-charges of the latest run; a plan is submitted once."""
        url = start_paid_view(charged_run).url
        page_token = token(url)
        body = json.dumps({"ids": ["00001", "00002"], "changes": {"seeds": 4}})
        reply = json.loads(raw_request(url, "/plan", "POST", body=body, X_Token=page_token).body)
        assert (reply["jobs"], reply["cost"]) == (8, "0.40 at 0.05 per image")
        plan = json.dumps({"plan": reply["plan"]})
        with EventReader(url) as events:
            assert raw_request(url, "/submit", "POST", body=plan, X_Token=page_token).status == 202
            output = events.wait_for("command_output")
        assert "max-charges" in output["text"]
        assert quick_gateway.admin_request("/totals")["charged"] == 3
        assert raw_request(url, "/submit", "POST", body=plan, X_Token=page_token).status == 410

    def test_other_pages_cannot_submit(
        self, charged_run: Path, quick_gateway: RunningSimulator, start_paid_view: StartView
    ) -> None:
        """Without the page's token, with a guessed plan, or for a value that is not allowed, nothing is submitted."""
        running_view = start_paid_view(charged_run)
        url, page_token = running_view.url, token(running_view.url)
        posts = len(quick_gateway.admin_request("/ledger")["posts"])
        good = {"ids": ["00001"], "changes": {"seeds": 1}}
        for path, body, headers in (
            ("/plan", good, {}),
            ("/plan", good, {"X_Token": "x", "Origin": "http://evil.example"}),
            ("/plan", good | {"ids": ["none"]}, {"X_Token": page_token}),
            ("/plan", good | {"changes": {"seeds": 17}}, {"X_Token": page_token}),
            ("/plan", good | {"changes": {"creativity": "wild"}}, {"X_Token": page_token}),
            ("/plan", good | {"changes": {"seeds": 1, "gateway": "https://evil.example"}}, {"X_Token": page_token}),
            ("/submit", {"plan": "x"}, {}),
            ("/submit", {"plan": "x"}, {"X_Token": page_token}),
            ("/submit", good, {"X_Token": page_token}),
        ):
            arguments: dict[str, Any] = {"body": json.dumps(body), **headers}
            assert raw_request(url, path, "POST", **arguments).status in (400, 403, 410)
        assert raw_request(url, "/plan", "POST", body=json.dumps(good), X_Token=page_token, host="evil").status == 421
        assert raw_request(url, "/plan", "POST", body=json.dumps(good), X_Token=page_token).status == 200
        assert running_view.close() == (0, "")
        assert len(quick_gateway.admin_request("/ledger")["posts"]) == posts


@pytest.mark.slow
class TestExportFromThePage:
    def test_marked_images(self, start_view: StartView, open_page: OpenPage, tmp_path: Path) -> None:
        """The marked images are downloaded in the chosen format; jobs without an image are left out."""
        jobs = (SeedJob(id="one"), SeedJob(id="two"), SeedJob(id="bad", status=State.FAILED))
        page = open_page(start_view(make_run(tmp_path / "run", *jobs), KREA_BATCH_FORMAT="zip").url)
        page.keyboard.press("a")
        page.get_by_label("Format of the export").select_option("csv")
        with page.expect_download() as download:
            page.get_by_role("button", name="Export").click()
        assert download.value.suggested_filename == "images.csv"
        assert len(Path(download.value.path()).read_text().splitlines()) == 3
        expect(page.locator("#message")).to_have_text("2 jobs exported.")

    def test_an_image_that_was_changed(self, start_view: StartView, open_page: OpenPage, tmp_path: Path) -> None:
        """If an image differs from the ledger, the page says so, as the command does."""
        out = make_run(tmp_path / "run", SeedJob(id="one"))
        (out / "images" / "one.png").write_bytes(b"x")
        page = open_page(start_view(out).url, allowed_errors=("422", "404"))
        page.keyboard.press("a")
        page.keyboard.press("e")
        expect(page.locator("#message")).to_contain_text("differs from the ledger")

    def test_other_pages_cannot_export(self, start_view: StartView, tmp_path: Path) -> None:
        """Without the page's token, for unknown jobs or other formats, nothing is exported; files are not guessed."""
        url = start_view(make_run(tmp_path / "run", SeedJob(id="one"))).url
        good = {"ids": ["one"], "format": "csv"}
        for body, headers in (
            (good, {}),
            (good | {"ids": ["../x"]}, {"X_Token": token(url)}),
            (good | {"format": "imagefolder"}, {"X_Token": token(url)}),
            (good | {"output": "elsewhere.csv", "ids": []}, {"X_Token": token(url)}),
        ):
            arguments: dict[str, Any] = {"body": json.dumps(body), **headers}
            assert raw_request(url, "/export", "POST", **arguments).status in (400, 403, 409)
        path = raw_request(url, "/export", "POST", body=json.dumps(good), X_Token=token(url)).body.decode()
        assert raw_request(url, path).status == 200
        assert raw_request(url, path, with_cookie=False, Cookie="").status == 403
        assert raw_request(url, "/exports/x").status == 404
