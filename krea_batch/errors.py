"""The errors of krea-batch. Their attributes have the facts; `str` says what happened, where, and what to do next.

    KreaBatchError
    ├── InputError       the user's input: a job file, a setting, a directory; nothing was charged
    │   ├── JobError         one job is not valid
    │   ├── JobFileError     lines of job files are not valid
    │   ├── SettingsError    a setting is not valid
    │   └── RunDirError      the run directory belongs to another run or version, or is in use
    ├── RunStopped       the run submits nothing more; every job is in the ledger
    │   └── GatewayError     because the gateway refuses this key, or its wallet is empty
    ├── LedgerError      the ledger cannot be read or written
    │   └── FencedError      another worker has taken over the jobs of this one
    └── InternalError    a bug in krea-batch

An error of one *job* is never raised inside the pipeline. It is passed on as a value and ends in the job's `Outcome`.
Library errors name parameters; the command line shows the names of its options instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

__all__ = [
    "FencedError",
    "GatewayError",
    "InputError",
    "InternalError",
    "JobError",
    "JobFileError",
    "KreaBatchError",
    "LedgerError",
    "LineProblem",
    "RunDirError",
    "RunStopped",
    "SettingsError",
]


class LineProblem(msgspec.Struct, frozen=True):
    """One invalid line of a job file. `line` counts from 1."""

    path: str
    line: int
    problem: str
    hint: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.problem}; {self.hint}"


class PicklableError(Exception):
    """An exception that can be pickled and copied, whatever its constructor takes.

    `Exception` calls the constructor with `args`, which need not be the arguments that it takes.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _without_init, (type(self), self.args), self.__dict__


def _without_init(kind: type[PicklableError], args: tuple[Any, ...]) -> PicklableError:
    """Return an exception with these `args`; its attributes are set by the caller."""
    return kind.__new__(kind, *args)


class KreaBatchError(PicklableError):
    """The base class of all errors that krea-batch raises on purpose."""


class InputError(KreaBatchError):
    """The input cannot be used; nothing was sent or charged. `hint` says what would be valid; it may be empty."""

    def __init__(self, problem: str, hint: str = "") -> None:
        super().__init__(problem, hint)
        self.problem = problem
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.problem}; {self.hint}" if self.hint else self.problem


class JobError(InputError):
    """A job is not valid. `job_id` is empty where the job has no id yet."""

    def __init__(self, problem: str, hint: str, *, job_id: str = "") -> None:
        super().__init__(problem, hint)
        self.job_id = job_id

    def __str__(self) -> str:
        return f"job {self.job_id!r}: {super().__str__()}" if self.job_id else super().__str__()


class JobFileError(InputError):
    """Lines of the job files are not valid. `problems` holds the first ones, `count` is the number of all."""

    def __init__(self, problems: Sequence[LineProblem], count: int) -> None:
        lines = "1 invalid line" if count == 1 else f"{count:,} invalid lines"
        super().__init__(lines, f"fix {'it' if count == 1 else 'them'}, or skip invalid lines")
        self.problems = tuple(problems)
        self.count = count


class SettingsError(InputError):
    """A setting is not valid. `parameter` is its keyword: `max_in_flight`, or `webhook.url` for a part of one."""

    def __init__(self, parameter: str, problem: str, hint: str = "") -> None:
        super().__init__(problem, hint)
        self.parameter = parameter

    def __str__(self) -> str:
        return f"{self.parameter}: {super().__str__()}"


class RunDirError(InputError):
    """The run directory cannot be used: it has another run, other jobs or a newer ledger, or is in use."""

    def __init__(self, path: Path, problem: str, hint: str) -> None:
        super().__init__(problem, hint)
        self.path = path

    def __str__(self) -> str:
        return f"{self.path}: {super().__str__()}"


class RunStopped(KreaBatchError):
    """The run submits nothing more. The ledger has every job, and a new run resumes them."""

    def __init__(self, reason: str, next_step: str) -> None:
        super().__init__(reason, next_step)
        self.reason = reason
        self.next_step = next_step

    def __str__(self) -> str:
        return f"{self.reason}; {self.next_step}"


class GatewayError(RunStopped):
    """The gateway refuses this key, or its wallet is empty.

    `status` is the HTTP status, `detail` the server's message, if any.
    """

    def __init__(self, status: int, detail: str, next_step: str) -> None:
        super().__init__(
            f"the gateway answered {status} ({detail})" if detail else f"the gateway answered {status}", next_step
        )
        self.status = status
        self.detail = detail


class LedgerError(KreaBatchError):
    """The ledger cannot be read or written, so nothing more is sent. `path` is the file."""

    def __init__(self, path: Path, problem: str, next_step: str) -> None:
        super().__init__(path, problem, next_step)
        self.path = path
        self.problem = problem
        self.next_step = next_step

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}; {self.next_step}"


class FencedError(LedgerError):
    """This run stalled for too long, so another worker has taken over its jobs. It sends nothing more."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            path,
            "this process stalled for too long, and another process has taken over its jobs",
            "it sends nothing more; start it again to continue",
        )


class InternalError(KreaBatchError):
    """An invariant of the engine does not hold. This is a bug; please report it. The ledger keeps all jobs."""


def escape_unprintable(text: str) -> str:
    """Return the text with escapes such as `\\x1b` for characters that are not printable."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
