"""Make runs directly in the ledger, show them with `krea-batch view` in its own process, and read the page.

The image of a job has one colour, `colour(job_no)`, and is `width_px(job_no)` wide, so that a test can check that a
thumbnail or an original belongs to its job.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

from msgspec import Struct
from PIL import Image
from playwright.sync_api import ElementHandle, Locator, Page

from krea_batch.jobs import ErrorInfo, State, StoredFile
from krea_batch.ledger.sqlite import SqliteLedger
from krea_batch.rules.verdicts import Finished
from tests.processes import COMMAND, PROCESS_TIMEOUT_S, clean_environment

IMAGE_VARIANTS = 27  # images that differ in colour and width
FAILED_ERROR = ErrorInfo("failed", "The model could not make this image.")
REJECTED_ERROR = ErrorInfo("http_400", "prompt: too long")
AMBIGUOUS_ERROR = ErrorInfo("ambiguous", "the connection was cut")
ERRORED_ERROR = ErrorInfo("error", "The worker of this job was lost.")


class SeedJob(Struct, frozen=True, kw_only=True):
    """A job to insert into a ledger in the state `status`. `fields` are fields of its request."""

    id: str
    prompt: str = "an image"
    status: State = State.SUCCEEDED
    files: int = 1
    prefix: str = "images/"
    metadata: dict[str, Any] = {}
    fields: dict[str, Any] = {}
    error_message: str = FAILED_ERROR.message

    def body(self) -> bytes:
        """Return the body of its request."""
        lists: dict[str, Any] = {"image_style_references": [], "styles": [], "moodboards": []}
        defaults = {"prompt": self.prompt, "aspect_ratio": "1:1", "creativity": "medium"}
        return json.dumps(defaults | lists | self.fields).encode()

    def file_names(self) -> list[str]:
        """Return the paths of its files in the run directory."""
        return [f"{self.prefix}{self.id}{f'-{n}' if n > 1 else ''}.png" for n in range(1, self.files + 1)]


def make_run(out: Path, *jobs: SeedJob, gateway: str | None = "http://127.0.0.1:9") -> Path:
    """Append jobs to a run, with their images; create the run directory if there is none. Returns `out`.

    `gateway` is recorded as the gateway of the first run; with None, no run is recorded.
    """
    (out / "images").mkdir(parents=True, exist_ok=True)
    store = SqliteLedger.open(out / "ledger.db")
    try:
        if gateway and store.gateway() is None:
            store.start_run(gateway, "test", 1.0)
        for job in jobs:
            store.transaction(partial(_insert_job, out=out, job=job))
    finally:
        store.close()
    return out


def sweep_jobs(name: str, prompt: str, metadata: dict[str, Any]) -> list[SeedJob]:
    """Return the jobs of a sweep of four creativities and two seeds."""
    return [
        SeedJob(
            id=f"{name}-creativity={creativity}-seed={seed}",
            prompt=prompt,
            metadata=metadata,
            fields={"creativity": creativity, "seed": seed},
        )
        for creativity in ("raw", "low", "medium", "high")
        for seed in (1, 2)
    ]


def request_id(job_no: int) -> str:
    return f"krea-2-large-text-to-image_{job_no:08d}"


def colour(job_no: int, file_index: int = 1) -> tuple[int, int, int]:
    """Return the colour of an image of a job; `file_index` counts from 1."""
    variant = (job_no + file_index - 1) % IMAGE_VARIANTS
    return (40 + 80 * (variant % 3), 40 + 80 * (variant // 3 % 3), 40 + 80 * (variant // 9))


def width_px(job_no: int, file_index: int = 1) -> int:
    """Return the width of an image of a job. It is greater than that of a thumbnail."""
    return 300 + (job_no + file_index - 1) % IMAGE_VARIANTS


def _insert_job(store: SqliteLedger, *, out: Path, job: SeedJob) -> None:
    body, metadata = job.body(), json.dumps(job.metadata).encode()
    if job.status is State.PENDING:
        store.enqueue(job.id, body, sha256(body).digest(), metadata, "")
        return
    job_no = store.record_intent(job.id, body, sha256(body).digest(), metadata, 1_800_000_000.0, "")
    at = 1_800_000_000.0 + job_no
    if job.status is State.REJECTED:
        store.mark_rejected(job_no, REJECTED_ERROR, at)
    elif job.status is State.AMBIGUOUS:
        store.mark_ambiguous(job_no, AMBIGUOUS_ERROR, at)
    elif job.status is not State.SUBMITTING:
        store.mark_accepted(job_no, request_id(job_no), at)
        _insert_outcome(store, job_no, out, job, at)


def _insert_outcome(store: SqliteLedger, job_no: int, out: Path, job: SeedJob, at: float) -> None:
    if job.status is State.FAILED:
        store.mark_failed(job_no, ErrorInfo(FAILED_ERROR.kind, job.error_message), at, 2)
    elif job.status is State.ERRORED:
        store.mark_errored(job_no, ERRORED_ERROR, at, 2)
    elif job.status is State.SUCCEEDED:
        store.mark_finished(job_no, Finished(("https://cdn.example/1.png",), "image/png"), at, 3)
        store.mark_stored(
            job_no,
            [_write_image(out, name, job_no, file_index) for file_index, name in enumerate(job.file_names(), 1)],
            at + 1,
        )


def _write_image(out: Path, name: str, job_no: int, file_index: int) -> StoredFile:
    data = _variant_png((job_no + file_index - 1) % IMAGE_VARIANTS)
    if "://" not in name:
        (out / name).write_bytes(data)
    return StoredFile(name, len(data), sha256(data).hexdigest(), width_px(job_no, file_index), 200, "image/png")


@lru_cache
def _variant_png(variant: int) -> bytes:
    file = BytesIO()
    Image.new("RGB", (width_px(variant), 200), colour(variant)).save(file, "PNG")
    return file.getvalue()


CONNECTION_ERRORS = (
    "ERR_CONNECTION_REFUSED",
    "ERR_CONNECTION_RESET",
    "ERR_CONNECTION_CLOSED",
    "ERR_SOCKET_NOT_CONNECTED",
    "ERR_INCOMPLETE_CHUNKED_ENCODING",
    "ERR_EMPTY_RESPONSE",
)
"""What a page logs when its server stops. Which one it is depends on whether the page reconnects before, during or
after that, so a test that stops the server of an open page allows them all."""


class RunningView:
    """`krea-batch view` in its own process. `url` is the printed one, which has the secret."""

    def __init__(
        self,
        out: Path,
        *,
        port: int = 0,
        key: str = "test-key",
        command: Sequence[str] = COMMAND,
        cwd: Path | None = None,
        **env: str,
    ) -> None:
        self.process = subprocess.Popen(
            [*command, "view", str(out), "--no-open", "--port", str(port)],
            cwd=cwd,
            env=clean_environment(PIXAZO_API_KEY=key, **env),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        url_match = re.search(r"http://127\.0\.0\.1:(\d+)/\?token=\S+", self.process.stdout.readline())
        assert url_match is not None, self.process.communicate(timeout=PROCESS_TIMEOUT_S)[1]
        self.url, self.port = url_match[0], int(url_match[1])

    def close(self) -> tuple[int, str]:
        """Send SIGINT, as Ctrl-C does. Returns the exit code, and the text on standard error."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        _, stderr = self.process.communicate(timeout=PROCESS_TIMEOUT_S)
        return self.process.returncode, stderr


StartView = Callable[..., RunningView]
"""The fixture `start_view`: show a run in its own process."""

OpenPage = Callable[..., Page]
"""The fixture `open_page`: open a page, and wait until it shows its jobs."""


def tile(page: Page, job_id: str) -> Locator:
    """Return the tile of a job."""
    return page.locator(f".tile[data-id={json.dumps(job_id, ensure_ascii=False)}]")


def visible_ids(page: Page) -> list[str]:
    """Return the job ids of the tiles that are in the page now."""
    return page.locator(".tile").evaluate_all("all => all.map(tile => tile.dataset.id)")  # type: ignore[no-any-return]


def rendered_colour(image: Locator | ElementHandle) -> tuple[int, int, int]:
    """Return the colour in the middle of an image, as the browser has drawn it."""
    red, green, blue = image.evaluate(
        """async (image) => {
            await image.decode();
            const canvas = document.createElement("canvas");
            canvas.width = canvas.height = 1;
            const context = canvas.getContext("2d");
            context.drawImage(image, image.naturalWidth / 2, image.naturalHeight / 2, 1, 1, 0, 0, 1, 1);
            return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
        }"""
    )
    return red, green, blue


def is_colour(rendered: tuple[int, int, int], job_no: int) -> bool:
    """Return whether it is the colour of a job's image, within what the compression of a thumbnail changes."""
    return all(abs(one - other) <= 12 for one, other in zip(rendered, colour(job_no), strict=True))


def dialog_details(page: Page, dialog: str = "#lightbox") -> dict[str, str]:
    """Return the names and values that an open dialog shows of a job."""
    pairs: list[tuple[str, str]] = page.locator(f"{dialog} dl").first.evaluate(
        "list => [...list.querySelectorAll('dt')].map(dt => [dt.textContent, dt.nextElementSibling.textContent])"
    )
    return dict(reversed(pairs))  # the first of two with the same name
