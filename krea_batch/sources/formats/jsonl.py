"""Parses JSONL lines into jobs.

msgspec parses most lines without further cost. Only lines that it refuses are parsed in Python and converted like the
rows of other formats: null, 7.0 and whole-number ids. `read` says only whether a line is valid, which is enough when
a file is read again. `diagnose` parses the line again, slowly, to find out what is wrong.
"""

from __future__ import annotations

from typing import Any

import msgspec

from krea_batch.errors import JobError
from krea_batch.jobs import FIELDS, Job, convert_job
from krea_batch.sources import field_errors, json_errors
from krea_batch.sources.formats.line_file import MAX_LINE_BYTES
from krea_batch.sources.values import convert_fields, is_unusable

_decode_line = msgspec.json.Decoder(Job).decode
_encode = msgspec.json.Encoder().encode


class _IdOnly(msgspec.Struct):
    id: str = ""


_decode_id = msgspec.json.Decoder(_IdOnly).decode


class JsonlParser:
    """Parses lines of JSONL.

    With `keep_extra`, unknown fields are put into the metadata and their names into `unknown_fields`, which the
    caller reads and clears.
    """

    def __init__(self, *, keep_extra: bool = False) -> None:
        self.keep_extra = keep_extra
        self.unknown_fields: list[str] = []

    def read(self, line: bytes) -> Job | None:
        """Return the job of the line, with an empty id if the line has none; None if the line is invalid."""
        if len(line) > MAX_LINE_BYTES:
            return None
        try:
            job = _decode_line(line)
        except (msgspec.MsgspecError, ValueError, RecursionError):  # ValueError: not UTF-8
            return self._convert(line)
        extra_quotes = line.count(b'"') - _min_quotes(job)
        if (
            extra_quotes
            and not _are_quotes_explained(extra_quotes, line, job)
            and not json_errors.is_strict_json(line)
        ):
            return None
        return None if is_unusable(job.prompt) else job

    def diagnose(self, line: bytes) -> JobError:
        """Return the reason why `read` returned None."""
        try:
            fields = convert_fields(parse_line(line))
            diagnosis = field_errors.diagnose(fields, keep_extra=self.keep_extra)
        except JobError as error:
            return error
        return diagnosis or _decoder_error(line)

    def _convert(self, line: bytes) -> Job | None:
        """Return the job of a line that msgspec rejected, if converting its values makes it valid.

        A line with a sweep is not a job but several, which `RowParser` makes.
        """
        try:
            fields = convert_fields(json_errors.parse_object(line))
            names = [name for name in fields if name not in FIELDS] if self.keep_extra else []
            metadata = fields.get("metadata", {})
            if names:
                if "sweep" in names or not isinstance(metadata, dict) or any(name in metadata for name in names):
                    return None
                fields["metadata"] = metadata | {name: fields.pop(name) for name in names}
            job = convert_job(fields)
            if is_unusable(job.prompt):
                return None
        except (JobError, msgspec.ValidationError):
            return None
        self.unknown_fields.extend(names)
        return job


def parse_line(line: bytes) -> dict[str, Any]:
    """Return the object on a line. Raises JobError."""
    if len(line) > MAX_LINE_BYTES:
        raise JobError(
            f"the line is longer than {MAX_LINE_BYTES >> 20} MiB", "write one job per line, with less metadata"
        )
    return json_errors.parse_object(line)


def id_of(line: bytes) -> str:
    """Return the id in a line that `JsonlParser.read` accepts; empty if it has none."""
    try:
        return _decode_id(line).id
    except msgspec.ValidationError:
        return str(convert_fields(json_errors.parse_object(line)).get("id", ""))


def _min_quotes(job: Job) -> int:
    """Return the minimum number of quotes in a line with this job: two for each key and two for each string.

    A line with exactly as many has no duplicate key, since each further key would add two. A line with more (a
    default written out, a quote in the prompt, a list, metadata) has to be examined. For example,
    `{"prompt": "x", "seed": 1}` has 6 quotes and its job needs 4 + 2, so no key is duplicate. With a second
    `"seed": 2` the line has 8 quotes, and its job still needs 6.
    """
    quotes = 4
    if job.id:
        quotes += 4
    if job.image_name:
        quotes += 4
    if job.seed is not msgspec.UNSET:
        quotes += 2
    if job.aspect_ratio != "1:1":
        quotes += 4
    if job.creativity != "medium":
        quotes += 4
    return quotes


def _are_quotes_explained(extra_quotes: int, line: bytes, job: Job) -> bool:
    """Return True if prompt, metadata and defaults have all the extra quotes, and nothing is nested deeply.

    A duplicate key occurs once in the job, so its line has two extra quotes. This takes a third of the time of
    parsing the line again; False proves nothing. For example, `{"prompt": "x", "metadata": {"a": 1}}` has 4 extra
    quotes: 2 for the key `metadata` and 2 in the encoded metadata. With a second `"a": 2` there are 6 extra quotes
    but still 4 that are explained, so the line is parsed again.
    """
    quotes = job.prompt.count('"')
    if job.metadata:
        quotes += 2 + _encode(job.metadata).count(b'"')
    elif not (job.image_style_references or job.styles or job.moodboards):
        # No value is an object that could have these keys, so they are the keys of the job, with their defaults.
        quotes += 4 * (job.aspect_ratio == "1:1" and b'"aspect_ratio":' in line)
        quotes += 4 * (job.creativity == "medium" and b'"creativity":' in line)
    may_be_too_deep = line.count(b"[") + line.count(b"{") > json_errors.MAX_DEPTH
    return quotes == extra_quotes and not may_be_too_deep and b"\\u" not in line  # \u0022 is an escaped quote


def _decoder_error(line: bytes) -> JobError:
    """Describe a line that only msgspec rejects."""
    message: Any = "cannot be read"
    try:
        _decode_line(line)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        message = error
    return JobError(f"the line is not a valid job ({message})", "see `krea-batch schema`")
