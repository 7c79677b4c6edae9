"""The script made of the example in the API document: POST, poll, download, and from the start if that fails.

It knows no request_id of an earlier run: a job without an image is submitted.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from krea_batch.benchmark.scripts.requests_client import MAX_THREADS, RequestsClient, ScriptRun, exit_code


def main() -> int:
    run = ScriptRun.read()
    client = RequestsClient(run.gateway, per_s=run.per_s, poll_interval_s=run.poll_interval_s)

    def generate(number: int) -> None:
        image = Path(run.out) / f"{number:06d}.png"
        if not image.exists():
            request_id = client.submit(f"image {number}")
            client.download(client.wait_for_url(request_id), image)

    with ThreadPoolExecutor(MAX_THREADS) as pool:
        return exit_code([pool.submit(generate, number) for number in range(run.jobs)])


if __name__ == "__main__":
    sys.exit(main())
