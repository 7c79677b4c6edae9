"""Which runs of a shared run directory are alive.

Each run renews its lease with every commit, and writes at least every BEAT_INTERVAL_S. Another run takes over its
jobs once it has seen the run's beat stand still for LEASE_S. Clocks of different processes are never compared: each
run measures with its own clock only. A run on the same machine is known to have ended without this wait, by the lock
that its process had (`storage.process_lock`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

LEASE_S = 10.0  # chosen: longer than a commit on a slow disk, shorter than people wait for a job
BEAT_INTERVAL_S = LEASE_S / 5  # chosen: four beats may be late before a lease ends
LOOK_INTERVAL_S = BEAT_INTERVAL_S / 4  # chosen: two looks, and so two beats, in a second cost little
SAFETY_MARGIN = 0.2  # chosen: a run takes its own lease to end so much earlier than the others do


class Lease:
    """The right of one run to send POSTs. It belongs to that run alone: a later run of the process has its own."""

    def __init__(self) -> None:
        self._ends_s = float("-inf")

    def renew(self, begun_s: float) -> None:
        """Extend the lease because of a commit that succeeded and had begun at `begun_s`."""
        self._ends_s = max(self._ends_s, begun_s + LEASE_S * (1 - SAFETY_MARGIN))

    def is_held(self, now_s: float) -> bool:
        """Return whether no other run can have taken over the jobs of this one."""
        return now_s < self._ends_s


class FailureDetector:
    """Finds runs that have ended without recording it, or have stalled for a lease while this process looked."""

    def __init__(self) -> None:
        self._looked_s = float("-inf")
        self._unchanged: dict[int, tuple[int, float]] = {}  # by run: its beat, and since when it is known

    def find_dead(self, now_s: float, beats: Mapping[int, int], ended: Collection[int] = ()) -> list[int]:
        """Return the runs that have ended, and those whose beat has stood still for LEASE_S.

        `beats` has the beat of each live run. `ended` has those whose locks are released. If this process did not
        look for half a lease, because it stalled itself or the database was away, it has not seen the others
        stall, so it starts to count again.
        """
        if now_s - self._looked_s > LEASE_S / 2:
            self._unchanged.clear()
        self._looked_s = now_s
        known, self._unchanged = self._unchanged, {}
        for run_no, beat in beats.items():
            is_unchanged = run_no in known and known[run_no][0] == beat
            self._unchanged[run_no] = known[run_no] if is_unchanged else (beat, now_s)
        return [
            run_no
            for run_no, (_, since_s) in self._unchanged.items()
            if run_no in ended or now_s - since_s >= LEASE_S
        ]
