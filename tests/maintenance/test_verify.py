"""Test that every image is compared with the ledger, and that damaged ones are downloaded again free of charge."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from krea_batch.storage.run_dir import RunDir
from tests.processes import StartSimulator, run_command, write_jobs

pytestmark = pytest.mark.slow


@pytest.fixture
def out(finished_run: Path, tmp_path: Path) -> Path:
    """Return a copy of the finished run that a test may damage."""
    shutil.copytree(finished_run, tmp_path / "out")
    return tmp_path / "out"


def damage(out: Path) -> None:
    """Delete the first image, truncate the second, and replace the third with the fourth."""
    (out / "images" / "job.0.png").unlink()
    data = (out / "images" / "job.1.png").read_bytes()
    (out / "images" / "job.1.png").write_bytes(data[:-20])
    shutil.copy(out / "images" / "job.3.png", out / "images" / "job.2.png")


def run_verify(out: Path, *options: str, **environment: Any) -> tuple[int, dict[str, Any], str]:
    """Run `verify --json`. Return the exit code, the report and standard error."""
    done = run_command("verify", out, "--json", *options, cwd=out.parent, **environment)
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr


def accepted_submissions(out: Path) -> int:
    """Return how many submits the run's simulator has accepted."""
    return len((out / "simulated.jsonl").read_bytes().splitlines())


def test_all_correct(out: Path) -> None:
    """Without mismatches the exit code is 0, and no API key is needed."""
    assert run_verify(out, key="")[:2] == (0, {"images": 4, "mismatches": 0, "repaired": 0, "details": []})
    done = run_command("verify", out, cwd=out.parent)
    assert (done.returncode, done.stdout, done.stderr) == (0, "4 images, all correct\n", "")


def test_mismatches_are_listed(out: Path) -> None:
    """A missing, a truncated and a replaced image are each reported, and no file is changed."""
    damage(out)
    code, report, _ = run_verify(out)
    assert code == 1
    missing, truncated, replaced = (mismatch["problem"] for mismatch in report["details"])
    assert (missing, truncated) == ("missing", "incomplete or damaged (the image is cut short)")
    assert re.fullmatch(r"[\d,]+ bytes instead of [\d,]+|content differs \(SHA-256 mismatch\)", replaced)
    assert not (out / "images" / "job.0.png").exists()


def test_repaired(out: Path, finished_run: Path) -> None:
    """`--repair` restores each image byte for byte without a submit, and the next check finds no mismatch."""
    damage(out)
    before = accepted_submissions(out)
    code, report, stderr = run_verify(out, "--repair", "--simulate")
    assert (code, report["mismatches"], report["repaired"]) == (0, 3, 3), stderr
    assert accepted_submissions(out) == before
    for path in (finished_run / "images").iterdir():
        assert (out / "images" / path.name).read_bytes() == path.read_bytes()
    assert run_verify(out)[0] == 0
    assert not list((out / "images").glob(".*"))


def test_repair_never_submits(simulate: StartSimulator, tmp_path: Path) -> None:
    """A repair against a separate gateway polls and downloads, and sends no POST."""
    gateway = simulate("--latency=fixed:0.1")
    write_jobs(tmp_path / "jobs.jsonl", 2)
    run = ("run", "jobs.jsonl", "--out", "out", "--gateway", gateway.gateway_url, "--poll-interval=0.1", "-q")
    assert run_command(*run, cwd=tmp_path).returncode == 0
    (tmp_path / "out" / "images" / "00001.png").unlink()
    before = len(gateway.admin_request("/ledger")["posts"])
    code, report, stderr = run_verify(tmp_path / "out", "--repair", "--gateway", gateway.gateway_url)
    assert (code, report["repaired"]) == (0, 1), stderr
    assert len(gateway.admin_request("/ledger")["posts"]) == before == 2
    assert run_verify(tmp_path / "out")[0] == 0


def test_different_gateway(out: Path) -> None:
    """Request_ids of one gateway are never polled at another."""
    damage(out)
    done = run_command("verify", out, "--repair", cwd=out.parent)
    assert done.returncode == 2
    assert (
        "the jobs were submitted to http://127.0.0.1, not to https://gateway.pixazo.ai; add --simulate" in done.stderr
    )


def test_repair_without_key(out: Path) -> None:
    """`--repair` needs an API key, and the message says how to pass one."""
    damage(out)
    done = run_command("verify", out, "--repair", cwd=out.parent, key="")
    assert done.returncode == 2
    assert "no API key; set PIXAZO_API_KEY or pass --api-key-file FILE" in done.stderr


def test_images_the_gateway_no_longer_has(out: Path) -> None:
    """An image that the gateway no longer has is reported, and the damaged file stays as it is."""
    damage(out)
    (out / "simulated.jsonl").write_text("")
    truncated = (out / "images" / "job.1.png").read_bytes()
    code, report, _ = run_verify(out, "--repair", "--simulate")
    assert (code, report["repaired"]) == (1, 0)
    assert [mismatch["id"] for mismatch in report["details"]] == ["job.0", "job.1", "job.2"]
    assert all("; 5 attempts failed: Not Found" in mismatch["problem"] for mismatch in report["details"])
    assert (out / "images" / "job.1.png").read_bytes() == truncated


def test_run_in_progress(out: Path) -> None:
    """A run that another process uses can be checked, but not repaired."""
    damage(out)
    run_dir = RunDir(out)
    run_dir.lock()
    try:
        assert run_verify(out)[0] == 1
        done = run_command("verify", out, "--repair", "--simulate", cwd=out.parent)
    finally:
        run_dir.unlock()
    assert done.returncode == 2
    assert "another krea-batch is using it" in done.stderr
