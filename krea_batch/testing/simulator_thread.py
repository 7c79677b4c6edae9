"""Run a simulator in a thread, for tests without asyncio and for code that runs in other threads or processes.

    from krea_batch import run
    from krea_batch.testing import SimulatorSettings, SimulatorThread

    def test_every_image_is_stored(tmp_path):
        with SimulatorThread(SimulatorSettings(tiny=True, latency="fixed:0.1")) as simulator:
            options = {"gateway": simulator.gateway_url, "api_key": "any", "poll_interval_s": 0.1}
            outcomes = run(["a fox", "an owl"], out=tmp_path / "out", **options)
        assert all(outcome.succeeded for outcome in outcomes)
        assert sorted(simulator.charged.values()) == ["a fox", "an owl"]

Everything passes through HTTP and takes real time, so choose short latencies and a short `poll_interval_s`.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Self

from anyio.from_thread import BlockingPortal

from krea_batch.engine.event_loop import loop_in_thread
from krea_batch.testing.simulator import Simulator, SimulatorSettings

__all__ = ["SimulatorThread"]


class SimulatorThread:
    """A simulator on an event loop in a thread of its own, a context manager. It has started when created.

    `gateway_url` is the value for `Engine(gateway=…)` and `--gateway`; `cdn_url` and `admin_url` are the others.
    Raises SimulatorError if it cannot start.
    """

    def __init__(self, settings: SimulatorSettings | None = None) -> None:
        self._simulator = Simulator(settings)
        self._portal: BlockingPortal | None
        with ExitStack() as stack:
            self._portal = stack.enter_context(loop_in_thread())
            stack.enter_context(self._portal.wrap_async_context_manager(self._simulator))
            self._stack = stack.pop_all()
        self.gateway_url = self._simulator.gateway_url
        self.cdn_url = self._simulator.cdn_url
        self.admin_url = self._simulator.admin_url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the simulator. The counts can still be read. Closing twice has no effect."""
        self._portal = None
        self._stack.close()

    @property
    def charged(self) -> dict[str, str]:
        """Return the prompts of the jobs that are charged, by request_id. A job that ends in ERROR is refunded."""
        posts = self.ledger()["posts"]
        return {post["request_id"]: post["body"]["prompt"] for post in posts if post["charged"]}

    def ledger(self) -> dict[str, Any]:
        """Return every POST and the totals, as GET /_admin/ledger does."""
        ledger = self._simulator.ledger
        return ledger() if self._portal is None else self._portal.call(ledger)
