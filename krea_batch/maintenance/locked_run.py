"""Open the ledger of a run directory for changes: one that no process uses, or that runs share.

results.jsonl is rewritten from the ledger when the context is left. If runs share the directory, the last of them
does that.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from krea_batch.ledger import Ledger, LedgerWriter, fence_dead_runs, open_checked
from krea_batch.storage.results_file import ResultsFile
from krea_batch.storage.run_dir import RunDir, require_run


class LockedRun:
    """A context manager that locks a run directory. Use it where no event loop is running.

    `is_alone` is whether no run works on it; else runs that share it go on with the jobs that become pending. If the
    ledger is in a database, entering takes up to LEASE_S after a process was killed on another machine.

    Entering raises RunDirError if there is no run, another process has it alone, or its ledger is not the one of its
    results; LedgerError if the ledger cannot be read. Leaving raises OSError if results.jsonl cannot be written; the
    changes stay in the ledger, and the next run writes the file.
    """

    def __init__(self, out: Path, clock: Callable[[], float] = time.time) -> None:
        self._out = out
        self._clock = clock
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        require_run(self._out)
        with ExitStack() as stack:
            run_dir = RunDir(self._out)
            run_dir.lock(shared=True)
            stack.callback(run_dir.unlock)
            self._store = open_checked(self._out, alone=run_dir.is_alone)
            stack.callback(self._store.close)
            self.is_alone = run_dir.is_alone and not fence_dead_runs(self._store)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        with self._stack:
            if self.is_alone:
                asyncio.run(self._write_results())

    def _change(self, change: Callable[[Ledger], None]) -> None:
        """Apply a change in one transaction."""

        def change_and_mark(store: Ledger) -> None:
            change(store)
            # results.jsonl is out of date until the context is left. If the process is killed before, the next run
            # sees None and rewrites the file.
            store.set_results_size(None)

        self._store.transaction(change_and_mark)

    async def _write_results(self) -> None:
        ledger = LedgerWriter(self._store)
        try:
            with ThreadPoolExecutor(1) as executor:
                results = ResultsFile(self._out, executor, _raise)
                await results.rewrite(ledger.outcomes())
                await ledger.record(Ledger.set_results_size, results.size_bytes())
        finally:
            await ledger.close()


def _raise(error: OSError) -> None:
    raise error
