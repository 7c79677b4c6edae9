"""Where the ledger of a run is: ledger.toml in the run directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from krea_batch.errors import RunDirError
from krea_batch.ledger.postgres.ledger_address import LedgerAddress, read_address, write_address

ADDRESS = LedgerAddress("postgresql://db/krea", "cats")


def test_an_address_is_read_as_it_was_written(tmp_path: Path) -> None:
    """The run directory is created with the address, and has no other one before."""
    out = tmp_path / "out"
    assert read_address(out) is None
    write_address(out, ADDRESS)
    assert read_address(out) == ADDRESS


def test_a_directory_that_cannot_be_created(tmp_path: Path) -> None:
    """If a file has the name of the directory, the error names it, and the file stays."""
    out = tmp_path / "out"
    out.write_text("mine")
    with pytest.raises(RunDirError, match="cannot use the directory") as caught:
        write_address(out, ADDRESS)
    assert caught.value.path == out
    assert out.read_text() == "mine"
