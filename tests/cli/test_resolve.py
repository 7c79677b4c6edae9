"""`krea-batch resolve` lists ambiguous jobs, and changes them only by an explicit decision."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.processes import RunningSimulator, StartSimulator, ThreadedSimulator, result_rows, run_command, write_jobs

pytestmark = pytest.mark.slow

GATEWAY_OPTIONS = ("--tiny", "--latency", "fixed:0.2")
STATE = "state.jsonl"
RESOLVE_RUN_COMMAND = ("run", "jobs.jsonl", "--out", "out", "--rate", "500/s", "--poll-interval", "0.3")


class AmbiguousRun(NamedTuple):
    """A folder with a run in `out`, whose six jobs were charged and are ambiguous, and the state of its gateway."""

    folder: Path
    request_ids: dict[str, str]
    """The request_id that the gateway gave the job of each prompt."""


@pytest.fixture(scope="module")
def ambiguous_run(tmp_path_factory: pytest.TempPathFactory) -> AmbiguousRun:
    """Return a run of which tests use copies."""
    folder = tmp_path_factory.mktemp("ambiguous")
    simulator = ThreadedSimulator(*GATEWAY_OPTIONS, "--state-file", str(folder / STATE), "--fault", "submit-lost=1")
    write_jobs(folder / "jobs.jsonl", 6)
    done = run_command(*RESOLVE_RUN_COMMAND, "--gateway", simulator.gateway_url, cwd=folder)
    posts = simulator.admin_request("/ledger")["posts"]
    simulator.close()
    assert done.returncode == 1
    assert "6 ambiguous" in done.stdout
    assert "charges: 0 charged, 0 refunded (ERROR), 6 unknown (ambiguous)" in done.stdout
    assert len(posts) == 6
    return AmbiguousRun(folder, {post["body"]["prompt"]: post["request_id"] for post in posts})


@pytest.fixture(autouse=True)
def _copied_run(ambiguous_run: AmbiguousRun, tmp_path: Path) -> None:
    shutil.copytree(ambiguous_run.folder, tmp_path, dirs_exist_ok=True)


@pytest.fixture
def gateway(simulate: StartSimulator, tmp_path: Path) -> RunningSimulator:
    """The gateway of the run, which now answers. Its counts start at 0."""
    return simulate(*GATEWAY_OPTIONS, "--state-file", str(tmp_path / STATE))


def statuses_by_id(folder: Path) -> dict[str, str]:
    return {row["id"]: row["status"] for row in result_rows(folder / "out")}


def test_list_changes_nothing(gateway: RunningSimulator, tmp_path: Path) -> None:
    """--list, the default, shows ids, prompts and the decisions; running the batch again charges nothing."""
    shown = run_command("resolve", "out", "--list", cwd=tmp_path)
    assert shown.returncode == 0
    assert shown.stdout == run_command("resolve", "out", cwd=tmp_path).stdout
    for n in range(6):
        assert f"{n + 1:05d}  submitted 20" in shown.stdout
        assert f"image {n}\n" in shown.stdout
    assert "--adopt" in shown.stdout
    as_json = json.loads(run_command("resolve", "out", "--json", cwd=tmp_path).stdout)
    assert [job["request"]["prompt"] for job in as_json["ambiguous"]] == [f"image {n}" for n in range(6)]
    again = run_command(*RESOLVE_RUN_COMMAND, "--gateway", gateway.gateway_url, cwd=tmp_path)
    assert again.returncode == 1
    assert gateway.admin_request("/totals")["charged"] == 0
    assert set(statuses_by_id(tmp_path).values()) == {"ambiguous"}


def test_every_decision_about_ambiguous_jobs(
    gateway: RunningSimulator, ambiguous_run: AmbiguousRun, tmp_path: Path
) -> None:
    """Adopted jobs get their images without a charge, abandoned jobs end, and resubmitted jobs are charged again."""
    by_prompt = ambiguous_run.request_ids
    adopt = [f"--adopt={n + 1:05d}={by_prompt[f'image {n}']}" for n in (0, 1)]
    adopted = run_command("resolve", "out", *adopt, "--gateway", gateway.gateway_url, cwd=tmp_path)
    assert adopted.stdout.startswith("2 adopted, 4 still ambiguous"), adopted.stderr
    abandoned = run_command("resolve", "out", "--abandon", "00003", "00004", cwd=tmp_path)
    assert abandoned.stdout.startswith("2 abandoned, 2 still ambiguous")
    assert statuses_by_id(tmp_path) == dict.fromkeys(["00003", "00004"], "cancelled") | dict.fromkeys(
        ["00005", "00006"], "ambiguous"
    )
    resubmitted = run_command("resolve", "out", "--resubmit", cwd=tmp_path)
    assert resubmitted.stdout.startswith("2 resubmitted, 0 still ambiguous")
    done = run_command(*RESOLVE_RUN_COMMAND, "--gateway", gateway.gateway_url, cwd=tmp_path)
    assert done.returncode == 1  # two jobs were abandoned
    assert "charges: 4 charged, 0 refunded (ERROR), 4 unknown (ambiguous)" in done.stdout
    ends = ["succeeded", "succeeded", "cancelled", "cancelled", "succeeded", "succeeded"]
    assert [status for _, status in sorted(statuses_by_id(tmp_path).items())] == ends
    assert {row["id"]: row["request_id"] for row in result_rows(tmp_path / "out")}["00001"] == by_prompt["image 0"]
    assert gateway.admin_request("/totals")["charged"] == 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--resubmit", "fox"], "job 'fox': the job is not in this run"),
        (["--abandon", "00001", "fox"], "job 'fox': the job is not in this run"),
        (["--adopt", "fox=a"], "job 'fox': the job is not in this run"),
        (["--adopt", "00001=../../x"], "is not a request_id"),
        (["--adopt", "00001"], "not JOB=REQUEST_ID"),
        (["--adopt", "00001=a", "--adopt", "00001=b"], "more than once"),
        (["--adopt", "00001=a", "--adopt", "00002=a"], "belongs to another job"),
        (["--resubmit", "--abandon"], "cannot be combined"),
        (["--list", "--resubmit"], "cannot be combined"),
        (["--adopt", "00001=a", "00002"], "cannot be combined with JOB"),
    ],
)
def test_invalid_decisions_change_nothing(tmp_path: Path, arguments: list[str], expected: str) -> None:
    """An invalid job, request_id or combination gives exit 2 with the reason, and all six jobs stay ambiguous."""
    done = run_command("resolve", "out", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert expected in done.stderr
    assert list(statuses_by_id(tmp_path).values()) == ["ambiguous"] * 6


def test_a_request_id_is_adopted_only_if_the_gateway_knows_it(
    gateway: RunningSimulator, ambiguous_run: AmbiguousRun, tmp_path: Path
) -> None:
    """A wrong request_id is refused after three polls. Without a key or a gateway, nothing is adopted."""
    request_id = ambiguous_run.request_ids["image 0"]
    command = ("resolve", "out", "--gateway", gateway.gateway_url)
    polls_before = gateway.admin_request("/totals")["polls"]
    typo = run_command(*command, "--adopt", f"00001={request_id[:-1]}!", cwd=tmp_path)
    assert "is not a request_id" in typo.stderr
    wrong = request_id[:-1] + ("0" if request_id[-1] != "0" else "1")
    done = run_command(*command, f"--adopt=00002={request_id}", f"--adopt=00001={wrong}", cwd=tmp_path)
    assert done.returncode == 2
    assert f"job '00001': the gateway does not know {wrong}; look it up again" in done.stderr
    assert gateway.admin_request("/totals")["polls"] == polls_before + 4
    assert "no API key" in run_command(*command, f"--adopt=00001={request_id}", cwd=tmp_path, key="").stderr
    elsewhere = ("resolve", "out", "--gateway", "http://127.0.0.1:9", f"--adopt=00001={request_id}")
    assert f"{request_id} cannot be checked (no connection" in run_command(*elsewhere, cwd=tmp_path).stderr
    assert list(statuses_by_id(tmp_path).values()) == ["ambiguous"] * 6


def test_the_answer_is_shown(simulate: StartSimulator, tmp_path: Path) -> None:
    """The list has what the gateway answered, which may tell the user whether the job was accepted."""
    simulator = simulate("--tiny", "--fault", "submit-504=1")
    folder = tmp_path / "answered"
    folder.mkdir()
    write_jobs(folder / "jobs.jsonl", 1)
    run_command(*RESOLVE_RUN_COMMAND, "--gateway", simulator.gateway_url, cwd=folder)
    assert "      the answer was: <html>" in run_command("resolve", "out", cwd=folder).stdout
    (job,) = json.loads(run_command("resolve", "out", "--json", cwd=folder).stdout)["ambiguous"]
    assert job["answer"].startswith("<html>")


def test_jobs_that_timed_out(simulate: StartSimulator, tmp_path: Path) -> None:
    """A timed-out job can be abandoned or, explicitly, paid for again; resolve and retry say how."""
    simulator = simulate("--tiny", "--latency", "fixed:60")
    folder = tmp_path / "timed out"
    folder.mkdir()
    write_jobs(folder / "jobs.jsonl", 2)
    command = (*RESOLVE_RUN_COMMAND, "--gateway", simulator.gateway_url, "--job-timeout", "1")
    assert "2 timed out" in run_command(*command, cwd=folder).stdout
    for action in (["--resubmit"], ["--adopt"]):
        job = "00001" if action == ["--resubmit"] else "00001=a"
        done = run_command("resolve", "out", *action, job, cwd=folder)
        assert done.returncode == 2
        assert "the job is not ambiguous but timed_out" in done.stderr
        assert "--abandon" in done.stderr
    assert run_command("resolve", "out", "--abandon", "00001", cwd=folder).stdout.startswith("1 abandoned")
    assert statuses_by_id(folder) == {"00001": "cancelled", "00002": "timed_out"}

    retry = ("retry", "out", "00002", "--yes", "--gateway", simulator.gateway_url, "--job-timeout", "1")
    refused = run_command(*retry, cwd=folder)
    assert refused.returncode == 2
    assert "it timed out, and its image may still arrive" in refused.stderr
    assert "--status timed_out" in refused.stderr
    assert simulator.admin_request("/totals")["charged"] == 2
    assert run_command(*retry, "--status", "timed_out", cwd=folder).returncode == 1
    assert simulator.admin_request("/totals")["charged"] == 3
    failed = run_command(*retry, "--status", "failed", cwd=folder)
    assert failed.returncode == 2


def test_resolve_without_a_run(tmp_path: Path) -> None:
    """A directory without a ledger is refused, and stays empty."""
    (tmp_path / "empty").mkdir()
    for arguments in ([], ["--resubmit"]):
        done = run_command("resolve", "empty", *arguments, cwd=tmp_path)
        assert done.returncode == 2
        assert "not a run directory" in done.stderr
    assert list((tmp_path / "empty").iterdir()) == []
