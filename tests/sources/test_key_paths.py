"""Test that options reach nested values, that a name that nothing has is an error, and that wrappers are removed."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from krea_batch.errors import InputError
from krea_batch.jobs import Job
from krea_batch.sources import InputOptions, JobFiles
from krea_batch.sources.key_paths import paths_in, steps_to, without

PHOTOS: list[dict[str, Any]] = [
    {"id": "a", "prompt": "a red kite", "params": {"seed": 101, "steps": 30}},
    {"id": "b", "prompt": "a blue door", "params": {"seed": None, "steps": 40}},
    {"id": "c", "prompt": "an owl", "params": None},
]
BATCH = [
    {"custom_id": f"img-{n}", "method": "POST", "url": "/v1/images", "body": {"model": "m", "prompt": f"image {n}"}}
    for n in (1, 2)
]


def write(path: Path, rows: Any) -> str:
    """Write rows in the format of the suffix, or any value as a JSON document, and return the path."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps(rows, indent=1))
    return str(path)


def read(path: str, *, stdin: bytes = b"", **options: Any) -> list[Job]:
    """Return the jobs of a file without invalid rows."""
    with JobFiles([path], options=InputOptions(**options), stdin=io.BytesIO(stdin)) as files:
        checked = files.check()
        assert not checked.bad_lines, checked.problems
        return list(files)


def first_problem(path: str, **options: Any) -> str:
    with JobFiles([path], options=InputOptions(**options)) as files:
        return str(files.check().problems[0]).removeprefix(f"{path}:")


def notices(path: str, **options: Any) -> list[str]:
    with JobFiles([path], options=InputOptions(**options)) as files:
        files.check()
        return [notice.removeprefix(f"{path}: ") for notice in files.notices()]


@pytest.mark.parametrize(
    ("value", "path", "steps"),
    [
        ({"a": {"b": 1}}, "a.b", ("a", "b")),
        ({"a.b": 1, "a": {"b": 2}}, "a.b", ("a.b",)),
        ({"a.b": {"c": 1}}, "a.b.c", ("a.b", "c")),
        ({"a": [{"b": 1}, {"b": 2}]}, "a.1.b", ("a", 1, "b")),
        ({"a": [1]}, "a.1", None),
        ({"a": [1]}, "a.x", None),
        ({"a": 1}, "a.b", None),
        ({"a": {"b": None}}, "a.b", ("a", "b")),
        ({"": 1}, ".a", None),
    ],
)
def test_paths(value: Any, path: str, steps: tuple[str | int, ...] | None) -> None:
    """A path leads through objects and lists; a key that contains the dot itself wins."""
    assert steps_to(value, path) == steps


def test_values_that_are_taken_out() -> None:
    """A value that is taken out leaves no empty object, and the original as it was."""
    value = {"a": {"b": {"c": 1}}, "d": {"e": 1, "f": 2}}
    assert without(value, ("a", "b", "c")) == {"d": {"e": 1, "f": 2}}
    assert without(value, ("d", "e")) == {"a": {"b": {"c": 1}}, "d": {"f": 2}}
    assert list(paths_in(value)) == ["a.b.c", "d.e", "d.f"]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_nested_fields_in_every_format(tmp_path: Path, suffix: str) -> None:
    """`params.seed` is the seed; what is left of `params` is metadata, and null means that there is no seed."""
    path = write(tmp_path / f"p{suffix}", PHOTOS)
    jobs = read(path, columns={"seed": "params.seed"}, keep_extra=True)
    assert [(job.id, job.prompt) for job in jobs] == [(row["id"], row["prompt"]) for row in PHOTOS]
    assert jobs[0] == Job(prompt="a red kite", id="a", seed=101, metadata={"params": {"steps": 30}})
    assert jobs[1] == Job(prompt="a blue door", id="b", metadata={"params": {"steps": 40}})
    assert jobs[2] == Job(prompt="an owl", id="c", metadata={"params": None})


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_batch_lines(tmp_path: Path, suffix: str) -> None:
    """Lines of the OpenAI batch API are read with two options."""
    path = write(tmp_path / f"p{suffix}", BATCH)
    jobs = read(path, columns={"id": "custom_id", "prompt": "body.prompt"}, keep_extra=True)
    assert [(job.id, job.prompt) for job in jobs] == [("img-1", "image 1"), ("img-2", "image 2")]
    assert jobs[0].metadata == {"method": "POST", "url": "/v1/images", "body": {"model": "m"}}


def test_the_place_of_a_nested_prompt_is_named(tmp_path: Path) -> None:
    """The hint about a line without a prompt names the options that read it."""
    path = write(tmp_path / "p.jsonl", BATCH)
    assert first_problem(path) == (
        '1: missing "prompt", but the job has "body.prompt"; '
        "choose it with --prompt-column body.prompt --id-column custom_id --keep-extra"
    )


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".csv", ".txt"])
@pytest.mark.parametrize("name", ["sead", "params.sead"])
def test_a_name_that_nothing_has(tmp_path: Path, suffix: str, name: str) -> None:
    """An option that names what no row has raises InputError in every format, before any row is read."""
    path = tmp_path / f"p{suffix}"
    if suffix == ".csv":
        path.write_text("prompt,params\na cat,x\n")
    elif suffix == ".txt":
        path.write_text("a cat\n")
    else:
        write(path, PHOTOS)
    with pytest.raises(InputError, match=f'(there is no column|no row has the key) "{name}"'):
        read(str(path), columns={"seed": name}, keep_extra=True)


def test_the_existing_keys_are_named(tmp_path: Path) -> None:
    """The hint suggests the closest key, or lists the keys."""
    path = write(tmp_path / "p.jsonl", PHOTOS)
    with pytest.raises(InputError, match=r'no row has the key "params\.sed"; did you mean "params\.seed"\?'):
        read(path, columns={"seed": "params.sed"})
    with pytest.raises(InputError, match=r'the keys are "id", "prompt", "params\.seed", "params\.steps", "params"'):
        read(path, columns={"seed": "start"})


def test_rows_without_the_key(tmp_path: Path) -> None:
    """A row without an optional key does not give the field; a row without the key of the prompt is invalid."""
    path = write(tmp_path / "p.jsonl", [{"text": "a"}, {"text": "b", "n": 7.0}])
    assert [job.seed for job in read(path, columns={"prompt": "text", "seed": "n"})][1] == 7
    path = write(tmp_path / "q.jsonl", [{"text": "a"}, {"prompt": "b"}])
    assert first_problem(path, columns={"prompt": "text"}).startswith('2: no "text", which is the prompt; add it, or')
    path = write(tmp_path / "r.jsonl", [{"prompt": "a", "n": 1}, {"prompt": "b", "seed": 2}])
    assert first_problem(path, columns={"seed": "n"}).startswith(
        '2: "seed" is given, but seed comes from "n"; remove'
    )


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_one_key_for_two_fields(tmp_path: Path, suffix: str) -> None:
    """One key for two fields raises InputError, as in tables."""
    path = write(tmp_path / f"p{suffix}", PHOTOS)
    with pytest.raises(InputError, match='"prompt" is assigned to both id and prompt'):
        read(path, columns={"id": "prompt", "prompt": "prompt"})


@pytest.mark.parametrize(
    ("document", "notice"),
    [
        ({"prompts": ["a", "b"]}, 'read the list "prompts"'),
        ({"wishes": [{"prompt": "a"}, "b"]}, 'read the list "wishes"'),
        ({"version": 1, "data": ["a", "b"]}, 'read the list "data" and ignored "version"'),
        ({"data": {"items": [{"prompt": "a"}, {"prompt": "b"}]}}, 'read the list "data.items"'),
    ],
)
def test_wrappers(tmp_path: Path, document: Any, notice: str) -> None:
    """A list in an object is read from a file and from standard input, and a notice says so."""
    path = write(tmp_path / "p.json", document)
    assert [job.prompt for job in read(path)] == ["a", "b"]
    assert notices(path) == [notice]
    for indent in (None, 2):
        text = json.dumps(document, indent=indent).encode()
        assert [job.prompt for job in read("-", stdin=text)] == ["a", "b"]
    assert [job.prompt for job in read("-", stdin=b'{"prompts": ["a",\n"b"]}')] == ["a", "b"]


@pytest.mark.parametrize(
    ("document", "prompts"),
    [
        ({"fox": {"prompt": "a fox", "styles": []}}, ["a fox"]),
        ({"prompt": "a fox", "styles": []}, ["a fox"]),
        ({"prompt": {"prompt": "a fox"}}, ["a fox"]),
    ],
)
def test_what_is_no_wrapper(tmp_path: Path, document: Any, prompts: list[str]) -> None:
    """A job with a list, and an object whose key is an id, are read as before."""
    assert [job.prompt for job in read(write(tmp_path / "p.json", document))] == prompts


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"train": ["a"], "test": ["b"]}, '"train" and "test" are both lists; write one object per job'),
        ({"prompt": {"0": "a"}, "seed": {"0": 1}}, '"prompt" has the values of all rows; write one object per job'),
    ],
)
def test_documents_by_column(tmp_path: Path, document: Any, expected: str) -> None:
    """A document that has several lists, or its values by column, raises InputError that says what to write."""
    with pytest.raises(InputError, match=expected):
        read(write(tmp_path / "p.json", document))


def test_a_wrapper_on_a_line(tmp_path: Path) -> None:
    """A line of JSONL that is a list of jobs says how to read it, and that works."""
    path = write(tmp_path / "p.jsonl", [{"prompts": ["a", "b"]}])
    assert (
        first_problem(path)
        == '1: the line is an object around the list "prompts", not a job; read it with --input-format json'
    )
    assert [job.prompt for job in read(path, format="json")] == ["a", "b"]


KEYED = {"1": {"id": 1, "prompt": "a"}, "2": {"id": "x", "prompt": "b"}, "3": {"id": None, "prompt": "c"}}


class TestKeyedObjects:
    def test_key_and_id_agree(self, tmp_path: Path) -> None:
        """Nothing has to be chosen where the key and the id of an entry are the same."""
        path = write(tmp_path / "p.json", {"1": {"id": 1, "prompt": "a"}, "2": {"id": "2", "prompt": "b"}})
        assert [job.id for job in read(path)] == ["1", "2"]

    def test_key_and_id_differ(self, tmp_path: Path) -> None:
        """Where they differ, the row is invalid, and both options of the hint work."""
        path = write(tmp_path / "p.json", KEYED)
        assert first_problem(path) == (
            '2: the entry has both the key "2" and the id "x"; '
            'choose the id with --id-column id, or the key with --id-column ""'
        )
        assert [job.id for job in read(path, columns={"id": "id"})] == ["1", "x", "00003"]
        assert [job.id for job in read(path, columns={"id": ""})] == ["1", "2", "3"]
        jobs = read(path, columns={"id": ""}, keep_extra=True)
        assert [(job.id, job.metadata) for job in jobs] == [
            ("1", {"id": 1}),
            ("2", {"id": "x"}),
            ("3", {"id": None}),
        ]
