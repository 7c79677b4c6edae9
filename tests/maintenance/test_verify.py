"""Every image is held against the ledger; what is damaged is fetched again, and nothing is paid."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from krea_batch.storage.run_dir import RunDir
from tests.processes import StartSimulator, run_command, write_jobs

pytestmark = pytest.mark.slow


@pytest.fixture
def out(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be damaged."""
    shutil.copytree(finished_run, tmp_path / "out")
    return tmp_path / "out"


def damage(out: Path) -> None:
    """One image is gone, one cut, one another; one is well."""
    (out / "images" / "job.0.png").unlink()
    data = (out / "images" / "job.1.png").read_bytes()
    (out / "images" / "job.1.png").write_bytes(data[:-20])
    shutil.copy(out / "images" / "job.3.png", out / "images" / "job.2.png")


def run_verify(out: Path, *options: str, **environment: Any) -> tuple[int, dict[str, Any], str]:
    done = run_command("verify", out, "--json", *options, cwd=out.parent, **environment)
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr


def accepted_submissions(out: Path) -> int:
    """How many POSTs the run's simulator has accepted."""
    return len((out / "simulated.jsonl").read_bytes().splitlines())


def test_all_is_well(out: Path) -> None:
    """Nothing to tell, exit code 0, and no key is needed."""
    assert run_verify(out, key="")[:2] == (0, {"images": 4, "faults": 0, "repaired": 0, "which": []})
    done = run_command("verify", out, cwd=out.parent)
    assert (done.returncode, done.stdout, done.stderr) == (0, "4 images, all as recorded\n", "")


def test_mismatches_are_listed(out: Path) -> None:
    """Gone, cut and swapped are each told; nothing is changed."""
    damage(out)
    code, report, _ = run_verify(out)
    assert code == 1
    gone, cut, replaced = (fault["what"] for fault in report["which"])
    assert (gone, cut) == ("it is gone", "it is not whole (the image is cut short)")
    assert replaced.startswith(("it has", "it is another image"))
    assert not (out / "images" / "job.0.png").exists()


def test_repaired(out: Path, finished_run: Path) -> None:
    """Each comes back byte for byte, without a POST, and the next look finds all well."""
    damage(out)
    before = accepted_submissions(out)
    code, report, said = run_verify(out, "--repair", "--simulate")
    assert (code, report["faults"], report["repaired"]) == (0, 3, 3), said
    assert accepted_submissions(out) == before
    for path in (finished_run / "images").iterdir():
        assert (out / "images" / path.name).read_bytes() == path.read_bytes()
    assert run_verify(out)[0] == 0
    assert not list((out / "images").glob(".*"))


def test_over_a_gateway(simulate: StartSimulator, tmp_path: Path) -> None:
    """Against a gateway of its own: polls and downloads, and not one POST."""
    gateway = simulate("--latency=fixed:0.1")
    write_jobs(tmp_path / "jobs.jsonl", 2)
    run = ("run", "jobs.jsonl", "--out", "out", "--gateway", gateway.gateway_url, "--poll-interval=0.1", "-q")
    assert run_command(*run, cwd=tmp_path).returncode == 0
    (tmp_path / "out" / "images" / "00001.png").unlink()
    before = len(gateway.admin_request("/ledger")["posts"])
    code, report, said = run_verify(tmp_path / "out", "--repair", "--gateway", gateway.gateway_url)
    assert (code, report["repaired"]) == (0, 1), said
    assert len(gateway.admin_request("/ledger")["posts"]) == before == 2
    assert run_verify(tmp_path / "out")[0] == 0


def test_another_gateway(out: Path) -> None:
    """Request_ids of one gateway are not asked of another."""
    damage(out)
    done = run_command("verify", out, "--repair", cwd=out.parent)
    assert done.returncode == 2
    assert (
        "its jobs were submitted to http://127.0.0.1, not to https://gateway.pixazo.ai: add --simulate" in done.stderr
    )


def test_no_key(out: Path) -> None:
    """Only --repair needs one, and says how to give it."""
    damage(out)
    done = run_command("verify", out, "--repair", cwd=out.parent, key="")
    assert done.returncode == 2
    assert "there is no API key" in done.stderr


def test_images_the_gateway_no_longer_has(out: Path) -> None:
    """An image that cannot be had again is named, and what is there stays."""
    damage(out)
    (out / "simulated.jsonl").write_text("")
    cut = (out / "images" / "job.1.png").read_bytes()
    code, report, _ = run_verify(out, "--repair", "--simulate")
    assert (code, report["repaired"]) == (1, 0)
    assert (out / "images" / "job.1.png").read_bytes() == cut


def test_a_run_in_progress(out: Path) -> None:
    """Another process's run may be looked at, and not be repaired."""
    damage(out)
    folder = RunDir(out)
    folder.lock()
    try:
        assert run_verify(out)[0] == 1
        done = run_command("verify", out, "--repair", "--simulate", cwd=out.parent)
    finally:
        folder.unlock()
    assert done.returncode == 2
    assert "another krea-batch is working in it" in done.stderr
