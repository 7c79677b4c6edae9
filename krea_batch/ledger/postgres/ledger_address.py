"""Where a ledger in PostgreSQL is: `ledger.toml` in the run directory.

    url = "postgresql://db.example/krea"
    batch = "cats"

The file has no password: libpq takes it from PGPASSWORD, PGPASSFILE or ~/.pgpass.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec
import orjson

from krea_batch.errors import RunDirError
from krea_batch.settings import batch_problem, ledger_url_problem
from krea_batch.storage.atomic import replacing
from krea_batch.storage.run_dir import LEDGER, LEDGER_ADDRESS, create_directory, unusable_directory

SCHEMA_PREFIX = "krea_batch_"


class LedgerAddress(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A batch in a database. Raises ValueError for a URL or a name that cannot be used."""

    url: str
    batch: str

    def __post_init__(self) -> None:
        if url_problem := ledger_url_problem(self.url):
            raise ValueError("; ".join(url_problem))
        if problem := batch_problem(self.batch):
            raise ValueError(f"batch {problem}")

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


def write_address(out: Path, address: LedgerAddress) -> None:
    """Create ledger.toml, and the run directory. Raises RunDirError, also if there is a ledger.db."""
    if (out / LEDGER).exists():
        problem = f"its ledger is {LEDGER}, which the one in PostgreSQL would not know"
        raise RunDirError(out, problem, "leave out --ledger, or use another run directory")
    # A string of JSON is one of TOML: both escape quotes, backslashes and control characters alike.
    lines = (f"{name} = {orjson.dumps(value).decode()}\n" for name, value in msgspec.structs.asdict(address).items())
    try:
        create_directory(out)
        with replacing(out / LEDGER_ADDRESS) as file:
            file.writelines(line.encode() for line in lines)
    except OSError as error:
        raise unusable_directory(out, error) from error
