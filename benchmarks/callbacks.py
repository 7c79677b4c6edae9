"""What do callbacks save, and what do they cost where they stay out?

    python -m benchmarks.callbacks                 1,000 jobs at 20/s in virtual time; jobs take 6 to 15 s
    python -m benchmarks.callbacks --jobs 60       the short form

The real engine against a scripted gateway that calls as each line says. `lag` is from a job's end at the gateway to
the poll that sees it. Each run ends with every job stored and charged once, or the benchmark fails.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from random import Random
from typing import NamedTuple

from benchmarks.report import tell_goal
from krea_batch import Engine, Job, Webhook
from krea_batch.testing.scripted_gateway import states
from tests.calling_gateway import CallingGateway
from tests.virtual_time import run_virtual

URL = "https://my.host/krea"
MOST_POLLS, MOST_LAG_S = 1.1, 0.3
NO_MORE = 1.02  # of polls and lag, where none arrives: what chance may make of it


class Measured(NamedTuple):
    """Polls a job, and seconds of lag."""

    polls: float
    mean_s: float
    p99_s: float


def measure(jobs: int, gateway: CallingGateway, webhook: Webhook | None) -> Measured:
    async def main(out: str) -> None:
        engine = Engine(
            out, gateway_client=gateway, rate="20/s", max_in_flight=1000, webhook=webhook, random=Random(1)
        )
        gateway.app = engine.callbacks_app() if webhook else None
        async with engine:
            await engine.run(Job(prompt=f"picture {n}", id=f"{n:05}") for n in range(jobs))

    with tempfile.TemporaryDirectory() as out:
        run_virtual(main(out))
        assert set(states(Path(out)).values()) == {"succeeded"}
        assert len(set(gateway.charged.values())) == len(gateway.charged) == jobs
    lags_s = gateway.lags_s
    return Measured(gateway.polls_a_job, sum(lags_s) / jobs, lags_s[int(0.99 * (jobs - 1))])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=1000)
    jobs = parser.parse_args().jobs
    hook = Webhook(URL)
    cases = {
        "without callbacks": (CallingGateway(), None),
        "honest": (CallingGateway(), hook),
        "honest, twice, and once more 9 s late": (CallingGateway(after_s=(0.05, 0.06, 9.0)), hook),
        "one in twenty is lost": (CallingGateway(share=0.95), hook),
        "half of them are lost": (CallingGateway(share=0.5), hook),
        "none arrives": (CallingGateway(share=0.0), hook),
    }
    print("| callbacks | polls a job | lag, mean | lag, p99 |")
    print("|---|---|---|---|")
    found: dict[str, Measured] = {}
    for name, (gateway, webhook) in cases.items():
        one = found[name] = measure(jobs, gateway, webhook)
        print(f"| {name} | {one.polls:.3f} | {one.mean_s:.2f} s | {one.p99_s:.2f} s |", flush=True)
    honest, none, without = found["honest"], found["none arrives"], found["without callbacks"]
    reached = f"{honest.polls:.3f}, {honest.p99_s:.2f} s"
    met = honest.polls <= MOST_POLLS and honest.p99_s <= MOST_LAG_S
    tell_goal("honest callbacks: polls a job, lag", f"≤ {MOST_POLLS}, ≤ {MOST_LAG_S} s", reached, met=met)
    more = max(none.polls / without.polls, none.mean_s / without.mean_s)
    reached = f"{more:.3f} times"
    tell_goal("no callback arrives: polls and lag", "as without callbacks", reached, met=more <= NO_MORE)


if __name__ == "__main__":
    main()
