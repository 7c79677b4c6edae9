"""A real run during an outage of the gateway: few jobs are in doubt, and the run goes on by itself."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path

import pytest

from tests.gateway.test_client import RawRequest, http_response
from tests.processes import result_rows, run_command, write_jobs
from tests.surplus_gateway import SurplusGateway, serving

pytestmark = pytest.mark.slow

JOBS = 100
POSTS_BEFORE = 20  # whose jobs end during the outage
OUTAGE_S = 2.0
ANSWER_S = 0.05
MAX_IN_DOUBT = 25
PAGE = b"<html>Bad gateway</html>"
OUTAGES: dict[str, bytes | None] = {
    "502": http_response(502, PAGE),
    "504": http_response(504, PAGE),
    "520": http_response(520, PAGE),
    "cut": None,
    "hang": http_response(504, PAGE),
    "404": http_response(404, PAGE),
    "405": http_response(405, PAGE),
    "415": http_response(415, PAGE),
}


class OutageServer(SurplusGateway):
    """Answers every POST with an error for a while, and polls and downloads as always.

    In the outage named "hang" no answer is sent before its end. `failed_s` has the times of the POSTs that failed,
    `pending` how many others were unanswered then.
    """

    def __init__(self, outage: str) -> None:
        super().__init__("nowhere", set())
        self._outage = outage
        self.failed_s: list[float] = []
        self.pending: list[int] = []
        self._unanswered = 0

    async def __call__(self, request: RawRequest, writer: asyncio.StreamWriter) -> None:
        now_s = asyncio.get_running_loop().time()
        is_over = bool(self.failed_s) and now_s - self.failed_s[0] > OUTAGE_S
        if request.method != "POST" or len(self.prompts) < POSTS_BEFORE or is_over:
            await super().__call__(request, writer)
            return
        self.failed_s.append(now_s)
        self.pending.append(self._unanswered)
        self._unanswered += 1
        answer = OUTAGES[self._outage]
        await asyncio.sleep(self.failed_s[0] + OUTAGE_S - now_s if self._outage == "hang" else ANSWER_S)
        self._unanswered -= 1
        if answer is None:
            writer.close()
        else:
            writer.write(answer)


@pytest.mark.parametrize("outage", OUTAGES)
def test_an_outage(tmp_path: Path, outage: str) -> None:
    """At most 25 jobs and the probes are in doubt or rejected; all others get their image, each with one charge.

    There is one probe at a time.
    """
    write_jobs(tmp_path / "jobs.jsonl", JOBS)
    gateway = OutageServer(outage)
    # While nothing is answered, as many POSTs are pending as the rate needs by Little's law. On a busy machine, where
    # each takes longer, these are more than 25 at 100/s.
    rate = "20/s" if outage == "hang" else "100/s"
    with serving(gateway) as url:
        done = run_command(
            "run", "jobs.jsonl", "--out", "out", "--gateway", url, "--rate", rate, "--poll-interval", "0.3",
            "--yes", "--json", cwd=tmp_path,
        )  # fmt: skip
    counts = Counter(row["status"] for row in result_rows(tmp_path / "out"))
    in_doubt = counts["ambiguous"] + counts["rejected"]
    assert counts == {**counts, "succeeded": JOBS - in_doubt}, done.stderr
    assert done.returncode == (1 if in_doubt else 0), done.stderr
    assert Counter(gateway.prompts).most_common(1)[0][1] == 1
    assert json.loads(done.stdout)["charges"]["charged"] == len(gateway.prompts) == JOBS - in_doubt
    assert gateway.failed_s
    is_probe = [at_s > gateway.failed_s[0] + OUTAGE_S / 2 for at_s in gateway.failed_s]
    assert is_probe.count(False) <= MAX_IN_DOUBT
    assert in_doubt <= MAX_IN_DOUBT + is_probe.count(True)
    assert [others for others, probe in zip(gateway.pending, is_probe, strict=True) if probe and others] == []
