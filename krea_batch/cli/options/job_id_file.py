"""Files of job ids, one per line.

An id may begin or end with spaces, and may contain most characters, U+2028 included. So lines end at `\n` only, and
nothing is removed from them: a changed id may be that of another job, which would be paid for.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from krea_batch.ledger import LedgerReader

BYTE_ORDER_MARK = "\ufeff"  # some editors on Windows start a file with it
IDS_PER_QUERY = 500  # chosen: SQLite allows 32,766 parameters; more ids per query save no time


def read_ids(path: str | None, out: Path) -> list[str] | None:
    """Return the ids in a file, or from standard input for "-"; None if `path` is None.

    The run in `out` decides whether a `\r` at the end of a line belongs to the id or to the line: an id of the run
    is taken as it is. The same applies to a byte order mark at the start of the file. Raises InputError for a file
    that cannot be read, has no id, or has one that is not in the run; and as `require_run` does.
    """
    from krea_batch.errors import InputError
    from krea_batch.ledger import read_ledger
    from krea_batch.storage.run_dir import require_run

    if path is None:
        return None
    require_run(out)
    candidates = [_spellings(line, is_first=not n) for n, line in enumerate(_read_lines(path))]
    with read_ledger(out) as store:
        known = _known_ids(store, [spelling for spellings in candidates for spelling in spellings])
    name = "standard input" if path == "-" else path
    ids: list[str] = []
    for number, spellings in enumerate(candidates, 1):
        if spellings[-1]:  # else the line is empty
            job_id = next((spelling for spelling in spellings if spelling in known), None)
            if job_id is None:
                problem = f"{name}:{number}: the job {spellings[-1]!r} is not in this run"
                raise InputError(problem, "write one id per line, exactly as in results.jsonl")
            ids.append(job_id)
    if not ids:
        raise InputError(f"{name}: no ids found", "write one id per line")
    return ids


def _read_lines(path: str) -> list[str]:
    from krea_batch.errors import InputError

    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        return data.decode().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise InputError(f"cannot read {path} ({reason})", "use a file with one id per line") from None


def _spellings(line: str, *, is_first: bool) -> list[str]:
    """Return the ids that a line may mean, the exact one first."""
    spellings = [line, line.removesuffix("\r")]
    if is_first:
        spellings += [spelling.removeprefix(BYTE_ORDER_MARK) for spelling in spellings]
    return spellings


def _known_ids(store: LedgerReader, ids: list[str]) -> set[str]:
    """Return those of the ids that the run has."""
    from krea_batch.ledger import LedgerReader

    known: set[str] = set()
    for start in range(0, len(ids), IDS_PER_QUERY):
        page = ids[start : start + IDS_PER_QUERY]
        (fingerprints,) = store.read(partial(LedgerReader.fingerprints, job_ids=page))
        known.update(fingerprints)
    return known
