from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from krea_batch.ledger import Ledger
from tests.ledger.places import LedgerPlace, place_params


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the SQLite file of a ledger is to be."""
    return tmp_path / "ledger.db"


@pytest.fixture(params=place_params)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> LedgerPlace:
    place: type[LedgerPlace] = request.param
    return place(tmp_path)


@pytest.fixture
def ledger(place: LedgerPlace) -> Iterator[Ledger]:
    opened = place.open()
    yield opened
    opened.close()
