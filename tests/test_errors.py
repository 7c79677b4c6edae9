"""Test the exceptions of the whole package: they can be pickled and copied."""

from __future__ import annotations

import copy
import importlib
import inspect
import pickle
import pkgutil
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import krea_batch
from krea_batch import JobError, SinkTransientError
from krea_batch.errors import LineProblem
from krea_batch.gateway.url_policy import DownloadError

EXAMPLES: dict[Any, Any] = {
    str: "what happened",
    int: 3,
    float | None: 1.5,
    Path: Path("runs/cats"),
    Sequence[LineProblem]: [LineProblem("jobs.jsonl", 7, "invalid JSON", "close the string")],
}
"""A value for each type of a parameter of an exception."""

ROUND_TRIPS: list[Callable[[Any], Any]] = [
    copy.copy,
    copy.deepcopy,
    *(
        lambda error, protocol=protocol: pickle.loads(pickle.dumps(error, protocol))  # noqa: S301
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    ),
]


def exception_classes() -> list[type[Exception]]:
    """Return every exception class that a module of the package defines.

    The scripts of the comparison are programs of their own, and may need packages that no extra installs.
    """
    found = set()
    for module in pkgutil.walk_packages(krea_batch.__path__, "krea_batch."):
        if not module.name.endswith("__main__") and not module.name.startswith("krea_batch.benchmark.scripts."):
            members = vars(importlib.import_module(module.name)).values()
            found |= {member for member in members if inspect.isclass(member) and issubclass(member, Exception)}
    own = (kind for kind in found if kind.__module__.startswith("krea_batch."))
    return sorted(own, key=lambda kind: kind.__name__)


def example(kind: type[Exception]) -> Exception:
    """Return an exception with a value for each parameter."""
    if not inspect.isfunction(kind.__init__):
        return kind("what happened")
    hints = typing.get_type_hints(kind.__init__)
    args: list[Any] = []
    keywords: dict[str, Any] = {}
    for name, parameter in inspect.signature(kind).parameters.items():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            keywords[name] = EXAMPLES[hints[name]]
        else:
            args.append(EXAMPLES[hints[name]])
    return kind(*args, **keywords)


def facts(error: BaseException) -> tuple[Any, ...]:
    """Return everything that a copy of an exception must have."""
    return type(error), str(error), error.args, vars(error)


@pytest.mark.parametrize("kind", exception_classes(), ids=lambda kind: kind.__name__)
def test_exceptions_survive_pickle_and_copy(kind: type[Exception]) -> None:
    """Every exception of the package is equal after pickle and copy, with all its attributes and notes."""
    error = example(kind)
    error.add_note("seen in a worker")
    for round_trip in ROUND_TRIPS:
        assert facts(round_trip(error)) == facts(error)


def test_all_exceptions_are_found() -> None:
    """The enumeration finds exceptions of the public API and of inner modules."""
    assert {JobError, SinkTransientError, DownloadError} <= set(exception_classes())


class QuotaError(SinkTransientError):
    """A caller's own exception, whose constructor takes other arguments."""

    def __init__(self, used_bytes: int, *, limit_bytes: int) -> None:
        super().__init__(f"{used_bytes} of {limit_bytes} bytes used")
        self.limit_bytes = limit_bytes


def test_exceptions_of_callers_survive_too() -> None:
    """A subclass with a constructor of its own needs no code for pickle."""
    error = QuotaError(5, limit_bytes=10)
    for round_trip in ROUND_TRIPS:
        assert facts(round_trip(error)) == facts(error)
