"""Finds the files of datasets in directories, and says how to get those that are not on this machine.

A dataset that was downloaded from the Hugging Face Hub has a README.md, and its Parquet files in `data/`, named by
their split: `train-00000-of-00001.parquet`. An imagefolder has its rows in `metadata.jsonl`.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from krea_batch.errors import InputError
from krea_batch.sources.folder_texts import is_job_file
from krea_batch.sources.options import COMPRESSED_SUFFIXES, FORMAT_BY_SUFFIX
from krea_batch.storage.run_dir import RESULTS

_URL = re.compile(r"([a-z][a-z0-9+.-]+)://(.*)", re.IGNORECASE)
_HUB_DATASET = re.compile(r"(?:huggingface\.co/)?datasets/([^/?#@]+/[^/?#@]+)")
_SPLIT = re.compile(r"(.+?)-\d+-of-\d+(?:-[0-9a-f]+)?\.parquet")
METADATA_FILE = "metadata.jsonl"  # Hugging Face datasets, "Create an image dataset": its name, and `file_name` first
_JOB_FILE_SUFFIXES = (*FORMAT_BY_SUFFIX, ".json", *COMPRESSED_SUFFIXES)
_FOLDER_SUFFIXES = (".parquet", ".txt")


def require_local(path: str) -> None:
    """Raise InputError for a URL, with the command that downloads it."""
    url = _URL.fullmatch(path)
    if not url:
        return
    scheme, rest = url[1].lower(), url[2]
    if (scheme == "hf" or rest.startswith("huggingface.co/")) and (dataset := _HUB_DATASET.match(rest)):
        folder = dataset[1].rpartition("/")[2]
        command = f"hf download {shlex.quote(dataset[1])} --repo-type dataset --local-dir {shlex.quote(folder)}"
        hint = f"download it (pip install huggingface_hub; {command}), and name the directory {folder}"
    elif scheme in ("http", "https"):
        name = rest.partition("?")[0].rpartition("/")[2] or "prompts.jsonl"
        hint = f"download it (curl -fL -o {shlex.quote(name)} {shlex.quote(path)}), and name the file {name}"
    else:
        hint = "copy it to this machine, and name the file"
    raise InputError(f"{path}: is a URL, not a file on this machine", hint)


def snapshot_files(folder: Path) -> list[Path]:
    """Return the Parquet files of a downloaded dataset, or none. Raises InputError if there are several splits."""
    data = folder / "data"
    files = [each for each in sorted(data.iterdir()) if each.suffix == ".parquet"] if data.is_dir() else []
    by_split: dict[str, list[Path]] = {}
    for each in files:
        match = _SPLIT.fullmatch(each.name)
        by_split.setdefault(match[1] if match else each.stem, []).append(each)
    if len(by_split) > 1:
        first = next(iter(by_split.values()))
        named = (
            shlex.join(map(str, first)) if len(first) < 3 else f"{shlex.quote(str(data))}/{next(iter(by_split))}-*"
        )
        problem = f"{folder}: a dataset with several splits ({', '.join(by_split)})"
        raise InputError(problem, f"name the files of one, such as {named}")
    return files


def unreadable_folder(folder: Path, left_out: str) -> InputError:
    """Return the error for a directory without prompts, which names files that could be meant.

    `left_out` says which of its files are not job files.
    """
    if (folder / RESULTS).is_file():
        hint = f"name {folder / RESULTS} to use its jobs again"
        return InputError(f"{folder}: a run directory, not job files", hint)
    problem = f"{folder}: a directory without text (.txt) or Parquet files{left_out}"
    candidates = list(_candidates(folder))
    if not candidates:
        return InputError(problem, "name a directory that has some, or a job file")
    return InputError(problem, f"name the job files in it: {', '.join(map(str, candidates[:5]))}")


def _candidates(folder: Path) -> Iterator[Path]:
    """Yield files that may be job files, and directories that have some."""
    for each in sorted(folder.iterdir()):
        has_jobs = is_job_file(each) and each.is_file() and each.suffix.lower() in _JOB_FILE_SUFFIXES
        if has_jobs or (not each.name.startswith(".") and _has_job_files(each)):
            yield each


def _has_job_files(path: Path) -> bool:
    return (
        path.is_dir()
        and os.access(path, os.R_OK | os.X_OK)
        and any(each.suffix.lower() in _FOLDER_SUFFIXES for each in path.iterdir())
    )
