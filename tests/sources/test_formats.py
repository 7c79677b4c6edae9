"""Test that every format is read, that prompts stay the same byte for byte, and that sweeps are expanded."""

from __future__ import annotations

import gzip
import importlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from krea_batch.errors import InputError
from krea_batch.jobs import Job
from krea_batch.sources import CheckResult, InputOptions, JobFiles
from krea_batch.sources.inputs import natural_sort_key
from krea_batch.sources.options import Format, TextUnit
from krea_batch.sources.sweep import make_axis
from krea_batch.sources.values import is_unusable

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

AWKWARD_CELLS = [
    "-starts with a dash",
    "# starts like a comment",
    "@starts like a file",
    "{braces} and {}",
    'a "quoted" word',
    '"quoted" at the start',
    "it's, well; a\\b",
    "a 🦊 und Füße",
    "  blanks around  ",
    "x" * 2500,
    "null",
    "007",
    "=1+1",
]

WriteContent = Callable[[str, bytes | str], str]


@pytest.fixture
def write_file(tmp_path: Path) -> WriteContent:
    """Return a function that writes a file in the test's directory and returns its path."""

    def write(name: str, content: bytes | str) -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write


def check_and_read(
    *paths: str, stdin: bytes = b"", skip_invalid: bool = False, **options: Any
) -> tuple[CheckResult, list[Job]]:
    """Check the files. Return the result, and the jobs of the second reading."""
    with JobFiles(
        paths, options=InputOptions(**options), skip_invalid=skip_invalid, stdin=io.BytesIO(stdin)
    ) as files:
        return files.check(), list(files)


def prompts(*paths: str, **options: Any) -> list[str]:
    checked, jobs = check_and_read(*paths, **options)
    assert not checked.bad_lines, checked.problems
    assert len(jobs) == checked.jobs
    return [job.prompt for job in jobs]


def format_notices(path: str, **options: Any) -> list[str]:
    """Return the notices about a file, without its path."""
    with JobFiles([path], options=InputOptions(**options)) as files:
        files.check()
        return [notice.removeprefix(f"{path}: ") for notice in files.notices()]


def input_error(path: str, **options: Any) -> str:
    """Return the error of a file, without its path."""
    with pytest.raises(InputError) as error:
        check_and_read(path, **options)
    return str(error.value).removeprefix(path)


def first_problem(path: str, **options: Any) -> str:
    """Return the first problem of a file, without its path."""
    checked, _ = check_and_read(path, skip_invalid=True, **options)
    return str(checked.problems[0]).removeprefix(f"{path}:")


def csv_of(*rows: list[str], end: str = "\n") -> str:
    quoted = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]
    return end.join(quoted) + end


class TestText:
    @pytest.mark.parametrize("end", ["\n", "\r\n"])
    def test_one_prompt_per_line(self, write_file: WriteContent, end: str) -> None:
        """Each line is a prompt without changes, whatever its first character; ids are line numbers."""
        path = write_file("p.txt", end.join([*AWKWARD_CELLS, "", "last"]))
        _, jobs = check_and_read(path)
        assert [job.prompt for job in jobs] == [*AWKWARD_CELLS, "last"]
        assert jobs[-1].id == f"{len(AWKWARD_CELLS) + 2:05d}"
        assert format_notices(path)[0] == "read as text, one prompt per line"

    def test_byte_order_mark(self, write_file: WriteContent) -> None:
        """A byte order mark is not part of the first prompt."""
        assert prompts(write_file("p.txt", b"\xef\xbb\xbfa cat\n")) == ["a cat"]

    def test_comments(self, write_file: WriteContent) -> None:
        """A line that starts with # is a prompt, except with `skip_comments`."""
        path = write_file("p.txt", "# cats\na cat\n # more\n")
        assert prompts(path) == ["# cats", "a cat", " # more"]
        assert prompts(path, skip_comments=True) == ["a cat"]

    def test_repeated_prompts(self, write_file: WriteContent) -> None:
        """The same prompt twice is two jobs, except with `dedupe`."""
        path = write_file("p.txt", "a cat\na dog\na cat\n")
        assert prompts(path) == ["a cat", "a dog", "a cat"]
        checked, jobs = check_and_read(path, dedupe=True)
        assert [job.id for job in jobs] == ["00001", "00002"]
        assert (checked.jobs, checked.rows, checked.duplicates) == (2, 3, 1)

    def test_not_utf_8(self, write_file: WriteContent) -> None:
        """A byte that is not UTF-8 is an invalid line, and the problem has its position."""
        assert first_problem(write_file("p.txt", b"a cat\nf\xfcr\n")).startswith(
            "2: byte 2 (0xfc) is not UTF-8; save the"
        )

    def test_jsonl_in_a_text_file(self, write_file: WriteContent) -> None:
        """A .txt file that contains JSONL is read as JSONL, so its lines are not submitted as prompts."""
        path = write_file("p.txt", '{"prompt": "a cat"}\n{"prompt": "a dog"}\n')
        assert prompts(path) == ["a cat", "a dog"]
        assert format_notices(path) == ["read as JSONL, because its first line is a job"]

    @given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\0\ufeff")), max_size=5))
    @example(['{"prompt'])
    def test_any_lines(self, tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
        """Every line with something to see is one prompt, byte for byte."""
        path = tmp_path_factory.getbasetemp() / "any.txt"
        path.write_bytes("\n".join(lines).encode())
        expected = [line for line in lines if not line.isspace() and not is_unusable(line)]
        _, jobs = check_and_read(str(path), skip_invalid=True, format=Format.TEXT)
        assert [job.prompt for job in jobs] == expected


class TestTables:
    def test_csv(self, write_file: WriteContent) -> None:
        """Quotes, commas and newlines in cells are kept, and ids stay text."""
        rows = [["id", "prompt"], *([f"{n:03d}", text] for n, text in enumerate([*AWKWARD_CELLS, "two\nlines"]))]
        path = write_file("p.csv", csv_of(*rows))
        _, jobs = check_and_read(path)
        assert [(job.id, job.prompt) for job in jobs] == [(row[0], row[1]) for row in rows[1:]]

    def test_line_numbers(self, write_file: WriteContent) -> None:
        """Default ids and problems have the number of the line on which a row starts."""
        path = write_file("p.csv", 'prompt,creativity\n"two\nlines",raw\n\na cat,loud\n')
        checked, jobs = check_and_read(path, skip_invalid=True)
        assert [job.id for job in jobs] == ["00002"]
        assert [each.line for each in checked.problems] == [5]

    def test_columns(self, write_file: WriteContent) -> None:
        """Columns are assigned by name, integers and JSON are parsed, others become metadata; a notice lists all."""
        text = 'Prompt,Aspect Ratio,seed,styles,Category\na cat,16:9,7,"[{""id"": ""ink""}]",pets\na dog,,,,\n'
        path = write_file("p.csv", text)
        _, (cat, dog) = check_and_read(path)
        assert (cat.aspect_ratio, cat.seed, cat.styles[0].id, cat.metadata) == (
            "16:9",
            7,
            "ink",
            {"Category": "pets"},
        )
        assert dog == Job(prompt="a dog", id="00003", metadata={"Category": ""})
        (notice,) = format_notices(path)
        assert notice == (
            'prompt from "Prompt"; aspect_ratio from "Aspect Ratio"; seed from "seed"; styles from "styles"; '
            '"Category" put into the metadata'
        )

    def test_chosen_columns(self, write_file: WriteContent) -> None:
        """`columns` assigns columns to fields; the case of the names does not matter."""
        path = write_file("p.csv", "Text,prompt,Key,Zufall\na cat,x,0007,3\n")
        _, (job,) = check_and_read(path, columns={"prompt": "text", "id": "Key", "seed": "Zufall"})
        assert (job.prompt, job.id, job.seed, job.metadata) == ("a cat", "0007", 3, {"prompt": "x"})

    def test_no_column_for_ids(self, write_file: WriteContent) -> None:
        """With an empty name for the field id, the column `id` becomes metadata."""
        _, jobs = check_and_read(write_file("p.csv", "id,prompt\n1,a cat\n1,a dog\n"), columns={"id": ""})
        assert [(job.id, job.metadata) for job in jobs] == [("00002", {"id": "1"}), ("00003", {"id": "1"})]

    @pytest.mark.parametrize(
        ("header", "options", "expected"),
        [
            ("a,b", {}, 'no column is named prompt; set --prompt-column; the columns are "a", "b"'),
            ("prompt,prompt", {}, 'two columns are named "prompt"; rename one of them'),
            ("prompt", {"columns": {"seed": "sead"}}, 'there is no column "sead"; the columns are "prompt"'),
            ("prompt", {"columns": {"id": "promt"}}, 'there is no column "promt"; did you mean "prompt"?'),
            (
                "prompt",
                {"columns": {"id": "prompt", "prompt": "prompt"}},
                '"prompt" is assigned to both id and prompt',
            ),
            ("a", {"template": "{b}"}, 'the template uses b, but no column has that name; the columns are "a"'),
        ],
    )
    def test_invalid_headers(
        self, write_file: WriteContent, header: str, options: dict[str, Any], expected: str
    ) -> None:
        """A header whose prompt column is missing or ambiguous raises InputError, since a wrong guess is charged."""
        path = write_file("p.csv", f"{header}\nx,y\n")
        with pytest.raises(InputError) as error:
            check_and_read(path, **options)
        assert str(error.value).startswith(f"{path}: {expected}")

    @pytest.mark.parametrize(
        ("row", "expected"),
        [
            (
                "a cat,1,extra",
                "2: the row has 3 cells, and the header has 2; put cells that contain the separator in quotes, or",
            ),
            (",1", '2: "prompt" is empty; write'),
            ("a cat,x", '2: "seed" is "x"; use an integer of at most'),
            ('"a cat" x,1', "2: cannot read the row (',' expected after '\"'); write \" in a quoted cell as \"\""),
        ],
    )
    def test_invalid_rows(self, write_file: WriteContent, row: str, expected: str) -> None:
        """An invalid row is reported with its line, and later rows are read."""
        path = write_file("p.csv", f"prompt,seed\n{row}\na dog,2\n")
        assert first_problem(path).startswith(expected)
        assert [job.prompt for job in check_and_read(path, skip_invalid=True)[1]] == ["a dog"]

    def test_semicolons(self, write_file: WriteContent) -> None:
        """Semicolons as separators, as spreadsheets write them in many countries, are detected and noted."""
        path = write_file("p.csv", "prompt;seed\na cat, asleep;1\n")
        assert prompts(path) == ["a cat, asleep"]
        assert format_notices(path)[0] == "separated by ;"

    @pytest.mark.parametrize("end", ["\n", "\r\n"])
    def test_tsv_with_quotes(self, write_file: WriteContent, end: str) -> None:
        """Quotes have no meaning in TSV; they are kept."""
        path = write_file("p.tsv", end.join(["Prompt\tNote", *(f"{text}\tn" for text in AWKWARD_CELLS)]))
        assert prompts(path) == AWKWARD_CELLS

    def test_not_utf_8(self, write_file: WriteContent) -> None:
        """A row that is not UTF-8 is invalid; other rows are valid."""
        path = write_file("p.csv", b"prompt\nf\xfcr\na cat\n")
        assert first_problem(path).startswith("2: byte 0xfc is not UTF-8; save the file as UTF-8")

    def test_a_column_that_looks_mistyped(self, write_file: WriteContent) -> None:
        """A column that looks mistyped becomes metadata, and a notice suggests the field."""
        assert format_notices(write_file("p.csv", "prompt,creativty\na cat,high\n"))[1] == (
            '"creativty" was put into the metadata; did you mean "creativity"?'
        )


class TestJson:
    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            (
                [{"prompt": "a cat", "seed": 1}, {"prompt": "a dog", "id": "dog"}],
                [("00001", "a cat"), ("dog", "a dog")],
            ),
            (["a cat", "a dog"], [("00001", "a cat"), ("00002", "a dog")]),
            ({"007": "a cat", "dog": {"prompt": "a dog"}}, [("007", "a cat"), ("dog", "a dog")]),
            ({"prompt": "a cat"}, [("00001", "a cat")]),
            (AWKWARD_CELLS, [(f"{n:05d}", text) for n, text in enumerate(AWKWARD_CELLS, 1)]),
        ],
        ids=["objects", "strings", "by id", "one job", "awkward"],
    )
    @pytest.mark.parametrize("indent", [None, 2])
    def test_shapes(
        self, write_file: WriteContent, content: Any, expected: list[tuple[str, str]], indent: int | None
    ) -> None:
        """An array of objects or prompts, an object with ids as keys, and a single job are read, with any indent."""
        _, jobs = check_and_read(write_file("p.json", json.dumps(content, indent=indent)))
        assert [(job.id, job.prompt) for job in jobs] == expected

    def test_jsonl_in_a_json_file(self, write_file: WriteContent) -> None:
        """A .json file that contains JSONL is read as JSONL."""
        path = write_file("p.json", '{"prompt": "a cat"}\n{"prompt": "a dog"}\n')
        assert prompts(path) == ["a cat", "a dog"]
        assert format_notices(path) == ["read as JSONL"]

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            ('["a",\n"b"\n"c"]', ":3: missing comma at character 1"),
            ('[{"prompt": "a", "prompt": "b"}]', ':1: duplicate key "prompt"; keep one'),
            ('"a cat"', ': "a cat" is neither an array nor an object; write '),
            ("[NaN]", ":1: NaN is not valid JSON; "),
            ('["' + "\\ud800" + '"]', ":1: the line contains \\ud800, a lone surrogate"),
        ],
    )
    def test_invalid_documents(self, write_file: WriteContent, content: str, expected: str) -> None:
        """An invalid document raises InputError with the position."""
        path = write_file("p.json", content)
        with pytest.raises(InputError) as error:
            check_and_read(path, format=Format.JSON)
        assert str(error.value).startswith(path + expected)

    def test_invalid_entries(self, write_file: WriteContent) -> None:
        """An entry that is not a job is reported with its number; other entries are read."""
        path = write_file("p.json", '["a cat", 5, {"promt": "x"}, {"prompt": "a dog"}]')
        assert first_problem(path).startswith("2: 5 is neither an object nor a prompt")
        assert [job.id for job in check_and_read(path, skip_invalid=True)[1]] == ["00001", "00004"]

    def test_renamed_keys(self, write_file: WriteContent) -> None:
        """`columns` also renames keys of JSON and JSONL."""
        entry = '{"text": "a cat", "n": 7, "nr": 3}'
        for path in (write_file("p.json", f"[{entry}]"), write_file("p.jsonl", entry)):
            _, (job,) = check_and_read(path, columns={"prompt": "text", "id": "n", "seed": "nr"})
            assert (job.prompt, job.id, job.seed) == ("a cat", "7", 3)

    def test_renamed_key_and_its_field(self, write_file: WriteContent) -> None:
        """Two keys for one field are a problem; neither is preferred."""
        path = write_file("p.jsonl", '{"text": "a cat", "prompt": "x"}')
        assert first_problem(path, columns={"prompt": "text"}) == (
            '1: "prompt" is given, but prompt comes from "text"; remove "prompt", or add --keep-extra, which puts it '
            "into the metadata"
        )
        _, (job,) = check_and_read(path, columns={"prompt": "text"}, keep_extra=True)
        assert (job.prompt, job.metadata) == ("a cat", {"prompt": "x"})


CSV_TABLE = {
    "Prompt": ["a cat", "a dog"],
    "id": [7, 8],
    "seed": [1.0, None],
    "score": [0.5, 0.25],
    "image": [{"bytes": b"x", "path": "a"}, None],
}


class TestColumnar:
    def check(self, path: str) -> None:
        _, (cat, dog) = check_and_read(path)
        assert cat == Job(prompt="a cat", id="7", seed=1, metadata={"score": 0.5})
        assert dog == Job(prompt="a dog", id="8", metadata={"score": 0.25})

    @pytest.mark.parametrize("name", ["p.parquet", "p.bin"])
    def test_parquet(self, tmp_path: Path, name: str) -> None:
        """Typed columns become fields; a column of images is ignored, and a notice says so."""
        path = str(tmp_path / name)
        pq.write_table(pa.table(CSV_TABLE), path)
        self.check(path)
        assert "ignored image, which contains binary data" in format_notices(path)

    def test_folder_of_parquet(self, tmp_path: Path) -> None:
        """Parquet files of a directory are read in natural order."""
        for n in (10, 9):
            pq.write_table(pa.table({"prompt": [f"image {n}"] * 2}), tmp_path / f"part-{n}.parquet")
        assert prompts(str(tmp_path)) == ["image 9"] * 2 + ["image 10"] * 2

    def test_dataset_on_disk(self, tmp_path: Path) -> None:
        """A directory written by Dataset.save_to_disk is read by its state.json and Arrow streams."""
        table = pa.table(CSV_TABLE)
        with (
            pa.OSFile(str(tmp_path / "data-00000-of-00001.arrow"), "wb") as file,
            pa.ipc.new_stream(file, table.schema) as stream,
        ):
            stream.write_table(table)
        (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
        self.check(str(tmp_path))

    def test_invalid_datasets(self, tmp_path: Path) -> None:
        """An unrelated state.json, files outside the directory, and several splits raise InputError."""
        (tmp_path / "state.json").write_text("{}")
        with pytest.raises(InputError, match=r"state\.json does not describe a dataset"):
            check_and_read(str(tmp_path))
        (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "../x.arrow"}]}')
        with pytest.raises(InputError, match="must be in its directory"):
            check_and_read(str(tmp_path))
        splits_dir = tmp_path / "splits"
        (splits_dir / "train").mkdir(parents=True)
        (splits_dir / "train" / "state.json").write_text("{}")
        (splits_dir / "dataset_dict.json").write_text('{"splits": ["train"]}')
        with pytest.raises(InputError, match=r"several splits; name one of them: .*train"):
            check_and_read(str(splits_dir))

    def test_invalid_parquet(self, write_file: WriteContent) -> None:
        """A .parquet file with other content raises InputError."""
        with pytest.raises(InputError, match="cannot be read as a Parquet file"):
            check_and_read(write_file("p.parquet", "prompt\na cat\n"))

    def test_without_pyarrow(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without the optional package, InputError names the extra to install."""
        path = tmp_path / "p.parquet"
        pq.write_table(pa.table({"prompt": ["a cat"]}), path)
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(InputError, match=r"krea-batch\[parquet\]"):
            check_and_read(str(path))


class TestFolders:
    def test_texts(self, write_file: WriteContent, tmp_path: Path) -> None:
        """Each visible text file is one prompt, its stem is the id, and files are read in natural order."""
        for name, text in (
            ("p10.txt", "ten\n"),
            ("p9.txt", "nine\nlines\r\n"),
            ("007.txt", "bond"),
            (".x.txt", "no"),
        ):
            write_file(f"texts/{name}", text)
        write_file("texts/readme.md", "x")
        _, jobs = check_and_read(str(tmp_path / "texts"), text_unit=TextUnit.FILE)
        assert [(job.id, job.prompt) for job in jobs] == [("007", "bond"), ("p9", "nine\nlines"), ("p10", "ten")]

    def test_empty_text(self, write_file: WriteContent, tmp_path: Path) -> None:
        """An empty text file is an invalid row."""
        path = write_file("texts/a.txt", "\n")
        checked, _ = check_and_read(str(tmp_path / "texts"), skip_invalid=True)
        assert str(checked.problems[0]).startswith(f'{path}:1: "prompt" is empty')

    def test_unknown_folders(self, tmp_path: Path) -> None:
        """A directory without text or Parquet files raises InputError."""
        with pytest.raises(InputError, match="name a directory that has some"):
            check_and_read(str(tmp_path))

    def test_natural_order(self) -> None:
        """Natural order compares numbers in names as numbers."""
        names = ["b1", "a10", "a9", "a", "10", "9"]
        assert sorted(names, key=natural_sort_key) == ["9", "10", "a", "a9", "a10", "b1"]


class TestCompressed:
    @pytest.mark.parametrize("compress", [gzip.compress, zstd.compress], ids=["gz", "zst"])
    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("p.txt", "a cat\n"),
            ("p.csv", "prompt\na cat\n"),
            ("p.json", '["a cat"]'),
            ("p.jsonl", '{"prompt": "a cat"}'),
        ],
        ids=["text", "csv", "json", "jsonl"],
    )
    def test_every_format(self, write_file: WriteContent, compress: Any, name: str, content: str) -> None:
        """Compressed files of every format are read, by name and from standard input."""
        suffix = ".gz" if compress is gzip.compress else ".zst"
        assert prompts(write_file(name + suffix, compress(content.encode()))) == ["a cat"]
        format_ = {"p.txt": Format.TEXT, "p.csv": Format.CSV}.get(name)
        assert prompts("-", stdin=compress(content.encode()), format=format_) == ["a cat"]

    def test_compressed_parquet(self, write_file: WriteContent) -> None:
        """Compressed Parquet is read, and Parquet from standard input."""
        file = io.BytesIO()
        pq.write_table(pa.table({"prompt": ["a cat"]}), file)
        assert prompts(write_file("p.parquet.gz", gzip.compress(file.getvalue()))) == ["a cat"]
        assert prompts("-", stdin=file.getvalue()) == ["a cat"]

    def test_damaged_zstandard(self, write_file: WriteContent) -> None:
        """Truncated or damaged data raises InputError; it never gives fewer prompts without an error."""
        compressed = zstd.compress(b"a cat\n" * 1000)
        for content in (compressed[:-3], compressed[:8] + b"\xff" * 8 + compressed[16:]):
            with pytest.raises(InputError, match="compressed data"):
                check_and_read(write_file("p.txt.zst", content))
        with pytest.raises(InputError, match="not a Zstandard file"):
            check_and_read(write_file("p.txt.zst", "a cat\n"))

    def test_without_zstandard(self, write_file: WriteContent, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without the optional package, InputError names the extra to install."""
        path = write_file("p.txt.zst", zstd.compress(b"a cat\n"))
        import_module = importlib.import_module

        def import_without_zstd(name: str, package: str | None = None) -> Any:
            if name.endswith("zstd"):
                raise ImportError(name)
            return import_module(name, package)

        monkeypatch.setattr("krea_batch.sources.formats.line_file.import_module", import_without_zstd)
        with pytest.raises(InputError, match=r"krea-batch\[zst\]"):
            check_and_read(path)


class TestFormatDetection:
    @pytest.mark.parametrize(
        ("stdin", "expected"),
        [(b'["a cat"]', ["a cat"]), (b'{"prompt": "a cat"}\n', ["a cat"]), (b'\n [{"prompt": "a cat"}]', ["a cat"])],
    )
    def test_json_without_a_name(self, stdin: bytes, expected: list[str]) -> None:
        """JSON and JSONL on standard input are detected by their first bytes."""
        assert prompts("-", stdin=stdin) == expected

    def test_formats_that_cannot_be_detected(self, write_file: WriteContent) -> None:
        """Plain text without .txt raises InputError: invalid JSONL, read as prompts, would be charged."""
        for path in ("-", write_file("prompts", "a cat")):
            with pytest.raises(InputError, match="set --input-format to one of jsonl, json, csv"):
                check_and_read(path, stdin=b"a cat\n")
        assert prompts("-", stdin=b"a cat\n", format=Format.TEXT) == ["a cat"]

    def test_several_inputs(self, write_file: WriteContent) -> None:
        """Files of several formats can be combined, and their row numbers continue."""
        paths = [
            write_file("a.jsonl", '{"prompt": "1"}\n'),
            write_file("b.csv", "prompt\n2\n"),
            write_file("c.txt", "3\n4\n"),
        ]
        _, jobs = check_and_read(*paths, write_file("d.json", '["5"]'))
        assert [(job.id, job.prompt) for job in jobs] == [
            ("00001", "1"),
            ("00003", "2"),
            ("00004", "3"),
            ("00005", "4"),
            ("00006", "5"),
        ]

    @pytest.mark.parametrize(
        ("name", "before", "after"),
        [
            ("p.csv", "prompt\na cat\n", "prompt\na dog\n"),
            ("p.json", '["a cat"]', '["a dog"]'),
            ("p.txt", "a cat\n", "a dog\n"),
        ],
    )
    def test_a_file_that_changes(self, write_file: WriteContent, name: str, before: str, after: str) -> None:
        """For every format, a file that changed since its check raises InputError, and yields no unchecked prompt."""
        path = write_file(name, before)
        with JobFiles([path]) as files:
            files.check()
            write_file(name, after)
            with pytest.raises(InputError, match="changed since it was checked"):
                list(files)


class TestSweeps:
    def test_for_every_row(self, write_file: WriteContent) -> None:
        """Every row is combined with every combination, and the suffix is added to its id."""
        path = write_file("p.jsonl", '{"prompt": "a cat"}\n{"prompt": "a dog", "id": "dog"}\n')
        checked, jobs = check_and_read(path, axes=(make_axis("creativity", ["raw", "high"]),))
        assert [(job.id, job.creativity) for job in jobs] == [
            ("00001-creativity=raw", "raw"),
            ("00001-creativity=high", "high"),
            ("dog-creativity=raw", "raw"),
            ("dog-creativity=high", "high"),
        ]
        assert (checked.rows, checked.jobs) == (2, 4)

    def test_in_the_job_file(self, write_file: WriteContent) -> None:
        """A row may have its own sweep, and other rows need none."""
        line = '{"prompt": "a cat", "sweep": {"seed": "1..2", "creativity": ["raw"]}}'
        _, jobs = check_and_read(write_file("p.jsonl", f'{line}\n{{"prompt": "a dog"}}\n'))
        assert [(job.id, job.seed) for job in jobs[:2]] == [
            ("00001-creativity=raw-seed=1", 1),
            ("00001-creativity=raw-seed=2", 2),
        ]
        assert jobs[2] == Job(prompt="a dog", id="00002")

    def test_repeats(self, write_file: WriteContent) -> None:
        """`dedupe` keeps repeats of one request; repeats with a fixed seed are a problem."""
        path = write_file("p.txt", "a cat\na cat\n")
        _, jobs = check_and_read(path, axes=(make_axis("repeat", 2),), dedupe=True)
        assert [(job.id, job.metadata) for job in jobs] == [
            ("00001-repeat=1", {"repeat": 1}),
            ("00001-repeat=2", {"repeat": 2}),
        ]
        seeded = write_file("p.jsonl", '{"prompt": "a cat", "seed": 1}')
        assert "makes the same image again" in first_problem(seeded, axes=(make_axis("repeat", 2),))

    def test_template_of_columns_and_sweep(self, write_file: WriteContent) -> None:
        """A template inserts columns and swept names, and their values are kept in the metadata."""
        path = write_file("p.csv", "animal,note\ncat,x\n")
        _, jobs = check_and_read(path, template="a {animal} in {place}", axes=(make_axis("place", ["Rome", "Bonn"]),))
        assert [(job.id, job.prompt, job.metadata) for job in jobs] == [
            ("00002-place=Rome", "a cat in Rome", {"animal": "cat", "note": "x", "place": "Rome"}),
            ("00002-place=Bonn", "a cat in Bonn", {"animal": "cat", "note": "x", "place": "Bonn"}),
        ]

    def test_template_around_a_prompt(self, write_file: WriteContent) -> None:
        """{prompt} is the prompt of the row, and keys of JSONL that the template uses need no `keep_extra`."""
        assert prompts(write_file("p.txt", "a cat\n"), template="{prompt}, in oil") == ["a cat, in oil"]
        path = write_file("p.jsonl", '{"animal": "cat"}\n')
        assert prompts(path, template="a {animal}") == ["a cat"]
        assert '"animal" for the template' in first_problem(
            write_file("q.jsonl", '{"prompt": "x"}'), template="a {animal}"
        )

    @pytest.mark.parametrize(
        ("line", "expected"),
        [
            ('{"prompt": "x", "sweep": 5}', '1: "sweep" is 5; write "sweep": {"creativity":'),
            ('{"prompt": "x", "sweep": {"prompt": ["y"]}}', '1: "prompt" cannot be swept; the fields'),
            ('{"prompt": "x", "seed": 1, "sweep": {"seed": [2]}}', '1: "seed" is both given and swept; keep one'),
            ('{"prompt": "x", "sweep": {"creativity": ["loud"]}}', '1: "creativity" is "loud"; use one of raw, low,'),
            ('{"prompt": "x", "id": "a/b", "sweep": {"seed": [2]}}', '1: "id" is "a/b-seed=2"; an id'),
            ('{"prompt": "x", "sweep": {"seed": [1]}, "promt": 1}', '1: "promt" is not a field of a job; did you'),
        ],
    )
    def test_invalid_sweeps(self, write_file: WriteContent, line: str, expected: str) -> None:
        """A row with an invalid sweep is invalid."""
        assert first_problem(write_file("p.jsonl", line)).startswith(expected)

    def test_duplicate_ids_of_a_sweep(self, write_file: WriteContent) -> None:
        """If an id made by a sweep equals that of an earlier row, the whole later row is invalid."""
        path = write_file(
            "p.jsonl", '{"prompt": "a", "id": "x-seed=2"}\n{"prompt": "b", "id": "x", "sweep": {"seed": [1, 2]}}\n'
        )
        checked, jobs = check_and_read(path, skip_invalid=True)
        assert (checked.jobs, checked.rows, checked.bad_lines) == (1, 1, 1)
        assert [job.id for job in jobs] == ["x-seed=2"]
        assert 'both have the id "x-seed=2"' in str(checked.problems[0])
