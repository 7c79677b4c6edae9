"""Reads a JSON document of jobs.

The document is read into memory as a whole; JSONL is the format for millions of jobs.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Any

from krea_batch.errors import InputError, JobError
from krea_batch.sources.formats.encoding import EncodingError, OnNotice, decode_utf_8
from krea_batch.sources.formats.line_file import LineFile
from krea_batch.sources.json_errors import parse_document, quoted
from krea_batch.sources.key_paths import steps_to, value_at, wrapper_path
from krea_batch.sources.options import InputOptions

MAX_DOCUMENT_BYTES = 1 << 28  # chosen: about two million prompts; parsed, they take ten times the memory
_EXPECTED_SHAPES = 'write [{"prompt": "…"}, …], ["a prompt", …] or {"an id": "a prompt", …}'

Rows = Iterator[tuple[int, str, dict[str, Any] | JobError]]


def rows(file: LineFile, options: InputOptions, on_notice: OnNotice) -> Rows:
    """Yield the rows of an array of objects or prompts, or of an object whose keys are ids, numbered from 1.

    The second value is the key of the entry, empty in an array. An object around an array is removed, and a notice
    says so.
    """
    content = read_document(file, MAX_DOCUMENT_BYTES)
    if not content.strip():
        return
    value = parse_document(content, file.name)
    yield from rows_of_value(value, file.name, options, on_notice)


def read_document(file: LineFile, max_bytes: int) -> bytes:
    """Return the text of a file as a whole. Raises InputError if it is longer."""
    blocks, size_bytes = [], 0
    for block in file.text():
        blocks.append(block)
        size_bytes += len(block)
        if size_bytes > max_bytes:
            problem = f"{file.name}: longer than {max_bytes >> 20} MiB"
            raise InputError(problem, "write one object per line (JSONL), which is not read as a whole")
    return b"".join(blocks)


def read_text(file: LineFile, max_bytes: int) -> str:
    """Return the decoded text of a file as a whole. Raises InputError if it is longer, or not UTF-8."""
    try:
        return decode_utf_8(read_document(file, max_bytes))
    except EncodingError as error:
        raise InputError(f"{file.name}: {error.problem}", error.hint) from None


def rows_of_value(value: Any, name: str, options: InputOptions, on_notice: OnNotice) -> Rows:
    """Yield the rows of the value of a document, as `rows` does."""
    prompt_path = options.columns.get("prompt") or "prompt"
    value = [value] if _is_job(value, prompt_path) else _without_wrapper(value, prompt_path, name, on_notice)
    if isinstance(value, list):
        entries = [("", each) for each in value]
    elif isinstance(value, dict):
        entries = list(value.items())
    else:
        raise InputError(f"{name}: {quoted(value)} is neither an array nor an object", _EXPECTED_SHAPES)
    for number, (key, each) in enumerate(entries, 1):
        yield number, key, _row(each)


def _is_job(value: object, prompt_path: str) -> bool:
    """Return whether an object is one job, rather than an object whose keys are ids."""
    steps = steps_to(value, prompt_path) if isinstance(value, dict) else None
    return steps is not None and isinstance(value_at(value, steps), str)


def _without_wrapper(value: Any, prompt_path: str, name: str, on_notice: OnNotice) -> Any:
    """Return the array in an object such as `{"prompts": […]}` or `{"data": {"prompts": […]}}`, or the value."""
    path = wrapper_path(value)
    parent = value_at(value, path[:-1]) if path else {}
    if path and not _is_job(parent, prompt_path):
        ignored = ", ".join(quoted(key) for key in parent if key != path[-1])
        on_notice(f"read the list {quoted('.'.join(path))}" + (f" and ignored {ignored}" if ignored else ""))
        return parent[path[-1]]
    if isinstance(value, dict) and any(isinstance(each, list) for each in value.values()):
        raise _lists_error(value, name)
    by_column = value.get(prompt_path) if isinstance(value, dict) else None
    if isinstance(by_column, dict) and not _is_job(by_column, prompt_path):
        problem = f"{name}: {quoted(prompt_path)} has the values of all rows"
        raise InputError(problem, 'write one object per job: [{"prompt": "…", "seed": 7}, …]')
    return value


def _lists_error(value: dict[str, Any], name: str) -> InputError:
    """Return the error for an object with several lists, none of which is clearly the list of jobs."""
    lists_by_key = {key: each for key, each in value.items() if isinstance(each, list)}
    tables = [key for key, each in lists_by_key.items() if any(isinstance(row, dict) for row in each)]
    lists = tables or list(lists_by_key)
    if not tables and len(lists) == len(value):
        problem = f"{name}: {' and '.join(map(quoted, lists[:2]))} are both lists"
        return InputError(problem, 'write one object per job: [{"prompt": "…", "seed": 7}, …]')
    names = f"the list{'s' * (len(lists) > 1)} {', '.join(map(quoted, lists))}"
    command = f"jq {shlex.quote(f'.[{json.dumps(lists[-1])}]')} {shlex.quote(name)} > jobs.json"
    hint = f"write the list with the prompts into a file of its own: {command}"
    return InputError(f"{name}: an object with {names}, not a list of jobs", hint)


def _row(value: object) -> dict[str, Any] | JobError:
    if isinstance(value, str):
        return {"prompt": value}
    if not isinstance(value, dict):
        return JobError(f"{quoted(value)} is neither an object nor a prompt", _EXPECTED_SHAPES)
    return value
