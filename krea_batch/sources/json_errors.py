"""Parses a line of JSON slowly and thoroughly, and explains what is wrong with it.

The fast parser is `formats.jsonl`; this one is for lines that the fast one refused or could not decide about. It is
stricter than JSON where an image could be wrong: an object must not have a key twice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from krea_batch.errors import InputError, JobError, escape_unprintable
from krea_batch.sources.formats.encoding import BYTE_ORDER_MARK, decode_utf_8

MAX_DEPTH = 100  # chosen: no metadata needs more, and every encoder and call stack can handle it
TOO_DEEP = f"nested more than {MAX_DEPTH} levels deep", "keep metadata flat"  # problem and hint

_MAX_QUOTED_CHARS = 60  # chosen: enough to find the place, short enough for one line of a terminal
_PYTHON_LITERALS = {"True": "true", "False": "false", "None": "null"}
_PARSER_MESSAGES = (  # prefix of json.JSONDecodeError.msg, problem, hint
    (
        "Invalid control character",
        "control character in a string",
        "write \\t for a tab and \\n for a newline",
    ),
    ("Unterminated string", "unterminated string", 'close it with " on the same line'),
    ("Invalid \\", "unknown \\ escape", "write \\\\ for a backslash"),
    ("Expecting ',' delimiter", "missing comma", "separate fields with commas"),
    ("Expecting ':' delimiter", "missing colon", 'write "field": value'),
    ("Expecting property name", "missing field name", 'write "field": value'),
    ("Expecting value", "missing value", 'write "field": value'),
)
_JOB_EXAMPLE = 'write {"prompt": "what the image shows"}'
_BLANKS = re.compile(r"[ \t\r\n]*")
_WORD = re.compile(r"[A-Za-z_]\w*")


def parse_object(line: bytes) -> dict[str, Any]:
    """Return the object on the line. Raises JobError unless the line is exactly one valid JSON object."""
    text = decode_utf_8(line).strip().removeprefix(BYTE_ORDER_MARK)
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise _syntax_error(text, error) from None
    except RecursionError:
        raise _too_deep() from None
    if text.count("[") + text.count("{") > MAX_DEPTH:
        _check_depth(value)
    if "\\u" in text:
        _check_surrogates(value)
    if not isinstance(value, dict):
        hint = "write one object per line, without [ and ]" if isinstance(value, list) else _JOB_EXAMPLE
        raise JobError(f"the line is {quoted(value)}, not an object", hint)
    return value


def parse_value(text: str) -> Any:
    """Return the JSON value of a cell. Raises JobError."""
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise _syntax_error(text, error) from None
    except RecursionError:
        raise _too_deep() from None
    _check_depth(value)
    _check_surrogates(value)
    return value


def parse_document(content: bytes, name: str) -> Any:
    """Return the JSON value of a file. Raises InputError, which names the line."""
    try:
        text = decode_utf_8(content)
        value = _DECODER.decode(text)
        if text.count("[") + text.count("{") > MAX_DEPTH:
            _check_depth(value)
        if "\\u" in text:
            _check_surrogates(value)
    except json.JSONDecodeError as error:
        raise _document_error(text, name, error) from None
    except (JobError, RecursionError) as error:
        job_error = error if isinstance(error, JobError) else _too_deep()
        raise InputError(f"{name}{_place_of_error(content)}: {job_error.problem}", job_error.hint) from None
    return value


def _place_of_error(content: bytes) -> str:
    """Return the line of a byte that is not UTF-8, or of an invalid entry, after a colon; empty if it is unknown.

    The decoder does not tell where the value is that it refuses, so the entries of the list are decoded one by one.
    """
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return f":{line}"
    position = text.find("[")
    while 0 <= position < len(text) and text[position] in "[,":
        start = _end_of_blanks(text, position + 1)
        try:
            value, end = _DECODER.raw_decode(text, start)
            _check_depth(value)
            _check_surrogates(value)
        except json.JSONDecodeError:
            return ""
        except (JobError, RecursionError):
            line = text.count("\n", 0, start) + 1
            return f":{line}"
        position = _end_of_blanks(text, end)
    return ""


def _end_of_blanks(text: str, start: int) -> int:
    match = _BLANKS.match(text, start)
    return match.end() if match else start


def is_strict_json(line: bytes) -> bool:
    """Return whether a line of valid JSON has no duplicate key and is not nested too deeply."""
    try:
        if line.count(b"[") + line.count(b"{") > MAX_DEPTH:
            parse_object(line)
        else:
            _PAIRS_DECODER.decode(line.decode())
    except JobError:
        return False
    return True


def quoted(value: object) -> str:
    """Return a value as it is written in a job line, with printable characters only, and shortened."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    shortened = text[:_MAX_QUOTED_CHARS] + ("…" if len(text) > _MAX_QUOTED_CHARS else "")
    printable = escape_unprintable(shortened)
    return f'"{printable}"' if isinstance(value, str) else printable


def _object_of_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object; raise JobError for a duplicate key, of which JSON would silently take the last value."""
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        duplicate = next(key for key in keys if keys.count(key) > 1)
        raise JobError(f"duplicate key {quoted(duplicate)}", "keep one")
    return found


def _parse_integer(digits: str) -> int:
    try:
        return int(digits)
    except ValueError:  # Python's limit is 4300 digits
        raise JobError(
            f"the number {digits[:20]}… has {len(digits)} digits", "use a number of at most 64 bits"
        ) from None


def _parse_float(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise JobError(f"the number {text[:_MAX_QUOTED_CHARS]} is too large", "use a smaller number")
    return number


def _reject_constant(literal: str) -> NoReturn:
    raise JobError(f"{literal} is not valid JSON", "use a finite number, or leave the field out")


_PAIRS_DECODER = json.JSONDecoder(object_pairs_hook=_object_of_pairs)
_DECODER = json.JSONDecoder(
    object_pairs_hook=_object_of_pairs,
    parse_int=_parse_integer,
    parse_float=_parse_float,
    parse_constant=_reject_constant,
)


def _too_deep() -> JobError:
    return JobError(*TOO_DEEP)


def _check_depth(value: object) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return
    raise _too_deep()


def _children(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _check_surrogates(value: object) -> None:
    for name, text in _strings(value, "the line"):
        surrogate = next((char for char in text if "\ud800" <= char <= "\udfff"), None)
        if surrogate:
            raise JobError(
                f"{name} contains \\u{ord(surrogate):04x}, a lone surrogate",
                "write the character itself, or both surrogates",
            )


def _strings(value: object, name: str) -> Iterator[tuple[str, str]]:
    """Yield every string in the value, with the name of its field."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, dict):
        for key, child in value.items():
            yield "a key", key
            yield from _strings(child, quoted(key))
    elif isinstance(value, list):
        for child in value:
            yield from _strings(child, name)


def _syntax_error(text: str, error: json.JSONDecodeError) -> JobError:
    position = error.pos
    if text == "[":
        return JobError("the line is the beginning of a list", "read the file with --input-format json")
    if position >= len(text):
        return JobError("the line ends before the object is complete", "write each job on one line")
    comma = _trailing_comma(text, position)
    if comma:
        return JobError(f"trailing comma at character {comma}", "remove it")
    for problem, hint in _common_mistakes(text, position, error.msg):
        return JobError(f"{problem} at character {position + 1}", hint)
    return JobError(
        f"invalid JSON at character {position + 1}: {quoted(text[position : position + 20])}", _JOB_EXAMPLE
    )


def _document_error(text: str, name: str, error: json.JSONDecodeError) -> InputError:
    position = error.pos
    if not position:
        return InputError(f"{name}: not JSON", "set --input-format, e.g. to text for one prompt per line")
    if position >= len(text.rstrip()):
        return InputError(f"{name}: the file ends before its JSON is complete", "close each [ and {")
    if error.msg.startswith("Extra data"):
        problem = "text after the first value"
        hint = "put all into one list, [ and ] around them and a comma between them"
    elif comma := _trailing_comma(text, position):
        position, problem, hint = comma - 1, "trailing comma", "remove it"
    elif text[position] in "]}" and error.msg.startswith("Expecting ','"):
        problem, hint = f"unexpected {text[position]}", "close each [ and { before it"
    else:
        problem, hint = next(_common_mistakes(text, position, error.msg), ("invalid JSON", "fix it"))
    line, column = text.count("\n", 0, position) + 1, position - text.rfind("\n", 0, position)
    return InputError(f"{name}:{line}: {problem} at character {column}", hint)


def _trailing_comma(text: str, position: int) -> int:
    """Return the position of a trailing comma, or 0. Python 3.13 reports the comma, older versions the bracket."""
    before = text[:position].rstrip()
    if before.endswith(",") and text[position] in "}]":
        return len(before)
    return position + 1 if text[position] == "," and text[position + 1 :].lstrip()[:1] in ("}", "]") else 0


def _common_mistakes(text: str, position: int, message: str) -> Iterator[tuple[str, str]]:
    """Yield problem and hint of common mistakes, the most likely first."""
    char = text[position]
    if message.startswith("Extra data"):
        if char == ",":
            yield "unexpected comma after the object", "remove it (separate jobs with newlines)"
        yield "unexpected text after the object", "write one job per line"
    if char in "'‘’“”`":
        yield f"unexpected quote {char}", 'use the straight double quote "'
    if char in "#/":
        yield "unexpected comment", "remove it (JSON has no comments)"
    if position == 0:
        yield "expected an object", _JOB_EXAMPLE
    word = _WORD.match(text, position)
    if word and message.startswith(("Expecting property name", "Expecting value")):
        yield _bare_word_mistake(word[0])
    for prefix, problem, hint in _PARSER_MESSAGES:
        if message.startswith(prefix):
            yield problem, hint


def _bare_word_mistake(word: str) -> tuple[str, str]:
    if word in _PYTHON_LITERALS:
        return f"{word} is not valid JSON", f"write {_PYTHON_LITERALS[word]}"
    return f"{quoted(word)} is not quoted", 'write "…"'
