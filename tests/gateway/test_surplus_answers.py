"""Gateways that send one answer too many: no job gets the image or the request_id of another."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from krea_batch.gateway.client import GatewayClient
from krea_batch.gateway.url_policy import DownloadError
from krea_batch.rules.verdicts import Accepted, Ambiguous, Finished
from tests.certificates import make_certificate
from tests.gateway.test_client import RawServer, client, read
from tests.processes import result_rows, run_command, write_jobs
from tests.surplus_gateway import Kind, Place, SurplusGateway, serving

JOBS = 40
ALL_KINDS: set[Kind] = {"POST", "poll", "image"}


async def run_job(gateway: GatewayClient, surplus: SurplusGateway, prompt: str) -> bytes | None:
    """Submit, poll and fetch one job as the stages do. Return its image; None if its POST is ambiguous."""
    verdict = await gateway.submit(b'{"prompt":"%s"}' % prompt.encode())
    if isinstance(verdict, Ambiguous):
        return None
    assert isinstance(verdict, Accepted)
    assert verdict.request_id == surplus.request_ids[prompt]
    for _ in range(50):
        progress = await gateway.poll(verdict.request_id)
        if isinstance(progress, Finished):
            break
    assert isinstance(progress, Finished)
    assert verdict.request_id in progress.media_urls[0]
    for _ in range(50):
        with suppress(DownloadError):
            _, image = await read(gateway, progress.media_urls[0])
            if b"HTTP/1.1" not in image:  # else it is no PNG, and the downloader fetches it again
                return image
    raise AssertionError("no image")


@pytest.mark.parametrize("kind", ["POST", "poll", "image"])
@pytest.mark.parametrize("place", ["before", "inside", "after", "later"])
def test_jobs_keep_their_own(place: Place, kind: Kind) -> None:
    """Whatever surplus answer a POST, a poll or a download gets, each job has its own request_id and image."""
    surplus = SurplusGateway(place, {kind}, every=3 if place in ("before", "inside") else 1)
    prompts = [f"image {n}" for n in range(60)]

    async def main() -> list[bytes | None]:
        async with RawServer(surplus) as server, client(server.url) as gateway:
            surplus.url = server.url
            images = [await run_job(gateway, surplus, prompt) for prompt in prompts[:5]]
            for start in range(5, 60, 11):
                group = prompts[start : start + 11]
                images += await asyncio.gather(*(run_job(gateway, surplus, prompt) for prompt in group))
            return images

    images = asyncio.run(main())
    assert sorted(surplus.prompts) == sorted(prompts)
    assert all(image in (None, surplus.image_of(prompt)) for prompt, image in zip(prompts, images, strict=True))
    assert images.count(None) <= (30 if kind == "POST" and place in ("before", "inside") else 0)


@pytest.mark.slow
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize(
    ("place", "kinds", "every"),
    [
        ("after", ALL_KINDS, 1),
        ("later", ALL_KINDS, 1),
        ("before", {"poll", "image"}, 3),
        ("inside", {"poll", "image"}, 3),
        ("before", {"POST"}, 3),
        ("inside", {"POST"}, 3),
    ],
)
def test_a_run_through_the_command(tmp_path: Path, place: Place, kinds: set[Kind], every: int, tls: bool) -> None:
    """A run stores each job's own image or calls it ambiguous, POSTs nothing twice, and keeps to --max-charges."""
    write_jobs(tmp_path / "jobs.jsonl", JOBS)
    pem = make_certificate(tmp_path / "localhost.pem") if tls else None
    surplus = SurplusGateway(place, kinds, every=every)
    with serving(surplus, pem) as url:
        done = run_command(
            "run", "jobs.jsonl", "--out", "out", "--gateway", url, "--rate", "50/s", "--poll-interval", "0.1",
            "--max-charges", str(JOBS), "--yes", cwd=tmp_path, SSL_CERT_FILE=str(pem or ""),
        )  # fmt: skip
    rows = result_rows(tmp_path / "out")
    assert len(rows) == JOBS, done.stderr
    assert sorted(surplus.prompts) == sorted(f"image {n}" for n in range(JOBS))
    for row in rows:
        prompt = row["request"]["prompt"]
        if row["status"] == "succeeded":
            (file,) = row["files"]
            assert row["request_id"] == surplus.request_ids[prompt]
            assert (tmp_path / "out" / file["path"]).read_bytes() == surplus.image_of(prompt)
        else:
            assert (row["status"], row["files"]) == ("ambiguous", [])
    ambiguous = sum(row["status"] == "ambiguous" for row in rows)
    assert done.returncode == (1 if ambiguous else 0), done.stderr
    assert ambiguous == 0 if kinds != {"POST"} else ambiguous <= JOBS // 2
