"""Decides which files of a directory are read, and refuses text files that may be one prompt or many."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from krea_batch.errors import InputError

MAX_NAMES_SHOWN = 10  # chosen: a line or two in a terminal

_NOT_PROMPTS = ("readme", "license", "licence")
_SEPARATOR_LINE = re.compile(r"^[ \t]*([-=*~_#])\1{2,}[ \t\r]*$", re.MULTILINE)
_LINE_ENDS = re.compile(r"[\r\n]+")


class TextCount:
    """The number of lines of a text file in a directory that are not blank, and a separator line if it has one."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.lines = 0
        self.separator = ""

    def count(self, text: str) -> None:
        """Count the lines of the file."""
        self.lines = sum(1 for line in _LINE_ENDS.split(text) if line and not line.isspace())
        match = _SEPARATOR_LINE.search(text)
        self.separator = match[0].strip() if match else ""


def is_job_file(path: Path) -> bool:
    """Return whether a file of a directory may hold prompts: it is not hidden, nor a README or LICENSE."""
    return not path.name.startswith(".") and not path.name.lower().startswith(_NOT_PROMPTS)


def require_utf_8_name(path: Path) -> None:
    """Raise InputError for a file whose name cannot be the id of a job, nor be written into results."""
    try:
        path.name.encode()
    except UnicodeEncodeError:
        raise InputError(f"{path}: the name of the file is not UTF-8", "rename it") from None


def left_out_note(entries: Iterable[Path], chosen: Iterable[Path]) -> str:
    """Return the end of a notice, which names the entries of a directory that are not read; "" if there are none."""
    read = set(chosen)
    names = sorted(each.name + "/" * each.is_dir() for each in entries if each not in read)
    if not names:
        return ""
    more = f" and {len(names) - MAX_NAMES_SHOWN:,} more" if len(names) > MAX_NAMES_SHOWN else ""
    return f"; left out: {', '.join(names[:MAX_NAMES_SHOWN])}{more}"


def require_clear_texts(counts: Sequence[tuple[str, TextCount]]) -> None:
    """Raise InputError if text files of a directory have several lines. `counts`: by the names of the files."""
    for folder in dict.fromkeys(each.folder for _, each in counts):
        files = [(name, each) for name, each in counts if each.folder == folder]
        several = [(name, each) for name, each in files if each.lines > 1]
        if not several:
            continue
        name, first = several[0]
        problem = (
            f"{folder}: text files with several lines: {len(several):,} of {len(files):,}, the first "
            f"{Path(name).name} ({first.lines:,} lines), and each may be one prompt or a list"
        )
        lines = sum(each.lines for _, each in files)
        hint = (
            f"--lines makes {lines:,} prompts, one of each line, --whole-file makes {len(files):,}, one of each file"
        )
        if separator := next((each.separator for _, each in several if each.separator), ""):
            hint += f", --separator='{separator}' reads the lines between as one prompt"
        raise InputError(problem, hint)
