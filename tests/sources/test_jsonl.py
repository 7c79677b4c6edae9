"""Test that a JSONL line is parsed into a job, or that one problem and hint explain why it is invalid."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from krea_batch.errors import JobError
from krea_batch.jobs import (
    ASPECT_RATIOS,
    CREATIVITIES,
    SEED_RANGE,
    ImageStyleReference,
    Job,
    Moodboard,
    Style,
)
from krea_batch.sources import json_errors
from krea_batch.sources.formats.jsonl import JsonlParser
from krea_batch.sources.formats.line_file import MAX_LINE_BYTES
from krea_batch.sources.json_errors import MAX_DEPTH
from krea_batch.sources.values import is_unusable

UUID = "01234567-89ab-cdef-0123-456789ABCDEF"


def problem_and_hint(line: bytes | str, *, keep_extra: bool = False) -> str:
    """Return the problem and the hint of an invalid line."""
    raw = line.encode() if isinstance(line, str) else line
    parser = JsonlParser(keep_extra=keep_extra)
    assert parser.read(raw) is None
    error = parser.diagnose(raw)
    return f"{error.problem}; {error.hint}"


def parse_job(line: bytes | str, *, keep_extra: bool = False) -> Job:
    job = JsonlParser(keep_extra=keep_extra).read(line.encode() if isinstance(line, str) else line)
    assert job is not None
    return job


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ('"promt": "y"', '"promt" is not a field of a job; did you mean "prompt"?'),
        ('"Prompt": "y"', '"Prompt" is not a field of a job; did you mean "prompt"?'),
        ('"aspectRatio": "1:1"', '"aspectRatio" is not a field of a job; did you mean "aspect_ratio"?'),
        ('"aspect-ratio": "1:1"', '"aspect-ratio" is not a field of a job; did you mean "aspect_ratio"?'),
        ('"sead": 1', '"sead" is not a field of a job; did you mean "seed"?'),
        ('"caption": "y"', '"caption" is not a field of a job; did you mean "prompt"?'),
        ('"colour": 1', '"colour" is not a field of a job; the fields are prompt, '),
        ('"\\u001b[31m": 1', '"\\x1b[31m" is not a field of a job; '),
        (
            '"aspect_ratio": "1:2"',
            '"aspect_ratio" is "1:2"; use one of 1:1, 4:3, 3:2, 16:9, 2.35:1, 4:5, 2:3, 9:16',
        ),
        ('"aspect_ratio": "16x9"', '"aspect_ratio" is "16x9"; write "16:9"'),
        ('"aspect_ratio": 1', '"aspect_ratio" is 1; use one of 1:1, 4:3,'),
        ('"creativity": "High"', '"creativity" is "High"; write "high"'),
        ('"creativity": "wild"', '"creativity" is "wild"; use one of raw, low, medium, high'),
        ('"seed": "5.5"', '"seed" is "5.5"; use an integer of at most'),
        ('"seed": 9007199254740992.0', '"seed" is 9007199254740992.0; use an integer of at most'),
        ('"seed": 5.5', '"seed" is 5.5; use an integer of at most 64 bits, or leave it out'),
        ('"seed": true', '"seed" is true; use an integer of at most'),
        (
            '"seed": 18446744073709551616',
            '"seed" is 18446744073709551616; use an integer of at most 64 bits, or leave it',
        ),
        (
            '"seed": -9223372036854775809',
            '"seed" is -9223372036854775809; use an integer of at most 64 bits, or leave it',
        ),
        ('"id": 1.5', '"id" is 1.5; write it in quotes'),
        ('"id": true', '"id" is true; write it in quotes'),
        ('"id": "a/b"', '"id" is "a/b"; an id is used as a file name: no / \\ .. or control characters, at'),
        ('"id": "a\\\\b"', '"id" is "a\\b"; an id is used as a file name: no'),
        ('"id": ".."', '"id" is ".."; an id is used as a file name: no'),
        ('"id": "../../etc/passwd"', '"id" is "../../etc/passwd"; an id is used as a file name: no'),
        ('"id": "."', '"id" is "."; an id is used as a file name: no'),
        ('"id": "a\\u0000"', '"id" is "a\\x00"; an id is used as a file name: no'),
        ('"id": "a\\u009b"', '"id" is "a\\x9b"; an id is used as a file name: no'),
        ('"id": "' + "é" * 101 + '"', '"id" is 202 bytes long; use at most 200, which fit into a file'),
        ('"id": "\\ud800"', '"id" contains \\ud800, a lone surrogate; write'),
        ('"metadata": [1]', '"metadata" is [1]; write an object'),
        (
            '"styles": {"id": "a"}',
            '"styles" is {"id": "a"}; write a list: "styles": [{"id": "…", "strength": 1.0}]',
        ),
        ('"styles": ["a"]', 'entry 1 of "styles" is "a"; write {"id": "…", "strength": 1.0}'),
        ('"styles": [{"id": "a"}, {}]', 'entry 2 of "styles" has no "id"; write {"id": '),
        ('"styles": [{"id": ""}]', '"id" in entry 1 of "styles" is ""; use the style\'s id from Krea\'s'),
        ('"styles": [{"id": 5}]', '"id" in entry 1 of "styles" is 5; use the style\'s id from Krea\'s'),
        (
            '"styles": [{"id": "a", "strength": "1"}]',
            '"strength" in entry 1 of "styles" is "1"; use a number like 0.5',
        ),
        (
            '"styles": [{"id": "a", "strength": true}]',
            '"strength" in entry 1 of "styles" is true; use a number like 0.5',
        ),
        (
            '"styles": [{"id": "a", "strenght": 1}]',
            '"strenght" is not a field of entry 1 of "styles"; did you mean "strength"?',
        ),
        ('"styles": [' + '{"id": "a"},' * 10 + '{"id": "a"}]', '"styles" has 11 entries; use at most 10'),
        (
            '"image_style_references": [' + '{"image_url": "https://a.b"},' * 10 + '{"image_url": "https://a.b"}]',
            '"image_style_references" has 11 entries; use at most 10',
        ),
        (
            '"image_style_references": [{"image_url": "http://a.b/c"}]',
            '"image_url" in entry 1 of "image_style_references" is "http://a.b/c"; use a complete https:// URL, or',
        ),
        ('"image_style_references": [{"image_url": "https://a.b/ c"}]', '"image_url" in entry 1 of'),
        (
            '"image_style_references": [{"url": "https://a.b"}]',
            '"url" is not a field of entry 1 of "image_style_references"; ',
        ),
        (
            '"moodboards": [{"id": "calm"}]',
            '"id" in entry 1 of "moodboards" is "calm"; use the moodboard\'s UUID, like 01234567-',
        ),
        (
            f'"moodboards": [{{"id": "{UUID}"}}, {{"id": "{UUID}"}}]',
            '"moodboards" has 2 entries; use at most 1',
        ),
        ('"prompt": "y"', 'duplicate key "prompt"; keep one'),
        ('"metadata": {"a": 1, "a": 1}', 'duplicate key "a"; keep one'),
        ('"seed": NaN', "NaN is not valid JSON; use a finite number, or leave"),
        ('"seed": -Infinity', "-Infinity is not valid JSON; use a finite"),
        ('"metadata": {"a": 1e400}', "the number 1e400 is too large"),
        ('"seed": ' + "9" * 5000, "the number 99999999999999999999… has 5000 digits"),
        ('"metadata": {"a": ' + "9" * 5000 + "}", "the number 99999999999999999999… has 5000 digits"),
        ('"metadata": {"a": [["\\udc00"]]}', '"a" contains \\udc00, a lone surrogate; write'),
        ('"metadata": {"\\ud83d": 1}', "a key contains \\ud83d, a lone surrogate; write"),
        ('"seed": None', "None is not valid JSON at character 23; write null"),
        ('"seed": undefined', '"undefined" is not quoted at character 23; write "…"'),
        ('"seed": 1,', "trailing comma at character 24; remove it"),
        ("seed: 1", '"seed" is not quoted at character 15; write "…"'),
        ('"id": "a\tb"', "control character in a string at character 23; write \\t for a tab and \\n for"),
        ('"id": “a”', "unexpected quote “ at character 21; use the"),
        ('"id": "C:\\images"', "unknown \\ escape at character 24; write \\\\ for a backslash"),
        ('"id": "a" "seed": 1', "missing comma at character 25; separate"),
    ],
)
def test_invalid_fields(fields: str, expected: str) -> None:
    """For an invalid field, the problem has its name and value, and the hint says what to write."""
    assert problem_and_hint('{"prompt":"x",' + fields + "}").startswith(expected)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"{}", 'missing "prompt"; write {"prompt": "what the image shows"}'),
        (b'{"prompt": ""}', '"prompt" is empty; write in quotes what the image shows'),
        (b'{"prompt": " \\n\\u00a0"}', '"prompt" is empty'),
        (b'{"prompt": 5}', '"prompt" is 5; write in quotes'),
        (b'{"prompt": null}', '"prompt" is null; write in quotes'),
        (b'{"prompt": "\\ud800"}', '"prompt" contains \\ud800, a lone surrogate; write the character'),
        (b'{"prompt": "\xff"}', "byte 13 (0xff) is not UTF-8; save the file as UTF-8"),
        (b'{"prompt": "\xed\xa0\x80"}', "byte 13 (0xed) is not UTF-8"),
        (b'{"prompt" "x"}', 'missing colon at character 11; write "field": value'),
        (b'{"prompt": }', 'missing value at character 12; write "field":'),
        (b'{"prompt": "x", 5: 1}', 'missing field name at character 17; write "field": value'),
        (b"{'prompt': 'x'}", "unexpected quote ' at character 2; use the"),
        (b"{", "the line ends before the object is complete; write each job on one line"),
        (b'{"prompt": "x"', "the line ends before the object is complete;"),
        (b'{"prompt": "x', 'unterminated string at character 12; close it with " on the'),
        (b'{"prompt": "x"},', "unexpected comma after the object at character 16; remove"),
        (
            b'{"prompt": "x"} {"prompt": "y"}',
            "unexpected text after the object at character 17; write one job per line",
        ),
        (b"[]", "the line is [], not an object; write one object per line, without [ and ]"),
        (b'"x"', 'the line is "x", not an object'),
        (b"null", "the line is null, not an object"),
        (b"12", "the line is 12, not an object"),
        (b"a photo of a bench", "expected an object at character 1; write"),
        (b"// a comment", "unexpected comment at character 1; remove"),
        (b"[" * 100_000, f"nested more than {MAX_DEPTH} levels deep"),
        (b"[" * 500 + b"]" * 500, f"nested more than {MAX_DEPTH} levels deep"),
        (b'{"a":' * 100_000, f"nested more than {MAX_DEPTH} levels deep"),
        (
            b'{"prompt": "x", "metadata": ' + b'{"a":' * 120 + b"1" + b"}" * 121,
            "nested more than 100 levels deep; keep",
        ),
        (
            b'{"prompt": "' + b"x" * MAX_LINE_BYTES + b'"}',
            "the line is longer than 1 MiB; write one job per line, with",
        ),
        (b'{"prompt": "x", "seed": 01}', "missing comma at character 26; separate"),
    ],
)
def test_invalid_lines_of_json(line: bytes, expected: str) -> None:
    """For a line that is not a JSON object with a prompt, the problem says why, and where if it has a position."""
    assert problem_and_hint(line).startswith(expected)


def test_messages_are_short() -> None:
    """Long names and values are truncated, so every message is shorter than 300 characters."""
    long = "x" * 100_000
    for line in (
        f'{{"prompt": "x", "{long}": 1}}',
        f'{{"prompt": "x", "aspect_ratio": "{long}"}}',
        f'{{"prompt": "x", "styles": "{long}"}}',
        f'{{"prompt": "x", "id": "{long}/"}}',
        f'{{"prompt": "x", "seed": 1e{"9" * 1000}}}',
        f'{{"prompt": "x", {long}: 1}}',
        f'"{long}"',
    ):
        assert len(problem_and_hint(line)) < 300


@pytest.mark.parametrize(
    "line",
    [
        '{"prompt": "x", "seed": 1, "seed": 1}',
        '{"prompt": "x", "aspect_ratio": "3:2", "aspect_ratio": "1:1"}',
        '{"prompt": "x", "creativity": "high", "creativity": "medium"}',
        '{"prompt": "x", "prompt": "aspect_ratio"}',
        '{"prompt": "x", "id": "a", "id": ""}',
        '{"prompt": "x", "pr\\u006fmpt": "y"}',
        '{"prompt" : "x" ,\t"prompt" :"y"}',
        '{"prompt": "a \\"quoted\\" word", "seed": 1, "seed": 2}',
        '{"prompt": "x", "styles": [], "styles": [{"id": "a"}]}',
        '{"prompt": "x", "styles": [{"id": "a", "id": "b"}]}',
        '{"prompt": "x", "metadata": {}, "metadata": {}}',
    ],
)
def test_duplicate_keys(line: str) -> None:
    """A duplicate key is found at any position, also if it is escaped or has another value."""
    assert "duplicate key" in problem_and_hint(line)


def test_recorded_references_are_not_blamed() -> None:
    """A local reference image as it is recorded, with its path, is valid; the error names the entry that is not."""
    recorded = {"image_url": f"s3://b/{'0' * 64}.png", "image_path": "a.png"}
    line = json.dumps({"prompt": "x", "image_style_references": [recorded, {"image_url": "http://x.org/a.png"}]})
    assert '"image_url" in entry 2 of "image_style_references" is' in problem_and_hint(line)


MEMBERS = st.sampled_from(
    [
        '"prompt":"x"',
        '"prompt":"seed"',
        '"prompt":"aspect_ratio"',
        '"prompt":"\\"id\\""',
        '"id":"a"',
        '"id":""',
        '"id":"creativity"',
        '"id":"a\\"creativity\\":"',
        '"image_name":""',
        '"image_name":"a/seed"',
        '"image_name":"a\\"creativity\\":"',
        '"seed":1',
        '"aspect_ratio":"1:1"',
        '"aspect_ratio":"3:2"',
        '"creativity":"high"',
        '"creativity":"medium"',
        '"styles":[]',
        '"styles":[{"id":"a"},{"id":"a"}]',
        '"styles":[{"id":"creativity"},{"id":"aspect_ratio"}]',
        '"metadata":{"id":1}',
        '"metadata":{"aspect_ratio":1,"creativity":2}',
    ]
)


@given(st.lists(MEMBERS, max_size=5))
def test_duplicate_keys_of_valid_fields(fields: list[str]) -> None:
    """A line of valid fields is a job exactly if it has a prompt and no duplicate key."""
    keys = [field.split(":")[0] for field in fields]
    is_valid = '"prompt"' in keys and len(set(keys)) == len(keys)
    assert (JsonlParser().read(("{" + ",".join(fields) + "}").encode()) is not None) == is_valid


TEXTS = st.text(st.sampled_from('ab"\\\\ué{[: ,'), max_size=6)
VALUES = st.recursive(
    st.integers() | TEXTS, lambda inner: st.lists(inner, max_size=3) | st.lists(st.tuples(TEXTS, inner), max_size=3)
)


def json_text(value: object, *, ascii_only: bool) -> str:
    """Return the JSON text of a value. A list of pairs becomes an object, so that a key can be duplicate."""
    if isinstance(value, list) and value and isinstance(value[0], tuple):
        pairs = (
            f"{json.dumps(key, ensure_ascii=ascii_only)}: {json_text(each, ascii_only=ascii_only)}"
            for key, each in value
        )
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ",".join(json_text(each, ascii_only=ascii_only) for each in value) + "]"
    return json.dumps(value, ensure_ascii=ascii_only)


@given(TEXTS, st.lists(st.tuples(TEXTS, VALUES), min_size=1, max_size=4), st.booleans(), st.booleans())
@example('"', [("a", [("b", 1), ("b", 2)])], False, False)
@example('""""', [("b", ""), ("b", "")], True, True)
def test_a_duplicate_key_is_found_by_counting_quotes(
    prompt: str, metadata: list[tuple[str, object]], ascii_only: bool, quotes_escaped: bool
) -> None:
    """The fast parser accepts exactly the lines that the strict one accepts, whatever quotes their texts contain."""
    line = f'{{"prompt": {json.dumps("x" + prompt)}, "metadata": {json_text(metadata, ascii_only=ascii_only)}}}'
    if quotes_escaped:
        line = line.replace('\\"', "\\u0022")
    try:
        json_errors.parse_object(line.encode())
    except JobError:
        assert JsonlParser().read(line.encode()) is None
    else:
        assert JsonlParser().read(line.encode()) is not None


def test_valid_lines() -> None:
    """Every value that the API document allows is accepted, and omitted fields get its defaults."""
    assert parse_job('{"prompt": "x"}') == Job(prompt="x")
    assert parse_job(b' {"prompt": "x", "id": ""} \r') == Job(prompt="x")
    assert parse_job('{"prompt": "\\ud83d\\ude00"}').prompt == "😀"
    assert parse_job('{"prompt": "x", "seed": 18446744073709551615}').seed == 2**64 - 1
    assert parse_job('{"prompt": "x", "metadata": {"n": 123456789012345678901234567890}}').metadata["n"] > 2**64
    assert parse_job('{"prompt": "x", "styles": [{"id": "a", "strength": -1}]}').styles == (Style("a", -1.0),)
    assert parse_job(f'{{"prompt": "x", "moodboards": [{{"id": "{UUID}"}}]}}').moodboards == (Moodboard(UUID, 0.23),)
    deep = b'{"prompt": "x", "metadata": ' + b'{"a":' * 98 + b"1" + b"}" * 99
    assert parse_job(deep).metadata


def test_keep_extra() -> None:
    """Unknown fields are added to the metadata, and their names to `unknown_fields`."""
    parser = JsonlParser(keep_extra=True)
    job = parser.read(b'{"tag": [1], "prompt": "x", "metadata": {"a": 1}, "sead": 7}')
    assert job == Job(prompt="x", metadata={"a": 1, "tag": [1], "sead": 7})
    assert parser.unknown_fields == ["tag", "sead"]
    assert parser.read(b'{"prompt": "x", "metadata": {"a": 1}}') == Job(prompt="x", metadata={"a": 1})
    assert parser.unknown_fields == ["tag", "sead"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            '{"prompt": "x", "a": 1, "metadata": {"a": 2}}',
            '"a" is given twice, on the line and in metadata; keep one',
        ),
        ('{"prompt": "x", "a": 1, "metadata": 5}', '"metadata" is 5; write an object'),
        ('{"prompt": "x", "a": 1, "a": 2}', 'duplicate key "a"; keep one'),
        ('{"prompt": "x", "a": 1, "seed": "x"}', '"seed" is "x"; use an integer of at most'),
        ('{"prompt": "x", "a": 1, "prompt": "y"}', 'duplicate key "prompt"; keep one'),
        ('{"promt": "x"}', 'missing "prompt"; write {"prompt":'),
        ('{"prompt": "x", "styles": [{"id": "a", "b": 1}]}', '"b" is not a field of entry 1 of "styles"'),
        ('{"prompt": "x", "a": "\\ud800"}', '"a" contains \\ud800, a'),
    ],
)
def test_keep_extra_with_invalid_lines(line: str, expected: str) -> None:
    """With `keep_extra`, all other problems are still found, and metadata is never overwritten."""
    assert problem_and_hint(line, keep_extra=True).startswith(expected)


@given(st.binary(max_size=200), st.booleans())
@example(b'{"prompt":"x","id":"\\ud800"}', False)
@example(b"\xef\xbb\xbf{}", True)
@example(b'{"prompt":"x","metadata":' + b"9" * 5000 + b"}", True)
def test_any_bytes(line: bytes, keep_extra: bool) -> None:
    """Any bytes are a job, or have a printable problem and hint; no other exception is raised."""
    parser = JsonlParser(keep_extra=keep_extra)
    if parser.read(line) is None:
        error = parser.diagnose(line)
        assert error.problem
        assert error.hint
        assert str(error).isprintable()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["1:1", "high"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELD_NAMES = st.sampled_from([*Job.__struct_fields__, "sead", "tag"])


@given(st.dictionaries(FIELD_NAMES, JSON), st.booleans())
def test_any_json(fields: dict[str, object], keep_extra: bool) -> None:
    """Any values in the fields of a job are a job, or have a specific problem."""
    line = json.dumps({"prompt": "x"} | fields).encode()
    parser = JsonlParser(keep_extra=keep_extra)
    if parser.read(line) is None:
        assert "not a valid job" not in parser.diagnose(line).problem


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
STRENGTHS = st.floats(allow_nan=False, allow_infinity=False)
IDS = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/\\."), max_size=50)
JOBS = st.builds(
    Job,
    prompt=TEXT.filter(lambda text: not text.isspace() and not is_unusable(text)),
    aspect_ratio=st.sampled_from(ASPECT_RATIOS),
    creativity=st.sampled_from(CREATIVITIES),
    seed=st.just(msgspec.UNSET) | st.integers(*SEED_RANGE),
    image_style_references=st.lists(
        st.builds(ImageStyleReference, st.just("https://example.com/a.png"), STRENGTHS), max_size=10
    ).map(tuple),
    styles=st.lists(st.builds(Style, TEXT, STRENGTHS), max_size=10).map(tuple),
    moodboards=st.lists(st.builds(Moodboard, st.uuids().map(str), STRENGTHS), max_size=1).map(tuple),
    id=IDS,
    metadata=st.dictionaries(TEXT, st.integers() | TEXT | st.lists(st.booleans()), max_size=4),
)


@given(JOBS, st.booleans())
def test_round_trip(job: Job, keep_extra: bool) -> None:
    """Any valid job, encoded as a line, is parsed as the same job."""
    assert parse_job(msgspec.json.encode(job), keep_extra=keep_extra) == job
