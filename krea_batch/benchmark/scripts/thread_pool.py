"""The script with threads: a pool that generates each job with requests."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from krea_batch.benchmark.scripts.requests_client import MAX_THREADS, RequestsClient, ScriptRun, exit_code


def main() -> int:
    run = ScriptRun.read()
    client = RequestsClient(run.gateway, per_s=run.per_s, poll_interval_s=run.poll_interval_s)
    out = Path(run.out)
    with ThreadPoolExecutor(MAX_THREADS) as pool:
        return exit_code([pool.submit(client.generate, f"{n:06d}", f"image {n}", out) for n in range(run.jobs)])


if __name__ == "__main__":
    sys.exit(main())
