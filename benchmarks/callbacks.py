"""How many polls do callbacks save, and what do missing callbacks cost?

    python -m benchmarks.callbacks                 1,000 jobs at 20/s in virtual time; jobs take 6 to 15 s
    python -m benchmarks.callbacks --jobs 60       the short form

The real engine runs against a scripted gateway that sends callbacks as each row describes. `lag` is the time from the
end of a job at the gateway to the poll that sees it. The benchmark fails unless each job is stored and charged once.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from random import Random
from typing import NamedTuple

from benchmarks.report import report_goal
from krea_batch import Engine, Job, Webhook
from krea_batch.testing import run_virtual
from tests.callback_gateway import CallbackGateway
from tests.engine_fixtures import ledger_states

URL = "https://my.host/krea"
MAX_POLLS, MAX_LAG_S = 1.1, 0.3
MAX_RATIO_WITHOUT_CALLBACKS = 1.02  # of polls and lag, where none arrives: what chance may make of it


class CallbackCost(NamedTuple):
    """Polls per job, and seconds of lag."""

    polls: float
    mean_s: float
    p99_s: float


def measure(jobs: int, gateway: CallbackGateway, webhook: Webhook | None) -> CallbackCost:
    async def main(out: str) -> None:
        engine = Engine(
            out, gateway_client=gateway, rate="20/s", max_in_flight=1000, webhook=webhook, random=Random(1)
        )
        gateway.app = engine.callbacks_app() if webhook else None
        async with engine:
            await engine.run(Job(prompt=f"image {index}", id=f"{index:05}") for index in range(jobs))

    with tempfile.TemporaryDirectory() as out:
        run_virtual(main(out))
        assert set(ledger_states(Path(out)).values()) == {"succeeded"}
        assert len(set(gateway.charged.values())) == len(gateway.charged) == jobs
    lags_s = gateway.lags_s
    return CallbackCost(gateway.polls_per_job, sum(lags_s) / jobs, lags_s[int(0.99 * (jobs - 1))])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=1000)
    jobs = parser.parse_args().jobs
    config = Webhook(URL)
    cases = {
        "without callbacks": (CallbackGateway(), None),
        "reliable": (CallbackGateway(), config),
        "reliable, each twice, and again 9 s late": (CallbackGateway(callback_delays_s=(0.05, 0.06, 9.0)), config),
        "one in twenty is lost": (CallbackGateway(callback_share=0.95), config),
        "half of them are lost": (CallbackGateway(callback_share=0.5), config),
        "none arrives": (CallbackGateway(callback_share=0.0), config),
    }
    print("| callbacks | polls per job | lag, mean | lag, p99 |")
    print("|---|---|---|---|")
    results: dict[str, CallbackCost] = {}
    for name, (gateway, webhook) in cases.items():
        result = results[name] = measure(jobs, gateway, webhook)
        print(f"| {name} | {result.polls:.3f} | {result.mean_s:.2f} s | {result.p99_s:.2f} s |", flush=True)
    reliable, none, without = results["reliable"], results["none arrives"], results["without callbacks"]
    reached = f"{reliable.polls:.3f}, {reliable.p99_s:.2f} s"
    met = reliable.polls <= MAX_POLLS and reliable.p99_s <= MAX_LAG_S
    report_goal("reliable callbacks: polls per job, lag", f"≤ {MAX_POLLS}, ≤ {MAX_LAG_S} s", reached, met=met)
    ratio = max(none.polls / without.polls, none.mean_s / without.mean_s)
    reached = f"{ratio:.3f} times"
    report_goal(
        "no callback arrives: polls and lag",
        "as without callbacks",
        reached,
        met=ratio <= MAX_RATIO_WITHOUT_CALLBACKS,
    )


if __name__ == "__main__":
    main()
