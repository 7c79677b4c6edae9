"""The Celery task of the examples, in a worker of this process with a broker in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from krea_batch.testing import SimulatorSettings, SimulatorThread

pytest.importorskip("celery", reason="Celery is not installed (pip install celery), so its example is not run")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of Celery
def test_a_task_that_is_delivered_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each task gets its image. The same task in the next worker gets the same one, and nothing is charged again."""
    from celery.contrib.testing.worker import start_worker

    from examples.celery_tasks import app, engine_thread, generate_image

    monkeypatch.setenv("KREA_OUT", str(tmp_path / "out"))
    monkeypatch.setenv("PIXAZO_API_KEY", "test-key")

    def generate_all() -> list[dict[str, object]]:
        with start_worker(app, pool="threads", concurrency=10, perform_ping_check=False, shutdown_timeout=60):
            results = [
                generate_image.apply_async([f"image {n}"], {"seed": n}, task_id=f"task-{n}") for n in range(10)
            ]
            outcomes = [result.get(timeout=60) for result in results]
        engine_thread.close()
        return outcomes

    with SimulatorThread(SimulatorSettings(tiny=True, latency="uniform:0.2,0.5")) as simulator:
        monkeypatch.setenv("KREA_GATEWAY", simulator.gateway_url)
        first = generate_all()
        assert {outcome["status"] for outcome in first} == {"succeeded"}
        assert generate_all() == first
    assert sorted(simulator.charged.values()) == [f"image {n}" for n in range(10)]
