"""The request_id in damaged answers: read where the object can be read, found where it cannot, and never guessed."""

from __future__ import annotations

import gzip
import json
import uuid
import zlib
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from krea_batch.gateway.evidence import MAX_SEARCHED_BYTES, decompress, find_request_ids, read_json
from krea_batch.gateway.wire import is_request_id

ID = "krea-2-large-text-to-image_019dxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx"  # API document, Output
OTHER_ID = "krea-2-large-text-to-image_019d0000-0000-7000-8000-000000000002"
ACCEPTED = {
    "request_id": ID,
    "status": "QUEUED",
    "polling_url": f"https://gateway.pixazo.ai/v2/requests/status/{ID}",
}
BODY = json.dumps(ACCEPTED).encode()

READABLE: dict[str, bytes] = {
    "as documented": BODY,
    "byte order mark": b"\xef\xbb\xbf" + BODY,
    "UTF-16": json.dumps(ACCEPTED).encode("utf-16"),
    "UTF-16LE": json.dumps(ACCEPTED).encode("utf-16-le"),
    "UTF-32": json.dumps(ACCEPTED).encode("utf-32"),
    "gzip": gzip.compress(BODY),
    "zlib": zlib.compress(BODY),
    "raw deflate": zlib.compress(BODY, wbits=-15),
    "odd byte": json.dumps(ACCEPTED | {"note": "ae"}).encode().replace(b"ae", b"\xe4"),
    "lone surrogate": json.dumps(ACCEPTED | {"note": "\ud800"}).encode(),
    "second half of a surrogate": json.dumps(ACCEPTED | {"note": "\udc00x"}).encode(),
    "control characters": json.dumps(ACCEPTED | {"note": "ae"}).encode().replace(b"ae", b"\x01\n"),
    "NaN": json.dumps(ACCEPTED | {"cost": float("nan")}).encode(),
    "zeros at the end": BODY + b"\0\0",
    "latin-1": json.dumps(ACCEPTED | {"note": "Köln"}, ensure_ascii=False).encode("latin-1"),
}


@pytest.mark.parametrize("body", READABLE.values(), ids=READABLE)
def test_readable_objects(body: bytes) -> None:
    """An object is read in spite of its encoding, compression and damage in another field."""
    value = read_json(body)
    assert (value["request_id"], value["status"]) == (ID, "QUEUED")
    assert find_request_ids(body) == {ID}


UNREADABLE: dict[str, bytes] = {
    "cut after the id": BODY[: BODY.index(b'"status"')],
    "cut right behind the id": BODY[: BODY.index(b'", "status"')],
    "gzip, cut": gzip.compress(json.dumps(ACCEPTED | {"note": uuid.uuid4().hex * 40}).encode())[:-30],
    "only in polling_url": json.dumps({"polling_url": ACCEPTED["polling_url"]}).encode(),
    "slashes escaped": json.dumps({"polling_url": ACCEPTED["polling_url"]}).replace("/", "\\/").encode(),
    "percent codes": json.dumps({"next": "https://gw.example/?u=%2Fstatus%2F" + ID + "%3Fx"}).encode(),
    "hyphens escaped": b'{"request_id": "' + ID.replace("-", "\\u002d").encode() + b'", "sta',
    "in a list": json.dumps([ACCEPTED]).encode(),
    "under data": json.dumps({"data": ACCEPTED}).encode(),
    "twice": BODY * 2,
    "in a page": f"<html><p>504 upstream sent: {ID}</p></html>".encode(),
    "text in UTF-16": f"upstream sent {ID}.".encode("utf-16"),
    "JSON in a string": json.dumps(json.dumps(ACCEPTED)).encode(),
    "single quotes": f"{{'request_id': '{ID}'}}".encode(),
    "with the image's URL": json.dumps(
        [ACCEPTED, {"media_url": f"https://cdn/v1/{ID}/output.png", "short": f"https://cdn/{ID[:35]}/output.png"}]
    ).encode(),
}


@pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE)
def test_ids_that_are_found(body: bytes) -> None:
    """The only request_id of this model is found wherever it stands, also in an object that is cut behind it."""
    assert find_request_ids(body) == {ID}


UNDECIDED: dict[str, bytes] = {
    "empty": b"",
    "no id": b"<html>502 Bad Gateway</html>",
    "the model's name": b'{"model_id": "krea-2-large-text-to-image"}',
    "cut in the id": BODY[: BODY.index(b"xxxxxxxxxxxx") + 11],
    "another form": b'{"request_id": "krea-2-large-text-to-image_job.00017", "sta',
    "a longer id": f'"x{ID}" "{ID}0"'.encode(),
    "an id of another model": b'"krea-1-text-to-image_019dxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx"',
    "the document's short path": b'"https://cdn/v1/krea-2-large-text-to-image_019dxxxx/output.png"',
    "a path": b'"krea-2-large-text-to-image_../../../admin"',
    "brotli": b"\x0b\x02\x80" + b"krea"[::-1] + b"\x03",
    "gzip of nothing": gzip.compress(b""),
    "no gzip": b"\x1f\x8b\x08" + b"\xff" * 20,
}


@pytest.mark.parametrize("body", UNDECIDED.values(), ids=UNDECIDED)
def test_ids_that_are_not_guessed(body: bytes) -> None:
    """No id, or a part of one: nothing is found."""
    assert find_request_ids(body) == set()


def test_a_compressed_bomb() -> None:
    """What a small compressed body becomes is limited."""
    assert len(decompress(gzip.compress(b" " * (50 << 20)))) == MAX_SEARCHED_BYTES


model_ids = st.uuids().map(lambda value: f"krea-2-large-text-to-image_{value}")
fields = st.dictionaries(st.sampled_from("abcdef"), st.text(max_size=12) | st.integers() | st.none(), max_size=4)
wrappers: list[Any] = [
    lambda fields: fields,
    lambda fields: [fields],
    lambda fields: {"data": fields},
    lambda fields: {"data": [{"result": fields}]},
]
encoders: list[Any] = [
    lambda text: text.encode(),
    lambda text: b"\xef\xbb\xbf" + text.encode(),
    lambda text: text.encode("utf-16"),
    lambda text: text.encode("utf-32-le"),
    lambda text: gzip.compress(text.encode()),
    lambda text: zlib.compress(text.encode()),
]


@settings(deadline=None)
@given(model_ids, fields, fields, st.sampled_from(wrappers), st.sampled_from(encoders))
def test_any_whole_answer(
    request_id: str, before: dict[str, Any], after: dict[str, Any], wrap: Any, encode: Any
) -> None:
    """The id of any object with any other fields is found in every encoding."""
    text = json.dumps(wrap({**before, "request_id": request_id, **after}))
    assert find_request_ids(encode(text)) == {request_id}


@settings(deadline=None)
@given(model_ids, fields, st.integers(0, 400), st.sampled_from([b"", b"\xff", b'"', b"\t}", b"\0<"]))
def test_any_cut(request_id: str, before: dict[str, Any], kept: int, noise: bytes) -> None:
    """However an answer is cut and damaged, what is found is its own whole id, or nothing."""
    body = json.dumps({**before, "request_id": request_id, "status": "QUEUED"}).encode()
    assert find_request_ids(body[:kept] + noise) <= {request_id}
    end = body.index(request_id.encode()) + len(request_id)
    assert find_request_ids(body[:end]) == {request_id}


@settings(deadline=None)
@given(model_ids, model_ids, st.binary(max_size=20))
def test_any_two_ids(one: str, other: str, noise: bytes) -> None:
    """Both ids in one answer are found, and nothing else is, whatever stands between them."""
    body = f'"{one}" '.encode() + noise + f' "{other}"'.encode()
    assert find_request_ids(body) <= {one, other}
    assert find_request_ids(f'["{one}", "{other}"]'.encode()) == {one, other}


@settings(deadline=None, max_examples=500)
@given(st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode("utf-8", "replace")))
@example(b"[" * 100_000)
@example(b'{"a": ' + b"9" * 10_000 + b"}")
@example(b"\x1f\x8b")
@example(b"\x78\x9c")
def test_any_bytes(body: bytes) -> None:
    """No bytes raise. What is found is a valid request_id, and strings that are read can be encoded as UTF-8."""
    assert all(map(is_request_id, find_request_ids(body)))
    json.dumps(read_json(body), ensure_ascii=False).encode()
