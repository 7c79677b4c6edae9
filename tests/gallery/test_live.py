"""The page while things happen: images that arrive, a run that stops, a server that is gone, a retry."""

from __future__ import annotations

import signal
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from playwright.sync_api import APIResponse, Page, Route, expect

from krea_batch.jobs import State
from krea_batch.ledger import LedgerStore
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
    SimulatorProcess,
    StartSimulator,
    run_command,
    start_command,
    write_jobs,
)

pytestmark = pytest.mark.slow

LIVE_TIMEOUT_MS = 1000 * PROCESS_TIMEOUT_S / 4
LIVE_SIMULATOR_OPTIONS = ("--poll-interval=0.1", "--rate=20/s", "-q")
FORBIDDEN_STATUS = "403"


def leave_note(page: Page) -> None:
    """Leave a note in the page, which a reload would take away."""
    page.evaluate("window.note = 'still here'")


def has_note(page: Page) -> bool:
    return page.evaluate("window.note === 'still here'")  # type: ignore[no-any-return]


def wait_for_images(page: Page, min_images: int) -> None:
    """Wait until the header counts so many images."""
    page.wait_for_function(
        "least => Number(/(\\d+) with an image/.exec(document.getElementById('counts').textContent)?.[1]) >= least",
        arg=min_images,
        timeout=LIVE_TIMEOUT_MS,
    )


class TestArriving:
    def test_a_run_that_stops_and_resumes(
        self, simulate: StartSimulator, start_view: StartView, open_page: OpenPage, tmp_path: Path
    ) -> None:
        """Images of a run elsewhere come into an open page, through its Ctrl-C and its resume, without a reload."""
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
        expect(page.locator("#nothing")).to_be_visible()
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
        expect(page.locator("#counts")).to_have_text("60 jobs, 60 with an image", timeout=LIVE_TIMEOUT_MS)
        expect(page.locator("#nothing")).to_be_hidden()
        expect(tile(page, "00001").locator("img")).to_be_visible()
        assert has_note(page)

    def test_a_job_changes_while_shown(self, start_view: StartView, open_page: OpenPage, tmp_path: Path) -> None:
        """What is new takes its place in the filter and in the grid; what is marked, open or typed stays."""
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
        """An image that arrives takes the focus from nobody, neither from a tile nor from a choice of a filter."""
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
        """An image that arrives leaves the focus on the cell that has it."""
        out = make_run(tmp_path / "run", SeedJob(id="one", fields={"seed": 0}), SeedJob(id="two", fields={"seed": 1}))
        page = open_page(start_view(out).url)
        page.keyboard.press("g")
        page.locator("#grid").get_by_label("Open two").focus()
        make_run(out, SeedJob(id="three", prompt="a new row", fields={"seed": 1}))
        expect(page.locator("#grid").get_by_label("Open three")).to_be_visible()
        expect(page.locator("#grid").get_by_label("Open two")).to_be_focused()

    def test_an_image_arrives_in_the_focused_tile(
        self, start_view: StartView, open_page: OpenPage, tmp_path: Path
    ) -> None:
        """A tile that holds the focus while its job changes holds it still, and Tab goes to the next in sight."""
        out = make_run(
            tmp_path / "run", SeedJob(id="one"), SeedJob(id="two", status=State.SUBMITTING), SeedJob(id="three")
        )
        page = open_page(start_view(out).url)
        tile(page, "two").locator(".open").focus()
        with closing(LedgerStore.open(out / "ledger.db")) as store:
            store.mark_ambiguous(2, AMBIGUOUS_ERROR, 3.0)
        expect(tile(page, "two")).to_contain_text("ambiguous")
        assert page.evaluate("document.activeElement.closest('.tile')?.dataset.id") == "two"
        assert visible_ids(page) == ["one", "two", "three"]

    def test_updates_arrive_before_a_slow_response(
        self, start_view: StartView, open_page: OpenPage, tmp_path: Path
    ) -> None:
        """What is told while all items are still on their way is neither lost nor out of order."""
        out = make_run(tmp_path / "run", SeedJob(id="one"), SeedJob(id="two", status=State.SUBMITTING))
        url = start_view(out).url
        page, other_page = open_page(url), open_page(url)
        delayed: list[tuple[Route, APIResponse]] = []
        page.route("**/items", lambda route: delayed.append((route, route.fetch())))
        with page.expect_request("**/items"):
            page.reload(wait_until="commit")
        with closing(LedgerStore.open(out / "ledger.db")) as store:
            store.mark_ambiguous(2, AMBIGUOUS_ERROR, 3.0)
        expect(tile(other_page, "two")).to_contain_text("ambiguous")
        ((route, old),) = delayed
        route.fulfill(response=old)
        expect(tile(page, "two")).to_contain_text("ambiguous")
        assert visible_ids(page) == ["one", "two"]

    def test_the_server_is_gone_for_a_while(self, start_view: StartView, open_page: OpenPage, tmp_path: Path) -> None:
        """A page that is open when its server ends finds the next one at the same port, and what came in between."""
        out = make_run(tmp_path / "run", SeedJob(id="one"))
        first = start_view(out)
        page = open_page(first.url, allowed_errors=CONNECTION_ERRORS)
        leave_note(page)
        assert first.close() == (0, "")
        make_run(out, SeedJob(id="two"))
        second = start_view(out, port=first.port)
        expect(tile(page, "two")).to_be_visible(timeout=LIVE_TIMEOUT_MS)
        assert is_colour(rendered_colour(tile(page, "two").locator("img")), 2)
        make_run(out, SeedJob(id="three"))
        expect(tile(page, "three")).to_be_visible(timeout=LIVE_TIMEOUT_MS)
        assert has_note(page)
        assert second.close()[0] == 0


class TestRetry:
    @pytest.fixture
    def start_retrying_view(self, start_view: StartView, gateway: SimulatorProcess) -> StartView:
        """`view` whose retries go to that gateway, as its environment says."""
        return partial(start_view, KREA_BATCH_GATEWAY=gateway.gateway_url, KREA_BATCH_POLL_INTERVAL="0.1")

    def test_not_without_a_yes(
        self, failed_run: Path, gateway: SimulatorProcess, start_retrying_view: StartView, open_page: OpenPage
    ) -> None:
        """It asks, says how many may be paid, has the focus on leaving it, and does nothing without the yes."""
        page = open_page(start_retrying_view(failed_run).url)
        for action in ("Leave it", "Escape", "Enter"):
            page.get_by_role("button", name="Retry failed").click()
            expect(page.locator("#asking")).to_contain_text("3 jobs")
            expect(page.locator("#asking")).to_contain_text("paid")
            expect(page.get_by_role("button", name="Leave it")).to_be_focused()
            if action == "Leave it":
                page.get_by_role("button", name=action).click()
            else:
                page.keyboard.press(action)
            expect(page.locator("#asking")).to_be_hidden()
        assert len(gateway.admin_request("/ledger")["posts"]) == 3
        assert set(ledger_states(failed_run).values()) == {State.ERRORED}

    def test_with_a_yes(
        self, failed_run: Path, gateway: SimulatorProcess, start_retrying_view: StartView, open_page: OpenPage
    ) -> None:
        """Each is submitted once more, the images come into the page, and there is nothing left to retry."""
        page = open_page(start_retrying_view(failed_run).url)
        page.get_by_role("button", name="Retry failed").click()
        page.get_by_role("button", name="Submit again").click()
        expect(page.locator("#counts")).to_have_text("3 jobs, 3 with an image", timeout=LIVE_TIMEOUT_MS)
        expect(tile(page, "00002").locator("img")).to_be_visible()
        expect(page.get_by_role("button", name="Retry failed")).to_be_hidden()
        assert len(gateway.admin_request("/ledger")["posts"]) == 6
        assert gateway.admin_request("/totals")["charged"] == 3
        expect(page.locator("#said")).to_contain_text("3 stored")

    def test_what_waits_is_counted(
        self, failed_run: Path, start_retrying_view: StartView, open_page: OpenPage
    ) -> None:
        """A retry goes on with all that is open in the folder, so the question counts what that may cost."""
        make_run(failed_run, SeedJob(id="waits", status=State.PENDING), SeedJob(id="lies", status=State.ACCEPTED))
        page = open_page(start_retrying_view(failed_run).url)
        page.get_by_role("button", name="Retry failed").click()
        expect(page.locator("#asking")).to_contain_text("Submit 3 jobs again?")
        expect(page.locator("#asking")).to_contain_text("Up to 4 jobs will be paid for.")

    def test_a_double_click_pays_once(
        self, failed_run: Path, gateway: SimulatorProcess, start_retrying_view: StartView, open_page: OpenPage
    ) -> None:
        """Two clicks on the yes submit each job once."""
        page = open_page(start_retrying_view(failed_run).url)
        page.get_by_role("button", name="Retry failed").click()
        page.get_by_role("button", name="Submit again").dblclick()
        expect(page.locator("#counts")).to_have_text("3 jobs, 3 with an image", timeout=LIVE_TIMEOUT_MS)
        assert len(gateway.admin_request("/ledger")["posts"]) == 6

    def test_what_the_filter_shows(
        self, failed_run: Path, gateway: SimulatorProcess, start_retrying_view: StartView, open_page: OpenPage
    ) -> None:
        """The number in the question is the number of POSTs, whatever the filters hide."""
        page = open_page(start_retrying_view(failed_run).url)
        page.get_by_label("Search prompts and ids").fill("00002")
        expect(page.locator("#counts")).to_contain_text("1 shown")
        page.get_by_role("button", name="Retry failed").click()
        asked = page.locator("#asking").inner_text()
        page.get_by_role("button", name="Submit again").click()
        expect(page.locator(".tile img")).to_have_count(1, timeout=LIVE_TIMEOUT_MS)
        page.get_by_label("Search prompts and ids").fill("")
        count = 3 if "3 jobs" in asked else 1
        wait_for_images(page, count)
        assert len(gateway.admin_request("/ledger")["posts"]) == 3 + count

    def test_where_it_cannot_be(
        self, failed_run: Path, gateway: SimulatorProcess, start_retrying_view: StartView, open_page: OpenPage
    ) -> None:
        """Without a key nothing is submitted, and the page says what is missing."""
        page = open_page(start_retrying_view(failed_run, key="").url, allowed_errors=("400", "403", "409", "500"))
        page.get_by_role("button", name="Retry failed").click()
        page.get_by_role("button", name="Submit again").click()
        expect(page.locator("#said")).to_contain_text("PIXAZO_API_KEY", timeout=LIVE_TIMEOUT_MS)
        assert len(gateway.admin_request("/ledger")["posts"]) == 3

    def test_another_gateway(
        self, failed_run: Path, gateway: SimulatorProcess, start_view: StartView, open_page: OpenPage
    ) -> None:
        """A run of another gateway than view is set to is not submitted there, and the page tells why."""
        page = open_page(start_view(failed_run).url)
        page.get_by_role("button", name="Retry failed").click()
        page.get_by_role("button", name="Submit again").click()
        expect(page.locator("#said")).to_contain_text("its jobs were submitted to", timeout=LIVE_TIMEOUT_MS)
        expect(page.locator("#counts")).to_have_text("3 jobs, 0 with an image")
        assert len(gateway.admin_request("/ledger")["posts"]) == 3

    def test_a_retry_that_fails_again(
        self, simulate: StartSimulator, start_view: StartView, open_page: OpenPage, tmp_path: Path
    ) -> None:
        """Jobs that fail again are shown with their further submit, and can be retried once more."""
        gateway = simulate("--latency=fixed:0.1", "--tiny", "--fault", "job-failed=1").gateway_url
        write_jobs(tmp_path / "jobs.jsonl", 2)
        run_command("run", "jobs.jsonl", "--out", "run", *LIVE_SIMULATOR_OPTIONS, "--gateway", gateway, cwd=tmp_path)
        page = open_page(start_view(tmp_path / "run", KREA_BATCH_GATEWAY=gateway, KREA_BATCH_POLL_INTERVAL="0.1").url)
        page.get_by_role("button", name="Retry failed").click()
        page.get_by_role("button", name="Submit again").click()
        expect(page.locator("#said")).to_contain_text("2 failed", timeout=LIVE_TIMEOUT_MS)
        expect(page.get_by_role("button", name="Retry failed")).to_be_visible()
        page.wait_for_function("() => [...items.values()].every((job) => job.attempts === 2)")  # as the page knows it
        tile(page, "00001").locator(".open").click()
        assert dialog_details(page)["submits"] == "2"

    def test_a_page_of_the_last_server(
        self, failed_run: Path, gateway: SimulatorProcess, start_retrying_view: StartView, open_page: OpenPage
    ) -> None:
        """After a restart of the server a retry from the page that stayed open works, or says what to do."""
        first = start_retrying_view(failed_run)
        page = open_page(first.url, allowed_errors=(*CONNECTION_ERRORS, FORBIDDEN_STATUS))
        assert first.close() == (0, "")
        start_retrying_view(failed_run, port=first.port)
        make_run(failed_run, SeedJob(id="new"))
        expect(tile(page, "new")).to_be_visible(timeout=LIVE_TIMEOUT_MS)
        page.get_by_role("button", name="Retry failed").click()
        page.get_by_role("button", name="Submit again").click()
        expect(page.locator("#said")).to_contain_text("reload", timeout=LIVE_TIMEOUT_MS, ignore_case=True)
        assert len(gateway.admin_request("/ledger")["posts"]) == 3
        page.reload()
        page.get_by_role("button", name="Retry failed").click()
        page.get_by_role("button", name="Submit again").click()
        wait_for_images(page, 4)
        assert len(gateway.admin_request("/ledger")["posts"]) == 6

    def test_ctrl_c_during_a_retry(
        self, failed_run: Path, gateway: SimulatorProcess, start_retrying_view: StartView, open_page: OpenPage
    ) -> None:
        """It ends with view, in order: the response of a POST in flight is awaited, and none is in doubt."""
        gateway.admin_request("/settings", {"faults": {"submit-hang": 1.0}, "hang_duration_s": 1.0})
        running_view = start_retrying_view(failed_run)
        page = open_page(running_view.url, allowed_errors=CONNECTION_ERRORS)
        page.get_by_role("button", name="Retry failed").click()
        page.get_by_role("button", name="Submit again").click()
        while len(gateway.admin_request("/ledger")["posts"]) == 3:
            assert running_view.process.poll() is None
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
