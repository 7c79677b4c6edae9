"""The bytes of one line come in; the object that stands there goes out, or a JobError that says why none does.

Newcomers: this is the slow and thorough reader, for lines that the fast one refused or could not be sure of. It
is stricter than JSON where a picture could come out wrong: a key may stand only once in an object.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from krea_batch.errors import InputError, JobError

MAX_DEPTH = 100  # chosen: no metadata needs more, and every encoder and call stack on its way can take it

_SHOWN_CHARS = 60  # chosen: enough to find the place, short enough for one line of a terminal
_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}
_PARSER_WORDS = (  # how messages of Python's parser begin (json.JSONDecodeError.msg), and what they mean
    (
        "Invalid control character",
        "a string holds a control character",
        "write \\t for a tab and \\n for a new line",
    ),
    ("Unterminated string", "a string is opened and never closed", 'close it with ", on the same line'),
    ("Invalid \\", "there is an unknown \\ escape", "write \\\\ for a backslash"),
    ("Expecting ',' delimiter", "a comma is missing", "part the fields by commas"),
    ("Expecting ':' delimiter", "a colon is missing", 'write "field": value'),
    ("Expecting property name", "the name of a field is missing", 'write "field": value'),
    ("Expecting value", "a value is missing", 'write "field": value'),
)
_EXAMPLE = 'write {"prompt": "what the picture shows"}'
_WORD = re.compile(r"[A-Za-z_]\w*")


def parse_object(line: bytes) -> dict[str, Any]:
    """The object of the line. Raises JobError for anything that is not exactly one sound JSON object."""
    text = _decoded(line).strip()
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
        right = "write one object a line, without [ and ]" if isinstance(value, list) else _EXAMPLE
        raise JobError(f"the line is {quoted(value)}, not an object", right)
    return value


def parse_value(text: str) -> Any:
    """The JSON value of a cell. Raises JobError."""
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise _syntax_error(text, error) from None
    except RecursionError:
        raise _too_deep() from None


def parse_document(content: bytes, name: str) -> Any:
    """The value of a whole file. Raises InputError that names the line."""
    try:
        text = _decoded(content)
        value = _DECODER.decode(text)
        if text.count("[") + text.count("{") > MAX_DEPTH:
            _check_depth(value)
        if "\\u" in text:
            _check_surrogates(value)
    except json.JSONDecodeError as error:
        wrong = f"{name}:{error.lineno}: it is not JSON at character {error.colno} ({error.msg})"
        raise InputError(wrong, "mend it there, or give --input-format") from None
    except JobError as error:
        raise InputError(f"{name}: {error.problem}", error.hint) from None
    except RecursionError:
        raise InputError(f"{name}: it is nested too deep", "keep metadata flat") from None
    return value


def is_sound(line: bytes) -> bool:
    """True for a line, already known to be JSON, in which no key stands twice and nothing is nested too deep."""
    try:
        if line.count(b"[") + line.count(b"{") > MAX_DEPTH:
            parse_object(line)
        else:
            _PAIRS_DECODER.decode(line.decode())
    except JobError:
        return False
    return True


def quoted(value: object) -> str:
    """A value as it could stand in a job line, printable and cut."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    cut = text[:_SHOWN_CHARS] + ("…" if len(text) > _SHOWN_CHARS else "")
    safe = "".join(char if char.isprintable() else repr(char)[1:-1] for char in cut)
    return f'"{safe}"' if isinstance(value, str) else safe


def _decoded(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise JobError(
            f"byte {error.start + 1} (0x{line[error.start]:02x}) is not UTF-8", "save the file as UTF-8"
        ) from None


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, unless a key stands twice in it: JSON would silently take the last."""
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise JobError(f"{quoted(twice)} stands twice in one object", "keep the one that you mean")
    return found


def _integer(digits: str) -> int:
    try:
        return int(digits)
    except ValueError:  # Python's limit, 4300 digits
        raise JobError(
            f"the number {digits[:20]}… has {len(digits)} digits", "write one of at most 64 bits"
        ) from None


def _float(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise JobError(f"the number {text[:_SHOWN_CHARS]} is too large", "write a smaller one")
    return number


def _constant(word: str) -> NoReturn:
    raise JobError(f"{word} is no number in JSON", "write a finite one, or leave the field out")


_PAIRS_DECODER = json.JSONDecoder(object_pairs_hook=_pairs)
_DECODER = json.JSONDecoder(
    object_pairs_hook=_pairs, parse_int=_integer, parse_float=_float, parse_constant=_constant
)


def _too_deep() -> JobError:
    return JobError(f"the line is nested more than {MAX_DEPTH} levels deep", "keep metadata flat")


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
    for name, text in _texts(value, "the line"):
        half = next((char for char in text if "\ud800" <= char <= "\udfff"), None)
        if half:
            raise JobError(
                f"{name} holds \\u{ord(half):04x}, half a character (a lone surrogate)",
                "write the character itself, or both halves",
            )


def _texts(value: object, name: str) -> Iterator[tuple[str, str]]:
    """Every string in the value, with the name of the field it belongs to."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, dict):
        for key, child in value.items():
            yield "a key", key
            yield from _texts(child, quoted(key))
    elif isinstance(value, list):
        for child in value:
            yield from _texts(child, name)


def _syntax_error(text: str, error: json.JSONDecodeError) -> JobError:
    at = error.pos
    if at >= len(text):
        return JobError("the line ends before its object does", "write each job whole, on one line")
    comma = _trailing_comma(text, at)
    if comma:
        return JobError(f"there is a trailing comma at character {comma}", "take it away")
    for wrong, right in _guesses(text, at, error.msg):
        return JobError(f"{wrong} at character {at + 1}", right)
    return JobError(f"it is not JSON at character {at + 1}: {quoted(text[at : at + 20])}", _EXAMPLE)


def _trailing_comma(text: str, at: int) -> int:
    """Where a comma stands before a closing bracket, or 0. Python 3.13 points at it, older ones behind it."""
    before = text[:at].rstrip()
    if before.endswith(",") and text[at] in "}]":
        return len(before)
    return at + 1 if text[at] == "," and text[at + 1 :].lstrip()[:1] in ("}", "]") else 0


def _guesses(text: str, at: int, said: str) -> Iterator[tuple[str, str]]:
    """What people mistype, the likeliest first."""
    here = text[at]
    if said.startswith("Extra data"):
        if here == ",":
            yield "there is a comma behind the object", "take it away: jobs are parted by new lines only"
        yield "there is something behind the object", "write one job a line"
    if here in "'‘’“”`":
        yield f"there is the quote {here}", 'use the straight double quote "'
    if here in "#/":
        yield "there is a comment", "take it away: JSON has none"
    if at == 0:
        yield "there is no object", _EXAMPLE
    word = _WORD.match(text, at)
    if word and said.startswith(("Expecting property name", "Expecting value")):
        yield _about_word(word[0])
    for beginning, wrong, right in _PARSER_WORDS:
        if said.startswith(beginning):
            yield wrong, right


def _about_word(word: str) -> tuple[str, str]:
    if word in _PYTHON_WORDS:
        return f"{word} is not JSON", f"write {_PYTHON_WORDS[word]}"
    return f"{quoted(word)} stands without quotes", 'put it into "…"'
