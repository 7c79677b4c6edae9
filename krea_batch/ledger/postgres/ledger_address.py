"""Where a ledger in PostgreSQL is: `ledger.toml` in the run directory.

    url = "postgresql://db.example/krea"
    batch = "cats"

The file has no password: libpq takes it from PGPASSWORD, PGPASSFILE or ~/.pgpass.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import msgspec

from krea_batch.errors import RunDirError
from krea_batch.storage.run_dir import LEDGER, LEDGER_ADDRESS

SCHEMA_PREFIX = "krea_batch_"
_BATCH = re.compile(r"[a-z0-9][a-z0-9_-]{0,49}")  # with the prefix, it fits into the 63 bytes of a PostgreSQL name


class LedgerAddress(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A batch in a database. Raises ValueError for a URL or a name that cannot be used."""

    url: str
    batch: str

    def __post_init__(self) -> None:
        if not self.url.startswith(("postgresql://", "postgres://")):
            raise ValueError("the url does not start with postgresql://")
        if urlsplit(self.url).password is not None or "password" in parse_qs(urlsplit(self.url).query):
            raise ValueError("the url has a password: pass it in PGPASSWORD, or write it into ~/.pgpass")
        if not _BATCH.fullmatch(self.batch):
            raise ValueError(f"batch {self.batch[:60]!r} is not up to 50 lower-case letters, digits, '_' and '-'")

    @property
    def schema(self) -> str:
        """The name of the schema of the batch."""
        return f"{SCHEMA_PREFIX}{self.batch}"


def read_address(out: Path) -> LedgerAddress | None:
    """Return where the ledger of a run directory is; None if it is in the directory. Raises RunDirError.

    A directory with an address and a ledger of its own is refused: each of them may be the one that knows what was
    paid for.
    """
    path = out / LEDGER_ADDRESS
    try:
        address = msgspec.convert(tomllib.loads(path.read_text("utf-8")), LedgerAddress)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        hint = f'write url = "postgresql://…" and batch = "…" into {LEDGER_ADDRESS}'
        raise RunDirError(path, f"cannot be used ({error})", hint) from error
    if (out / LEDGER).exists():
        problem = f"there is a {LEDGER} beside it, and only one of the two is the ledger of this run"
        raise RunDirError(path, problem, "move the other one away")
    return address
