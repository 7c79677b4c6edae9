"""Facts of what went wrong come in; one sentence with the next step goes out.

    KreaBatchError
    ├── InputError        the user's: a job file, a setting, a folder; nothing was spent
    │   ├── JobError         one job is not what the API takes
    │   ├── JobFileError     lines of job files are bad, each named
    │   ├── SettingsError    an option has no meaning
    │   └── RunFolderError   the folder is not this run's, or another process is using it
    ├── RunStopped        the run takes no more; every job stays on record
    │   └── GatewayError     because the gateway takes no more from this key
    ├── LedgerError       the disk's: the record cannot be kept
    └── KreaBatchBug      ours

Newcomers: an error of one *job* is never raised inside the pipeline. It travels on as a value and is found in
the job's `Outcome`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

__all__ = [
    "GatewayError",
    "InputError",
    "JobError",
    "JobFileError",
    "KreaBatchBug",
    "KreaBatchError",
    "LedgerError",
    "LineProblem",
    "RunFolderError",
    "RunStopped",
    "SettingsError",
]


class LineProblem(msgspec.Struct, frozen=True):
    """One bad line: where, what is wrong, what would be right. `line` counts from 1."""

    path: str
    line: int
    wrong: str
    right: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.wrong}, {self.right}"


class KreaBatchError(Exception):
    """The root of all errors that krea-batch raises on purpose."""


class InputError(KreaBatchError):
    """The user's input cannot be used; nothing was sent and nothing was spent."""

    def __init__(self, wrong: str, right: str) -> None:
        super().__init__(wrong, right)
        self.wrong = wrong
        self.right = right

    def __str__(self) -> str:
        return f"{self.wrong}: {self.right}"


class JobError(InputError):
    """One job is not what the API takes. `job_id` is empty where the job has none yet."""

    def __init__(self, wrong: str, right: str, *, job_id: str = "") -> None:
        super().__init__(wrong, right)
        self.job_id = job_id

    def __str__(self) -> str:
        return f"job {self.job_id!r}: {super().__str__()}" if self.job_id else super().__str__()


class JobFileError(InputError):
    """Lines of the job files are bad. `problems` holds the first ones, `count` says how many there are."""

    def __init__(self, problems: Sequence[LineProblem], count: int) -> None:
        wrong, them = ("1 line is bad", "it") if count == 1 else (f"{count:,} lines are bad", "them")
        super().__init__(wrong, f"mend {them}, or run the good lines with --skip-invalid")
        self.problems = tuple(problems)
        self.count = count


class SettingsError(InputError):
    """An option's value has no meaning. `option` is its name on the command line, without the dashes."""

    def __init__(self, option: str, wrong: str, right: str) -> None:
        super().__init__(wrong, right)
        self.option = option

    def __str__(self) -> str:
        return f"--{self.option}: {super().__str__()}"


class RunFolderError(InputError):
    """The run's folder cannot be used: a stranger's or newer ledger, other jobs, or another process in it."""

    def __init__(self, path: Path, wrong: str, right: str) -> None:
        super().__init__(wrong, right)
        self.path = path

    def __str__(self) -> str:
        return f"{self.path}: {super().__str__()}"


class RunStopped(KreaBatchError):
    """The run takes no more submits. What is on record stays there, and a new run goes on with it."""

    def __init__(self, reason: str, next_step: str) -> None:
        super().__init__(reason, next_step)
        self.reason = reason
        self.next_step = next_step

    def __str__(self) -> str:
        return f"{self.reason}: {self.next_step}"


class GatewayError(RunStopped):
    """The gateway takes no more from this key. `status` is its HTTP status, `said` its own words, if any."""

    def __init__(self, status: int, said: str, next_step: str) -> None:
        super().__init__(
            f"the gateway answered {status} ({said})" if said else f"the gateway answered {status}", next_step
        )
        self.status = status
        self.said = said


class LedgerError(KreaBatchError):
    """The ledger cannot be read or written, so nothing more may be sent. `path` is the file."""

    def __init__(self, path: Path, wrong: str, next_step: str) -> None:
        super().__init__(path, wrong, next_step)
        self.path = path
        self.wrong = wrong
        self.next_step = next_step

    def __str__(self) -> str:
        return f"{self.path}: {self.wrong}: {self.next_step}"


class KreaBatchBug(KreaBatchError):
    """A law of the engine is broken; please report it. The run ends, what is on record stays."""
