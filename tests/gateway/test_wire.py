"""Encoding of jobs and interpretation of responses, by the API document and docs/architecture.md."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krea_batch.gateway import wire
from krea_batch.gateway.wire import Answer, encode_body, is_request_id, read_poll_answer, read_post_answer
from krea_batch.jobs import ASPECT_RATIOS, CREATIVITIES, ImageStyleReference, Job, Moodboard, Style, validate_job
from krea_batch.rules.verdicts import (
    Accepted,
    Ambiguous,
    Errored,
    Failed,
    Finished,
    PollFailed,
    PollVerdict,
    PostVerdict,
    Progress,
    Refusal,
    Refused,
    Waiting,
)

NOW = datetime(2026, 3, 31, 10, 0, 0, tzinfo=UTC)
ID = "krea-2-large-text-to-image_019dxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx"
MOODBOARD = "0b0e6a5c-1c7e-4d51-9d6f-0d7b3a2f4e11"
MEDIA_URL = "https://pub-582b7213209642b9b995c96c95a30381.r2.dev/v1/krea-2-large-text-to-image_019dxxxx/output.png"

QUEUED: dict[str, str] = {  # API document, Response
    "request_id": ID,
    "status": "QUEUED",
    "polling_url": f"https://gateway.pixazo.ai/v2/requests/status/{ID}",
}
COMPLETED = {  # API document, Response (Completed)
    "request_id": ID,
    "status": "COMPLETED",
    "model_id": "krea-2-large-text-to-image",
    "error": None,
    "output": {"media_url": [MEDIA_URL], "media_type": "image/png"},
    "created_at": "2026-03-31T10:00:00.000Z",
    "updated_at": "2026-03-31T10:00:15.000Z",
    "completed_at": "2026-03-31T10:00:15.000Z",
}
ERROR = {  # API document, Error via Status/Webhook
    "request_id": ID,
    "status": "ERROR",
    "model_id": "krea-2-large-text-to-image",
    "error": "Description of the error",
    "output": None,
}
PAYMENT_REQUIRED_BODY = {"error": "Insufficient Balance", "message": "Your wallet does not have enough balance."}
NO_MODEL_BODY = {
    "error": "Model not found",
    "message": "Model 'krea-2-large-text-to-image' not found or is disabled",
}
FINISHED_VERDICT = Finished((MEDIA_URL,), "image/png", 15.0)

GARBAGE_BODIES: dict[str, bytes] = {
    "empty": b"",
    "blank": b" \n",
    "html": b"<html><body>502 Bad Gateway</body></html>",
    "text": b"Internal Server Error",
    "truncated": json.dumps(QUEUED).encode()[:-1],
    "cut in a key": b'{"request_',
    "cut in the id": b'{"request_id": "krea-2-lar',
    "two": json.dumps(QUEUED).encode() * 2,
    "array": json.dumps([QUEUED]).encode(),
    "string": json.dumps(ID).encode(),
    "number": b"202",
    "null": b"null",
    "not UTF-8": b'{"request_id": "abc", "status": "\xff\xfe"}',
    "UTF-16": json.dumps(QUEUED).encode("utf-16"),
    "NUL": b"\0" * 100,
    "deep array": b"[" * 200_000,
    "deep object": b'{"output":' * 100_000 + b"1" + b"}" * 100_000,
    "long number": b'{"status": ' + b"9" * 10_000 + b"}",
    "overflow": b'{"status": 1e999}',
    "NaN": b'{"request_id": "abc", "status": NaN}',
    "lone surrogate": b'{"request_id": "abc", "status": "\\ud800"}',
    "single quotes": b"{'request_id': 'abc'}",
}
DAMAGED_BODIES = {"not UTF-8": "abc", "UTF-16": ID, "NaN": "abc", "lone surrogate": "abc"}
"""The bodies of GARBAGE_BODIES whose object can be read nevertheless, with their request_ids."""

UNREADABLE_BODIES = [name for name in GARBAGE_BODIES if name not in DAMAGED_BODIES]


def parse_submit(status: int, body: object, **headers: str) -> PostVerdict:
    return read_post_answer(to_answer(status, body, **headers), now=NOW)


def parse_poll(body: object, status: int = 200, **headers: str) -> PollVerdict:
    return read_poll_answer(to_answer(status, body, **headers), ID, now=NOW).verdict


def to_answer(status: int, body: object, **headers: str) -> Answer:
    """Return an answer with these bytes or this object as its body; None: an answer that was cut before its body."""
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    return Answer(status, data, **headers, is_complete=body is not None)


# ---- the body of a POST ----------------------------------------------------------------------------------


def test_the_documents_example() -> None:
    """A job with only a prompt is sent as the example request of the API document, with its fields in order."""
    body = encode_body(Job(prompt="A Van Gogh-tinged Provencal farmhouse under starry nights"))
    assert body == (
        b'{"prompt":"A Van Gogh-tinged Provencal farmhouse under starry nights","aspect_ratio":"1:1",'
        b'"creativity":"medium","image_style_references":[],"styles":[],"moodboards":[]}'
    )


def test_every_field() -> None:
    """Each parameter is sent with the name and type of the API document. `id` and `metadata` are not sent."""
    job = Job(
        prompt='Zwölf Boxkämpfer 🥊 "quoted" \\ back\nslash',
        aspect_ratio="2.35:1",
        creativity="raw",
        seed=42,
        image_style_references=(ImageStyleReference("https://example.com/a.png", -0.5),),
        styles=(Style("style-1"), Style("style-2", 0.25)),
        moodboards=(Moodboard(MOODBOARD),),
        id="mine",
        metadata={"secret": "note"},
    )
    assert encode_body(job).decode() == (
        '{"prompt":"Zwölf Boxkämpfer 🥊 \\"quoted\\" \\\\ back\\nslash","aspect_ratio":"2.35:1","creativity":"raw",'
        '"seed":42,"image_style_references":[{"image_url":"https://example.com/a.png","strength":-0.5}],'
        '"styles":[{"id":"style-1","strength":1.0},{"id":"style-2","strength":0.25}],'
        f'"moodboards":[{{"id":"{MOODBOARD}","strength":0.23}}]}}'
    )


@pytest.mark.parametrize("seed", [0, 1, -1, 2**32, 2**63, 2**64 - 1, -(2**63)])
def test_seeds_are_exact(seed: int) -> None:
    """A seed is sent exactly, also 0. Without a seed, there is no such field."""
    assert f'"seed":{seed},'.encode() in encode_body(Job(prompt="a", seed=seed))
    assert b"seed" not in encode_body(Job(prompt="a"))


@pytest.mark.parametrize("ratio", ["1:1", "4:3", "3:2", "16:9", "2.35:1", "4:5", "2:3", "9:16"])
@pytest.mark.parametrize("creativity", ["raw", "low", "medium", "high"])
def test_enums(ratio: Any, creativity: Any) -> None:
    """Each aspect ratio and creativity of the API document is sent unchanged."""
    body = json.loads(encode_body(validate_job(Job(prompt="a", aspect_ratio=ratio, creativity=creativity))))
    assert (body["aspect_ratio"], body["creativity"]) == (ratio, creativity)


strengths = st.floats(allow_nan=False, allow_infinity=False)
jobs = st.builds(
    Job,
    prompt=st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: not text.isspace()),
    aspect_ratio=st.sampled_from(ASPECT_RATIOS),
    creativity=st.sampled_from(CREATIVITIES),
    styles=st.lists(st.builds(Style, st.text("ab", min_size=1), strengths), max_size=3).map(tuple),
    seed=st.integers(-(2**63), 2**64 - 1),
)


@given(jobs)
def test_the_body_has_every_value_of_the_job(job: Job) -> None:
    """The body of any job is JSON with exactly its values."""
    body = json.loads(encode_body(job))
    assert body["prompt"] == job.prompt
    assert body["seed"] == job.seed
    assert body["styles"] == [{"id": style.id, "strength": style.strength} for style in job.styles]
    assert set(body) == {
        "prompt", "aspect_ratio", "creativity", "seed", "image_style_references", "styles", "moodboards"
    }  # fmt: skip


@given(jobs, jobs)
def test_fingerprints(one: Job, other: Job) -> None:
    """Two jobs have the same fingerprint exactly if their bodies are equal."""
    assert (wire.fingerprint(one) == wire.fingerprint(other)) == (encode_body(one) == encode_body(other))
    assert len(wire.fingerprint(one)) == 32


def test_ids_and_metadata_do_not_change_the_fingerprint() -> None:
    """Jobs that differ only in id and metadata have the same fingerprint."""
    one, other = Job(prompt="a", id="1"), Job(prompt="a", id="2", metadata={"x": 1})
    assert wire.fingerprint(one) == wire.fingerprint(other) != wire.fingerprint(Job(prompt="b", id="1"))


# ---- results of a POST: accepted -------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 202, 203, 299])
@pytest.mark.parametrize(
    ("more", "progress"),
    [
        ({}, Waiting("QUEUED")),
        ({"status": "PROCESSING"}, Waiting("PROCESSING")),
        ({"status": "queued"}, Waiting("QUEUED")),
        ({"status": "SOMETHING_NEW"}, Waiting("SOMETHING_NEW")),
        ({"status": None}, Waiting("QUEUED")),
        ({"status": 7}, Waiting("QUEUED")),
        ({"polling_url": "file:///etc/passwd"}, Waiting("QUEUED")),
        ({"polling_url": None, "eta_s": 12.5, "extra": {"a": [1, None]}}, Waiting("QUEUED")),
        (COMPLETED, FINISHED_VERDICT),
        ({**COMPLETED, "status": None}, FINISHED_VERDICT),
        ({"status": "COMPLETED"}, Waiting("COMPLETED")),  # without an output, a poll decides
        (ERROR, Errored("Description of the error")),
        ({"status": "FAILED", "error": "nsfw"}, Failed("nsfw")),
    ],
)
def test_accepted(status: int, more: dict[str, Any], progress: Progress) -> None:
    """2xx with a valid request_id is accepted, whatever the other fields are. Its progress is kept."""
    assert parse_submit(status, QUEUED | more) == Accepted(ID, progress)


def test_accepted_without_a_status() -> None:
    """A request_id alone is enough."""
    assert parse_submit(202, {"request_id": ID}) == Accepted(ID, Waiting("QUEUED"))


VALID_IDS = [ID, "a", "0", "A" * 200, "a.b", "a-b_c~d:e", "019d.1", "a."]
INVALID_IDS: list[object] = [
    "",
    " ",
    f" {ID}",
    f"{ID}\n",
    "a b",
    "A" * 201,
    "..",
    ".",
    "../../admin",
    "a/../b",
    "a..b",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "a?x=1",
    "a#b",
    "a%2fb",
    "a;b",
    "a@b",
    "-a",
    "_a",
    "ä",
    "a\u0000",
    "a\u202e",
    "٣",
    "https://evil.example/x",
    None,
    0,
    1,
    True,
    1.5,
    [ID],
    {"id": ID},
    [],
]


@pytest.mark.parametrize("request_id", VALID_IDS)
def test_valid_request_ids(request_id: str) -> None:
    """A request_id of up to 200 letters, digits and safe characters is valid."""
    assert is_request_id(request_id)
    assert isinstance(parse_submit(202, {"request_id": request_id}), Accepted)


@pytest.mark.parametrize("request_id", INVALID_IDS, ids=repr)
def test_invalid_request_ids(request_id: object) -> None:
    """2xx with a request_id that is a path, too long, not a string or missing is ambiguous: it may be charged."""
    assert not is_request_id(request_id)
    assert isinstance(parse_submit(202, QUEUED | {"request_id": request_id}), Ambiguous)


@given(st.text(max_size=30) | st.from_regex(r"[A-Za-z0-9./%~:_-]{1,30}", fullmatch=True))
def test_request_ids_stay_in_their_segment(text: str) -> None:
    """No valid request_id leaves its segment in the path of a poll."""
    if is_request_id(text):
        assert not set(text) & set("/\\?#%@ \t\r\n")
        assert ".." not in text
        assert text not in ("", ".")


@pytest.mark.parametrize("status", [200, 202])
@pytest.mark.parametrize(
    "body",
    [*(GARBAGE_BODIES[name] for name in UNREADABLE_BODIES), b"{}", PAYMENT_REQUIRED_BODY, {"status": "QUEUED"}],
    ids=[*UNREADABLE_BODIES, *"123"],
)
def test_unreadable_2xx(status: int, body: object) -> None:
    """2xx without a readable request_id is ambiguous: the job may be queued and charged."""
    assert isinstance(parse_submit(status, body), Ambiguous)


@pytest.mark.parametrize("name", DAMAGED_BODIES)
def test_damage_in_another_field(name: str) -> None:
    """2xx with a request_id in its place is accepted in spite of damage elsewhere, and such a status is read."""
    request_id = DAMAGED_BODIES[name]
    accepted = parse_submit(202, GARBAGE_BODIES[name])
    assert isinstance(accepted, Accepted)
    assert accepted.request_id == request_id
    polled = read_poll_answer(to_answer(200, GARBAGE_BODIES[name]), request_id, now=NOW).verdict
    assert isinstance(polled, Waiting | PollFailed)
    assert polled != PollFailed("the status response is invalid", 200)


CANDIDATES: dict[str, tuple[int, object]] = {
    "cut": (202, json.dumps(QUEUED).encode()[:-30]),
    "only in polling_url": (202, {"status": "QUEUED", "polling_url": QUEUED["polling_url"]}),
    "in a list": (200, [QUEUED]),
    "under data": (200, {"data": QUEUED}),
    "two objects": (202, json.dumps(QUEUED).encode() * 2),
    "502": (502, QUEUED),
    "504 page": (504, f"<html>upstream sent {ID}</html>".encode()),
    "500 with an id in its message": (500, {"error": f"{ID} is queued, but its record is not written"}),
    "302": (302, QUEUED),
}


@pytest.mark.parametrize(("status", "body"), CANDIDATES.values(), ids=CANDIDATES)
def test_candidates(status: int, body: object) -> None:
    """An answer in doubt keeps its text, and the request_id that it names for a poll to prove."""
    answer = to_answer(status, body)
    verdict = read_post_answer(answer, now=NOW)
    assert isinstance(verdict, Ambiguous)
    assert (verdict.request_ids, verdict.answer) == ((ID,), answer.body)


def test_what_is_kept_of_an_answer() -> None:
    """An answer in doubt is kept up to 4 KiB."""
    verdict = parse_submit(504, b"<html>" + b"x" * 10_000)
    assert isinstance(verdict, Ambiguous)
    assert len(verdict.answer) == 4096


OTHER_ID = ID.replace("019d", "019e")
TWO_IDS: dict[str, tuple[int, object]] = {
    "a list of two": (200, [QUEUED, QUEUED | {"request_id": OTHER_ID}]),
    "polling_url of another request": (202, QUEUED | {"polling_url": QUEUED["polling_url"].replace(ID, OTHER_ID)}),
    "polling_url elsewhere": (202, QUEUED | {"polling_url": f"https://other.example/{OTHER_ID}"}),
    "the key twice": (202, json.dumps(QUEUED).encode()[:-1] + b', "request_id": "%s"}' % OTHER_ID.encode()),
    "an error": (500, {"error": f"{ID} waits for {OTHER_ID}"}),
    "an error with an id in its place": (500, {"error": f"waits for {OTHER_ID}", "request_id": ID}),
}


@pytest.mark.parametrize(("status", "body"), TWO_IDS.values(), ids=TWO_IDS)
def test_two_request_ids(status: int, body: object) -> None:
    """An answer that names two request_ids is in doubt, and both are candidates."""
    verdict = parse_submit(status, body)
    assert isinstance(verdict, Ambiguous)
    assert verdict.request_ids == (ID, OTHER_ID)


def test_many_request_ids() -> None:
    """An answer that names many request_ids, as a list of jobs does, has no candidate."""
    verdict = parse_submit(504, " ".join(f"{ID[:-1]}{digit}" for digit in range(4)).encode())
    assert isinstance(verdict, Ambiguous)
    assert verdict.request_ids == ()


def test_two_request_ids_of_another_form() -> None:
    """The request_id and its polling_url may have another form than those of this model."""
    url = QUEUED["polling_url"].replace(ID, "abc-2")
    verdict = parse_submit(202, {"request_id": "abc-1", "status": "QUEUED", "polling_url": url})
    assert isinstance(verdict, Ambiguous)
    assert verdict.request_ids == ("abc-1", "abc-2")


def test_a_broken_answer_with_an_id_in_its_place() -> None:
    """An answer that was cut behind a whole object is in doubt, with the object's request_id as the candidate."""
    answer = Answer(202, b'{"request_id": "abc-1"}', is_complete=False)
    verdict = read_post_answer(answer, now=NOW)
    assert isinstance(verdict, Ambiguous)
    assert verdict.request_ids == ("abc-1",)


# ---- results of a POST: refused or ambiguous -------------------------------------------------------------

REFUSALS = {400, 401, 402, 403, 404, 405, 411, 413, 414, 415, 417, 422, 429, 431, 500, 503, 505}


@pytest.mark.parametrize(
    ("status", "body", "refusal", "detail"),
    [
        (400, NO_MODEL_BODY, Refusal.REJECTED, "Model not found: Model 'krea-2-large-text-to-image' not found or is"),
        (401, {"message": "Access denied"}, Refusal.FATAL, "Access denied"),
        (
            402,
            PAYMENT_REQUIRED_BODY,
            Refusal.FATAL,
            "Insufficient Balance: Your wallet does not have enough balance.",
        ),
        (403, b"", Refusal.FATAL, "HTTP 403"),
        (403, {"message": "no access to this model"}, Refusal.FATAL, "no access to this model"),
        (403, b"<html>Request blocked</html>", Refusal.REJECTED, "HTTP 403"),
        (404, b"<html>", Refusal.REJECTED, "HTTP 404"),
        (411, b"", Refusal.REJECTED, "HTTP 411"),
        (414, b"", Refusal.REJECTED, "HTTP 414"),
        (417, b"", Refusal.REJECTED, "HTTP 417"),
        (431, b"", Refusal.REJECTED, "HTTP 431"),
        (505, b"", Refusal.REJECTED, "HTTP 505"),
        (405, b"", Refusal.REJECTED, "HTTP 405"),
        (413, {"error": {"message": "too large"}}, Refusal.REJECTED, "too large"),
        (415, {"error": {"message": 5}}, Refusal.REJECTED, "HTTP 415"),
        (422, {"error": "bad \u0007 ratio \u202e\n"}, Refusal.REJECTED, "bad   ratio"),
        (429, b"", Refusal.RATE_LIMITED, "HTTP 429"),
        (500, {"error": "Internal Server Error"}, Refusal.RETRYABLE, "Internal Server Error"),
        (503, NO_MODEL_BODY, Refusal.RETRYABLE, "Model not found"),
    ],
)
def test_refused(status: int, body: object, refusal: Refusal, detail: str) -> None:
    """A complete refusal of the API document proves that nothing was queued. Its message is kept."""
    verdict = parse_submit(status, body)
    assert isinstance(verdict, Refused)
    assert (verdict.refusal, verdict.status, verdict.retry_after_s) == (refusal, status, None)
    assert verdict.detail.startswith(detail)
    assert verdict.detail.isprintable()


@pytest.mark.parametrize("status", sorted(REFUSALS - {500, 503}))
@pytest.mark.parametrize("body", GARBAGE_BODIES.values(), ids=GARBAGE_BODIES)
def test_refusals_need_no_message(status: int, body: bytes) -> None:
    """A complete response with the status of a refusal is a refusal, whatever its body is."""
    assert isinstance(parse_submit(status, body), Refused)


@pytest.mark.parametrize("status", [500, 503])
@pytest.mark.parametrize(
    "body",
    [
        *GARBAGE_BODIES.values(),
        b"{}",
        {"message": "Internal Server Error"},
        {"error": ""},
        {"error": None},
        {"error": {"message": "nested"}},
        {"error": ["x"]},
        ERROR,
        QUEUED,
        {"error": "x", "request_id": ID},
        {"error": "x", "request_id": "not/valid"},
        {"error": "x", "request_id": 5},
    ],
)
def test_a_500_that_proves_nothing(status: int, body: object) -> None:
    """500 or 503 without the API document's error body, or with a request_id in it, is ambiguous."""
    assert isinstance(parse_submit(status, body), Ambiguous)


@pytest.mark.parametrize("status", [code for code in range(100, 1000) if code not in REFUSALS and code // 100 != 2])
def test_everything_else_is_ambiguous(status: int) -> None:
    """3xx, 408, 409, 502, 504 and every other status is ambiguous, whatever the body is."""
    for body in (PAYMENT_REQUIRED_BODY, QUEUED, COMPLETED, b"", None):
        assert isinstance(parse_submit(status, body), Ambiguous)
        assert isinstance(parse_submit(status, body, retry_after="5"), Ambiguous)


@pytest.mark.parametrize("status", range(100, 1000))
def test_an_incomplete_response(status: int) -> None:
    """A response that was cut, too large or compressed is ambiguous with every status."""
    assert isinstance(parse_submit(status, None, retry_after="5"), Ambiguous)


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (429, b"", Refused(Refusal.RATE_LIMITED, 429, "HTTP 429", 7.0)),
        (403, {"error": "Quota exceeded"}, Refused(Refusal.RATE_LIMITED, 403, "Quota exceeded", 7.0)),
        (503, {"error": "Busy"}, Refused(Refusal.RETRYABLE, 503, "Busy", 7.0)),
        (500, {"error": "Oops"}, Refused(Refusal.RETRYABLE, 500, "Oops", 7.0)),
        (401, b"", Refused(Refusal.FATAL, 401, "HTTP 401")),
        (402, b"", Refused(Refusal.FATAL, 402, "HTTP 402")),
        (400, b"", Refused(Refusal.REJECTED, 400, "HTTP 400")),
    ],
)
def test_refused_with_retry_after(status: int, body: object, expected: Refused) -> None:
    """Retry-After is used with 429, 500 and 503. A 403 with Retry-After is a rate limit (docs/architecture.md)."""
    assert parse_submit(status, body, retry_after="7") == expected


def test_messages_are_truncated() -> None:
    """A long message of the gateway is truncated in the verdict."""
    verdict = parse_submit(400, {"error": "x" * 100_000})
    assert isinstance(verdict, Refused)
    assert len(verdict.detail) == wire.MAX_DETAIL_CHARS


# ---- polls -----------------------------------------------------------------------------------------------


NO_OUTPUT = {"output": None, "completed_at": None}
OUTPUTS_WITHOUT_A_URL: list[Any] = [
    None,
    [],
    {},
    {"media_url": None},
    {"media_url": []},
    {"media_url": ""},
    {"media_url": [None, 5]},
    {"media_url": {"0": MEDIA_URL}},
]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, FINISHED_VERDICT),
        ({"status": "completed"}, FINISHED_VERDICT),
        ({"output": {"media_url": MEDIA_URL, "media_type": "image/png"}}, FINISHED_VERDICT),
        ({"output": {"media_url": [MEDIA_URL, MEDIA_URL], "media_type": "image/png"}}, FINISHED_VERDICT),
        ({"output": {"media_url": [MEDIA_URL, None, 5, "", ["x"]], "media_type": "image/png"}}, FINISHED_VERDICT),
        ({"output": {"media_url": [MEDIA_URL, "https://b"]}}, Finished((MEDIA_URL, "https://b"), "", 15.0)),
        ({"output": {"media_url": [MEDIA_URL], "media_type": 5, "more": {}}}, Finished((MEDIA_URL,), "", 15.0)),
        ({"error": "a warning"}, FINISHED_VERDICT),
        ({"model_id": 5, "progress": 100, "extra": {"deep": [[]]}}, FINISHED_VERDICT),
        ({"request_id": None}, FINISHED_VERDICT),
        ({"status": "QUEUED"}, Waiting("QUEUED")),
        ({"status": "PROCESSING"}, Waiting("PROCESSING")),
        ({"status": "Cancelled?"} | NO_OUTPUT, Waiting("CANCELLED?")),
        ({"status": "x" * 500} | NO_OUTPUT, Waiting("X" * 40)),
        ({"status": "QUEUED", "output": None}, Waiting("QUEUED")),
        ({"status": "SUCCEEDED"}, FINISHED_VERDICT),
        ({"status": "moderated", "output": None, "error": "unsafe"}, Failed("MODERATED: unsafe")),
        ({"status": "EXPIRED", "output": {"media_url": []}}, Failed("EXPIRED")),
        ({"status": "EXPIRED", "output": None, "completed_at": "soon"}, Waiting("EXPIRED")),
        *(({"output": output}, Waiting("COMPLETED")) for output in OUTPUTS_WITHOUT_A_URL),
        ({"status": "FAILED", "error": "nsfw"}, Failed("nsfw")),
        ({"status": "failed", "error": None}, Failed("")),
        ({"status": "FAILED", "error": {"message": "deep"}}, Failed("deep")),
        ({"status": "FAILED", "error": 5}, Failed("")),
        (ERROR, Errored("Description of the error")),
        ({"status": "ERROR", "error": None}, Errored("")),
        ({"created_at": None}, Finished((MEDIA_URL,), "image/png", None)),
        ({"created_at": "yesterday"}, Finished((MEDIA_URL,), "image/png", None)),
        ({"created_at": 5, "completed_at": []}, Finished((MEDIA_URL,), "image/png", None)),
        ({"completed_at": "2026-03-31T09:00:00Z"}, Finished((MEDIA_URL,), "image/png", None)),
        ({"created_at": "2026-03-31T10:00:10"}, Finished((MEDIA_URL,), "image/png", 5.0)),
        ({"created_at": "2026-03-31T12:00:05+02:00"}, Finished((MEDIA_URL,), "image/png", 10.0)),
    ],
)
def test_polled(changes: dict[str, Any], expected: PollVerdict) -> None:
    """Each status of the API document has its verdict. A single URL is allowed.

    An unknown status with an output means finished, with only a `completed_at` it means failed. Without both it means
    "not yet", as COMPLETED without a URL does.
    """
    assert parse_poll(COMPLETED | changes) == expected


@pytest.mark.parametrize(
    "body",
    [
        *(GARBAGE_BODIES[name] for name in UNREADABLE_BODIES),
        b"{}",
        COMPLETED | {"request_id": "another"},
        COMPLETED | {"request_id": 5},
        ERROR | {"request_id": "another"},
        {"request_id": ID},
        {"request_id": ID, "status": 5},
        PAYMENT_REQUIRED_BODY,
        None,
    ],
)
def test_invalid_status_responses(body: object) -> None:
    """A status response that cannot be read, or is for another request, is a failed poll."""
    assert isinstance(parse_poll(body), PollFailed)


@pytest.mark.parametrize("status", [200, 201, 202, 203])
def test_polls_with_other_2xx(status: int) -> None:
    """A status response with 202 is read like one with 200."""
    assert parse_poll(COMPLETED, status) == FINISHED_VERDICT


@pytest.mark.parametrize("body", [COMPLETED, ERROR, COMPLETED | {"status": "FAILED"}, {"status": "QUEUED"}])
def test_a_status_without_a_request_id(body: dict[str, Any]) -> None:
    """A status response that names no request is believed only on a connection of its own."""
    answer = to_answer(200, {name: value for name, value in body.items() if name != "request_id"})
    for is_reused in (False, True):
        polled = read_poll_answer(answer, ID, now=NOW, is_reused=is_reused)
        assert isinstance(polled.verdict, PollFailed) == is_reused
        assert polled.names_none
        assert not polled.names_request


@pytest.mark.parametrize("status", [code for code in range(100, 1000) if code // 100 != 2])
def test_polls_that_fail(status: int) -> None:
    """A poll with a status other than 2xx has failed, also with ERROR or COMPLETED in its body."""
    for body in (ERROR, COMPLETED, {"error": "FAILED"}, b"<html>", None):
        verdict = parse_poll(body, status, retry_after="9")
        assert isinstance(verdict, PollFailed)
        assert (verdict.status, verdict.retry_after_s) == (status, 9.0)


# ---- Retry-After -----------------------------------------------------------------------------------------


def http_date(wait_s: float) -> str:
    return format_datetime(NOW + timedelta(seconds=wait_s), usegmt=True)


@pytest.mark.parametrize(
    ("value", "date", "expected"),
    [
        (None, None, None),
        ("", None, None),
        ("soon", None, None),
        ("0", None, 0.0),
        ("5", None, 5.0),
        (" 5 ", None, 5.0),
        ("2.5", None, 2.5),
        ("007", None, 7.0),
        ("-1", None, None),
        ("-0.5", None, None),
        ("1e3", None, None),
        ("nan", None, None),
        ("inf", None, None),
        ("5, 10", None, None),
        ("5s", None, None),
        ("3600", None, 3600.0),
        ("3601", None, 3600.0),
        ("99999999", None, 3600.0),
        ("1774951200000", None, 3600.0),  # milliseconds since 1970
        ("9" * 5000, None, 3600.0),
        ("1." + "0" * 5000, None, 1.0),
        (http_date(30), None, 30.0),
        (http_date(-30), None, 0.0),
        (http_date(86400 * 365), None, 3600.0),
        (http_date(530), http_date(500), 30.0),  # the local clock is wrong; the response's Date counts
        (http_date(-470), http_date(-500), 30.0),
        (http_date(30), "garbage", 30.0),
        (http_date(30), "", 30.0),
        ("5", http_date(500), 5.0),
        ("Wed, 31 Feb 2026 10:00:00 GMT", None, None),
        ("Tuesday, 31-Mar-26 10:00:20 GMT", None, 20.0),  # RFC 850, which RFC 9110 still allows
        ("Tue Mar 31 10:00:20 2026", None, 20.0),  # asctime, likewise
        ("Tue, 31 Mar 2026 12:00:20 +0200", None, 20.0),
        ("Tue, 31 Mar 99999 10:00:00 GMT", None, None),
        ("2026-03-31T10:00:20Z", None, None),
    ],
)
def test_retry_after(value: str | None, date: str | None, expected: float | None) -> None:
    """Seconds, or an HTTP-date compared with the response's Date, are 0 to 3600 seconds. Anything else is None."""
    assert wire.retry_after_s(value, date, now=NOW) == expected


header_like = st.one_of(
    st.text(max_size=40),
    st.from_regex(r"[0-9.+\-eE ]{0,30}", fullmatch=True),
    st.from_regex(
        r"(Mon|Tue|x)?,? ?[0-9]{0,5} ?(Jan|Feb|Foo)? [0-9]{0,6} [0-9:.]{0,12} ?(GMT|[+-][0-9]{0,8}|EST)?",
        fullmatch=True,
    ),
)


@settings(deadline=None, max_examples=500)
@given(header_like, st.none() | header_like)
def test_no_retry_after_raises(value: str, date: str | None) -> None:
    """With any headers, the wait is None or 0 to 3600 seconds, and nothing is raised."""
    wait_s = wire.retry_after_s(value, date, now=NOW)
    assert wait_s is None or 0 <= wait_s <= wire.MAX_RETRY_AFTER_S


# ---- any response ----------------------------------------------------------------------------------------

values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
responses = st.dictionaries(
    st.sampled_from(["request_id", "status", "output", "error", "message", "created_at", "completed_at", "x"]),
    values
    | st.sampled_from(["COMPLETED", "FAILED", "ERROR", ID])
    | st.fixed_dictionaries({"media_url": values, "media_type": values})
    | st.datetimes().map(datetime.isoformat),
).map(lambda fields: json.dumps(fields).encode())
bodies = st.none() | st.binary(max_size=100) | responses


@settings(deadline=None, max_examples=300)
@given(st.integers(100, 999), bodies, st.none() | header_like, st.none() | header_like)
def test_no_answer_raises(status: int, body: bytes | None, retry_after: str | None, date: str | None) -> None:
    """No response raises. A POST is refused only by the API document's refusals. Verdicts can be encoded as UTF-8."""
    answer = Answer(status, body or b"", retry_after, date, is_complete=body is not None)
    verdict = read_post_answer(answer, now=NOW)
    assert isinstance(verdict, Accepted | Refused | Ambiguous)
    assert isinstance(verdict, Ambiguous) or status in REFUSALS or status // 100 == 2
    assert isinstance(verdict, Accepted) <= (status // 100 == 2)
    polled = read_poll_answer(answer, ID, now=NOW).verdict
    repr((verdict, polled)).encode()
    if isinstance(polled, Finished):
        assert polled.media_urls
        "".join(polled.media_urls).encode()
