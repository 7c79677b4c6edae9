"""Reads Parquet files and Hugging Face datasets on disk.

Both are read with pyarrow, an optional dependency. Columns with images or other binary data are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from krea_batch.errors import InputError
from krea_batch.sources.formats.encoding import OnNotice
from krea_batch.sources.formats.line_file import LineFile
from krea_batch.sources.formats.tables import PROMPT_COLUMNS, Columns, Rows
from krea_batch.sources.json_errors import quoted
from krea_batch.sources.options import InputOptions

BATCH_ROWS = 1024  # chosen: rows in memory


def rows(file: LineFile, options: InputOptions, on_notice: OnNotice, *, arrow: bool) -> Rows:
    """Yield the rows of a Parquet file, or of an Arrow stream written by `Dataset.save_to_disk`, numbered from 1."""
    arrow_module = _import_pyarrow(file.name)
    with TemporaryFile(prefix="krea-batch-") as temp_file:
        for block in file.raw_blocks():  # verifies that it is the file that was checked
            temp_file.write(block)
        temp_file.seek(0)
        try:
            yield from _rows(temp_file, file.name, options, on_notice, arrow=arrow)
        except arrow_module.ArrowException as error:
            problem = f"{file.name}: cannot be read as {'an Arrow stream' if arrow else 'a Parquet file'} ({error})"
            hint = "copy or write it again" + ("" if arrow else ", or name its format with --input-format")
            raise InputError(problem, hint) from None


def dataset_files(folder: Path) -> Iterator[Path]:
    """Yield the Arrow files of a dataset written by `Dataset.save_to_disk`, in order."""
    try:
        state = json.loads((folder / "state.json").read_bytes())
        names = [str(each["filename"]) for each in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"{folder}: state.json does not describe a dataset ({error!r})"
        raise InputError(problem, "use a directory written by Dataset.save_to_disk") from None
    for name in names:
        if Path(name).name != name:
            raise InputError(f"{folder}: state.json lists {name}", "the files of a dataset must be in its directory")
        yield folder / name


def _rows(file: IO[bytes], name: str, options: InputOptions, on_notice: OnNotice, *, arrow: bool) -> Rows:
    if arrow:
        stream = import_module("pyarrow.ipc").open_stream(file)
        schema, batches = stream.schema, iter(stream)
    else:
        parquet = import_module("pyarrow.parquet").ParquetFile(file)
        schema = parquet.schema_arrow
        batches = parquet.iter_batches(
            BATCH_ROWS, columns=[each.name for each in schema if not _contains_binary(each.type)]
        )
    column_names = [each.name for each in schema if not _contains_binary(each.type)]
    if skipped_columns := [each.name for each in schema if _contains_binary(each.type)]:
        on_notice(f"ignored {', '.join(skipped_columns)}, which contains binary data")
        _require_text_prompts(name, skipped_columns, column_names, options)
    nested = [path for each in schema if each.name in column_names for path in _paths_in_type(each.name, each.type)]
    columns = Columns(name, column_names, options, on_notice, is_text=False, nested=nested)
    number = 0
    for batch in batches:
        for row in batch.select(column_names).to_pylist():
            number += 1
            yield from columns.numbered_row(number, [row[each] for each in column_names])


def _require_text_prompts(name: str, binary: list[str], others: list[str], options: InputOptions) -> None:
    """Raise InputError if the prompts are in a binary column, as programs write texts without their type."""
    chosen = options.columns.get("prompt")
    candidates = (chosen.lower(),) if chosen else PROMPT_COLUMNS
    found = next((each for each in binary if each.lower() in candidates), None)
    if found and not any(each.lower() in candidates for each in others):
        raise InputError(f"{name}: the column {quoted(found)} is binary", "write it as a column of strings")


def _paths_in_type(name: str, arrow_type: Any) -> Iterator[str]:
    """Yield the paths of the values in a column of structs, such as `params.seed`."""
    if import_module("pyarrow").types.is_struct(arrow_type):
        for field in (arrow_type.field(n) for n in range(arrow_type.num_fields)):
            yield f"{name}.{field.name}"
            yield from _paths_in_type(f"{name}.{field.name}", field.type)


def _contains_binary(arrow_type: Any) -> bool:
    """Return whether a type is or contains binary."""
    types = import_module("pyarrow").types
    if types.is_binary(arrow_type) or types.is_large_binary(arrow_type) or types.is_fixed_size_binary(arrow_type):
        return True
    return any(_contains_binary(arrow_type.field(n).type) for n in range(arrow_type.num_fields))


def _import_pyarrow(name: str) -> Any:
    try:
        return import_module("pyarrow")
    except ImportError:
        raise InputError(
            f"{name}: reading this format requires pyarrow", "pip install 'krea-batch[parquet]'"
        ) from None
