"""Parses a row into its jobs: one, or as many as its sweep has.

`read` is fast and says only whether a row is valid, which is enough when a file is read again. `diagnose` parses the
row again, slowly, to find out what is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from krea_batch.errors import JobError
from krea_batch.jobs import FIELDS, Job, convert_job, without_image_extension
from krea_batch.rules.image_names import NameTemplate, safe_path, values_of
from krea_batch.sources import field_errors
from krea_batch.sources.duplicate_ids import default_id
from krea_batch.sources.dynamic_prompts import PROMPT_CHOICES, expand
from krea_batch.sources.fixed_values import with_fixed_values
from krea_batch.sources.formats.jsonl import JsonlParser, id_of
from krea_batch.sources.formats.renamed_keys import Row
from krea_batch.sources.json_errors import parse_object, quoted
from krea_batch.sources.options import InputOptions, PromptSyntax
from krea_batch.sources.prompt_recognition import is_dynamic
from krea_batch.sources.prompt_syntax import ORIGINAL_PROMPT, ArgumentReader, add_metadata
from krea_batch.sources.reference_paths import ReferencePaths
from krea_batch.sources.sweep import REPEAT, Axis, Combination, check_axis_names, combinations, make_axis
from krea_batch.sources.template import Template
from krea_batch.sources.values import convert_fields

_force_setattr = msgspec.structs.force_setattr


class RowParser:
    """Parses rows into jobs. Raises JobError if the template or the sweep is invalid.

    `references` reads local reference images. `unknown_fields` collects the names of fields that were put into the
    metadata; the caller reads and clears it. `has_names` says whether an option names the images.
    """

    def __init__(self, options: InputOptions, references: ReferencePaths | None = None) -> None:
        self._references = references or ReferencePaths()
        self._jsonl = JsonlParser(keep_extra=options.keep_extra)
        self._keep_extra = options.keep_extra
        self._axes = options.axes
        self._template = Template(options.template) if options.template else None
        self.arguments = ArgumentReader(options.prompt_syntax)
        self._is_dynamic = PromptSyntax.DYNAMIC in options.prompt_syntax
        self._wildcards = options.wildcards
        reads_syntax = any(each is not PromptSyntax.PLAIN for each in options.prompt_syntax)
        self._fixed = options.fixed
        self._name = NameTemplate(options.name, portable=options.portable_names) if options.name else None
        self._portable_names = options.portable_names
        self.has_names = self._name is not None or options.portable_names
        self._is_plain = not (options.axes or options.template or options.fixed or reads_syntax or self.has_names)
        self._kept_names = {
            *(self._template.names if self._template else ()),
            *(self._name.names if self._name else ()),
        }
        names = self._template.names if self._template else ()
        check_axis_names(self._axes, names)
        for _ in combinations(self._axes):  # report a sweep that is too large before the first row
            break
        self.unknown_fields = self._jsonl.unknown_fields

    def read(self, number: int, row: Row) -> tuple[Job, ...]:
        """Return the jobs of a row, or none if it is invalid. An id is empty if the row has none."""
        if self._is_plain and type(row) is bytes:
            job = self._jsonl.read(row)
            if job is not None:
                return (job,) if not job.image_style_references else self._resolved(job)
            if b'"sweep"' not in row:
                return ()
        try:
            return tuple(self._jobs(number, row))
        except JobError:
            return ()

    def _resolved(self, job: Job) -> tuple[Job, ...]:
        try:
            return (self._references.resolve(job),)
        except JobError:
            self.unknown_fields.clear()  # of a row that is invalid
            return ()

    def ids(self, number: int, row: Row) -> tuple[str, ...]:
        """Return the ids of the jobs that `read` would return, in less time; a default id if the row has none."""
        if self._is_plain and type(row) is bytes and b'"sweep"' not in row:
            return (id_of(row) or default_id(number),)
        ids = tuple(job.id or default_id(number) for job in self.read(number, row))
        self.unknown_fields.clear()
        return ids

    def set_image_name(self, job: Job, job_id: str) -> None:
        """Set the image name of a job that `read` returned, if an option determines it. Raises JobError.

        Call it again if the job gets another id than its default one.
        """
        name = job.image_name
        if self._name:
            name = self._name.render(values_of(job, job_id))
        elif self._portable_names and (name or job.id):  # A default id is portable.
            name = safe_path(name or job.id, portable=True)
        if name not in (job.image_name, job.id):
            _force_setattr(job, "image_name", name)  # No other code has the job yet, so it can be changed.

    def diagnose(self, number: int, row: Row) -> JobError:
        """Return the reason why `read` returned nothing."""
        if self._is_plain and isinstance(row, bytes):
            job = self._jsonl.read(row)
            self.unknown_fields.clear()
            if job is None and b'"sweep"' not in row:
                return self._jsonl.diagnose(row)
        try:
            tuple(self._jobs(number, row))
        except JobError as error:
            return error
        return JobError("the row is not a valid job", "see `krea-batch schema`")

    def _jobs(self, number: int, row: Row) -> Iterator[Job]:
        if isinstance(row, JobError):
            raise row
        fields = convert_fields(parse_object(row) if isinstance(row, bytes) else row)
        sweep = fields.pop("sweep", {})
        fields = with_fixed_values(fields, self._fixed)
        metadata = fields.setdefault("metadata", {})
        if isinstance(metadata, dict):
            fields["metadata"] = self._with_extra(fields, dict(metadata))
        self.arguments.read(fields)
        axes = (*self._axes, *self._row_axes(sweep))
        if not axes and not self._template:
            yield self._job(number, fields)
            return
        _require_given_once(fields, axes)
        base_id = (fields.get("id") or default_id(number)) if axes else ""
        for combination in combinations(axes):
            yield self._job(number, self._fields_at(fields, combination, base_id))

    def _job(self, number: int, fields: dict[str, Any]) -> Job:
        if self._is_dynamic:
            self._expand(number, fields)
        if self._name and fields.get("image_name"):
            raise JobError('"image_name" is given in the row, and --name for all rows', "keep one of them")
        job = self._references.resolve(_job(fields, keep_extra=self._keep_extra))
        self.set_image_name(job, job.id or default_id(number))
        return job

    def _expand(self, number: int, fields: dict[str, Any]) -> None:
        """Expand a dynamic prompt. The choices depend on the id, so that they are the same in each reading."""
        prompt, metadata = fields.get("prompt"), fields.get("metadata")
        if not isinstance(prompt, str) or not isinstance(metadata, dict) or not is_dynamic(prompt):
            return
        job_id = fields.get("id")
        text, choices = expand(prompt, str(job_id or default_id(number)), self._wildcards)
        expanded = dict(metadata)  # The combinations of a sweep share their metadata.
        add_metadata(expanded, PROMPT_CHOICES, choices)
        expanded.setdefault(ORIGINAL_PROMPT, prompt)
        fields["prompt"], fields["metadata"] = text, expanded

    def _with_extra(self, fields: dict[str, Any], metadata: dict[str, Any]) -> dict[str, Any]:
        """Move unknown fields into the metadata."""
        for name in [name for name in fields if name not in FIELDS]:
            if name in metadata or not (self._keep_extra or name in self._kept_names):
                continue
            metadata[name] = fields.pop(name)
            self.unknown_fields.append(name)
        return metadata

    def _row_axes(self, sweep: object) -> tuple[Axis, ...]:
        if not isinstance(sweep, dict):
            raise JobError(f'"sweep" is {quoted(sweep)}', 'write "sweep": {"creativity": ["raw", "high"]}')
        axes = tuple(make_axis(name, values) for name, values in sweep.items() if values is not None)
        check_axis_names(axes, self._template.names if self._template else ())
        return axes

    def _fields_at(self, fields: dict[str, Any], combination: Combination, base_id: object) -> dict[str, Any]:
        """Return the fields of the row at one combination of its sweep."""
        swept = fields | {name: value for name, value in combination.values.items() if name in FIELDS}
        swept_metadata = {name: value for name, value in combination.values.items() if name not in FIELDS}
        if swept_metadata and isinstance(fields["metadata"], dict):
            swept["metadata"] = fields["metadata"] | swept_metadata
        if base_id:
            swept["id"] = base_id + combination.id_suffix if isinstance(base_id, str) else base_id
        if isinstance(name := swept.get("image_name"), str):
            swept["image_name"] = without_image_extension(name) + combination.id_suffix
        if self._template:
            metadata = swept["metadata"] if isinstance(swept["metadata"], dict) else {}
            values = {key: value for key, value in swept.items() if key != "metadata"}
            swept["prompt"] = self._template.render(metadata | values)
        return swept


def _require_given_once(fields: dict[str, Any], axes: tuple[Axis, ...]) -> None:
    """Raise JobError for a row that gives a value which is also swept, or repeats a request with a fixed seed."""
    swept_names: set[str] = set()
    metadata = fields.get("metadata")
    for each in axes:
        if each.name in fields or each.name in swept_names or (isinstance(metadata, dict) and each.name in metadata):
            raise JobError(f"{quoted(each.name)} is both given and swept", "keep one of them")
        swept_names.add(each.name)
    if REPEAT in swept_names and ("seed" in fields or "seed" in swept_names):
        repeats = next(len(each.values) for each in axes if each.name == REPEAT)
        if repeats > 1:
            hint = "leave out the repeat, or leave out the seed to get different images"
            raise JobError("repeat with a fixed seed makes the same image again", hint)


def _job(fields: dict[str, Any], *, keep_extra: bool) -> Job:
    try:
        job = convert_job(fields)
    except (msgspec.ValidationError, RecursionError) as error:
        diagnosis = field_errors.diagnose(fields, keep_extra=keep_extra)
        raise diagnosis or JobError(f"not a valid job ({error})", "see `krea-batch schema`") from None
    if unusable := field_errors.unusable_prompt(job.prompt):
        raise unusable
    return job
