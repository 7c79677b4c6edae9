"""Names and probabilities come in; whether a fault strikes goes out, the same each time for one seed. Pure.

Newcomers: chance hangs on the seed, the fault's name, the thing it would strike (a body, a job, a picture) and
how often that thing was asked for, and on no counter of the whole run. So a run with the same jobs meets the same
faults even where its requests arrive in another order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

FAULTS: dict[str, str] = {
    "submit-400": "a POST is refused with 400",
    "submit-no-model": "a POST is refused with the document's 400, Model not found",
    "submit-402": "a POST is refused with the document's 402, whatever the balance",
    "submit-403": "a POST is refused with 403",
    "submit-403-quota": "the same with Retry-After: 1",
    "submit-500": "a POST is refused with 500 and the document's error body",
    "submit-503": "the same with 503",
    "submit-502": "a POST is answered 502 in HTML; nothing is queued",
    "submit-504": "a POST is accepted and charged, and answered 504 in HTML",
    "submit-408": "a POST is answered 408 in HTML; nothing is queued",
    "submit-cut": "the connection is cut before a POST is accepted",
    "submit-lost": "a POST is accepted and charged, and the connection is cut before the answer",
    "submit-hang": "a POST is accepted and charged, and its answer comes hang_duration_s later",
    "submit-garbled": "a POST is accepted and charged, and its answer is no JSON",
    "submit-no-id": "a POST is accepted and charged, and its answer has no request_id",
    "submit-redirect": "a POST is answered 307 to another origin; nothing is queued",
    "submit-200": "a POST is accepted with 200 rather than 202",
    "submit-done": "a job is done at once, and the POST's answer already carries the output",
    "poll-500": "a poll is answered 500",
    "poll-404": "a poll is answered 404",
    "poll-cut": "a poll's connection is cut",
    "poll-hang": "a poll's answer comes hang_duration_s later",
    "poll-garbled": "a poll's answer is no JSON",
    "poll-unknown": "the status of a job that is not done is a word the document does not have",
    "job-failed": "a job ends FAILED (charged)",
    "job-error": "a job ends ERROR (not charged)",
    "job-first-error": "the first accepted POST of a body ends ERROR, later ones do not",
    "media-string": "media_url is a string rather than an array (jobs with one output)",
    "cdn-404": "a download is answered 404",
    "cdn-503": "a download is answered 503",
    "cdn-cut": "a download is cut in its middle",
    "cdn-corrupt": "a byte of a download is wrong",
    "cdn-html": "a download is an HTML page with status 200",
    "cdn-trailing": "bytes follow the end of the picture",
    "cdn-slow": "a download drips for slow_duration_s",
    "webhook-lost": "a webhook is never sent",
    "webhook-twice": "a webhook is sent twice",
}


def check_faults(faults: Mapping[str, float]) -> None:
    """Raise ValueError for an unknown name or a probability outside 0 to 1."""
    for name, probability in faults.items():
        if name not in FAULTS:
            raise ValueError(f"{name!r} is no fault; there are {', '.join(FAULTS)}")
        if not 0 <= probability <= 1:
            raise ValueError(f"{name}={probability}: a probability lies between 0 and 1")


class FaultInjector:
    """Decides each fault. `most_tries` is the last try of a thing that can be struck, 0 where all can."""

    def __init__(self, seed: int, faults: Mapping[str, float], max_attempts: int = 0) -> None:
        self.seed = seed
        self.faults = dict(faults)
        self.max_attempts = max_attempts

    def should_fail(self, name: str, subject: str, attempt: int) -> bool:
        """Whether this fault strikes the `tried`-th try (from 1) of what it is about."""
        probability = self.faults.get(name, 0.0)
        if probability == 0.0 or 0 < self.max_attempts < attempt:
            return False
        return probability == 1.0 or self.fraction(name, subject, attempt) < probability

    def first_fault(self, names: Iterable[str], subject: str, attempt: int) -> str | None:
        """The first of these faults that strikes."""
        if not self.faults:
            return None
        return next((name for name in names if self.should_fail(name, subject, attempt)), None)

    def fraction(self, *key: object) -> float:
        """A number from 0 to 1 that depends on the seed and on what it is about alone."""
        text = "\0".join(map(str, (self.seed, *key))).encode("utf-8", "surrogatepass")
        return int.from_bytes(hashlib.blake2b(text, digest_size=6).digest()) / 2**48
