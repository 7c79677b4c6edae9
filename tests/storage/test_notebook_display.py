"""What a notebook shows for outcomes and handles, asked as IPython asks."""

from __future__ import annotations

import base64
import pickle
from pathlib import Path
from typing import Any

import msgspec
import pytest
from IPython.core.formatters import DisplayFormatter

import krea_batch
from krea_batch import Engine, ErrorInfo, Job, Outcome, State, StoredFile
from krea_batch.storage import notebook_display
from krea_batch.storage.notebook_display import show_in_notebooks
from krea_batch.testing import make_png
from tests.processes import StartSimulator


def shown(value: object) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a notebook shows for a value: data and metadata by media type."""
    data, metadata = DisplayFormatter().format(value)  # type: ignore[no-untyped-call]
    return data, metadata


def make_outcome(run_dir: Path, **fields: Any) -> Outcome:
    """Return the outcome of a job with one image, which is in the run directory."""
    image = make_png()
    (run_dir / "fox.png").write_bytes(image)
    stored = StoredFile("fox.png", len(image), "", 2000, 1000, "image/png")
    outcome = Outcome(
        **{
            "id": "fox", "status": State.SUCCEEDED, "request_id": "r", "files": (stored,), "error": None,
            "request": {"prompt": "a fox"}, "metadata": {}, "polls": 1, "attempts": 1, "submitted_at": None,
            "accepted_at": None, "finished_at": None, "stored_at": None,
        } | fields
    )  # fmt: skip
    show_in_notebooks(outcome, run_dir)
    return outcome


def with_file(outcome: Outcome, run_dir: Path, **fields: Any) -> Outcome:
    """Return an equal outcome whose file differs in these fields."""
    changed = msgspec.structs.replace(outcome, files=(msgspec.structs.replace(outcome.files[0], **fields),))
    show_in_notebooks(changed, run_dir)
    return changed


def test_the_image_of_a_run(simulate: StartSimulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The outcome of `krea_batch.run` shows the stored bytes, also after a change of the working directory."""
    monkeypatch.chdir(tmp_path)
    gateway = simulate("--tiny", "--latency", "fixed:0.1").gateway_url
    for _ in range(2):  # the second time, the outcome comes from the ledger
        (outcome,) = krea_batch.run(["a fox"], out="out", api_key="none", gateway=gateway, poll_interval_s=0.1)
        monkeypatch.chdir("/")
        data, metadata = shown(outcome)
        monkeypatch.chdir(tmp_path)
        assert base64.b64decode(data["image/png"]) == (tmp_path / "out" / outcome.files[0].path).read_bytes()
        assert data["text/plain"] == repr(outcome)
        assert metadata["image/png"] == {"width": outcome.files[0].width}


@pytest.mark.anyio
async def test_a_handle(simulate: StartSimulator, tmp_path: Path) -> None:
    """A handle shows its state while the job is in flight, and then the image."""
    gateway = simulate("--tiny", "--latency", "fixed:0.5").gateway_url
    async with Engine(tmp_path / "out", api_key="none", gateway=gateway, poll_interval_s=0.1) as engine:
        handle = await engine.submit(Job(prompt="a fox"))
        assert shown(handle)[0] == {"text/plain": repr(handle)}
        outcome = await handle
    assert shown(handle) == shown(outcome)
    assert "image/png" in shown(handle)[0]


def test_a_wide_image_is_scaled(tmp_path: Path) -> None:
    """The browser scales an image that is wider than the notebook; its bytes are complete."""
    data, metadata = shown(make_outcome(tmp_path))
    assert base64.b64decode(data["image/png"]) == make_png()
    assert metadata["image/png"] == {"width": notebook_display.MAX_WIDTH}


def test_a_job_that_failed(tmp_path: Path) -> None:
    """It shows in one line why, without the control characters of a message, and no HTML."""
    error = ErrorInfo("content", "not allowed: <b>\x1b[2J")
    data, _ = shown(make_outcome(tmp_path, status=State.FAILED, files=(), error=error))
    assert data == {"text/plain": "fox: failed: not allowed: <b>\\x1b[2J (content)"}


@pytest.mark.parametrize(
    "fields",
    [
        {"path": "moved.png"},
        {"path": "s3://bucket/fox.png"},
        {"path": "database:\0"},
        {"bytes": 1},
        {"bytes": notebook_display.MAX_EMBEDDED_BYTES + 1},
        {"media_type": "image/avif"},
    ],
    ids=str,
)
def test_an_image_that_cannot_be_shown(tmp_path: Path, fields: dict[str, Any]) -> None:
    """It was moved, is in an object store, has changed, is too large or of another type: the outcome is a text."""
    outcome = with_file(make_outcome(tmp_path), tmp_path, **fields)
    assert shown(outcome)[0] == {"text/plain": repr(outcome)}


def test_the_display_is_no_field(tmp_path: Path) -> None:
    """The directory of the run is not compared, encoded or pickled; without it, an outcome shows its text."""
    outcome = make_outcome(tmp_path)
    restored = pickle.loads(pickle.dumps(outcome))  # noqa: S301 - our own
    assert restored == outcome == msgspec.json.decode(msgspec.json.encode(outcome), type=Outcome)
    assert str(tmp_path) not in msgspec.json.encode(outcome).decode() + repr(outcome)
    assert shown(restored)[0] == {"text/plain": repr(outcome)}
