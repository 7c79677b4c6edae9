"""Tests of the live page during changes: images arrive, a run or the server stops, failed jobs are retried."""

from __future__ import annotations

import signal
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from playwright.sync_api import APIResponse, Page, Route, expect

from krea_batch.jobs import State
from krea_batch.ledger.sqlite import SqliteLedger
from tests.engine_fixtures import ledger_states
from tests.gallery.gallery_fixtures import (
    AMBIGUOUS_ERROR,
    CONNECTION_ERRORS,
    OpenPage,
    SeedJob,
    StartView,
    dialog_details,
    is_colour,
    make_run,
    rendered_colour,
    tile,
    visible_ids,
)
from tests.processes import (
    PROCESS_TIMEOUT_S,
    RunningSimulator,
    StartSimulator,
    run_command,
    start_command,
    wait_until,
    write_jobs,
)

pytestmark = pytest.mark.slow

LIVE_SIMULATOR_OPTIONS = ("--poll-interval=0.1", "--rate=20/s", "-q")
FORBIDDEN_STATUS = "403"


def leave_note(page: Page) -> None:
    """Leave a note in the page, which a reload would remove."""
    page.evaluate("window.note = 'still here'")


def has_note(page: Page) -> bool:
    return page.evaluate("window.note === 'still here'")  # type: ignore[no-any-return]


def wait_for_images(page: Page, min_images: int) -> None:
    """Wait until the header counts at least this many images."""
    page.wait_for_function(
        "min => Number(/(\\d+) with an image/.exec(document.getElementById('counts').textContent)?.[1]) >= min",
        arg=min_images,
    )


def retry_failed_jobs(page: Page) -> None:
    """Click on Retry failed, and confirm it."""
    page.get_by_role("button", name="Retry failed").click()
    page.get_by_role("button", name="Resubmit").click()


class TestArriving:
    def test_a_run_that_stops_and_resumes(
        self, simulate: StartSimulator, start_view: StartView, open_page: OpenPage, tmp_path: Path
    ) -> None:
        """An open page shows new images of a run in another process without a reload, also after a resume."""
        write_jobs(tmp_path / "jobs.jsonl", 60)
        command = (
            "run",
            "jobs.jsonl",
            "--out",
            "run",
            "--gateway",
            simulate("--tiny", "--latency=fixed:0.1").gateway_url,
        )
        make_run(tmp_path / "run", gateway=None)
        page = open_page(start_view(tmp_path / "run").url)
        expect(page.locator("#empty")).to_be_visible()
        leave_note(page)
        process = start_command(*command, *LIVE_SIMULATOR_OPTIONS, cwd=tmp_path)
        wait_for_images(page, 5)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PROCESS_TIMEOUT_S)
        assert process.returncode == 130
        stored = [state for state in ledger_states(tmp_path / "run").values() if state == State.SUCCEEDED]
        assert 5 <= len(stored) < 60
        wait_for_images(page, len(stored))
        assert run_command(*command, *LIVE_SIMULATOR_OPTIONS, cwd=tmp_path).returncode == 0
        expect(page.locator("#counts")).to_have_text("60 jobs, 60 with an image")
        expect(page.locator("#empty")).to_be_hidden()
        expect(tile(page, "00001").locator("img")).to_be_visible()
        assert has_note(page)

    def test_a_job_changes_while_shown(self, start_view: StartView, open_page: OpenPage, tmp_path: Path) -> None:
        """New jobs appear in the filtered images and in the grid; marks, the open image and typed text are kept."""
        out = make_run(
            tmp_path / "run", SeedJob(id="one"), SeedJob(id="two", status=State.FAILED, fields={"seed": 3})
        )
        page = open_page(start_view(out).url)
        tile(page, "one").locator(".open").focus()
        page.keyboard.press("m")
        page.get_by_label("Search prompts and ids").fill("o")
        make_run(out, SeedJob(id="four"), SeedJob(id="xxx", fields={"seed": 4}))
        expect(tile(page, "four")).to_be_visible()
        expect(page.locator("#counts")).to_contain_text("of 4 jobs")
        expect(tile(page, "xxx")).to_have_count(0)
        expect(page.locator("#marks")).to_have_text("1 marked")
        expect(page.get_by_label("Search prompts and ids")).to_have_value("o")
        expect(page.get_by_label("seed", exact=True).locator("option")).to_have_text(["seed: all", "3", "4"])
        tile(page, "one").locator(".open").click()
        make_run(out, SeedJob(id="five o"))
        expect(page.locator("#counts")).to_contain_text("of 5 jobs")
        expect(page.locator("#lightbox[open]")).to_be_visible()
        page.keyboard.press("Escape")
        page.get_by_label("Search prompts and ids").fill("")
        page.get_by_role("button", name="Grid").click()
        page.get_by_label("Columns").select_option("seed")
        make_run(out, SeedJob(id="six", prompt="a new row", fields={"seed": 5}))
        expect(page.locator("table.sweep tbody th", has_text="a new row")).to_be_visible()
        expect(page.get_by_label("Columns")).to_have_value("seed")

    def test_the_focus_stays(self, start_view: StartView, open_page: OpenPage, tmp_path: Path) -> None:
        """A new image does not move the focus, neither from a tile nor from the select of a filter."""
        out = make_run(tmp_path / "run", SeedJob(id="one", fields={"seed": 0}), SeedJob(id="two", fields={"seed": 1}))
        page = open_page(start_view(out).url)
        tile(page, "two").locator(".open").focus()
        make_run(out, SeedJob(id="three"))
        expect(tile(page, "three")).to_be_visible()
        assert page.evaluate("document.activeElement.closest('.tile')?.dataset.id") == "two"
        page.get_by_label("seed", exact=True).focus()
        make_run(out, SeedJob(id="four", fields={"seed": 2}))
        expect(page.get_by_label("seed", exact=True).locator("option")).to_have_count(4)
        expect(page.get_by_label("seed", exact=True)).to_be_focused()

    def test_the_focus_stays_in_the_grid(self, start_view: StartView, open_page: OpenPage, tmp_path: Path) -> None:
        """A new image does not move the focus from a cell of the grid."""
        out = make_run(tmp_path / "run", SeedJob(id="one", fields={"seed": 0}), SeedJob(id="two", fields={"seed": 1}))
        page = open_page(start_view(out).url)
        page.keyboard.press("g")
        page.locator("#grid").get_by_label("Open two").focus()
        make_run(out, SeedJob(id="three", prompt="a new row", fields={"seed": 1}))
        expect(page.locator("#grid").get_by_label("Open three")).to_be_visible()
        expect(page.locator("#grid").get_by_label("Open two")).to_be_focused()

    def test_the_job_of_the_focused_tile_changes(
        self, start_view: StartView, open_page: OpenPage, tmp_path: Path
    ) -> None:
        """A tile keeps the focus when its job changes, and the tiles stay in their order, which is the Tab order."""
        out = make_run(
            tmp_path / "run", SeedJob(id="one"), SeedJob(id="two", status=State.SUBMITTING), SeedJob(id="three")
        )
        page = open_page(start_view(out).url)
        tile(page, "two").locator(".open").focus()
        with closing(SqliteLedger.open(out / "ledger.db")) as store:
            store.mark_ambiguous(2, AMBIGUOUS_ERROR, 3.0)
        expect(tile(page, "two")).to_contain_text("ambiguous")
        assert page.evaluate("document.activeElement.closest('.tile')?.dataset.id") == "two"
        assert visible_ids(page) == ["one", "two", "three"]

    def test_updates_arrive_before_a_slow_response(
        self, start_view: StartView, open_page: OpenPage, tmp_path: Path
    ) -> None:
        """An update that arrives before a slow response with all items is not lost, and not overwritten by it."""
        out = make_run(tmp_path / "run", SeedJob(id="one"), SeedJob(id="two", status=State.SUBMITTING))
        url = start_view(out).url
        page, other_page = open_page(url), open_page(url)
        delayed: list[tuple[Route, APIResponse]] = []
        page.route("**/items", lambda route: delayed.append((route, route.fetch())))
        with page.expect_request("**/items"):
            page.reload(wait_until="commit")
        with closing(SqliteLedger.open(out / "ledger.db")) as store:
            store.mark_ambiguous(2, AMBIGUOUS_ERROR, 3.0)
        expect(tile(other_page, "two")).to_contain_text("ambiguous")
        ((route, old),) = delayed
        route.fulfill(response=old)
        expect(tile(page, "two")).to_contain_text("ambiguous")
        assert visible_ids(page) == ["one", "two"]

    def test_the_server_restarts(self, start_view: StartView, open_page: OpenPage, tmp_path: Path) -> None:
        """An open page of a server that was restarted asks for the new URL, which shows everything."""
        out = make_run(tmp_path / "run", SeedJob(id="one"))
        first = start_view(out)
        page = open_page(first.url, allowed_errors=(*CONNECTION_ERRORS, FORBIDDEN_STATUS))
        assert first.close() == (0, "")
        make_run(out, SeedJob(id="two"))
        second = start_view(out, port=first.port)
        expect(page.locator("#message")).to_contain_text("open the URL that")
        page.goto(second.url)
        expect(tile(page, "two")).to_be_visible()
        assert is_colour(rendered_colour(tile(page, "two").locator("img")), 2)
        assert page.url == f"http://127.0.0.1:{second.port}/"
        page.reload()
        expect(tile(page, "two")).to_be_visible()
        assert second.close()[0] == 0


class TestRetry:
    @pytest.fixture
    def start_retrying_view(self, start_view: StartView, gateway: RunningSimulator) -> StartView:
        """Start `view` with the gateway of the run in its environment, where its retries read it."""
        return partial(start_view, KREA_BATCH_GATEWAY=gateway.gateway_url, KREA_BATCH_POLL_INTERVAL="0.1")

    def test_nothing_is_submitted_without_confirmation(
        self, failed_run: Path, gateway: RunningSimulator, start_retrying_view: StartView, open_page: OpenPage
    ) -> None:
        """The dialog says how many jobs may be charged, has the focus on Cancel, and submits nothing by itself."""
        page = open_page(start_retrying_view(failed_run).url)
        for action in ("Cancel", "Escape", "Enter"):
            page.get_by_role("button", name="Retry failed").click()
            expect(page.locator("#confirm-retry")).to_contain_text("3 jobs")
            expect(page.locator("#confirm-retry")).to_contain_text("charged")
            expect(page.get_by_role("button", name="Cancel")).to_be_focused()
            if action == "Cancel":
                page.get_by_role("button", name=action).click()
            else:
                page.keyboard.press(action)
            expect(page.locator("#confirm-retry")).to_be_hidden()
        assert len(gateway.admin_request("/ledger")["posts"]) == 3
        assert set(ledger_states(failed_run).values()) == {State.ERRORED}

    def test_a_confirmed_retry(
        self, failed_run: Path, gateway: RunningSimulator, start_retrying_view: StartView, open_page: OpenPage
    ) -> None:
        """Each failed job is submitted once, the images appear in the page, and nothing is left to retry."""
        page = open_page(start_retrying_view(failed_run).url)
        retry_failed_jobs(page)
        expect(page.locator("#counts")).to_have_text("3 jobs, 3 with an image")
        expect(tile(page, "00002").locator("img")).to_be_visible()
        expect(page.get_by_role("button", name="Retry failed")).to_be_hidden()
        assert len(gateway.admin_request("/ledger")["posts"]) == 6
        assert gateway.admin_request("/totals")["charged"] == 3
        expect(page.locator("#message")).to_contain_text("3 stored")

    def test_pending_jobs_are_counted(
        self, failed_run: Path, start_retrying_view: StartView, open_page: OpenPage
    ) -> None:
        """A retry also submits the pending jobs of the run, so the dialog counts them among the possible charges."""
        make_run(
            failed_run, SeedJob(id="pending", status=State.PENDING), SeedJob(id="accepted", status=State.ACCEPTED)
        )
        page = open_page(start_retrying_view(failed_run).url)
        page.get_by_role("button", name="Retry failed").click()
        expect(page.locator("#confirm-retry")).to_contain_text("Resubmit 3 jobs?")
        expect(page.locator("#confirm-retry")).to_contain_text("Up to 4 jobs will be charged.")

    def test_a_double_click_submits_once(
        self, failed_run: Path, gateway: RunningSimulator, start_retrying_view: StartView, open_page: OpenPage
    ) -> None:
        """Two clicks on Resubmit submit each job once."""
        page = open_page(start_retrying_view(failed_run).url)
        page.get_by_role("button", name="Retry failed").click()
        page.get_by_role("button", name="Resubmit").dblclick()
        expect(page.locator("#counts")).to_have_text("3 jobs, 3 with an image")
        assert len(gateway.admin_request("/ledger")["posts"]) == 6

    def test_with_an_active_filter(
        self, failed_run: Path, gateway: RunningSimulator, start_retrying_view: StartView, open_page: OpenPage
    ) -> None:
        """All failed jobs are submitted, whatever the filters hide, and the dialog says so."""
        page = open_page(start_retrying_view(failed_run).url)
        page.get_by_label("Search prompts and ids").fill("00002")
        expect(page.locator("#counts")).to_contain_text("1 shown")
        page.get_by_role("button", name="Retry failed").click()
        expect(page.locator("#confirm-retry")).to_contain_text("Resubmit 3 jobs?")
        page.get_by_role("button", name="Resubmit").click()
        expect(page.locator(".tile img")).to_have_count(1)
        page.get_by_label("Search prompts and ids").fill("")
        wait_for_images(page, 3)
        assert len(gateway.admin_request("/ledger")["posts"]) == 6

    def test_without_an_api_key(
        self, failed_run: Path, gateway: RunningSimulator, start_retrying_view: StartView, open_page: OpenPage
    ) -> None:
        """Without an API key nothing is submitted, and the page shows the error."""
        page = open_page(start_retrying_view(failed_run, key="").url, allowed_errors=("400", "403", "409", "500"))
        retry_failed_jobs(page)
        expect(page.locator("#message")).to_contain_text("PIXAZO_API_KEY")
        assert len(gateway.admin_request("/ledger")["posts"]) == 3

    def test_another_gateway(
        self, failed_run: Path, gateway: RunningSimulator, start_view: StartView, open_page: OpenPage
    ) -> None:
        """If `view` is configured with another gateway than the run, nothing is submitted, and the page says why."""
        page = open_page(start_view(failed_run).url)
        retry_failed_jobs(page)
        expect(page.locator("#message")).to_contain_text("its jobs were submitted to")
        expect(page.locator("#counts")).to_have_text("3 jobs, 0 with an image")
        assert len(gateway.admin_request("/ledger")["posts"]) == 3

    def test_a_retry_that_fails_again(
        self, simulate: StartSimulator, start_view: StartView, open_page: OpenPage, tmp_path: Path
    ) -> None:
        """Jobs that fail again are shown with both submits, and can be retried again."""
        gateway = simulate("--latency=fixed:0.1", "--tiny", "--fault", "job-failed=1").gateway_url
        write_jobs(tmp_path / "jobs.jsonl", 2)
        run_command("run", "jobs.jsonl", "--out", "run", *LIVE_SIMULATOR_OPTIONS, "--gateway", gateway, cwd=tmp_path)
        page = open_page(start_view(tmp_path / "run", KREA_BATCH_GATEWAY=gateway, KREA_BATCH_POLL_INTERVAL="0.1").url)
        retry_failed_jobs(page)
        expect(page.locator("#message")).to_contain_text("2 failed")
        expect(page.get_by_role("button", name="Retry failed")).to_be_visible()
        page.wait_for_function("() => [...items.values()].every((job) => job.attempts === 2)")  # the page's own state
        tile(page, "00001").locator(".open").click()
        assert dialog_details(page)["submits"] == "2"

    def test_a_page_of_the_previous_server(
        self, failed_run: Path, gateway: RunningSimulator, start_retrying_view: StartView, open_page: OpenPage
    ) -> None:
        """A retry from a page of a server that was restarted spends nothing, and asks for the new URL."""
        first = start_retrying_view(failed_run)
        page = open_page(first.url, allowed_errors=(*CONNECTION_ERRORS, FORBIDDEN_STATUS))
        assert first.close() == (0, "")
        second = start_retrying_view(failed_run, port=first.port)
        retry_failed_jobs(page)
        expect(page.locator("#message")).to_contain_text("open the URL that")
        assert len(gateway.admin_request("/ledger")["posts"]) == 3
        page.goto(second.url)
        retry_failed_jobs(page)
        wait_for_images(page, 3)
        assert len(gateway.admin_request("/ledger")["posts"]) == 6

    def test_ctrl_c_during_a_retry(
        self, failed_run: Path, gateway: RunningSimulator, start_retrying_view: StartView, open_page: OpenPage
    ) -> None:
        """Ctrl-C stops the retry too: it waits for the response of a pending POST, and no job is ambiguous."""
        gateway.admin_request("/settings", {"faults": {"submit-hang": 1.0}, "hang_duration_s": 1.0})
        running_view = start_retrying_view(failed_run)
        page = open_page(running_view.url, allowed_errors=CONNECTION_ERRORS)
        retry_failed_jobs(page)
        wait_until(lambda: len(gateway.admin_request("/ledger")["posts"]) > 3, running_view.process)
        assert running_view.close() == (0, "")
        assert set(ledger_states(failed_run).values()) <= {
            State.PENDING,
            State.ACCEPTED,
            State.ERRORED,
            State.SUCCEEDED,
        }
        gateway.admin_request("/settings", {"faults": {}})
        options = ("--gateway", gateway.gateway_url, *LIVE_SIMULATOR_OPTIONS)
        assert run_command("run", "jobs.jsonl", "--out", "run", *options, cwd=failed_run.parent).returncode == 0
        assert len(gateway.admin_request("/ledger")["posts"]) == 6
