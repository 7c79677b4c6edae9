"""Generate images in batches through the Krea 2 Large API, without paying for one twice or losing one.

    from krea_batch import Engine, Job

engine          what callers hold: Engine, Handle, streams of events and outcomes
pipeline        the stages of a run: submit, poll, download
rules           pure decisions: states, backoff, rate control, poll schedule
gateway         the API's wire format and the HTTP client
ledger          the durable record of every job, in SQLite
storage         files of the run directory, sinks for object stores
sources         job files: JSONL, JSON, CSV, text, Parquet
maintenance     a run that no process is working on: resolve, retry, verify, export
gallery         a live page and an HTML report of a run's images
observability   logs, metrics and traces
forecast        the estimate of `krea-batch plan`
benchmark       `krea-batch bench`
testing         a simulated gateway, a scripted gateway, a virtual clock
cli             the command line
jobs, events, settings, errors   the vocabulary of all of them
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str

    from krea_batch.engine.engine import Engine
    from krea_batch.engine.handle import Handle
    from krea_batch.errors import (
        GatewayError,
        InputError,
        InternalError,
        JobError,
        KreaBatchError,
        LedgerError,
        RunDirError,
        RunStopped,
        SettingsError,
    )
    from krea_batch.events import (
        CallbackReceived,
        Event,
        EventsDropped,
        GenerationCompleted,
        ImageStored,
        JobEnded,
        JobResumed,
        Listener,
        PollCompleted,
        RateChanged,
        RetryScheduled,
        RunClosed,
        RunStopping,
        StateChanged,
        SubmitCompleted,
        SubmitsPaused,
    )
    from krea_batch.jobs import (
        ErrorInfo,
        ImageStyleReference,
        Job,
        Moodboard,
        Outcome,
        State,
        StoredFile,
        Style,
    )
    from krea_batch.pipeline.rate_limiter import RateLimiter
    from krea_batch.pipeline.stats import RunStats
    from krea_batch.settings import ApiKey, Rate, Settings, Webhook
    from krea_batch.storage.sinks import Sink, SinkPermanentError, SinkTransientError, VerifiedImage

__all__ = [
    "ApiKey",
    "CallbackReceived",
    "Engine",
    "ErrorInfo",
    "Event",
    "EventsDropped",
    "GatewayError",
    "GenerationCompleted",
    "Handle",
    "ImageStored",
    "ImageStyleReference",
    "InputError",
    "InternalError",
    "Job",
    "JobEnded",
    "JobError",
    "JobResumed",
    "KreaBatchError",
    "LedgerError",
    "Listener",
    "Moodboard",
    "Outcome",
    "PollCompleted",
    "Rate",
    "RateChanged",
    "RateLimiter",
    "RetryScheduled",
    "RunClosed",
    "RunDirError",
    "RunStats",
    "RunStopped",
    "RunStopping",
    "Settings",
    "SettingsError",
    "Sink",
    "SinkPermanentError",
    "SinkTransientError",
    "State",
    "StateChanged",
    "StoredFile",
    "Style",
    "SubmitCompleted",
    "SubmitsPaused",
    "VerifiedImage",
    "Webhook",
    "__version__",
]

_MODULES = (
    "errors", "jobs", "settings", "events", "storage.sinks", "engine.handle", "pipeline.rate_limiter",
    "pipeline.stats", "engine.engine",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `krea-batch --help` costs next to nothing."""
    from importlib import import_module

    if name == "__version__":
        from importlib.metadata import version

        return version("krea-batch")
    for module in _MODULES if name in __all__ else ():
        found = import_module(f"krea_batch.{module}")
        if name in vars(found):
            return vars(found)[name]
    raise AttributeError(f"module 'krea_batch' has no attribute {name!r}")
