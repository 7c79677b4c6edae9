"""Test that the same table makes the same jobs in every format."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import UNSET

from krea_batch.jobs import ASPECT_RATIOS, CREATIVITIES, Job
from krea_batch.sources import CheckResult, InputOptions, JobFiles
from krea_batch.sources.options import Format

Row = dict[str, Any]

COLUMNS = ("prompt", "id", "seed", "aspect_ratio", "creativity", "styles", "metadata")
FORMATS = ("jsonl", "json", "csv", "tsv", "parquet")
STYLES = [{"id": "ink", "strength": 0.5}, {"id": "oil", "strength": None}]


def write_table(path: Path, rows: list[Row], *, seeds_as_floats: bool) -> None:
    """Write the rows in the format of the path's suffix, as other programs do: null or an empty cell for None."""
    if seeds_as_floats:  # as pandas does with a column in which a value is missing
        rows = [row | {"seed": None if row["seed"] is None else float(row["seed"])} for row in rows]
    match path.suffix:
        case ".jsonl":
            text = "".join(json.dumps(row) + "\n" for row in rows)
        case ".json":
            text = json.dumps(rows, indent=1, ensure_ascii=False)
        case ".csv":
            file = io.StringIO()
            csv.writer(file).writerows([COLUMNS, *([cell(row[name]) for name in COLUMNS] for row in rows)])
            text = file.getvalue()
        case ".tsv":
            lines = [COLUMNS, *([cell(row[name]) for name in COLUMNS] for row in rows)]
            text = "".join("\t".join(line) + "\n" for line in lines)
        case _:
            pq.write_table(pa.Table.from_pylist(rows, schema(rows)), path)
            return
    path.write_text(text, encoding="utf-8", newline="")


def schema(rows: list[Row]) -> pa.Schema:
    """Return the types that a program would choose: for ids text or integers, for seeds integers or floats."""
    has_whole_ids = all(row["id"] is None or isinstance(row["id"], int) for row in rows)
    is_float = any(isinstance(row["seed"], float) for row in rows)
    style = pa.struct([("id", pa.string()), ("strength", pa.float64())])
    return pa.schema(
        {
            "prompt": pa.string(),
            "id": pa.int64() if has_whole_ids else pa.string(),
            "seed": pa.float64() if is_float else pa.int64(),
            "aspect_ratio": pa.string(),
            "creativity": pa.string(),
            "styles": pa.list_(style),
            "metadata": pa.struct([("tag", pa.string())]),
        }
    )


def cell(value: object) -> str:
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False)
    return "" if value is None else str(value)


def read(path: Path, **options: Any) -> tuple[CheckResult, list[Job]]:
    with JobFiles([str(path)], options=InputOptions(**options), skip_invalid=True) as files:
        return files.check(), list(files)


def jobs_in_every_format(folder: Path, rows: list[Row], *, seeds_as_floats: bool) -> list[list[Job]]:
    """Write the rows in every format. Return the jobs of each, without ids that are made from line numbers."""
    found = []
    for suffix in FORMATS:
        path = folder / f"table.{suffix}"
        write_table(path, rows, seeds_as_floats=seeds_as_floats)
        # Quotes at the start of a cell of TSV are refused unless the format is chosen, which says that they are text.
        checked, jobs = read(path, format=Format.TSV if suffix == "tsv" else None)
        assert not checked.bad_lines, (suffix, checked.problems)
        found.append(
            [
                Job(**{name: getattr(job, name) for name in COLUMNS} | ({"id": ""} if row["id"] is None else {}))
                for job, row in zip(jobs, rows, strict=True)
            ]
        )
    return found


PROMPTS = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=9)
SETTINGS = {
    "prompt": PROMPTS,
    "seed": st.none() | st.integers(-(2**53) + 1, 2**53 - 1),
    "aspect_ratio": st.none() | st.sampled_from(ASPECT_RATIOS),
    "creativity": st.none() | st.sampled_from(CREATIVITIES),
    "styles": st.sampled_from([None, [], STYLES]),
    "metadata": st.just({"tag": "a"}),
}
TEXT_IDS = st.from_regex(r"[a-z][a-z0-9-]{0,9}", fullmatch=True)


@given(
    st.lists(st.fixed_dictionaries(SETTINGS), min_size=1, max_size=6),
    st.lists(TEXT_IDS, min_size=6, max_size=6, unique=True)
    | st.lists(st.integers(0, 10**12) | st.none(), min_size=6, max_size=6, unique=True),
    st.booleans(),
)
@example([dict.fromkeys(SETTINGS) | {"prompt": "x", "metadata": {"tag": "a"}}], [1], True)
@example([dict.fromkeys(SETTINGS) | {"prompt": '"', "metadata": {"tag": "a"}}], [1], True)
def test_random_tables(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row], ids: list[Any], seeds_as_floats: bool
) -> None:
    """A table with missing values, whole-number ids and seeds that are floats makes equal jobs in all formats."""
    table = [row | {"id": id_} for row, id_ in zip(rows, ids, strict=False)]
    first, *others = jobs_in_every_format(tmp_path_factory.mktemp("t"), table, seeds_as_floats=seeds_as_floats)
    for other in others:
        assert other == first
    assert [job.seed for job in first] == [UNSET if row["seed"] is None else row["seed"] for row in rows]
    assert [job.id for job in first] == ["" if row["id"] is None else str(row["id"]) for row in table]


def test_a_thousand_rows(tmp_path: Path) -> None:
    """A table of 1,000 rows makes the same 1,000 jobs in all formats."""
    choose = random.Random(19)
    rows = [
        {
            "prompt": f"image {n}, “quoted”; a\\b",
            "id": n + 1,
            "seed": choose.choice([None, 7, 2**40, n]),
            "aspect_ratio": choose.choice([None, *ASPECT_RATIOS]),
            "creativity": choose.choice([None, *CREATIVITIES]),
            "styles": choose.choice([None, [], STYLES]),
            "metadata": choose.choice([None, {"tag": "a"}]),
        }
        for n in range(1000)
    ]
    for seeds_as_floats in (False, True):
        first, *others = jobs_in_every_format(tmp_path, rows, seeds_as_floats=seeds_as_floats)
        assert len(first) == 1000
        assert all(other == first for other in others)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"seed": 7.5}, '"seed" is '),
        ({"seed": float(2**60)}, '"seed" is '),
        ({"prompt": None, "seed": 1}, '"prompt" is '),
        ({"creativity": "loud"}, '"creativity" is "loud"; use one of raw,'),
    ],
)
def test_invalid_in_every_format(tmp_path: Path, suffix: str, row: Row, expected: str) -> None:
    """A value that is invalid is invalid in every format, and the problem names its field.

    Only a row of a sheet without a prompt is left out: below a list, spreadsheets often have rows with other cells.
    """
    table = [dict.fromkeys(COLUMNS) | {"prompt": "x"} | row]
    path = tmp_path / f"table.{suffix}"
    write_table(path, table, seeds_as_floats=False)
    checked, jobs = read(path)
    assert not jobs
    if suffix in ("csv", "tsv") and "prompt" in row:
        assert not checked.bad_lines
    else:
        assert expected in str(checked.problems[0])


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('"seed": null, "aspect_ratio": null, "styles": null, "metadata": null, "sweep": null', Job(prompt="x")),
        ('"seed": "", "id": null', Job(prompt="x")),
        ('"seed": 7.0, "id": 12', Job(prompt="x", seed=7, id="12")),
        ('"seed": "7.0", "id": 12.0', Job(prompt="x", seed=7, id="12")),
        ('"styles": "[]", "metadata": "{\\"a\\": 1}"', Job(prompt="x", metadata={"a": 1})),
    ],
)
@pytest.mark.parametrize("keep_extra", [False, True])
def test_jsonl_lines_that_need_conversion(tmp_path: Path, line: str, expected: Job, keep_extra: bool) -> None:
    """The values that tables have are valid in JSONL too, also for the ids that a resumed run reads."""
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "x", ' + line + "}\n")
    checked, (job,) = read(path, keep_extra=keep_extra)
    assert not checked.bad_lines
    assert job == Job(**{name: getattr(expected, name) for name in COLUMNS} | {"id": expected.id or "00001"})


def test_a_sweep_is_not_metadata(tmp_path: Path) -> None:
    """With `keep_extra`, the sweep of a JSONL line is still a sweep."""
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "x", "sweep": {"seed": [1, 2], "creativity": null}, "tag": "a"}\n')
    assert [(job.seed, job.metadata) for job in read(path, keep_extra=True)[1]] == [
        (1, {"tag": "a"}),
        (2, {"tag": "a"}),
    ]


def test_whole_number_ids_of_a_spreadsheet(tmp_path: Path) -> None:
    """An id "7.0" of a CSV is "7", as it is in the other formats, and a notice says so; "1.10" stays."""
    path = tmp_path / "p.csv"
    path.write_text("id,prompt\n7.0,a cat\n,a dog\n1.10,an owl\n007,a fox\n")
    with JobFiles([str(path)]) as files:
        files.check()
        assert [job.id for job in files] == ["7", "00003", "1.10", "007"]
        assert any('"7.0" are read as "7"' in notice for notice in files.notices())
