"""Takes the fields of a job from the keys of JSON objects that options name: `--column seed=params.seed`.

If an option names the key of a field, that key replaces the key with the field's own name, as in a table. If a row
lacks an optional key, the field is not given, since programs leave out null values. A row without the key of the
prompt is invalid. If no row has a key, its name is mistyped; this is an error, since the jobs would be charged
without its values.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from krea_batch.errors import InputError, JobError
from krea_batch.sources.field_errors import closest_match
from krea_batch.sources.formats.jsonl import parse_line
from krea_batch.sources.json_errors import quoted
from krea_batch.sources.key_paths import paths_in, steps_to, value_at, without
from krea_batch.sources.options import InputOptions
from krea_batch.sources.template import Template
from krea_batch.sources.values import convert, convert_fields, is_missing

MAX_KEYS_LISTED = 20  # chosen: fits into a few lines of a terminal

Row = bytes | dict[str, Any] | JobError
"""A row of any format: the line of JSONL that it is, its fields, or why it cannot be read."""


class KeyRenamer:
    """Renames the keys of rows."""

    def __init__(self, options: InputOptions) -> None:
        self._chosen = {field: path for field, path in options.columns.items() if path}
        self._unused = {field for field, path in options.columns.items() if not path}
        self._keep_extra = options.keep_extra
        self._needs_prompt = not options.template
        self._in_template = Template(options.template).names if options.template else ()

    def require_keys(self, name: str, rows: Iterable[Row]) -> None:
        """Read rows until each key was found.

        Raises InputError if two fields are taken from one key, or if there are rows and none of them has a key.
        """
        self._require_different_keys(name)
        missing = list(self._chosen.values())
        paths: dict[str, None] = {}
        for each in rows if missing else ():
            row = parse_row(each)
            if isinstance(row, JobError):
                continue
            missing = [path for path in missing if steps_to(row, path) is None]
            if not missing:
                return
            if len(paths) < MAX_KEYS_LISTED:
                paths.update(dict.fromkeys(paths_in(row)))
        if paths:
            suggestion = closest_match(missing[0], tuple(paths))
            keys = ", ".join(map(quoted, list(paths)[:MAX_KEYS_LISTED]))
            hint = f"did you mean {quoted(suggestion)}?" if suggestion else f"the keys are {keys}"
            raise InputError(f"{name}: no row has the key {quoted(missing[0])}", hint)

    def _require_different_keys(self, name: str) -> None:
        by_path: dict[str, str] = {}
        for field, path in self._chosen.items():
            if by_path.setdefault(path, field) != field:
                problem = f"{name}: {quoted(path)} is assigned to both {by_path[path]} and {field}"
                raise InputError(problem, "choose two different keys")

    def rename(self, source: Row, entry_key: str = "") -> dict[str, Any] | JobError:
        """Return the fields of a row, or the JobError that says why it has none.

        `entry_key` is the key of an entry in an object of jobs. It is the id unless another key is named for that.
        """
        row = parse_row(source)
        if isinstance(row, JobError):
            return row
        try:
            fields = self._fields(row)
            return fields | self._id_of_entry(entry_key, fields) if entry_key else fields
        except JobError as error:
            return error

    def _id_of_entry(self, key: str, fields: dict[str, Any]) -> dict[str, str]:
        own_id = convert("id", fields.get("id"))
        if is_missing(own_id):
            return {} if "id" in self._chosen else {"id": key}
        if own_id != key and "id" not in self._chosen:
            problem = f"the entry has both the key {quoted(key)} and the id {quoted(own_id)}"
            raise JobError(problem, 'choose the id with --id-column id, or the key with --id-column ""')
        return {}

    def _fields(self, row: dict[str, Any]) -> dict[str, Any]:
        rest, fields = row, {}
        in_template: dict[str, Any] = {}
        for field, path in self._chosen.items():
            steps = steps_to(row, path)
            if steps is not None:
                fields[field] = value_at(row, steps)
                rest = without(rest, steps)
                if path != field and path in self._in_template:
                    in_template[path] = fields[field]  # the parser puts it into the metadata
            elif field == "prompt" and self._needs_prompt:
                raise JobError(f"no {quoted(path)}, which is the prompt", "add it, or choose another --prompt-column")
        metadata = {}
        for field in (*self._chosen, *self._unused):
            if field not in rest:
                continue
            if not self._keep_extra and field in self._chosen:
                problem = f"{quoted(field)} is given, but {field} comes from {quoted(self._chosen[field])}"
                hint = f"remove {quoted(field)}, or add --keep-extra, which puts it into the metadata"
                raise JobError(problem, hint)
            if self._keep_extra:
                metadata[field] = rest[field]
            rest = without(rest, (field,))
        fields = rest | in_template | fields
        return _with_metadata(fields, metadata) if metadata else fields


def _with_metadata(fields: dict[str, Any], added: dict[str, Any]) -> dict[str, Any]:
    metadata = convert_fields({"metadata": fields.get("metadata")}).get("metadata", {})
    if not isinstance(metadata, dict):
        return fields  # which is reported as invalid
    for name in added:
        if name in metadata:
            raise JobError(f"{quoted(name)} is given twice, on the line and in metadata", "keep one")
    return fields | {"metadata": metadata | added}


def parse_row(row: Row) -> dict[str, Any] | JobError:
    """Return the object on a line; a row that is parsed already stays as it is."""
    if not isinstance(row, bytes):
        return row
    try:
        return parse_line(row)
    except JobError as error:
        return error
