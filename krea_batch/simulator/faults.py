"""Names and probabilities come in; whether a fault strikes goes out, the same each time for one seed. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

FAULTS: dict[str, str] = {
    "submit-400": "a POST is refused with 400",
    "submit-500": "a POST is refused with 500 and the document's error body",
    "submit-503": "the same with 503",
    "submit-502": "a POST is answered 502 in HTML; nothing is queued",
    "submit-504": "a POST is accepted and charged, and answered 504 in HTML",
    "submit-408": "a POST is answered 408 in HTML; nothing is queued",
    "submit-cut": "the connection is cut before a POST is accepted",
    "submit-lost": "a POST is accepted and charged, and the connection is cut before the answer",
    "submit-garbled": "a POST is accepted and charged, and its answer is no JSON",
    "submit-no-id": "a POST is accepted and charged, and its answer has no request_id",
    "submit-redirect": "a POST is answered 307 to another address",
    "submit-200": "a POST is accepted with 200 rather than 202",
    "submit-done": "a POST's answer already carries the finished output",
    "poll-500": "a poll is answered 500",
    "poll-404": "a poll is answered 404",
    "poll-cut": "a poll's connection is cut",
    "poll-garbled": "a poll's answer is no JSON",
    "poll-unknown": "a poll's status is a word the document does not have",
    "job-failed": "a job ends FAILED (charged)",
    "job-error": "a job ends ERROR (not charged)",
    "job-first-error": "the first accepted POST of a body ends ERROR, later ones do not",
    "media-string": "media_url is a string rather than an array",
    "cdn-404": "a download is answered 404",
    "cdn-503": "a download is answered 503",
    "cdn-cut": "a download is cut in its middle",
    "cdn-corrupt": "a byte of a download is wrong",
    "cdn-html": "a download is an HTML page with status 200",
    "cdn-trailing": "bytes follow the end of the picture",
    "cdn-slow": "a download drips",
}


def check_faults(faults: Mapping[str, float]) -> None:
    """Raise ValueError for an unknown name or a probability outside 0 to 1."""
    for name, probability in faults.items():
        if name not in FAULTS:
            raise ValueError(f"{name!r} is no fault; there are {', '.join(FAULTS)}")
        if not 0 <= probability <= 1:
            raise ValueError(f"{name}={probability}: a probability lies between 0 and 1")


class Dice:
    """Decides each fault by its name, the thing it would strike and how often that thing was asked for."""

    def __init__(self, seed: int, faults: Mapping[str, float]) -> None:
        self.seed = seed
        self.faults = dict(faults)

    def strikes(self, name: str, *about: object) -> bool:
        probability = self.faults.get(name, 0.0)
        if probability in (0.0, 1.0):
            return probability == 1.0
        return self.chance(name, *about) < probability

    def chance(self, *about: object) -> float:
        """A number from 0 to 1 that depends on the seed and on what it is about alone."""
        text = "\0".join(map(str, (self.seed, *about)))
        return (
            int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=7).digest()) / 2**56
        )
