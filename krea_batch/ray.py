"""Generate the images of a Ray Dataset: rows with ids and prompts in, the same rows with their results out.

    from krea_batch.ray import generate_images

    rows = ray.data.read_parquet("s3://bucket/prompts")
    generate_images(rows, out="/data/cats", rate="50/s", max_charges=10_000).write_parquet("s3://bucket/results")

Ray runs a task again when its actor has died, and no promise about money rests on it: each actor has an engine, the
engines share a ledger, and a row that comes again finds its id in it. Ray's retries are therefore wanted.

The engine has an event loop of its own, in a thread. Ray's loop for async callables stands still while the consumer
of a block is slow (`output_queue.put` in its `_reorder`), and an engine that stalls for ten seconds is fenced.
So the stage is a plain callable, which many threads of the actor call at the same time.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from anyio.from_thread import BlockingPortal

from krea_batch.engine.engine import Engine
from krea_batch.engine.event_loop import loop_in_thread
from krea_batch.errors import (
    FencedError,
    InputError,
    JobError,
    KreaBatchError,
    RunStopped,
    SettingsError,
)
from krea_batch.jobs import FIELDS, Job, Outcome, State
from krea_batch.ledger.postgres.ledger_address import LedgerAddress
from krea_batch.settings import KEY_VARIABLE, Rate, Settings
from krea_batch.sources.field_errors import closest_match
from krea_batch.sources.options import InputOptions
from krea_batch.sources.parser import RowParser

if TYPE_CHECKING:
    import pyarrow
    from ray.data import Dataset

RESULT_COLUMNS = ("status", "request_id", "paths", "error")
BLOCK_ROWS = 20  # chosen: a block is as slow as its slowest job, and one actor must not take all rows of a small file
ACTOR_CPUS = 0.25  # measured: an engine takes 2 ms of processor time per job, so this is for more than 100 jobs/s
ID_HINT = (
    "give each row an id of its own, such as a column of your data or a hash of the prompt; do not number the rows in"
    " Ray, which may number them differently when it runs a task again"
)


def generate_images(
    dataset: Dataset,
    *,
    out: str | Path | None = None,
    ledger: str | None = None,
    batch: str | None = None,
    sink: str | None = None,
    rate: Rate | str | None = None,
    max_charges: int | None = None,
    workers: int = 2,
    keep_extra: bool = False,
    **settings: Any,
) -> Dataset:
    """Return the rows with `status`, `request_id`, `paths` and `error`, once Ray executes the dataset.

    A row needs an `id` and a `prompt`, and may have the other fields of a job. The id says what is paid for: a row
    that Ray or you run again does not cost anything. Two rows with one id are one job.

    `out` is a run directory on the node of the caller; all actors then run on that node. For several nodes, pass
    `ledger`, the URL of a PostgreSQL database without a password, `batch`, a name in it, and `sink`; `out` is then a
    local directory on each node (default: ~/.cache/krea-batch/BATCH). `rate` and `max_charges` hold for all actors
    together. `workers` is the number of actors. With `keep_extra`, the rows may have columns that are no fields of a
    job; they are kept, and not sent. `settings` are further keywords of `Engine`.

    The key is read from PIXAZO_API_KEY of each node. A row that is not a valid job gets the status `rejected`; it is
    not sent. If the run stops, for example at `max_charges`, Ray raises an error that says why. Execute the dataset
    again to resume.

    Raises InputError for columns that cannot be used, and SettingsError.
    """
    given = {"sink": sink, "rate": rate, "max_charges": max_charges, **settings}
    options = ActorOptions.of(out, ledger, batch, {name: value for name, value in given.items() if value is not None})
    if workers < 1:
        raise SettingsError("workers", f"{workers} actors", "use 1 or more")
    check_columns(dataset.columns() or [], keep_extra=keep_extra)
    try:
        import ray
        from ray.data import ActorPoolStrategy
    except ModuleNotFoundError:
        raise SettingsError("dataset", "Ray is not installed", "run: pip install 'krea-batch[ray]'") from None
    concurrent_blocks = max(1, -(-options.engine_settings().max_in_flight // BLOCK_ROWS))
    return dataset.repartition(target_num_rows_per_block=BLOCK_ROWS, strict=True).map_batches(
        RowGenerator,
        fn_constructor_kwargs={"options": options},
        batch_format="pyarrow",
        batch_size=None,
        compute=ActorPoolStrategy(
            size=workers,
            max_tasks_in_flight_per_actor=concurrent_blocks,
            max_concurrent_calls_per_actor=concurrent_blocks,
            enable_true_multi_threading=True,
        ),
        num_cpus=ACTOR_CPUS,
        label_selector={"ray.io/node-id": ray.get_runtime_context().get_node_id()}
        if options.ledger is None
        else None,
        udf_modifying_row_count=False,
    )


class ActorOptions(NamedTuple):
    """What each actor needs to open its engine. It is pickled into Ray's object store, so it has no key."""

    out: str | None
    ledger: LedgerAddress | None
    settings: Mapping[str, Any]

    @classmethod
    def of(
        cls, out: str | Path | None, ledger: str | None, batch: str | None, settings: dict[str, Any]
    ) -> ActorOptions:
        """Return the options with these parameters of `generate_images`. Raises SettingsError."""
        if "api_key" in settings:
            hint = f"set {KEY_VARIABLE} on each node; what is passed would lie in Ray's object store"
            raise SettingsError("api_key", "cannot be passed to Ray", hint)
        address = _address(ledger, batch)
        if address is None and out is None:
            raise SettingsError(
                "out", "missing", "pass the run directory, or ledger, batch and sink for several nodes"
            )
        if address and "sink" not in settings:
            hint = 'pass sink="s3://bucket/folder": an image on the disk of one node is not found by the others'
            raise SettingsError("sink", "missing, although the ledger is in a database", hint)
        path = None if out is None else str(Path(out) if address else Path(out).absolute())
        options = cls(path, address, settings)
        options.engine_settings()  # raises an error here, and not later on the nodes
        return options

    def engine_settings(self) -> Settings:
        """Return the settings of the engines. Raises SettingsError."""
        return Settings.from_options(self.run_dir, shared=True, **self.settings)

    @property
    def run_dir(self) -> Path:
        """The run directory on this node."""
        if self.out is None:
            assert self.ledger  # noqa: S101 - see `of`
            return Path.home() / ".cache" / "krea-batch" / self.ledger.batch
        return Path(self.out).expanduser()

    def engine(self) -> Engine:
        """Return an engine that shares the ledger. Raises SettingsError."""
        url, batch = (self.ledger.url, self.ledger.batch) if self.ledger else (None, None)
        return Engine(self.run_dir, shared=True, ledger=url, batch=batch, **self.settings)


class RowGenerator:
    """The stage of the dataset: generates the images of a block of rows. Ray has one in each actor.

    Threads call it at the same time. The engine is opened by the first call, because Ray retries the constructor of
    an actor without showing its error.
    """

    def __init__(self, options: ActorOptions) -> None:
        self._options = options
        self._parser = RowParser(InputOptions())  # used on the event loop only
        self._thread_lock = threading.Lock()
        self._stack = ExitStack()
        self._portal: BlockingPortal | None = None
        self._engine: Engine | None = None
        self._engine_lock = asyncio.Lock()
        self._stopped: RunStopped | None = None

    def __call__(self, block: pyarrow.Table) -> pyarrow.Table:
        """Return the block with RESULT_COLUMNS. Raises JobError for a row without an id, RunStopped, LedgerError."""
        import pyarrow

        fields = block.select([name for name in block.column_names if name in FIELDS])
        results = self._open_portal().call(self._results, fields.to_pylist())
        text = pyarrow.string()
        types = {"paths": pyarrow.list_(text)}
        for name, values in zip(RESULT_COLUMNS, zip(*results, strict=True), strict=True):
            block = block.append_column(name, pyarrow.array(values, types.get(name, text)))
        return block

    def __del__(self) -> None:
        """Close the engine, when Ray ends the actor because no rows are left."""
        with suppress(KreaBatchError):
            if self._portal and self._engine:
                self._portal.call(self._discard, self._engine)
        self._stack.close()

    def _open_portal(self) -> BlockingPortal:
        with self._thread_lock:
            if self._portal is None:
                self._portal = self._stack.enter_context(loop_in_thread())
            return self._portal

    async def _results(self, rows: list[dict[str, Any]]) -> list[RowResult]:
        return await asyncio.gather(*map(self._result, rows))

    async def _result(self, row: dict[str, Any]) -> RowResult:
        """Return what to add to a row. Raises JobError if it has no id."""
        try:
            job = self._job(row)
        except JobError as error:
            if row.get("id") in (None, ""):
                raise
            return RowResult(State.REJECTED.value, None, [], str(error))
        try:
            outcome = await self._outcome(job)
        except JobError as error:  # Another request has this id.
            return RowResult(State.REJECTED.value, None, [], str(error))
        paths = [self._location(file.path) for file in outcome.files]
        error_text = outcome.error.message if outcome.error else None
        return RowResult(outcome.status.value, outcome.request_id, paths, error_text)

    def _job(self, row: dict[str, Any]) -> Job:
        if row.get("id") in (None, ""):
            raise JobError("a row has no id", ID_HINT)
        jobs = self._parser.read(0, row)
        if not jobs:
            raise self._parser.diagnose(0, row)
        return jobs[0]

    async def _outcome(self, job: Job) -> Outcome:
        while True:
            engine = await self._open_engine()
            try:
                return await engine.generate(job)
            except FencedError:  # This process stalled, and others have its jobs. A new engine finds them.
                await self._discard(engine)
            except RunStopped as stopped:
                # Ray may keep the actor for some time, so complete what is in flight, and free the other jobs.
                self._stopped = stopped
                await self._discard(engine, detach=False)
                raise

    async def _open_engine(self) -> Engine:
        async with self._engine_lock:
            if self._stopped:
                raise self._stopped
            if self._engine is None:
                engine = self._options.engine()
                await engine.start()
                self._engine = engine
            return self._engine

    async def _discard(self, engine: Engine, *, detach: bool = True) -> None:
        """Close an engine, unless another caller has done so."""
        async with self._engine_lock:
            if self._engine is engine:
                self._engine = None
                with suppress(FencedError):
                    await engine.aclose(detach=detach)

    def _location(self, path: str) -> str:
        return path if "sink" in self._options.settings else str(self._options.run_dir / path)


class RowResult(NamedTuple):
    """What is added to a row, in the order of RESULT_COLUMNS."""

    status: str
    request_id: str | None
    paths: list[str]
    error: str | None


def check_columns(columns: list[str], *, keep_extra: bool) -> None:
    """Raise InputError if the columns of a dataset cannot be used."""
    if not columns:
        return  # an empty dataset
    if "id" not in columns:
        raise InputError(f"the dataset has no column id (it has {', '.join(columns)})", ID_HINT)
    if taken := [name for name in RESULT_COLUMNS if name in columns]:
        raise InputError(f"the dataset has a column {taken[0]!r}, which is added", "rename or drop the column")
    for name in columns:
        if name in FIELDS or keep_extra:
            continue
        meant = closest_match(name)
        hint = f"did you mean {meant!r}? " if meant and meant not in columns else ""
        keep = "pass keep_extra=True to keep such columns in the rows without sending them"
        raise InputError(f"column {name!r} is not a field of a job", f"{hint}{keep}")
    if "prompt" not in columns:
        raise InputError("the dataset has no column prompt", "rename the column that has the prompts")


def _address(ledger: str | None, batch: str | None) -> LedgerAddress | None:
    if ledger is None:
        if batch is not None:
            raise SettingsError("batch", "names a batch in a database, but there is no ledger", "pass ledger as well")
        return None
    if batch is None:
        raise SettingsError("batch", "missing", "name the batch in the database, such as cats")
    try:
        return LedgerAddress(ledger, batch)
    except ValueError as error:
        raise SettingsError(
            "ledger", str(error), 'use e.g. ledger="postgresql://db.example/krea", batch="cats"'
        ) from None
