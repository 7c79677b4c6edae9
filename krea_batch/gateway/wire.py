"""Encodes jobs as request bodies, and interprets responses of the gateway. Pure.

Requests follow the API document to the letter. Responses are parsed tolerantly, but not where money is involved: a
response to a POST that is not clearly a refusal is `Ambiguous`.

A damaged answer to a POST is `Accepted` immediately if its JSON object can be read and has a request_id in its place,
whatever the damage elsewhere (evidence.read_json). If a request_id is found in another way (in an object that was cut
off, in another place, with a status other than 2xx, beside a polling_url of another request), the verdict is
`Ambiguous` with the request_id as a candidate, which a poll has to prove. If there are two candidates, the gateway
must know one and deny the other. If it knows both, one belongs to another job, whose image this job might get.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import unquote

import msgspec
import orjson

from krea_batch.gateway import evidence
from krea_batch.jobs import CONTENT_NAME_PATTERN, Job
from krea_batch.rules.verdicts import (
    PENDING_STATUSES,
    SERVER_ERRORS,
    Accepted,
    Ambiguous,
    Errored,
    Failed,
    Finished,
    PollFailed,
    PollVerdict,
    PostVerdict,
    Refusal,
    Refused,
    Waiting,
)

SUBMIT_PATH = "/krea-2-large-text-to-image/v1/krea-2-large-text-to-image-request"  # API document, Request Code
STATUS_PATH = "/v2/requests/status/"  # API document, Retrieving Results
KEY_HEADER = "Ocp-Apim-Subscription-Key"  # API document, Authentication
WEBHOOK_HEADER = "X-Webhook-URL"  # API document, Webhook
SUBMIT_HEADERS = {"Content-Type": "application/json", "Cache-Control": "no-cache"}  # API document, Headers

MAX_JSON_BYTES = 1 << 20  # chosen: a thousand times a usual response; bounds memory
MAX_RETRY_AFTER_S = 3600.0  # chosen: try at least once an hour
MAX_DETAIL_CHARS = 300  # chosen: enough for a sentence in a result row
MAX_CANDIDATES = 3  # chosen: an answer that names more is a list of other jobs
MAX_STATUS_CHARS = 40  # chosen: enough for a status that the API document does not list

_REQUEST_ID = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_~:-]|\.(?!\.)){0,199}")
# In the bytes of a body only a key is followed by a colon: the quotes in a prompt are escaped.
_OBJECT_URL_KEY = re.compile(rf'"image_url":"(?!https?:)(?:sha256:|[^"]+/)({CONTENT_NAME_PATTERN})"'.encode())
_REJECTED = frozenset({400, 404, 405, 411, 413, 414, 415, 417, 422, 431, 505})
_FATAL = frozenset({401, 402, 403})


class Answer(msgspec.Struct, frozen=True):
    """An HTTP response that was read. `is_complete` is False if the connection broke or the body was too large."""

    status: int
    body: bytes
    retry_after: str | None = None
    date: str | None = None
    is_complete: bool = True


class PolledStatus(NamedTuple):
    """What a status response says, and whether it names the request of the poll.

    `names_none` says that it is readable and has no request_id at all.
    """

    verdict: PollVerdict
    names_request: bool = False
    names_none: bool = False


class CallbackPayload(msgspec.Struct, frozen=True):
    """The content of a callback: the request, and whether it has ended (both None if unreadable)."""

    request_id: str | None = None
    ended: bool = True


class _Fields(msgspec.Struct):
    """The fields of a response that are used; their types are checked where they are used."""

    request_id: Any = None
    polling_url: Any = None
    status: Any = None
    output: Any = None
    error: Any = None
    message: Any = None
    created_at: Any = None
    completed_at: Any = None


_read_fields = msgspec.json.Decoder(_Fields).decode


def encode_body(job: Job) -> bytes:
    """Return the request body of a job: the fields of the API document with its defaults; `seed` only if given."""
    body: dict[str, Any] = {
        "prompt": job.prompt,
        "aspect_ratio": job.aspect_ratio,
        "creativity": job.creativity,
    }
    if job.seed is not msgspec.UNSET:
        body["seed"] = job.seed
    body["image_style_references"] = [
        {"image_url": reference.image_url, "strength": reference.strength} for reference in job.image_style_references
    ]
    body["styles"] = [{"id": style.id, "strength": style.strength} for style in job.styles]
    body["moodboards"] = [{"id": board.id, "strength": board.strength} for board in job.moodboards]
    return orjson.dumps(body)


def fingerprint(job: Job) -> bytes:
    """Return 32 bytes that are equal for two jobs exactly if their POSTs request the same image."""
    return fingerprint_of(encode_body(job))


def fingerprint_of(body: bytes) -> bytes:
    """Return the fingerprint of a body made by `encode_body`: its key order is fixed, so its bytes are canonical.

    A local reference image is identified by its content, wherever its object is stored.
    """
    if b'"image_url":' in body:
        body = with_object_urls(body, "sha256:")
    return hashlib.sha256(body).digest()


def with_object_urls(body: bytes, base_url: str) -> bytes:
    """Return a body of `encode_body` whose local reference images are below this URL. `base_url` ends with / or :."""
    return _OBJECT_URL_KEY.sub(lambda match: b'"image_url":"' + base_url.encode() + match[1] + b'"', body)


def object_names(body: bytes) -> dict[str, str]:
    """Return the local reference images in a body of `encode_body`: name of the content to its URL, as recorded."""
    found = _OBJECT_URL_KEY.finditer(body)
    return {match[1].decode(): match[0].decode().removeprefix('"image_url":"').removesuffix('"') for match in found}


def with_signed_urls(body: bytes, urls: Mapping[str, str]) -> bytes:
    """Return a body of `encode_body` to be sent, with the URL of each local reference image by its name."""
    return _OBJECT_URL_KEY.sub(lambda match: b'"image_url":' + orjson.dumps(urls[match[1].decode()]), body)


def is_request_id(text: object) -> bool:
    """Return whether it may be used in the path of a poll: no separators, no `..`, at most 200 characters."""
    return isinstance(text, str) and _REQUEST_ID.fullmatch(text) is not None


def read_post_answer(answer: Answer, *, now: datetime) -> PostVerdict:
    """Interpret the response to a POST. `now` (UTC) is used for a Retry-After date without a Date header."""
    fields = _decode(answer.body)
    if not answer.is_complete:
        return in_doubt(f"the response (HTTP {answer.status}) was incomplete", answer)
    if 200 <= answer.status < 300:
        return _read_acceptance(answer, fields)
    detail = _detail(answer.status, fields)
    wait_s = retry_after_s(answer.retry_after, answer.date, now=now)
    if answer.status == 429 or (answer.status == 403 and wait_s is not None):
        return Refused(Refusal.RATE_LIMITED, answer.status, detail, wait_s)
    # A firewall answers some prompts with its own 403 page, which says nothing about the key.
    is_page = answer.status == 403 and fields is None and bool(answer.body)
    if answer.status in _FATAL and not is_page:
        return Refused(Refusal.FATAL, answer.status, detail)
    if answer.status in _REJECTED or is_page:
        return Refused(Refusal.REJECTED, answer.status, detail)
    # An error that names a request_id anywhere does not prove that nothing was queued.
    if answer.status in SERVER_ERRORS and _is_error_body(fields) and not evidence.find_request_ids(answer.body):
        return Refused(Refusal.RETRYABLE, answer.status, detail, wait_s)
    return in_doubt(f"HTTP {answer.status} does not say whether the job was queued", answer)


def _read_acceptance(answer: Answer, fields: _Fields | None) -> PostVerdict:
    if fields is None:
        return in_doubt(f"the response (HTTP {answer.status}) is invalid JSON", answer)
    if not is_request_id(fields.request_id):
        return in_doubt(f"the response (HTTP {answer.status}) has no valid request_id", answer)
    if _ids_in_polling_url(fields) - {fields.request_id}:  # Two answers may have been mixed up.
        return in_doubt("the response's polling_url names another request_id", answer)
    progress = _progress(fields)
    return Accepted(fields.request_id, Waiting("QUEUED") if isinstance(progress, PollFailed) else progress)


def in_doubt(reason: str, answer: Answer | None) -> Ambiguous:
    """Return the verdict of a POST that was sent without an answer, or with one that proves nothing."""
    if answer is None:
        return Ambiguous(reason)
    named = sorted(_named_ids(answer.body))
    kept = answer.body[: evidence.KEPT_ANSWER_BYTES]
    return Ambiguous(reason, kept, tuple(named) if len(named) <= MAX_CANDIDATES else ())


def _named_ids(body: bytes) -> set[str]:
    """Return the request_ids that an answer names anywhere."""
    found = evidence.find_request_ids(body)
    if (fields := _decode(body)) is None:
        return found
    return found | {text for text in (fields.request_id, *_ids_in_polling_url(fields)) if is_request_id(text)}


def _ids_in_polling_url(fields: _Fields) -> set[str]:
    """Return the request_id that the polling_url names; of a URL of unknown form, those of this model."""
    if not isinstance(fields.polling_url, str):
        return set()
    _, is_status_url, rest = fields.polling_url.partition(STATUS_PATH)
    if is_status_url:
        return {unquote(re.split("[/?#]", rest)[0])}
    return evidence.find_request_ids(fields.polling_url.encode("utf-8", "replace"))


def read_poll_answer(answer: Answer, request_id: str, *, now: datetime, is_reused: bool = False) -> PolledStatus:
    """Interpret a status response for the job `request_id`.

    `is_reused` says that the connection carried another request before, so that a response without a request_id may
    be the late answer to that one. In the API document every status response has a request_id; another gateway may
    leave it out. Such a response is believed only on a connection of its own: COMPLETED could be another job's image,
    FAILED would give up an image that is paid for, and ERROR would lead to a second POST.
    """
    fields = _decode(answer.body) if answer.is_complete else None
    named = fields.request_id if fields else None
    names_request = named == request_id
    if not 200 <= answer.status < 300:
        wait_s = retry_after_s(answer.retry_after, answer.date, now=now)
        return PolledStatus(PollFailed(_detail(answer.status, fields), answer.status, wait_s), names_request)
    if fields is None:
        return PolledStatus(PollFailed("the status response is invalid", answer.status))
    if named is None and is_reused:
        failed = PollFailed("the status response does not name its request", answer.status)
        return PolledStatus(failed, names_none=True)
    if named is not None and not names_request:
        return PolledStatus(PollFailed("the status response is for another request", answer.status))
    return PolledStatus(_progress(fields), names_request, names_none=named is None)


def read_callback(body: bytes) -> CallbackPayload:
    """Parse a callback, which is not trusted. One with an unreadable body still counts as a callback."""
    fields = _decode(body)
    if fields is None:
        return CallbackPayload()
    request_id = fields.request_id if is_request_id(fields.request_id) else None
    progress = _progress(fields)
    # A callback may say COMPLETED without the output; the poll then returns it.
    return CallbackPayload(request_id, not isinstance(progress, Waiting) or progress.status == "COMPLETED")


def _progress(fields: _Fields) -> PollVerdict:
    """Interpret the status. One that the API document does not list is judged by the other fields.

    With an output the job is finished, and with only a `completed_at` it has ended without one. Otherwise, and for
    COMPLETED without an output, it is not known to have ended.
    """
    status = fields.status.upper() if isinstance(fields.status, str) else ""
    if status in PENDING_STATUSES:
        return Waiting(status)
    if status == "FAILED":
        return Failed(_error_text(fields))
    if status == "ERROR":
        return Errored(_error_text(fields))
    finished = _read_output(fields)
    if finished is not None:
        return finished
    if not status:
        return PollFailed("the status response has no status", 200)
    if status != "COMPLETED" and _parse_timestamp(fields.completed_at):
        return Failed(f"{status[:MAX_STATUS_CHARS]}: {_error_text(fields)}".rstrip(": "))
    return Waiting(status[:MAX_STATUS_CHARS])


def _read_output(fields: _Fields) -> Finished | None:
    output = fields.output
    if not isinstance(output, dict):
        return None
    urls = output.get("media_url")
    urls = [urls] if isinstance(urls, str) else urls
    if not isinstance(urls, list):
        return None
    media_urls = tuple(dict.fromkeys(url for url in urls if isinstance(url, str) and url))
    media_type = output.get("media_type")
    if not media_urls:
        return None
    return Finished(media_urls, media_type if isinstance(media_type, str) else "", _took_s(fields))


def _took_s(fields: _Fields) -> float | None:
    created, completed = _parse_timestamp(fields.created_at), _parse_timestamp(fields.completed_at)
    if created is None or completed is None:
        return None
    took_s = (completed - created).total_seconds()
    return took_s if took_s >= 0 else None


def _parse_timestamp(text: object) -> datetime | None:
    """Return an ISO 8601 instant (API document, Response Completed: created_at), or None if it is not one."""
    if not isinstance(text, str):
        return None
    try:
        timestamp = datetime.fromisoformat(text)
    except ValueError:
        return None
    return timestamp if timestamp.tzinfo else timestamp.replace(tzinfo=UTC)


def _decode(body: bytes) -> _Fields | None:
    """Return the known fields of a JSON object, or None if the body is not one."""
    try:
        return _read_fields(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    value = evidence.read_json(body)
    if not isinstance(value, dict):
        return None
    return _Fields(**{name: value.get(name) for name in _Fields.__struct_fields__})


def _is_error_body(fields: _Fields | None) -> bool:
    """Return whether it is the error body of the API document, which never has a request_id."""
    return fields is not None and isinstance(fields.error, str) and fields.error != "" and fields.request_id is None


def _detail(status: int, fields: _Fields | None) -> str:
    return (_error_text(fields) if fields else "") or f"HTTP {status}"


def _error_text(fields: _Fields) -> str:
    texts = [text.strip() for text in (fields.error, fields.message) if isinstance(text, str) and text.strip()]
    if not texts and isinstance(fields.error, dict):  # some gateways nest: {"error": {"message": ...}}
        texts = [text for text in (fields.error.get("message"),) if isinstance(text, str)]
    printable = "".join(char if char.isprintable() else " " for char in ": ".join(texts))
    return printable[:MAX_DETAIL_CHARS]


def retry_after_s(value: str | None, date: str | None, *, now: datetime) -> float | None:
    """Return the seconds to wait by a Retry-After header (seconds or HTTP-date), 0 to 3600; None if it is invalid.

    A date is compared with the Date of the same response, so that a wrong local clock does no harm.
    """
    if value is None:
        return None
    text = value.strip()
    if re.fullmatch(r"\d+(?:\.\d+)?", text):
        return min(float(text), MAX_RETRY_AFTER_S)
    until, since = _http_date(text), _http_date(date or "") or now
    if until is None:
        return None
    return min(max((until - since).total_seconds(), 0.0), MAX_RETRY_AFTER_S)


def _http_date(text: str) -> datetime | None:
    try:
        timestamp = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return timestamp if timestamp.tzinfo else timestamp.replace(tzinfo=UTC)
