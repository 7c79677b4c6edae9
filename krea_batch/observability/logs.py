"""Log formatters: JSON, and key=value with quotes where needed.

The package logs with templates such as `"… job=%s from=%s"`. The fields are taken from the template and its
arguments, not from the formatted line, so a value with spaces stays one value.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

_PLACEHOLDER = re.compile(r"(?:(?P<key>[A-Za-z_]\w*)=)?%(?P<conversion>[-+ #0]*\d*(?:\.\d+)?[a-zA-Z])|%%")
_UNQUOTED = re.compile(r"[^\s\"=\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
_JSON_INTEGERS = range(-(2**63), 2**64)  # what JSON encoders represent exactly


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON: time (UTC), level, logger, message, its fields, and the exception if any.

    A field does not replace a key of the line itself, such as `level`.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {"time": _format_time(record), "level": record.levelname, "logger": record.name}
        line["message"] = _utf8_safe(record.getMessage())
        for key, value in record_fields(record):
            line.setdefault(key, _json_value(value))
        if record.exc_info:
            line["exception"] = _utf8_safe(self.formatException(record.exc_info))
        return orjson.dumps(line).decode()


class LogfmtFormatter(logging.Formatter):
    """Formats a record as one line of `key=value`. Values with spaces, quotes or line breaks are quoted like JSON."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_format_time(record)} {record.levelname[0]} {record.name} {_quoted_message(record)}"
        return f"{line}\n{_utf8_safe(self.formatException(record.exc_info))}" if record.exc_info else line


def record_fields(record: logging.LogRecord) -> Iterator[tuple[str, Any]]:
    """Yield the key and the argument of each `key=%…` in the record's template."""
    for placeholder, value in _placeholders_with_args(record):
        if placeholder["key"]:
            yield placeholder["key"], value


def _placeholders_with_args(record: logging.LogRecord) -> Iterator[tuple[re.Match[str], Any]]:
    """Yield the placeholders of the template with their arguments."""
    args = record.args
    if isinstance(record.msg, str) and args and not isinstance(args, Mapping):
        placeholders = [match for match in _PLACEHOLDER.finditer(record.msg) if match["conversion"]]
        yield from zip(placeholders, args, strict=False)


def _quoted_message(record: logging.LogRecord) -> str:
    """Return the message with its fields quoted where needed."""
    line, end = "", 0
    for placeholder, value in _placeholders_with_args(record):
        text = f"%{placeholder['conversion']}" % value
        line += _literal(record.msg[end : placeholder.start()])
        line += f"{placeholder['key']}={_quote(text)}" if placeholder["key"] else _utf8_safe(text)
        end = placeholder.end()
    return line + _literal(record.msg[end:]) if end else _utf8_safe(record.getMessage())


def _literal(template: str) -> str:
    return _utf8_safe(template.replace("%%", "%"))


def _quote(text: str) -> str:
    return text if _UNQUOTED.fullmatch(text) else json.dumps(text, ensure_ascii=not text.isprintable())


def _utf8_safe(text: str) -> str:
    """Return the text with a `\\u…` escape for each character that UTF-8 cannot encode."""
    return text.encode("utf-8", "backslashreplace").decode()


def _json_value(value: Any) -> Any:
    """Return a value that JSON can represent, or its text."""
    if value is None or isinstance(value, (bool, float)) or (type(value) is int and value in _JSON_INTEGERS):
        return value
    return _utf8_safe(str(value))


def _format_time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
