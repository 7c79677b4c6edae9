"""The lines that a run prints above its progress."""

from __future__ import annotations

import asyncio

import pytest

from krea_batch.cli.ui.progress import EventAnnouncer
from krea_batch.events import Event, RunStopping, SubmitsPaused


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (SubmitsPaused(8.2, 5.0, "Too Many Requests"), "Paused: Too Many Requests. Resuming in 8 s."),
        (SubmitsPaused(8.2, 5.0, "The limit is exceeded."), "Paused: The limit is exceeded. Resuming in 8 s."),
        (RunStopping("the disk is full"), "Stopping: the disk is full. Waiting for jobs in flight to finish."),
        (RunStopping("Out of credits."), "Stopping: Out of credits. Waiting for jobs in flight to finish."),
    ],
)
def test_reasons(event: Event, line: str) -> None:
    """A reason of the gateway may be a sentence or a part of one."""
    lines: list[str] = []

    async def announce() -> None:
        EventAnnouncer(lines.append).on_event(event)

    asyncio.run(announce())
    assert lines == [line]


def test_a_short_pause_is_not_announced() -> None:
    """Pauses of less than five seconds are normal."""
    lines: list[str] = []
    EventAnnouncer(lines.append).on_event(SubmitsPaused(4.9, 5.0, "Too Many Requests"))
    assert lines == []
