"""The page while things happen: pictures that arrive, a run that stops, a server that is gone, a retry."""

from __future__ import annotations

import signal
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from playwright.sync_api import APIResponse, Page, Route, expect

from krea_batch.jobs import State
from krea_batch.ledger import LedgerStore
from tests.engine_fixtures import states
from tests.gallery.gallery_fixtures import (
    AMBIGUOUS,
    Look,
    Made,
    View,
    facts,
    is_colour,
    make_run,
    seen_colour,
    shown_ids,
    tile,
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

PATIENCE_MS = 1000 * PROCESS_TIMEOUT_S / 4
QUICK = ("--poll-interval=0.1", "--rate=20/s", "-q")
GONE = ("ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_EMPTY_RESPONSE", "ERR_CONNECTION_RESET")
SAID_OF_REFUSAL = "403"


def remember(page: Page) -> None:
    """Leave a note in the page, which a reload would take away."""
    page.evaluate("window.note = 'still here'")


def remembers(page: Page) -> bool:
    return page.evaluate("window.note === 'still here'")  # type: ignore[no-any-return]


def with_picture(page: Page, least: int) -> None:
    """Wait until the header counts so many pictures."""
    page.wait_for_function(
        "least => Number(/(\\d+) with a picture/.exec(document.getElementById('counts').textContent)?.[1]) >= least",
        arg=least,
        timeout=PATIENCE_MS,
    )


class TestArriving:
    def test_a_run_that_stops_and_goes_on(
        self, simulate: StartSimulator, view: View, look: Look, tmp_path: Path
    ) -> None:
        """Pictures of a run elsewhere come into an open page, through its Ctrl-C and its resume, without a reload."""
        write_jobs(tmp_path / "jobs.jsonl", 60)
        command = (
            "run",
            "jobs.jsonl",
            "--out",
            "run",
            "--gateway",
            simulate("--tiny", "--latency=fixed:0.1").gateway,
        )
        make_run(tmp_path / "run", gateway=None)
        page = look(view(tmp_path / "run").url)
        expect(page.locator("#nothing")).to_be_visible()
        remember(page)
        process = start_command(*command, *QUICK, cwd=tmp_path)
        with_picture(page, 5)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PROCESS_TIMEOUT_S)
        assert process.returncode == 130
        stored = [state for state in states(tmp_path / "run").values() if state == State.SUCCEEDED]
        assert 5 <= len(stored) < 60
        with_picture(page, len(stored))
        assert run_command(*command, *QUICK, cwd=tmp_path).returncode == 0
        expect(page.locator("#counts")).to_have_text("60 jobs, 60 with a picture", timeout=PATIENCE_MS)
        expect(page.locator("#nothing")).to_be_hidden()
        expect(tile(page, "00001").locator("img")).to_be_visible()
        assert remembers(page)

    def test_a_job_changes_under_the_eyes(self, view: View, look: Look, tmp_path: Path) -> None:
        """What is new takes its place in the filter and in the grid; what is marked, open or typed stays."""
        out = make_run(tmp_path / "run", Made(id="one"), Made(id="two", status=State.FAILED, fields={"seed": 3}))
        page = look(view(out).url)
        tile(page, "one").locator(".open").focus()
        page.keyboard.press("m")
        page.get_by_label("Search prompts and ids").fill("o")
        make_run(out, Made(id="four"), Made(id="xxx", fields={"seed": 4}))
        expect(tile(page, "four")).to_be_visible()
        expect(page.locator("#counts")).to_contain_text("of 4 jobs")
        expect(tile(page, "xxx")).to_have_count(0)
        expect(page.locator("#marks")).to_have_text("1 marked")
        expect(page.get_by_label("Search prompts and ids")).to_have_value("o")
        expect(page.get_by_label("seed", exact=True).locator("option")).to_have_text(["seed: all", "3", "4"])
        tile(page, "one").locator(".open").click()
        make_run(out, Made(id="five o"))
        expect(page.locator("#counts")).to_contain_text("of 5 jobs")
        expect(page.locator("#lightbox[open]")).to_be_visible()
        page.keyboard.press("Escape")
        page.get_by_label("Search prompts and ids").fill("")
        page.get_by_role("button", name="Grid").click()
        page.get_by_label("Columns").select_option("seed")
        make_run(out, Made(id="six", prompt="a new row", fields={"seed": 5}))
        expect(page.locator("table.sweep tbody th", has_text="a new row")).to_be_visible()
        expect(page.get_by_label("Columns")).to_have_value("seed")

    def test_the_focus_stays(self, view: View, look: Look, tmp_path: Path) -> None:
        """A picture that arrives takes the focus from nobody, neither from a tile nor from a choice of a filter."""
        out = make_run(tmp_path / "run", Made(id="one", fields={"seed": 0}), Made(id="two", fields={"seed": 1}))
        page = look(view(out).url)
        tile(page, "two").locator(".open").focus()
        make_run(out, Made(id="three"))
        expect(tile(page, "three")).to_be_visible()
        assert page.evaluate("document.activeElement.closest('.tile')?.dataset.id") == "two"
        page.get_by_label("seed", exact=True).focus()
        make_run(out, Made(id="four", fields={"seed": 2}))
        expect(page.get_by_label("seed", exact=True).locator("option")).to_have_count(4)
        expect(page.get_by_label("seed", exact=True)).to_be_focused()

    def test_the_focus_stays_in_the_grid(self, view: View, look: Look, tmp_path: Path) -> None:
        """A picture that arrives leaves the focus on the cell that has it."""
        out = make_run(tmp_path / "run", Made(id="one", fields={"seed": 0}), Made(id="two", fields={"seed": 1}))
        page = look(view(out).url)
        page.keyboard.press("g")
        page.locator("#grid").get_by_label("Open two").focus()
        make_run(out, Made(id="three", prompt="a new row", fields={"seed": 1}))
        expect(page.locator("#grid").get_by_label("Open three")).to_be_visible()
        expect(page.locator("#grid").get_by_label("Open two")).to_be_focused()

    def test_a_picture_comes_under_the_focus(self, view: View, look: Look, tmp_path: Path) -> None:
        """A tile that holds the focus while its job changes holds it still, and Tab goes to the next in sight."""
        out = make_run(tmp_path / "run", Made(id="one"), Made(id="two", status=State.SUBMITTING), Made(id="three"))
        page = look(view(out).url)
        tile(page, "two").locator(".open").focus()
        with closing(LedgerStore.open(out / "ledger.db")) as store:
            store.mark_ambiguous(2, AMBIGUOUS, 3.0)
        expect(tile(page, "two")).to_contain_text("ambiguous")
        assert page.evaluate("document.activeElement.closest('.tile')?.dataset.id") == "two"
        assert shown_ids(page) == ["one", "two", "three"]

    def test_news_overtake_what_was_asked_for(self, view: View, look: Look, tmp_path: Path) -> None:
        """What is told while all items are still on their way is neither lost nor out of order."""
        out = make_run(tmp_path / "run", Made(id="one"), Made(id="two", status=State.SUBMITTING))
        url = view(out).url
        page, witness = look(url), look(url)
        held: list[tuple[Route, APIResponse]] = []
        page.route("**/items", lambda route: held.append((route, route.fetch())))
        with page.expect_request("**/items"):
            page.reload(wait_until="commit")
        with closing(LedgerStore.open(out / "ledger.db")) as store:
            store.mark_ambiguous(2, AMBIGUOUS, 3.0)
        expect(tile(witness, "two")).to_contain_text("ambiguous")
        ((route, old),) = held
        route.fulfill(response=old)
        expect(tile(page, "two")).to_contain_text("ambiguous")
        assert shown_ids(page) == ["one", "two"]

    def test_the_server_is_gone_for_a_while(self, view: View, look: Look, tmp_path: Path) -> None:
        """A page that is open when its server ends finds the next one at the same port, and what came in between."""
        out = make_run(tmp_path / "run", Made(id="one"))
        first = view(out)
        page = look(first.url, bears=GONE)
        remember(page)
        assert first.close() == (0, "")
        make_run(out, Made(id="two"))
        second = view(out, port=first.port)
        expect(tile(page, "two")).to_be_visible(timeout=PATIENCE_MS)
        assert is_colour(seen_colour(tile(page, "two").locator("img")), 2)
        make_run(out, Made(id="three"))
        expect(tile(page, "three")).to_be_visible(timeout=PATIENCE_MS)
        assert remembers(page)
        assert second.close()[0] == 0


class TestRetry:
    @pytest.fixture
    def view_retrying(self, view: View, gateway: SimulatorProcess) -> View:
        """`view` whose retries go to that gateway, as its environment says."""
        return partial(view, KREA_BATCH_GATEWAY=gateway.gateway, KREA_BATCH_POLL_INTERVAL="0.1")

    def test_not_without_a_yes(
        self, failed: Path, gateway: SimulatorProcess, view_retrying: View, look: Look
    ) -> None:
        """It asks, says how many may be paid, has the focus on leaving it, and does nothing without the yes."""
        page = look(view_retrying(failed).url)
        for way in ("Leave it", "Escape", "Enter"):
            page.get_by_role("button", name="Retry failed").click()
            expect(page.locator("#asking")).to_contain_text("3 jobs")
            expect(page.locator("#asking")).to_contain_text("paid")
            expect(page.get_by_role("button", name="Leave it")).to_be_focused()
            if way == "Leave it":
                page.get_by_role("button", name=way).click()
            else:
                page.keyboard.press(way)
            expect(page.locator("#asking")).to_be_hidden()
        assert len(gateway.admin_request("/ledger")["posts"]) == 3
        assert set(states(failed).values()) == {State.ERRORED}

    def test_with_a_yes(self, failed: Path, gateway: SimulatorProcess, view_retrying: View, look: Look) -> None:
        """Each is submitted once more, the pictures come into the page, and there is nothing left to retry."""
        page = look(view_retrying(failed).url)
        page.get_by_role("button", name="Retry failed").click()
        page.get_by_role("button", name="Submit again").click()
        expect(page.locator("#counts")).to_have_text("3 jobs, 3 with a picture", timeout=PATIENCE_MS)
        expect(tile(page, "00002").locator("img")).to_be_visible()
        expect(page.get_by_role("button", name="Retry failed")).to_be_hidden()
        assert len(gateway.admin_request("/ledger")["posts"]) == 6
        assert gateway.admin_request("/totals")["charged"] == 3
        expect(page.locator("#said")).to_contain_text("3 stored")

    def test_what_waits_is_counted(self, failed: Path, view_retrying: View, look: Look) -> None:
        """A retry goes on with all that is open in the folder, so the question counts what that may cost."""
        make_run(failed, Made(id="waits", status=State.PENDING), Made(id="lies", status=State.ACCEPTED))
        page = look(view_retrying(failed).url)
        page.get_by_role("button", name="Retry failed").click()
        expect(page.locator("#asking")).to_contain_text("Submit 3 jobs again?")
        expect(page.locator("#asking")).to_contain_text("Up to 4 jobs will be paid for.")

    def test_a_double_click_pays_once(
        self, failed: Path, gateway: SimulatorProcess, view_retrying: View, look: Look
    ) -> None:
        """Two clicks on the yes submit each job once."""
        page = look(view_retrying(failed).url)
        page.get_by_role("button", name="Retry failed").click()
        page.get_by_role("button", name="Submit again").dblclick()
        expect(page.locator("#counts")).to_have_text("3 jobs, 3 with a picture", timeout=PATIENCE_MS)
        assert len(gateway.admin_request("/ledger")["posts"]) == 6

    def test_what_the_filter_shows(
        self, failed: Path, gateway: SimulatorProcess, view_retrying: View, look: Look
    ) -> None:
        """The number in the question is the number of POSTs, whatever the filters hide."""
        page = look(view_retrying(failed).url)
        page.get_by_label("Search prompts and ids").fill("00002")
        expect(page.locator("#counts")).to_contain_text("1 shown")
        page.get_by_role("button", name="Retry failed").click()
        asked = page.locator("#asking").inner_text()
        page.get_by_role("button", name="Submit again").click()
        expect(page.locator(".tile img")).to_have_count(1, timeout=PATIENCE_MS)
        page.get_by_label("Search prompts and ids").fill("")
        count = 3 if "3 jobs" in asked else 1
        with_picture(page, count)
        assert len(gateway.admin_request("/ledger")["posts"]) == 3 + count

    def test_where_it_cannot_be(
        self, failed: Path, gateway: SimulatorProcess, view_retrying: View, look: Look
    ) -> None:
        """Without a key nothing is submitted, and the page says what is missing."""
        page = look(view_retrying(failed, key="").url, bears=("400", "403", "409", "500"))
        page.get_by_role("button", name="Retry failed").click()
        page.get_by_role("button", name="Submit again").click()
        expect(page.locator("#said")).to_contain_text("PIXAZO_API_KEY", timeout=PATIENCE_MS)
        assert len(gateway.admin_request("/ledger")["posts"]) == 3

    def test_another_gateway(self, failed: Path, gateway: SimulatorProcess, view: View, look: Look) -> None:
        """A run of another gateway than view is set to is not submitted there, and the page tells why."""
        page = look(view(failed).url)
        page.get_by_role("button", name="Retry failed").click()
        page.get_by_role("button", name="Submit again").click()
        expect(page.locator("#said")).to_contain_text("its jobs were submitted to", timeout=PATIENCE_MS)
        expect(page.locator("#counts")).to_have_text("3 jobs, 0 with a picture")
        assert len(gateway.admin_request("/ledger")["posts"]) == 3

    def test_in_vain_once_more(self, simulate: StartSimulator, view: View, look: Look, tmp_path: Path) -> None:
        """Jobs that fail again are shown with their further submit, and can be retried once more."""
        gateway = simulate("--latency=fixed:0.1", "--tiny", "--fault", "job-failed=1").gateway
        write_jobs(tmp_path / "jobs.jsonl", 2)
        run_command("run", "jobs.jsonl", "--out", "run", *QUICK, "--gateway", gateway, cwd=tmp_path)
        page = look(view(tmp_path / "run", KREA_BATCH_GATEWAY=gateway, KREA_BATCH_POLL_INTERVAL="0.1").url)
        page.get_by_role("button", name="Retry failed").click()
        page.get_by_role("button", name="Submit again").click()
        expect(page.locator("#said")).to_contain_text("2 failed", timeout=PATIENCE_MS)
        expect(page.get_by_role("button", name="Retry failed")).to_be_visible()
        page.wait_for_function("() => [...items.values()].every((job) => job.attempts === 2)")  # as the page knows it
        tile(page, "00001").locator(".open").click()
        assert facts(page)["submits"] == "2"

    def test_a_page_of_the_last_server(
        self, failed: Path, gateway: SimulatorProcess, view_retrying: View, look: Look
    ) -> None:
        """After a restart of the server a retry from the page that stayed open works, or says what to do."""
        first = view_retrying(failed)
        page = look(first.url, bears=(*GONE, SAID_OF_REFUSAL))
        assert first.close() == (0, "")
        view_retrying(failed, port=first.port)
        make_run(failed, Made(id="new"))
        expect(tile(page, "new")).to_be_visible(timeout=PATIENCE_MS)
        page.get_by_role("button", name="Retry failed").click()
        page.get_by_role("button", name="Submit again").click()
        expect(page.locator("#said")).to_contain_text("reload", timeout=PATIENCE_MS, ignore_case=True)
        assert len(gateway.admin_request("/ledger")["posts"]) == 3
        page.reload()
        page.get_by_role("button", name="Retry failed").click()
        page.get_by_role("button", name="Submit again").click()
        with_picture(page, 4)
        assert len(gateway.admin_request("/ledger")["posts"]) == 6

    def test_ctrl_c_during_a_retry(
        self, failed: Path, gateway: SimulatorProcess, view_retrying: View, look: Look
    ) -> None:
        """It ends with view, in order: the answer of a POST in the air is waited for, and none is in doubt."""
        gateway.admin_request("/settings", {"faults": {"submit-hang": 1.0}, "hang_duration_s": 1.0})
        viewed = view_retrying(failed)
        page = look(viewed.url, bears=GONE)
        page.get_by_role("button", name="Retry failed").click()
        page.get_by_role("button", name="Submit again").click()
        while len(gateway.admin_request("/ledger")["posts"]) == 3:
            assert viewed.process.poll() is None
        assert viewed.close() == (0, "")
        assert set(states(failed).values()) <= {State.PENDING, State.ACCEPTED, State.ERRORED, State.SUCCEEDED}
        gateway.admin_request("/settings", {"faults": {}})
        options = ("--gateway", gateway.gateway, *QUICK)
        assert run_command("run", "jobs.jsonl", "--out", "run", *options, cwd=failed.parent).returncode == 0
        assert len(gateway.admin_request("/ledger")["posts"]) == 6
