"""A run that nobody is working on comes in; its ledger goes out, held by this process alone, to be decided upon.

Newcomers: what is decided is in results.jsonl as well when the context is left.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from krea_batch.ledger import Ledger, Store
from krea_batch.storage.results_file import Results
from krea_batch.storage.run_dir import RunFolder, check_run


class HeldRun:
    """A context manager that holds a run's folder. Call it from where no event loop is running.

    Raises RunFolderError where there is no run or another process is working in it.
    """

    def __init__(self, out: Path, clock: Callable[[], float] = time.time) -> None:
        self._out = out
        self._clock = clock
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        check_run(self._out)
        with ExitStack() as stack:
            folder = RunFolder(self._out)
            folder.take()
            stack.callback(folder.release)
            self._store = Store.open(folder.ledger)
            stack.callback(self._store.close)
            self._store.transaction([Store.hold_in_air])
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        with self._stack:
            asyncio.run(self._write_results())

    async def _write_results(self) -> None:
        ledger = Ledger(self._store)
        try:
            with ThreadPoolExecutor(1) as disk:
                results = Results(self._out, disk, _raise)
                await results.write_anew(ledger.outcomes())
                await ledger.record(Store.results_written, results.size_bytes())
        finally:
            await ledger.close()


def _raise(error: OSError) -> None:
    raise error
