"""The commands that the page of a run starts in child processes: retry, run and export.

They are the commands that a user would type, so their checks and limits hold for the page, too. One command that
submits runs at a time.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from krea_batch.engine.child_process import INTERRUPT_SIGNALS, OWN_SESSION, child_environment, python_command
from krea_batch.ledger.rows import RunRecord

OUTPUT_LINES = 5  # chosen: a run's summary, or the end of an error message
ExportFormat = Literal["zip", "csv", "parquet"]
"""The formats of `krea-batch export` that are one file. Their names are its extensions."""


class PageCommands:
    """Starts commands for a run directory.

    `run_variables` are the environment variables with settings of a run. Others, such as KREA_BATCH_SEEDS, would
    make more jobs than the page has announced.
    """

    def __init__(self, out: Path, *, with_key: bool, run_variables: Collection[str] = ()) -> None:
        self._out = str(out.absolute())
        self._retry_environment = child_environment(with_key=with_key)
        self._run_environment = child_environment(with_key=with_key, options=run_variables)
        self._export_environment = child_environment(with_key=False, options=())
        self._simulate = [] if with_key else ["--simulate"]
        self._directory: tempfile.TemporaryDirectory[str] | None = None

    async def retry(self, ids: Sequence[str]) -> tuple[bool, str]:
        """Resubmit jobs, and return whether it ended as it should, with its last lines.

        The command itself keeps to --max-charges of the latest run.
        """
        arguments = ("retry", self._out, "--yes", "--ids-from=-", *self._simulate)
        return await self._run(arguments, _lines(ids), self._retry_environment, ok_codes=(0, 1))

    async def submit(self, job_lines: bytes, latest_run: RunRecord | None) -> tuple[bool, str]:
        """Run new jobs in the run directory, within the limits of its latest run. Returns as `retry`."""
        options = ["--out", self._out, "--yes", "--input-format=jsonl", "--prompt-syntax=plain", *self._simulate]
        if latest_run and latest_run.max_charges is not None:
            options.append(f"--max-charges={latest_run.max_charges}")
            options += ["--count-server-errors"] if latest_run.count_server_errors else []
        return await self._run(("run", "-", *options), job_lines, self._run_environment, ok_codes=(0, 1))

    async def export(self, ids: Sequence[str], format_name: ExportFormat) -> tuple[Path | None, str]:
        """Export jobs into a temporary file that only this user can read, and return it with the last lines.

        It replaces the previous one. The file is None if the export failed.
        """
        if self._directory is None:
            self._directory = tempfile.TemporaryDirectory(prefix="krea-batch-export-", ignore_cleanup_errors=True)
        path = Path(self._directory.name) / f"images.{format_name}"
        path.unlink(missing_ok=True)
        arguments = ("export", self._out, f"--format={format_name}", "--ids-from=-", f"--output={path}")
        ok, text = await self._run(arguments, _lines(ids), self._export_environment, ok_codes=(0,))
        return path if ok else None, text

    def close(self) -> None:
        """Delete the exported file."""
        if self._directory:
            self._directory.cleanup()

    async def _run(
        self, arguments: Sequence[str], stdin: bytes, environment: dict[str, str], *, ok_codes: Collection[int]
    ) -> tuple[bool, str]:
        process = await asyncio.create_subprocess_exec(
            *python_command("krea_batch", *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environment,
            **OWN_SESSION,  # only `_interrupt` passes on a Ctrl-C in the terminal
        )
        try:
            output, _ = await process.communicate(stdin)
        except asyncio.CancelledError:
            await _interrupt(process)
            raise
        lines = output.decode("utf-8", "replace").strip().splitlines()
        return process.returncode in ok_codes, "\n".join(lines[-OUTPUT_LINES:])


def _lines(ids: Sequence[str]) -> bytes:
    return "".join(f"{job_id}\n" for job_id in ids).encode()


async def _interrupt(process: asyncio.subprocess.Process) -> None:
    """Stop a command as two Ctrl-C would, and wait for it to end.

    It then waits for the responses of pending POSTs, so no job becomes ambiguous. asyncio would kill it.
    """
    for signal_number in INTERRUPT_SIGNALS:
        with suppress(ProcessLookupError):
            process.send_signal(signal_number)
    await process.wait()
