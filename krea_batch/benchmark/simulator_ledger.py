"""What the simulator of a benchmark has counted, read over its admin URL: the fields that are needed here."""

from __future__ import annotations

import urllib.request

import msgspec

REQUEST_TIMEOUT_S = 60.0  # chosen: the ledger of the largest case is read within seconds


class SimulatedPost(msgspec.Struct, frozen=True):
    """A POST. `at_s` is in seconds since the simulator started; `request_id` is None if it was not accepted."""

    at_s: float
    status: int
    charged: bool
    request_id: str | None = None
    body: dict[str, object] | None = None


class SimulatedTotals(msgspec.Struct, frozen=True):
    """The counts of a simulator."""

    accepted: int
    polls: int


class SimulatedLedger(msgspec.Struct, frozen=True):
    """The accounting of a simulator, with its POSTs in the order of their arrival."""

    totals: SimulatedTotals
    posts: list[SimulatedPost]


def read_totals(admin_url: str) -> SimulatedTotals:
    """Return the counts so far. Raises URLError."""
    return msgspec.json.decode(_get(f"{admin_url}/totals"), type=SimulatedTotals)


def read_simulated_ledger(admin_url: str) -> SimulatedLedger:
    """Return the counts and all POSTs so far. Raises URLError."""
    return msgspec.json.decode(_get(f"{admin_url}/ledger"), type=SimulatedLedger)


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=REQUEST_TIMEOUT_S) as response:  # noqa: S310 - loopback
        content: bytes = response.read()
    return content
