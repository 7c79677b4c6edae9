"""A gateway that sends JPEGs: the images are stored once, under their type, and every command can use them."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from tests.processes import RunningSimulator, StartSimulator, result_rows, run_command, write_jobs

pytestmark = pytest.mark.slow

RUN_OPTIONS = ("run", "jobs.jsonl", "--out", "out", "--poll-interval", "0.1", "--rate", "100/s")


@pytest.fixture
def gateway(simulate: StartSimulator) -> RunningSimulator:
    return simulate("--tiny", "--latency", "fixed:0.1", "--fault", "cdn-jpeg=1")


def test_jpegs_instead_of_pngs(gateway: RunningSimulator, tmp_path: Path) -> None:
    """They are downloaded once, named in the summary, and correct for `verify`; `export` keeps their type."""
    write_jobs(tmp_path / "jobs.jsonl", 3)
    done = run_command(*RUN_OPTIONS, "--gateway", gateway.gateway_url, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Not a valid PNG, but stored: the image of job 0000" in done.stderr
    assert "3 images not a valid PNG; see `defect` in the results" in done.stdout
    files = [file for row in result_rows(tmp_path / "out") for file in row["files"]]
    assert sorted(file["path"] for file in files) == [f"images/0000{n}.jpg" for n in (1, 2, 3)]
    for file in files:
        with Image.open(tmp_path / "out" / file["path"]) as image:
            assert (image.format, image.size) == ("JPEG", (file["width"], file["height"]))
        assert file["media_type"] == "image/jpeg"
    assert gateway.admin_request("/totals")["downloads"] == 3

    again = run_command(*RUN_OPTIONS, "--gateway", gateway.gateway_url, "--json", cwd=tmp_path)
    assert (again.returncode, json.loads(again.stdout)["defects"]) == (0, 0)
    assert gateway.admin_request("/totals")["downloads"] == 3
    assert "3 images, all correct" in run_command("verify", "out", cwd=tmp_path).stdout

    exported = run_command(
        "export", "out", "--format", "webdataset", "--output", "set", "--embed-metadata", cwd=tmp_path
    )
    assert "no metadata in 3 images that are not a valid PNG" in exported.stderr
    with tarfile.open(tmp_path / "set" / "shard-000000.tar") as shard:
        assert [name for name in shard.getnames() if name.endswith(".jpg")] == [f"00000000{n}.jpg" for n in (1, 2, 3)]


def test_a_damaged_jpeg_is_repaired(gateway: RunningSimulator, tmp_path: Path) -> None:
    """`verify` finds a JPEG that was changed, and `--repair` downloads it again."""
    write_jobs(tmp_path / "jobs.jsonl", 1)
    run_command(*RUN_OPTIONS, "--gateway", gateway.gateway_url, cwd=tmp_path)
    image = tmp_path / "out" / "images" / "00001.jpg"
    before = image.read_bytes()
    image.write_bytes(before[:-10])
    assert run_command("verify", "out", cwd=tmp_path).returncode == 1
    repair = run_command("verify", "out", "--repair", "--gateway", gateway.gateway_url, cwd=tmp_path)
    assert repair.returncode == 0, repair.stderr
    assert image.read_bytes() == before
