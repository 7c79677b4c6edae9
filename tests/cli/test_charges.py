"""Charges and the key, with the real command: many faults, lost answers, no balance, a missing model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.processes import (
    PROCESS_TIMEOUT_S,
    RunningSimulator,
    StartSimulator,
    clean_environment,
    result_rows,
    run_command,
    start_command,
    wait_until,
    write_jobs,
)

pytestmark = pytest.mark.slow

CHARGES_SIMULATOR_OPTIONS = ("--tiny", "--latency", "uniform:0.2,0.8")
CANARY_KEY = "canary-7f3a9c5e21d84b60"


def faults(**probabilities: float) -> list[str]:
    """Return options of the simulator. Underscores in the names become dashes."""
    return [
        part
        for name, probability in probabilities.items()
        for part in ("--fault", f"{name.replace('_', '-')}={probability}")
    ]


def run_against(simulator: RunningSimulator, folder: Path, *extra_options: str) -> Any:
    options = (
        "--out",
        "out",
        "--gateway",
        simulator.gateway_url,
        "--rate",
        "200/s",
        "--poll-interval",
        "0.3",
        *extra_options,
    )
    return run_command("run", "jobs.jsonl", *options, cwd=folder)


def submissions_by_prompt(simulator: RunningSimulator) -> Counter[str]:
    """Return how often each prompt was POSTed, with any result."""
    return Counter(post["body"]["prompt"] for post in simulator.admin_request("/ledger")["posts"])


def test_many_faults_at_once_charge_each_job_once(simulate: StartSimulator, tmp_path: Path) -> None:
    """With failing submits, polls and downloads and a first ERROR for every job, each of 80 jobs is charged once."""
    simulator = simulate(
        *CHARGES_SIMULATOR_OPTIONS,
        "--outputs",
        "2",
        "--fault-max-attempts",  # so that no job waits for many retries
        "3",
        *faults(submit_500=0.1, poll_cut=0.1, poll_garbled=0.1, poll_404=0.1, job_first_error=1),
        *faults(cdn_404=0.1, cdn_503=0.1, cdn_cut=0.1, cdn_corrupt=0.1, cdn_html=0.1),
    )
    write_jobs(tmp_path / "jobs.jsonl", 80)
    done = run_against(simulator, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "charges: 80 charged, 80 refunded (ERROR), 0 unknown" in done.stdout
    totals = simulator.admin_request("/totals")
    assert (totals["charged"], totals["accepted"]) == (80, 160)
    for row in result_rows(tmp_path / "out"):
        assert [file["path"] for file in row["files"]] == [f"images/{row['id']}.png", f"images/{row['id']}-2.png"]
        for file in row["files"]:
            with Image.open(tmp_path / "out" / file["path"]) as image:
                image.load()
                assert image.text["prompt"] == row["request"]["prompt"]  # type: ignore[attr-defined]
    assert len(list((tmp_path / "out" / "images").iterdir())) == 160


class TestLostResponses:
    def gateway_losing_responses(self, simulate: StartSimulator, folder: Path) -> RunningSimulator:
        write_jobs(folder / "jobs.jsonl", 400)
        return simulate(*CHARGES_SIMULATOR_OPTIONS, *faults(submit_lost=0.05, submit_garbled=0.05))

    def test_exactly_those_are_ambiguous(self, simulate: StartSimulator, tmp_path: Path) -> None:
        """Exactly the jobs with a lost or garbled answer are ambiguous, and no job is submitted again."""
        simulator = self.gateway_losing_responses(simulate, tmp_path)
        done = run_against(simulator, tmp_path)
        assert done.returncode == 1
        run_against(simulator, tmp_path)
        assert set(submissions_by_prompt(simulator).values()) == {1}
        recorded_ids = {row["request_id"] for row in result_rows(tmp_path / "out")}
        posts = simulator.admin_request("/ledger")["posts"]
        lost = {post["body"]["prompt"] for post in posts if post["request_id"] not in recorded_ids}
        ambiguous = {
            row["request"]["prompt"] for row in result_rows(tmp_path / "out") if row["status"] == "ambiguous"
        }
        assert ambiguous == lost
        assert 20 <= len(lost) <= 60
        assert sum(not post["delivered"] for post in posts) >= 5
        others = {row["status"] for row in result_rows(tmp_path / "out") if row["status"] != "ambiguous"}
        assert others == {"succeeded"}

    def test_ambiguous_jobs_are_resubmitted_when_configured(self, simulate: StartSimulator, tmp_path: Path) -> None:
        """With --ambiguous resubmit all jobs succeed, and second charges are counted as unknown."""
        simulator = self.gateway_losing_responses(simulate, tmp_path)
        done = run_against(simulator, tmp_path, "--ambiguous", "resubmit")
        assert done.returncode == 0, done.stdout
        charged = simulator.admin_request("/totals")["charged"]
        assert f"charges: 400 charged, 0 refunded (ERROR), {charged - 400} unknown" in done.stdout


class TestServerErrors:
    """Submits answered with 500 are sent again; the API document does not say that they are free."""

    def test_they_are_shown(self, simulate: StartSimulator, tmp_path: Path) -> None:
        """The summary and `status` say how many there were, and count them apart."""
        simulator = simulate(*CHARGES_SIMULATOR_OPTIONS, *faults(submit_500=0.3))
        write_jobs(tmp_path / "jobs.jsonl", 60)
        done = run_against(simulator, tmp_path)
        assert done.returncode == 0, done.stdout
        count = simulator.admin_request("/totals")["refused"]["500"]
        assert count > 5
        line = f"           {count} submits answered with 500 or 503 (--count-server-errors counts them)\n"
        shown = run_command("status", "out", cwd=tmp_path)
        for output in (done.stdout, shown.stdout):
            assert f"  charges: 60 charged, 0 refunded (ERROR), 0 unknown (ambiguous)\n{line}" in output
        as_json = json.loads(run_command("status", "out", "--json", cwd=tmp_path).stdout)
        assert as_json["charges"] == {"charged": 60, "refunded": 0, "unknown": 0, "server_errors": count}

    def test_they_are_counted_if_asked(self, simulate: StartSimulator, tmp_path: Path) -> None:
        """With --count-server-errors they use up --max-charges, over all runs of the directory and in `retry`."""
        simulator = simulate(*CHARGES_SIMULATOR_OPTIONS, *faults(submit_500=0.3))
        write_jobs(tmp_path / "jobs.jsonl", 100)

        def counted() -> int:
            totals = simulator.admin_request("/totals")
            return int(totals["accepted"] + totals["refused"]["500"])

        strict = ("--max-charges", "40", "--count-server-errors")
        for _ in range(2):
            done = run_against(simulator, tmp_path, *strict)
            assert done.returncode == 3, done.stdout
            assert "--max-charges is reached (40)" in done.stdout
            assert "Stopping: --max-charges is reached (40)" in done.stderr
            assert counted() == 40
        retry = ("--yes", "--gateway", simulator.gateway_url, "--poll-interval", "0.3")
        retried = run_command("retry", "out", *retry, cwd=tmp_path)
        assert "--max-charges 40 --count-server-errors, as in the latest run" in retried.stderr
        assert counted() == 40
        done = run_against(simulator, tmp_path, "--max-charges", "40")
        assert done.returncode == 3
        assert simulator.accepted() == 40


def test_no_balance_stops_the_run(simulate: StartSimulator, tmp_path: Path) -> None:
    """After the first 402 there are few further submits, and the exit code is 3; with a balance the run resumes."""
    simulator = simulate(*CHARGES_SIMULATOR_OPTIONS, "--balance", "50")
    write_jobs(tmp_path / "jobs.jsonl", 120)
    done = run_against(simulator, tmp_path, "--rate", "50/s")  # few are in flight when the first 402 is read
    assert done.returncode == 3
    assert "top up the wallet, then run again to resume" in done.stdout
    assert len(list((tmp_path / "out" / "images").glob("*.png"))) == 50
    assert 1 <= simulator.admin_request("/totals")["refused"]["402"] <= 50
    simulator.admin_request("/balance", {"add": 500})
    assert run_against(simulator, tmp_path).returncode == 0
    assert simulator.admin_request("/totals")["charged"] == 120
    assert {row["status"] for row in result_rows(tmp_path / "out")} == {"succeeded"}
    assert len(result_rows(tmp_path / "out")) == 120


@pytest.mark.parametrize(
    ("options", "status"),
    [(("--revoke-after", "50"), "401"), (faults(submit_403=0.05), "403")],
    ids=["key revoked", "forbidden"],
)
def test_a_key_that_is_refused(
    simulate: StartSimulator, tmp_path: Path, options: tuple[str, ...], status: str
) -> None:
    """A 401 or 403 stops submits, and the exit code is 3; the same command later completes all jobs."""
    simulator = simulate(*CHARGES_SIMULATOR_OPTIONS, *options)
    write_jobs(tmp_path / "jobs.jsonl", 200)
    done = run_against(simulator, tmp_path)
    assert done.returncode == 3
    assert status in done.stdout
    assert simulator.admin_request("/totals")["refused"][status] <= 50
    simulator.admin_request("/settings", {"revoke_after": 0, "faults": {}})
    assert run_against(simulator, tmp_path).returncode == 0
    assert simulator.admin_request("/totals")["charged"] == 200


def test_a_model_that_is_gone(simulate: StartSimulator, tmp_path: Path) -> None:
    """If the first 20 jobs fail with the same error, the run stops, and --max-identical-failures 0 disables this."""
    simulator = simulate(*CHARGES_SIMULATOR_OPTIONS, *faults(submit_no_model=1))
    write_jobs(tmp_path / "jobs.jsonl", 500)
    done = run_against(simulator, tmp_path)
    assert done.returncode == 3
    assert "the first 20 jobs all ended as rejected (Model not found" in done.stderr + done.stdout
    assert 20 <= simulator.admin_request("/totals")["refused"]["400"] <= 60
    assert run_against(simulator, tmp_path, "--max-identical-failures", "0").returncode == 1
    assert len(result_rows(tmp_path / "out")) == 500


def test_submits_pause_during_an_outage(simulate: StartSimulator, tmp_path: Path) -> None:
    """During an outage the run pauses, prints the reason and submits little; afterwards it continues."""
    simulator = simulate(*CHARGES_SIMULATOR_OPTIONS, *faults(submit_503=1))
    write_jobs(tmp_path / "jobs.jsonl", 100)
    options = ("--out", "out", "--gateway", simulator.gateway_url, "--rate", "200/s", "--poll-interval", "0.3")
    process = start_command("run", "jobs.jsonl", *options, cwd=tmp_path)
    stderr = ""
    while "Paused" not in stderr:
        stderr += process.stderr.readline() if process.stderr else ""
    assert "Service Unavailable" in stderr
    assert simulator.admin_request("/totals")["refused"]["503"] <= 60
    simulator.admin_request("/settings", {"faults": {}})
    output, _ = process.communicate(timeout=PROCESS_TIMEOUT_S)
    assert process.returncode == 0, output
    assert simulator.admin_request("/totals")["charged"] == 100


class TestTheKey:
    def files_with_key(self, folder: Path) -> list[str]:
        """Return the files that contain the key."""
        return [
            str(path) for path in folder.rglob("*") if path.is_file() and CANARY_KEY.encode() in path.read_bytes()
        ]

    def test_it_goes_to_the_gateway_alone(self, simulate: StartSimulator, tmp_path: Path) -> None:
        """With faults and full logging, the key is in no file, no output and no request to the CDN."""
        simulator = simulate(
            *CHARGES_SIMULATOR_OPTIONS,
            *faults(
                submit_redirect=0.05, submit_lost=0.05, submit_garbled=0.05, poll_cut=0.1, cdn_404=0.1, cdn_cut=0.1
            ),
            "--key",
            CANARY_KEY,
        )
        write_jobs(tmp_path / "jobs.jsonl", 100)
        arguments = [
            "run",
            "jobs.jsonl",
            "--out",
            "out",
            "--gateway",
            simulator.gateway_url,
            "-vv",
            "--rate",
            "100/s",
        ]
        process = start_command(*arguments, "--poll-interval", "0.3", cwd=tmp_path, key=CANARY_KEY)
        wait_until(simulator.accepted, process)
        assert CANARY_KEY not in Path(f"/proc/{process.pid}/cmdline").read_text()
        output, errors = process.communicate(timeout=PROCESS_TIMEOUT_S)
        assert process.returncode == 1  # submits that were redirected, lost or garbled are ambiguous
        assert "ambiguous" in output
        assert "DEBUG" in errors or " D krea_batch" in errors
        assert CANARY_KEY not in output + errors
        assert self.files_with_key(tmp_path) == []
        totals = simulator.admin_request("/totals")
        assert totals["accepted"] >= 80
        assert totals["cdn_with_key"] == 0
        stored = sum(len(row["files"]) for row in result_rows(tmp_path / "out"))
        assert totals["cdn_requests"] <= stored * 3  # and redirects were not followed

    def test_it_is_in_no_message_of_refusal(self, simulate: StartSimulator, tmp_path: Path) -> None:
        """Errors about a refused key, and about an invalid key in the environment or a file, do not contain it."""
        simulator = simulate(*CHARGES_SIMULATOR_OPTIONS, "--key", "another")
        write_jobs(tmp_path / "jobs.jsonl", 3)
        (tmp_path / "key").write_text(CANARY_KEY + "\x00")
        options = ("run", "jobs.jsonl", "--out", "out", "--gateway", simulator.gateway_url, "-vv")
        for done in (
            run_command(*options, cwd=tmp_path, key=CANARY_KEY),
            run_command(*options, cwd=tmp_path, key=CANARY_KEY + "é"),
            run_command(*options, "--api-key-file", "key", cwd=tmp_path),
        ):
            assert done.returncode in (2, 3)
            assert CANARY_KEY not in done.stdout + done.stderr
        assert self.files_with_key(tmp_path) == [str(tmp_path / "key")]

    def test_it_is_in_no_crash(self, simulate: StartSimulator, tmp_path: Path) -> None:
        """A bug in the middle of a POST ends the run with a traceback, which does not contain the key."""
        write_jobs(tmp_path / "jobs.jsonl", 1)
        script = (
            "from krea_batch.cli.app import main\n"
            "from krea_batch.gateway import client\n"
            "async def fail(self, *_, **__):\n"
            "    raise ZeroDivisionError(f'a bug in {self!r}')\n"
            "client.GatewayClient.submit = fail\n"
            "main()\n"
        )
        options = ("run", "jobs.jsonl", "--out", "out", "-vv", "--gateway", simulate("--tiny").gateway_url)
        done = subprocess.run(
            [sys.executable, "-c", script, *options],
            cwd=tmp_path,
            env=clean_environment(PIXAZO_API_KEY=CANARY_KEY),
            capture_output=True,
            text=True,
            timeout=PROCESS_TIMEOUT_S,
        )
        assert done.returncode not in (0, 2)
        assert "ZeroDivisionError: a bug in" in done.stderr
        assert CANARY_KEY not in done.stdout + done.stderr
        assert self.files_with_key(tmp_path) == []


def test_a_shared_quota(simulate: StartSimulator, tmp_path: Path) -> None:
    """With --shared-quota, polls and submits stay within one limit: all jobs succeed, few requests are refused.

    Without it, 20 are refused here. The limit is higher than the rate, because a simulator that stalled on a busy
    machine counts the requests that waited together with those that follow.
    """
    simulator = simulate(*CHARGES_SIMULATOR_OPTIONS, "--rate-limit", "sliding-window:50/s", "--shared-limit")
    write_jobs(tmp_path / "jobs.jsonl", 200)
    options = ("--rate", "40/s", "--shared-quota", "--poll-interval", "0.5")
    done = run_against(simulator, tmp_path, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    totals = simulator.admin_request("/totals")
    assert totals["charged"] == 200
    refused = sum(post["status"] == 429 for post in simulator.admin_request("/ledger")["posts"]) + totals.get(
        "polls_429", 0
    )
    assert refused <= 8
