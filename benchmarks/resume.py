"""How long does a run of a million recorded jobs take until its first new submit?

    python -m benchmarks.resume                        1,000,000 jobs in the ledger and 100 new ones after them
    python -m benchmarks.resume --jobs 2000 --repeat 1     the short form

The real command resumes a run directory in which every recorded job has succeeded, once after a run that ended
normally and once after a run that was killed. Measured are the time from the start of the process to the first POST
that the simulator sees, and the peak memory of the process. The simulator runs in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sqlite3
import statistics
import subprocess
import tempfile
import time
import urllib.request
from contextlib import closing
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import msgspec

from benchmarks.report import report_goal
from benchmarks.throughput import LimitCase, simulator_of
from krea_batch import Job
from krea_batch.gateway import wire
from krea_batch.ledger.sqlite import SqliteLedger
from krea_batch.settings import Settings
from krea_batch.sources import JobFiles
from krea_batch.storage.results_file import encode_row
from krea_batch.storage.results_rows import mark_results
from tests.processes import COMMAND

NEW_JOBS = 100
ENDED_AT = 1_700_000_000.0
API_KEY = "benchmark"
RESUME_CASE = LimitCase("resume", "none", 1000, "1000/s", NEW_JOBS)


class ResumeTimes(NamedTuple):
    """Seconds from the start to the first new submit and to the end, and peak memory in MiB."""

    first_s: float
    total_s: float
    peak_mib: float


def prompts(count: int) -> list[str]:
    """Return realistic lines of about 140 bytes."""
    return [
        f"a photograph of {n} red bicycles leaning on a wall, golden hour, 35 mm, film grain" for n in range(count)
    ]


def write_jobs(path: Path, count: int) -> None:
    with path.open("wb") as file:
        for n, prompt in enumerate(prompts(count)):
            file.write(msgspec.json.encode({"prompt": prompt, "seed": n, "metadata": {"row": n}}) + b"\n")


def create_run(jobs_file: Path, out: Path, gateway: str, count: int, *, in_order: bool) -> None:
    """Make the run directory of a run that has stored the first `count` jobs of the file."""
    (out / "images").mkdir(parents=True)
    with closing(SqliteLedger.open(out / "ledger.db")) as store:
        run = store.transaction(lambda store: store.start_run(gateway, version("krea-batch"), ENDED_AT))
    checkpoint = insert_jobs(jobs_file, out / "ledger.db", count)
    store = SqliteLedger.open(out / "ledger.db")
    with (out / "results.jsonl").open("wb") as results:
        after_n: int | None = 0
        while after_n is not None:
            outcomes, after_n = store.outcomes(after_n, 10_000)
            results.writelines(map(encode_row, outcomes))
    mark = mark_results(out / "results.jsonl")
    assert mark is not None
    store.transaction(lambda store: store.set_results_mark(mark))  # a run does so each second
    if checkpoint:
        store.transaction(lambda store: store.save_checkpoint(checkpoint))
    if in_order:
        size_bytes = (out / "results.jsonl").stat().st_size
        store.transaction(lambda store: store.set_results_size(size_bytes))
        store.transaction(lambda store: store.end_run(run, ENDED_AT))
    store.close()


def insert_jobs(jobs_file: Path, ledger: Path, count: int) -> bytes | None:
    """Insert the first `count` jobs of the file into a ledger. Return the checkpoint after them."""
    checkpoint = None
    with closing(sqlite3.connect(ledger)) as sql, JobFiles([str(jobs_file)]) as files:
        files.check()
        jobs = islice(iter(files), count)
        while batch := list(islice(jobs, 10_000)):
            checkpoint = files.checkpoint() or checkpoint
            sql.executemany(
                "INSERT INTO jobs (job_id, state, disposition, body, fingerprint, metadata, request_id, media, files,"
                " attempts, polls, submitted_at, accepted_at, finished_at, stored_at)"
                " VALUES (?, 'succeeded', 'succeeded', ?, ?, ?, ?, ?, ?, 1, 2, ?, ?, ?, ?)",
                map(_succeeded_row, batch),
            )
            sql.commit()
        sql.execute(
            "INSERT INTO submissions (submission_no, job_no, sent_at, result, request_id)"
            " SELECT job_no, job_no, submitted_at, 'accepted', request_id FROM jobs"
        )
        sql.commit()
    return checkpoint[1] if checkpoint else None


def _succeeded_row(job: Job) -> tuple[object, ...]:
    body = wire.encode_body(job)
    request_id = f"krea-2-large-text-to-image_{job.id}"
    media = {"media_urls": [f"https://cdn.example/{request_id}/1.png"], "media_type": "image/png", "took_s": 12.5}
    stored = {
        "path": f"images/{job.id}.png", "bytes": 1_500_000, "sha256": "0" * 64, "width": 1024, "height": 1024,
        "media_type": "image/png",
    }  # fmt: skip
    files = msgspec.json.encode([stored]).decode()
    return (
        job.id, body, wire.fingerprint_of(body), msgspec.json.encode(job.metadata), request_id,
        msgspec.json.encode(media).decode(), files, ENDED_AT, ENDED_AT + 1, ENDED_AT + 13, ENDED_AT + 15,
    )  # fmt: skip


def measure(jobs_file: Path, count: int, folder: Path, *, in_order: bool) -> ResumeTimes:
    with simulator_of(RESUME_CASE) as simulator:
        gateway = simulator.gateway_url
        out = folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        origin = Settings.from_options(out, gateway=gateway).origin
        create_run(jobs_file, out, origin, count, in_order=in_order)
        options = ["--out", str(out), "--gateway", gateway, "--rate", RESUME_CASE.rate, "--quiet"]
        submit_probe(gateway)
        started_s = time.monotonic()
        process = subprocess.Popen(
            [*COMMAND, "run", str(jobs_file), *options, "--poll-interval", "0.5"],
            env=os.environ | {"PIXAZO_API_KEY": API_KEY},
        )
        _, status, usage = os.wait4(process.pid, 0)
        all_s = time.monotonic() - started_s
        probe, *posts = simulator.admin_request("/ledger")["posts"]
    assert os.waitstatus_to_exitcode(status) == 0
    assert sum(post["charged"] for post in posts) == NEW_JOBS, len(posts)
    return ResumeTimes(posts[0]["at_s"] - probe["at_s"], all_s, usage.ru_maxrss / 1024)


def submit_probe(gateway: str) -> None:
    """Send a POST at the start, because the simulator has a clock of its own."""
    headers = {wire.KEY_HEADER: API_KEY} | wire.SUBMIT_HEADERS
    body = wire.encode_body(Job(prompt="now"))
    urllib.request.urlopen(urllib.request.Request(gateway + wire.SUBMIT_PATH, body, headers)).close()  # noqa: S310


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    print("| recorded jobs | the last run | first new submit after | end after | peak memory |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jobs_file = folder / "jobs.jsonl"
        write_jobs(jobs_file, options.jobs + NEW_JOBS)
        slowest_s = 0.0
        for in_order in (True, False):
            runs = [measure(jobs_file, options.jobs, folder, in_order=in_order) for _ in range(options.repeat)]
            median = ResumeTimes(*(statistics.median(figures) for figures in zip(*runs, strict=True)))
            previous_end = "ended normally" if in_order else "was killed"
            slowest_s = max(slowest_s, median.first_s)
            times = f"{median.first_s:.2f} s | {median.total_s:.1f} s"
            print(f"| {options.jobs:,} | {previous_end} | {times} | {median.peak_mib:.0f} MiB |", flush=True)
    label = f"resume of {options.jobs:,} jobs: first new submit after"
    report_goal(label, "≤ 5 s", f"{slowest_s:.1f} s", met=slowest_s <= 5)


if __name__ == "__main__":
    main()
