"""The queue worker of the examples, with a scripted gateway and killed in virtual time."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.queue_worker import Queue, process_queue
from krea_batch import Engine
from krea_batch.testing import ScriptedGateway, run_until_killed, run_virtual

PROMPTS = [f"image {n}" for n in range(8)]


async def process(folder: Path, gateway: ScriptedGateway) -> list[tuple[str, str]]:
    """Process the queue of a folder until it is empty. Returns the status and the result of each message."""
    queue = Queue(folder / "queue.db")
    async with Engine(folder / "out", gateway_client=gateway, rate="2/s") as engine:
        await process_queue(queue, engine, once=True)
    found: list[tuple[str, str]] = queue._sql.execute("SELECT status, result FROM messages ORDER BY id").fetchall()
    return found


@pytest.mark.parametrize("kill_after_s", [0.05, 1.25, 2.5, 6.0, 8.0, 60.0])
def test_a_message_is_charged_once(tmp_path: Path, kill_after_s: float) -> None:
    """Whenever a worker is killed, the next one completes the queue, and no message is charged twice.

    Only the message whose POST was pending may end without an image.
    """
    folder, gateway = tmp_path / "worker", ScriptedGateway()
    folder.mkdir()
    queue = Queue(folder / "queue.db")
    for prompt in PROMPTS:
        queue.put(prompt)
    run_until_killed(process(folder, gateway), kill_after_s, folder)
    results = run_virtual(process(folder, gateway))
    assert sorted(gateway.charged.values()) == PROMPTS
    succeeded = [result for status, result in results if status == "succeeded"]
    assert [status for status, _ in results if status != "succeeded"] in ([], ["ambiguous"])
    assert len(succeeded) >= len(PROMPTS) - 1
    assert all((folder / "out" / path).exists() for path in succeeded)
