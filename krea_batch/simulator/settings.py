"""What the simulated gateway is like."""

from __future__ import annotations

import msgspec

from krea_batch.simulator.faults import check_faults
from krea_batch.simulator.latency import Latency
from krea_batch.simulator.limits import parse_limit


class SimulatorError(Exception):
    """The simulator cannot start, or its settings have no meaning; the text says what would be right."""


class SimulatorSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How the gateway behaves. Times are simulated seconds, but for limits and Retry-After, which are real ones.

    Raises SimulatorError where a value has no meaning.
    """

    host: str = "127.0.0.1"
    port: int = 0  # 0: any free port
    cdn_port: int = 0
    seed: int = 0
    latency: str = "lognormal:12,0.3"  # chosen: around the document's example of 15 s
    time_scale: float = 1.0  # simulated seconds in a real one
    workers: int = 0  # jobs in work at once; 0: no bound
    submit_limit: str = "none"
    poll_limit: str = "none"
    shared_limit: bool = False  # polls draw on the submits' limit
    retry_after: str = "seconds"  # with a 429: seconds, date or none
    faults: dict[str, float] = {}
    balance: int | None = None  # None: it never runs out
    outputs: int = 1
    tiny: bool = False  # small pictures, drawn without Pillow
    picture_bytes: int = 0  # with tiny: about as many bytes
    key: str = ""  # empty: any key will do
    revoke_after: int = 0  # after so many accepted POSTs every key is refused; 0: never
    lenient: bool = False  # take unknown fields in a body
    remember_in: str = ""  # a file that keeps the accepted jobs over restarts

    def __post_init__(self) -> None:
        try:
            Latency(self.latency)
            parse_limit(self.submit_limit)
            parse_limit(self.poll_limit)
            check_faults(self.faults)
        except ValueError as error:
            raise SimulatorError(str(error)) from None
        if self.retry_after not in ("seconds", "date", "none"):
            raise SimulatorError(f"{self.retry_after!r}: Retry-After is given as seconds, date or none")
        if self.time_scale <= 0 or not 1 <= self.outputs <= 4:
            raise SimulatorError("the time scale is more than 0, and a job has 1 to 4 outputs")
