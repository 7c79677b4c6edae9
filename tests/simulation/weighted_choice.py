"""Choose from a table of weights and entries."""

from __future__ import annotations

from random import Random
from typing import Any


def weighted_choice(random: Random, table: list[tuple[int, Any]]) -> Any:
    """Return an entry of a table of weights and entries."""
    return random.choices([entry for _, entry in table], [weight for weight, _ in table])[0]
