"""Makes thumbnails during a run, in a child process of low priority.

Pillow decodes bytes that come from other servers, so it does that in a process without the API key, whose end or
memory the run does not notice. The run never waits for it: if its queue is full, images are left out, and `view` and
`report` make their thumbnails later.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from krea_batch.engine.child_process import OWN_SESSION, child_environment, python_command
from krea_batch.events import Event, JobEnded
from krea_batch.gallery.thumbnail_files import LocalImage, local_image
from krea_batch.storage.operating_system import lower_priority, refuse_to_wait

MAX_WAIT_S = 2.0  # chosen: for the last images, after the run; the others are made by `view` and `report`
MAX_LINE_BYTES = getattr(select, "PIPE_BUF", 512)  # pipe(7): up to this size, all of a line is written or nothing

log = logging.getLogger("krea_batch")


class ThumbnailMaker:
    """A listener that makes a thumbnail of the first image of each job. A context manager.

    The queue of the child process is the buffer of a pipe: 64 KiB on Linux, some 500 images.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._process: subprocess.Popen[bytes] | None = None
        self._queue_fd = -1
        self._is_open = find_spec("PIL") is not None

    @property
    def pid(self) -> int | None:
        """The id of the child process; None before the first image."""
        return self._process.pid if self._process else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let the child process end what is in its queue, and kill it if that takes long."""
        self._is_open = False
        process = self._process
        if process is None:
            return
        os.close(self._queue_fd)
        try:
            process.wait(MAX_WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def on_event(self, event: Event) -> None:
        """Queue the image of a job that has ended. Does not block."""
        if not (self._is_open and isinstance(event, JobEnded) and event.outcome.files):
            return
        image = local_image(self._out, event.outcome.files[0])
        line = msgspec.json.encode((event.outcome.files[0].path, image.sha256)) + b"\n" if image else b""
        if not 0 < len(line) <= MAX_LINE_BYTES:
            return
        try:
            if self._process is None:
                self._start()
            os.write(self._queue_fd, line)
        except BlockingIOError:  # the queue is full
            return
        except OSError as error:  # the child process has ended, or cannot be started
            self._is_open = False
            log.info("thumbnails_stopped error=%s", error.strerror)

    def _start(self) -> None:
        """Start the child process, which reads requests from a pipe. Raises OSError."""
        read_fd, self._queue_fd = os.pipe()
        try:
            refuse_to_wait(self._queue_fd)
            self._process = subprocess.Popen(  # noqa: S603 - this module
                python_command("krea_batch.gallery.thumbnail_maker", str(self._out.absolute())),
                stdin=read_fd,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=child_environment(with_key=False),
                **OWN_SESSION,  # Ctrl-C is for the run, which ends this process
            )
        finally:
            os.close(read_fd)
            if self._process is None:
                os.close(self._queue_fd)


def make_requested_thumbnails(out: Path) -> None:
    """Make a thumbnail for each line on standard input, until its end."""
    from krea_batch.gallery.thumbnails import RunThumbnails

    thumbnails = RunThumbnails(out)
    for line in sys.stdin.buffer:
        path, sha256 = msgspec.json.decode(line, type=tuple[str, str])
        thumbnails.get(LocalImage(out / path, sha256))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    lower_priority()
    make_requested_thumbnails(Path(sys.argv[1]))
