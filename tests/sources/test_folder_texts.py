"""Directories of text files: one prompt or many, which files are left out, and where a row came from."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from krea_batch.errors import InputError, InternalError
from krea_batch.sources import InputOptions, JobFiles
from krea_batch.sources.options import Format, TextUnit

WriteFolder = Callable[..., str]


@pytest.fixture
def write_folder(tmp_path: Path) -> WriteFolder:
    """Return a function that writes a directory with these files and returns its path."""

    def write(**files: str) -> str:
        folder = tmp_path / "folder"
        folder.mkdir()
        for name, text in files.items():
            (folder / f"{name}.txt").write_bytes(text.encode())
        return str(folder)

    return write


def read(path: str, **options: Any) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Return id, prompt and source file of each job, and the notices without the path."""
    with JobFiles([path], options=InputOptions(**options)) as files:
        checked = files.check()
        assert not checked.bad_lines, checked.problems
        jobs = [(job.id, job.prompt, job.metadata.get("source_file", "")) for job in files]
        return jobs, [notice.removeprefix(f"{path}: ") for notice in files.notices()]


class TestOneOrMany:
    def test_one_line_each(self, write_folder: WriteFolder) -> None:
        """Files with one line each are one prompt each, whichever way they are read."""
        path = write_folder(a="a kite", b="\na boat\n\n")
        jobs, notices = read(path)
        assert jobs == [("a", "a kite", "a.txt"), ("b", "\na boat\n", "b.txt")]
        assert notices == ["2 text files, one prompt per file"]
        assert [job[1:] for job in read(path, text_unit=TextUnit.LINE)[0]] == [
            ("a kite", "a.txt"),
            ("a boat", "b.txt"),
        ]

    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    def test_several_lines_are_refused(self, write_folder: WriteFolder, end: str) -> None:
        """If a file has several lines, nothing is read until an option says whether each is a prompt."""
        path = write_folder(a="a kite", b=f"a boat{end}a door{end}{end}a cat{end}")
        with JobFiles([path]) as files:
            with pytest.raises(InputError) as caught:
                files.check()
            with pytest.raises(InternalError):
                list(files)
        assert str(caught.value) == (
            f"{path}: text files with several lines: 1 of 2, the first b.txt (3 lines), and each may be one prompt "
            "or a list; --lines makes 4 prompts, one of each line, --whole-file makes 2, one of each file"
        )

    def test_the_options_decide(self, write_folder: WriteFolder) -> None:
        """Each option of the refusal reads what it says, and so does the format text."""
        path = write_folder(a="a kite\na boat\n", b="a door")
        lines = [("00001", "a kite", "a.txt"), ("00002", "a boat", "a.txt"), ("00003", "a door", "b.txt")]
        assert read(path, text_unit=TextUnit.LINE) == (lines, ["2 text files, one prompt per line"])
        assert read(path, format=Format.TEXT)[0] == lines
        whole = [("a", "a kite\na boat", "a.txt"), ("b", "a door", "b.txt")]
        assert read(path, text_unit=TextUnit.FILE) == (whole, ["2 text files, one prompt per file"])
        assert read(path, text_unit=TextUnit.FILE, format=Format.TEXT)[0] == whole

    def test_separators(self, write_folder: WriteFolder) -> None:
        """If files have separators, the refusal names the option for them."""
        path = write_folder(a="a kite\nin rain\n---\na boat\n")
        with pytest.raises(InputError, match=r"--separator='---' reads the lines between as one prompt"):
            read(path)
        jobs, notices = read(path, separator="---")
        assert jobs == [("00001", "a kite\nin rain", "a.txt"), ("00004", "a boat", "a.txt")]
        assert notices == ["1 text file, one prompt per block"]

    def test_jobs_in_texts(self, write_folder: WriteFolder) -> None:
        """JSONL in the text files of a directory is not read as prompts of JSON."""
        path = write_folder(a='{"prompt": "a kite", "metadata": {"n": 1}}\n{"prompt": "a boat"}\n')
        with pytest.raises(InputError, match="--lines"):
            read(path)
        jobs, _ = read(path, text_unit=TextUnit.LINE)
        assert jobs == [("00001", "a kite", "a.txt"), ("00002", "a boat", "a.txt")]

    def test_a_long_list(self, write_folder: WriteFolder) -> None:
        """A list that is too long for a prompt is an invalid row whose advice reads it."""
        path = write_folder(a="a red kite over a field\n" * 50_000)
        with JobFiles([path]) as files:
            assert files.check().problems[0].hint == "shorten the prompt, or read each line as one: --lines"
        assert len(read(path, text_unit=TextUnit.LINE)[0]) == 50_000

    def test_many_lists(self, write_folder: WriteFolder) -> None:
        """No line of a large directory of lists is lost."""
        lists = {f"list{n}": "".join(f"prompt {n} {line}\n" for line in range(173)) for n in range(103)}
        jobs, _ = read(write_folder(**lists), text_unit=TextUnit.LINE)
        assert [prompt for _, prompt, _ in jobs] == [line for text in lists.values() for line in text.splitlines()]
        assert len({job_id for job_id, _, _ in jobs}) == 103 * 173


class TestLeftOut:
    def test_names(self, write_folder: WriteFolder, tmp_path: Path) -> None:
        """README, LICENSE, hidden files, other formats and directories are left out and named."""
        path = write_folder(a="a kite", README="read\nme", License_MIT="free\nsoftware")
        (tmp_path / "folder" / ".hidden.txt").write_text("x\ny")
        (tmp_path / "folder" / "cover.png").write_bytes(b"x")
        (tmp_path / "folder" / "old").mkdir()
        jobs, notices = read(path)
        assert [prompt for _, prompt, _ in jobs] == ["a kite"]
        left_out = ".hidden.txt, License_MIT.txt, README.txt, cover.png, old/"
        assert notices == [f"1 text file, one prompt per file; left out: {left_out}"]

    def test_many_names(self, write_folder: WriteFolder, tmp_path: Path) -> None:
        """Only the first names of a long list are shown, and the others are counted."""
        path = write_folder(a="a kite")
        for n in range(13):
            (tmp_path / "folder" / f"{n:02}.png").write_bytes(b"x")
        assert read(path)[1][0].endswith("07.png, 08.png, 09.png and 3 more")

    def test_nothing_is_left(self, write_folder: WriteFolder) -> None:
        """A directory with nothing but a README is refused, and the README is named."""
        with pytest.raises(InputError, match=r"without text \(\.txt\) or Parquet files; left out: README\.txt"):
            read(write_folder(README="x"))

    def test_parquet(self, tmp_path: Path) -> None:
        """The rows of Parquet files name their file, unless they have a column of that name."""
        pq.write_table(pa.table({"prompt": ["a kite"]}), tmp_path / "a.parquet")
        pq.write_table(pa.table({"prompt": ["a boat"], "source_file": ["x.csv"]}), tmp_path / "b.parquet")
        (tmp_path / "README.md").write_text("x")
        jobs, notices = read(str(tmp_path))
        assert jobs == [("00001", "a kite", "a.parquet"), ("00002", "a boat", "x.csv")]
        assert notices[0] == "2 Parquet files; left out: README.md"


class TestSingleFiles:
    def test_a_file(self, write_folder: WriteFolder) -> None:
        """A single text file is a list of lines, or one prompt."""
        path = write_folder(a="a kite\nin rain\n") + "/a.txt"
        assert read(path)[0] == [("00001", "a kite", ""), ("00002", "in rain", "")]
        assert read(path, text_unit=TextUnit.LINE)[0] == read(path)[0]
        assert read(path, text_unit=TextUnit.FILE) == (
            [("a", "a kite\nin rain", "")],
            ["read as text, one prompt per file"],
        )

    def test_standard_input(self) -> None:
        """The options also say that standard input is a text; it has no name that could be an id."""
        for unit, prompts in ((TextUnit.LINE, ["{a} kite", "in rain"]), (TextUnit.FILE, ["{a} kite\nin rain"])):
            stdin = io.BytesIO(b"{a} kite\nin rain\n")
            with JobFiles(["-"], options=InputOptions(text_unit=unit), stdin=stdin) as files:
                files.check()
                assert [(job.id[0], job.prompt) for job in files] == [("0", prompt) for prompt in prompts]

    def test_no_text(self, tmp_path: Path) -> None:
        """An option that no file is affected by is an error."""
        (tmp_path / "a.csv").write_text("prompt\na kite\n")
        with pytest.raises(InputError, match="are for text files; leave them out, or name a text file"):
            read(str(tmp_path / "a.csv"), text_unit=TextUnit.LINE)
