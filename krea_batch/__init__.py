"""Generate images in batches through the Krea 2 Large API. No image is paid for twice, and no paid image is lost.

    from krea_batch import Engine, Job, run

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
ray             the images of a Ray Dataset
testing         a simulated gateway, a scripted gateway, a virtual clock
cli             the command line
jobs, events, settings, errors   the vocabulary of all of them
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str

    from krea_batch.engine.engine import Engine as Engine
    from krea_batch.engine.handle import Handle as Handle
    from krea_batch.engine.synchronous import run as run
    from krea_batch.errors import GatewayError as GatewayError
    from krea_batch.errors import InputError as InputError
    from krea_batch.errors import InternalError as InternalError
    from krea_batch.errors import JobError as JobError
    from krea_batch.errors import KreaBatchError as KreaBatchError
    from krea_batch.errors import LedgerError as LedgerError
    from krea_batch.errors import RunDirError as RunDirError
    from krea_batch.errors import RunStopped as RunStopped
    from krea_batch.errors import SettingsError as SettingsError
    from krea_batch.events import CallbackReceived as CallbackReceived
    from krea_batch.events import Event as Event
    from krea_batch.events import EventsDropped as EventsDropped
    from krea_batch.events import GenerationCompleted as GenerationCompleted
    from krea_batch.events import ImageStored as ImageStored
    from krea_batch.events import JobEnded as JobEnded
    from krea_batch.events import JobResumed as JobResumed
    from krea_batch.events import Listener as Listener
    from krea_batch.events import PollCompleted as PollCompleted
    from krea_batch.events import RateChanged as RateChanged
    from krea_batch.events import RetryScheduled as RetryScheduled
    from krea_batch.events import RunClosed as RunClosed
    from krea_batch.events import RunStopping as RunStopping
    from krea_batch.events import StateChanged as StateChanged
    from krea_batch.events import SubmitCompleted as SubmitCompleted
    from krea_batch.events import SubmitsPaused as SubmitsPaused
    from krea_batch.jobs import ErrorInfo as ErrorInfo
    from krea_batch.jobs import ImageStyleReference as ImageStyleReference
    from krea_batch.jobs import Job as Job
    from krea_batch.jobs import Moodboard as Moodboard
    from krea_batch.jobs import Outcome as Outcome
    from krea_batch.jobs import State as State
    from krea_batch.jobs import StoredFile as StoredFile
    from krea_batch.jobs import Style as Style
    from krea_batch.pipeline.rate_limiter import RateLimiter as RateLimiter
    from krea_batch.pipeline.stats import RunStats as RunStats
    from krea_batch.settings import ApiKey as ApiKey
    from krea_batch.settings import Rate as Rate
    from krea_batch.settings import Settings as Settings
    from krea_batch.settings import Webhook as Webhook
    from krea_batch.storage.sinks import Sink as Sink
    from krea_batch.storage.sinks import SinkPermanentError as SinkPermanentError
    from krea_batch.storage.sinks import SinkTransientError as SinkTransientError
    from krea_batch.storage.sinks import VerifiedImage as VerifiedImage

_MODULES = {
    "ApiKey": "settings",
    "CallbackReceived": "events",
    "Engine": "engine.engine",
    "ErrorInfo": "jobs",
    "Event": "events",
    "EventsDropped": "events",
    "GatewayError": "errors",
    "GenerationCompleted": "events",
    "Handle": "engine.handle",
    "ImageStored": "events",
    "ImageStyleReference": "jobs",
    "InputError": "errors",
    "InternalError": "errors",
    "Job": "jobs",
    "JobEnded": "events",
    "JobError": "errors",
    "JobResumed": "events",
    "KreaBatchError": "errors",
    "LedgerError": "errors",
    "Listener": "events",
    "Moodboard": "jobs",
    "Outcome": "jobs",
    "PollCompleted": "events",
    "Rate": "settings",
    "RateChanged": "events",
    "RateLimiter": "pipeline.rate_limiter",
    "RetryScheduled": "events",
    "RunClosed": "events",
    "RunDirError": "errors",
    "RunStats": "pipeline.stats",
    "RunStopped": "errors",
    "RunStopping": "events",
    "Settings": "settings",
    "SettingsError": "errors",
    "Sink": "storage.sinks",
    "SinkPermanentError": "storage.sinks",
    "SinkTransientError": "storage.sinks",
    "State": "jobs",
    "StateChanged": "events",
    "StoredFile": "jobs",
    "Style": "jobs",
    "SubmitCompleted": "events",
    "SubmitsPaused": "events",
    "VerifiedImage": "storage.sinks",
    "Webhook": "settings",
    "run": "engine.synchronous",
}
"""Every public name, and the module that defines it. The imports above repeat the names for type checkers only."""

if not TYPE_CHECKING:  # Type checkers take the exported names from the imports above.
    __all__ = ["__version__"]
    __all__ += list(_MODULES)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `krea-batch --help` starts fast."""
    from importlib import import_module

    if name == "__version__":
        from importlib.metadata import version

        return version("krea-batch")
    if name not in _MODULES:
        raise AttributeError(f"module 'krea_batch' has no attribute {name!r}")
    return getattr(import_module(f"krea_batch.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """Return the public names, for tab completion in notebooks."""
    return sorted({*_MODULES, *(name for name in globals() if name.startswith("__")), "__version__"})
