"""Decide whether a fault occurs, reproducibly for one seed. Pure.

The decision depends on the seed, the name of the fault, its subject (a body, a job, an image) and the number of the
attempt on that subject. It does not depend on a counter of the whole run: two runs with the same jobs see the same
faults even if their requests arrive in a different order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

FAULTS: dict[str, str] = {
    "submit-400": "a POST is refused with 400",
    "submit-no-model": "a POST is refused with the API document's 400, Model not found",
    "submit-402": "a POST is refused with the API document's 402, whatever the balance",
    "submit-403": "a POST is refused with 403",
    "submit-403-quota": "a POST is refused with 403 and Retry-After: 1",
    "submit-500": "a POST is refused with 500 and the API document's error body",
    "submit-503": "a POST is refused with 503 and the API document's error body",
    "submit-502": "a POST is answered 502 in HTML; nothing is queued",
    "submit-504": "a POST is accepted and charged, but answered 504 in HTML",
    "submit-408": "a POST is answered 408 in HTML; nothing is queued",
    "submit-cut": "the connection is cut before a POST is accepted",
    "submit-lost": "a POST is accepted and charged, but the connection is cut before the response",
    "submit-hang": "a POST is accepted and charged, but its response is delayed by the hang duration",
    "submit-garbled": "a POST is accepted and charged, but its response is not JSON",
    "submit-no-id": "a POST is accepted and charged, but its response has no request_id",
    "submit-redirect": "a POST is answered 307 to another origin; nothing is queued",
    "submit-200": "a POST is accepted with 200 instead of 202",
    "submit-done": "a job completes immediately; the response to the POST contains the output",
    "poll-500": "a poll is answered 500",
    "poll-404": "a poll is answered 404",
    "poll-cut": "the connection of a poll is cut",
    "poll-hang": "the response to a poll is delayed by the hang duration",
    "poll-garbled": "the response to a poll is not JSON",
    "poll-unknown": "a job that has not ended has a status that the API document does not list",
    "job-failed": "a job ends FAILED (charged)",
    "job-error": "a job ends ERROR (not charged)",
    "job-first-error": "the first job of a body ends ERROR (not charged), later ones do not",
    "media-string": "media_url is a string instead of an array (jobs with one output)",
    "cdn-404": "a download is answered 404",
    "cdn-503": "a download is answered 503",
    "cdn-cut": "a download is cut halfway",
    "cdn-corrupt": "one byte of a download is wrong",
    "cdn-html": "a download is an HTML page with status 200",
    "cdn-trailing": "a download has extra bytes after the image",
    "cdn-jpeg": "a download is a JPEG (requires Pillow)",
    "cdn-slow": "a download takes the slow duration",
    "webhook-lost": "a webhook is never sent",
    "webhook-twice": "a webhook is sent twice",
}


def check_faults(faults: Mapping[str, float]) -> None:
    """Raise ValueError for an unknown name or a probability outside 0 to 1."""
    for name, probability in faults.items():
        if name not in FAULTS:
            raise ValueError(f"{name!r} is not a fault; use one of {', '.join(FAULTS)}")
        if not 0 <= probability <= 1:
            raise ValueError(f"{name}={probability}: a probability must be between 0 and 1")


class FaultInjector:
    """Decides each fault. Only the first `max_attempts` attempts on a subject can fail; 0 means all can."""

    def __init__(self, seed: int, faults: Mapping[str, float], max_attempts: int = 0) -> None:
        self.seed = seed
        self.faults = dict(faults)
        self.max_attempts = max_attempts

    def should_fail(self, name: str, subject: str, attempt: int) -> bool:
        """Return whether this fault occurs at an attempt (from 1) on a subject."""
        probability = self.faults.get(name, 0.0)
        if probability == 0.0 or 0 < self.max_attempts < attempt:
            return False
        return probability == 1.0 or self.fraction(name, subject, attempt) < probability

    def first_fault(self, names: Iterable[str], subject: str, attempt: int) -> str | None:
        """Return the first of these faults that occurs, or None."""
        if not self.faults:
            return None
        return next((name for name in names if self.should_fail(name, subject, attempt)), None)

    def fraction(self, *key: object) -> float:
        """Return a number from 0 to 1 that depends only on the seed and on `key`."""
        text = "\0".join(map(str, (self.seed, *key))).encode("utf-8", "surrogatepass")
        return int.from_bytes(hashlib.blake2b(text, digest_size=6).digest()) / 2**48
