"""Figures and options come in; `bench.json` goes out."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import orjson

from krea_batch import __version__
from krea_batch.bench.figures import Figures

REPORT = "bench.json"


def report(rows: Sequence[Figures], options: dict[str, Any], at: datetime) -> dict[str, Any]:
    """Everything that was measured, where, when and how."""
    return {
        "krea_batch": __version__,
        "at": at.astimezone(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpus": os.cpu_count(),
            "system": platform.system(),
            "python": platform.python_version(),
            "uvloop": find_spec("uvloop") is not None,
        },
        "options": options,
        "figures": [msgspec.to_builtins(row) for row in rows],
    }


def write_report(folder: Path, content: dict[str, Any]) -> Path:
    """Write it into the folder, in the place of an earlier one."""
    path = folder / REPORT
    path.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    return path
