"""Test files that people have and that no format describes: joined, damaged, or written by another program."""

from __future__ import annotations

import datetime
import gzip
import io
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from krea_batch.errors import InputError
from krea_batch.sources import JobFiles
from krea_batch.sources.options import Format
from tests.messages.contents import workbook
from tests.sources.test_formats import check_and_read, first_problem, format_notices, input_error, prompts

CAT = '{"prompt": "a cat"}'


def write(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def parquet(**columns: Any) -> bytes:
    content = io.BytesIO()
    pq.write_table(pa.table(columns), content)
    return content.getvalue()


READ: list[tuple[str, str | bytes, list[str]]] = [
    # Files with a byte order mark, joined by `cat`.
    ("a.txt", "\ufeffa cat\n\ufeffa dog", ["a cat", "a dog"]),
    ("a.jsonl", f'\ufeff{CAT}\n\ufeff{{"prompt": "a dog"}}', ["a cat", "a dog"]),
    ("a.csv", "\ufeffprompt\na cat\n\ufeffprompt\na dog\n\ufeffan owl", ["a cat", "a dog", "an owl"]),
    ("a.tsv", "\ufeffprompt\na cat\n\ufeffa dog\n", ["a cat", "a dog"]),
    # Characters without width or of old printers, which separate nothing.
    ("a.txt", "a\u2028cat\na\x0bdog\na\x85n owl\n\x0c\n", ["a\u2028cat", "a\x0bdog", "a\x85n owl"]),
    ("a.csv", "\u200bprompt\u00a0,\ufeffnote\na cat,x\n", ["a cat"]),
    ("a.md", "---\ntitle: x\n---\n\n1. a cat\n2) a dog\n-\n* an owl\n", ["a cat", "a dog", "an owl"]),
    ("a.md", "- a <b>cat</b> &amp; \\*x\\*\n", ["a <b>cat</b> &amp; \\*x\\*"]),
    ("a.yaml", "- no\n- prompt: off\n- '7'\n- 16:9\n- 2024-01-01\n", ["no", "off", "7", "16:9", "2024-01-01"]),
    ("a.yaml", "---\nprompt: a cat\n---\nprompt: a dog\n", ["a cat", "a dog"]),
    ("a.yaml", "- |\n  a cat\n  on a roof\n- >-\n  a\n  dog\n", ["a cat\non a roof\n", "a dog"]),
    ("a.json", '{"response": {"data": {"items": [{"prompt": "a cat"}]}}}', ["a cat"]),
    ("a.json", '{"version": 1, "prompts": ["a cat"]}', ["a cat"]),
    ("a.csv", ",prompt,\n0,a cat,\n1,a dog,\n", ["a cat", "a dog"]),
    ("a.csv", "prompt,note,seed\na cat\na dog,x\n", ["a cat", "a dog"]),
    ("a.csv", 'sep=;\nPrompt;Stärke\n"a cat; red";1,5\n', ["a cat; red"]),
    ("a.csv", "prompt\tseed\na ü cat\t7\n".encode("utf-16"), ["a ü cat"]),
    ("a.txt", "a cat\n".encode("utf-32"), ["a cat"]),
    ("a.csv.gz", gzip.compress(b"prompt\na cat\n"), ["a cat"]),
    ("a.jsonl.gz", gzip.compress(CAT.encode()) + gzip.compress(b'\n{"prompt": "a dog"}'), ["a cat", "a dog"]),
    ("a.xlsx.gz", gzip.compress(workbook({"One": [["prompt"], ["a cat"]]})), ["a cat"]),
    ("a.csv", workbook({"One": [["prompt", "when"], ["a cat", 45000.5], ["=A1", True]]}), ["a cat", "=A1"]),
    ("a.parquet", parquet(prompt=pa.array(["a cat", "a dog"]).dictionary_encode()), ["a cat", "a dog"]),
    ("a.parquet", parquet(prompt=pa.array(["a cat"], pa.large_string())), ["a cat"]),
]


@pytest.mark.parametrize(("name", "content", "expected"), READ)
def test_prompts(tmp_path: Path, name: str, content: str | bytes, expected: list[str]) -> None:
    """Each prompt is read, and nothing else."""
    assert prompts(write(tmp_path, name, content)) == expected


REFUSED: list[tuple[str, str | bytes, str]] = [
    ("a.txt", "a cat\0\n", '1: "prompt" contains a NUL character; remove it'),
    ("a.csv", "prompt\na\0cat\n", '2: "prompt" contains a NUL character; remove it'),
    ("a.jsonl", '{"prompt": "a\\u0000cat"}', '1: "prompt" contains a NUL character; remove it'),
    ("a.txt", "a cat\n\u200b\ufeff \n", '2: "prompt" is empty'),
    ("a.txt", "a cat\n\u00a0\n", '2: "prompt" is empty'),
    ("a.jsonl", f"{CAT}\u2028{CAT}\n", "1: unexpected text after the object"),
    ("a.jsonl", f"{CAT}\r\n{CAT}\r{CAT}\n", "2: unexpected text after the object"),
    ("a.jsonl", '{"prompt": "a", "metadata": {"x": 1, "x": 2}}', '1: duplicate key "x"'),
    ("a.jsonl", '{"prompt": "a", "metadata": {"x": Infinity}}', "1: Infinity is not valid JSON"),
    ("a.jsonl", '{"messages": [{"role": "user", "content": "a cat"}]}', '1: "messages" is not a field of a job'),
    ("a.csv", "prompt,seed\na cat,1.23E+14\n", '2: "seed" is "1.23E+14"; write all its digits; in a spreadsheet'),
    ("a.csv", "prompt,seed\na cat,None\n", '2: "seed" is "None"; leave it empty, or leave it out'),
    ("a.csv", "prompt;seed\na cat;8,0\n", '2: "seed" is "8,0"; use an integer'),
    ("a.jsonl", '{"prompt": "a", "seed": true}', '1: "seed" is true; use an integer'),
    (
        "a.csv",
        'prompt, note\n"a", "b, c"\n',
        "2: the row has 3 cells, and the header has 2; remove the spaces before",
    ),
    (
        "a.tsv",
        "prompt\tnote\na\tb\tc\n",
        "2: the row has 3 cells, and the header has 2; remove the extra cell, or set",
    ),
    ("a.parquet", parquet(prompt=[["a cat"]]), '1: "prompt" is ["a cat"]; write one job for each prompt'),
    ("a.parquet", parquet(prompt=["a", None]), '2: "prompt" is null'),
    ("a.txt", "a cat\n\x1a", '2: "prompt" is empty'),
    ("a.jsonl", f"[\n{CAT}\n]", "1: the line is the beginning of a list; read the file with --input-format json"),
    ("a.yaml", "- a cat: red\n", '1: "a cat: red" is a key and its value; put the prompt in quotes'),
    ("a.yaml", "- a cat\n- ~\n", "2: null is neither an object nor a prompt"),
    ("a.md", "- Cats\n  - a cat\n", "1: the item has a list of its own; make it a heading"),
]


@pytest.mark.parametrize(("name", "content", "problem"), REFUSED)
def test_rows_that_are_refused(tmp_path: Path, name: str, content: str | bytes, problem: str) -> None:
    """Each row that would be paid for by mistake is named, with what to do."""
    assert first_problem(write(tmp_path, name, content)).startswith(problem)


NOT_PROMPTS: list[tuple[str, str | bytes, str]] = [
    ("a.txt", '[{"prompt": "a cat"}]', ": the text begins like JSON; set --input-format json to read it as such"),
    ("a.txt", '[\n "a cat"\n]', ": the text begins like JSON; set --input-format json"),
    ("a.txt", "['a cat', 'a dog']", ": the text begins like JSON; set --input-format json"),
    ("a.txt", "version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 1\n", ": a Git LFS pointer, not"),
    ("a.parquet", "version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 1\n", ": a Git LFS pointer"),
    ("a.txt", "%PDF-1.4\n", ": a PDF document, which is not read"),
    ("a.csv", "<!DOCTYPE html><html>log in</html>", ": a web page, which is not read"),
    ("a.txt", b"\x89PNG\r\n\x1a\n", ": an image, not a list of prompts"),
    ("a.txt", b"\xff\xd8\xff\xe0", ": an image, not a list of prompts"),
    ("a.jsonl.gz", gzip.compress(gzip.compress(CAT.encode())), ": compressed twice; decompress it once"),
    ("a.jsonl", b"BZh91AY", ": compressed in a way that is not read; decompress it"),
    ("a.json", '{"images": [{"id": 1}], "captions": [{"text": "a cat"}]}', ': an object with the lists "images", '),
    (
        "a.json",
        '{"version": 1, "mine": ["a cat"]}',
        ': an object with the list "mine", not a list of jobs; write the',
    ),
    (
        "a.json",
        '{"prompts": ["a cat"], "negative": ["a dog"]}',
        ': "prompts" and "negative" are both lists; write one',
    ),
    ("a.tsv", 'prompt\tseed\n"a ""big"" cat"\t7\n', ":2: quotes seem to enclose a cell; set --input-format csv"),
    ("a.tsv", 'prompt\tseed\n"a\ncat"\t7\n', ":2: quotes seem to enclose a cell; set --input-format csv"),
    ("a.tsv", 'prompt\tseed\n"a\tcat"\t7\n', ":2: quotes seem to enclose a cell; set --input-format csv"),
    ("a.yaml", "x: &a {seed: 7}\njobs: [{<<: *a, prompt: a}]\n", ":2: the reference *a is not read"),
    ("a.yaml", "-\tprompt: a\n", ":1: invalid YAML ("),
    ("a.yaml", "- {red|blue} kite\n", ":1: invalid YAML ("),
    ("a.parquet", parquet(prompt=[b"a cat"]), ': the column "prompt" is binary; write it as a column of strings'),
    ("a.csv", '"prompt" ,seed\n', ":1: cannot read the header: cannot read the row ("),
]


@pytest.mark.parametrize(("name", "content", "problem"), NOT_PROMPTS)
def test_files_that_are_refused(tmp_path: Path, name: str, content: str | bytes, problem: str) -> None:
    """What is no list of prompts, whatever its name says, is not sent line by line."""
    assert input_error(write(tmp_path, name, content)).startswith(problem)


def test_quotes_in_tsv(tmp_path: Path) -> None:
    """The formats that the message names read quotes around cells, or keep them. Other quotes are not in doubt."""
    path = write(tmp_path, "a.tsv", 'prompt\tseed\n"a ""big"" cat"\t7\n')
    assert prompts(path, format=Format.CSV) == ['a "big" cat']
    assert prompts(path, format=Format.TSV) == ['"a ""big"" cat"']
    path = write(tmp_path, "b.tsv", 'prompt\tseed\na "big" cat\t7\n"big" cat\t8\n3" nail\t9\n')
    assert prompts(path) == ['a "big" cat', '"big" cat', '3" nail']


def test_lists_of_one_column(tmp_path: Path) -> None:
    """Prompts below a header whose commas are not in quotes are read by what the message says."""
    path = write(tmp_path, "a.csv", "prompt\na cat, red\na dog\n")
    assert first_problem(path).endswith("; --input-format tsv reads each line as one cell")
    assert prompts(path, format=Format.TSV) == ["a cat, red", "a dog"]


@pytest.mark.parametrize("ratio", ["16:9", "16:09", "16:09:00", " 16:9 "])
def test_aspect_ratios_as_times(tmp_path: Path, ratio: str) -> None:
    """A spreadsheet takes 16:9 for a time of the day. No other ratio could be meant."""
    _, (job,) = check_and_read(write(tmp_path, "a.csv", f"prompt,aspect_ratio\na cat,{ratio}\n"))
    assert job.aspect_ratio == "16:9"


@pytest.mark.parametrize("text", ["1. a cat\n2. a dog\n3. an owl\n", "- a cat\n* a dog\n- an owl\n"])
def test_lists_in_text(tmp_path: Path, text: str) -> None:
    """Numbers and bullets are sent as they are, and a notice says how they are not."""
    path = write(tmp_path, "a.txt", text)
    assert format_notices(path)[1] == (
        "the lines begin with numbers or bullets, which are sent; --input-format markdown leaves them out"
    )
    assert prompts(path, format=Format.MARKDOWN) == ["a cat", "a dog", "an owl"]


def test_metadata_of_parquet(tmp_path: Path) -> None:
    """Values that JSON does not have are metadata, too."""
    values = {
        "day": [datetime.date(2024, 1, 1)],
        "price": [Decimal("1.50")],
        "length": [datetime.timedelta(1)],
        "scores": [[1, 2]],
        "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
    }
    _, (job,) = check_and_read(write(tmp_path, "a.parquet", parquet(prompt=["a cat"], **values)))
    assert set(job.metadata) == set(values)


class TestNames:
    def test_a_file_of_a_directory_that_is_named_too(self, tmp_path: Path) -> None:
        """A file that is read through its directory is not read again, and neither is a directory."""
        path = write(tmp_path, "d/a.txt", "a cat")
        for paths in ([str(tmp_path / "d"), path], [str(tmp_path / "d"), f"{tmp_path}/d/"]):
            with pytest.raises(InputError, match="the same file as"):
                JobFiles(paths)

    def test_a_name_that_is_not_utf_8(self, tmp_path: Path) -> None:
        """Such a name cannot be an id, so the file has to be renamed."""
        (tmp_path / "a.txt").write_text("a cat")
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xfc.txt")).write_text("a dog")
        with pytest.raises(InputError, match="the name of the file is not UTF-8; rename it"):
            JobFiles([str(tmp_path)])

    def test_an_empty_name(self) -> None:
        """A shell variable that is not set does not read the current directory."""
        with pytest.raises(InputError, match="the name of a file is empty"):
            JobFiles([""])

    def test_links(self, tmp_path: Path) -> None:
        """A link to nowhere and a loop are named, and in a directory they are left out."""
        write(tmp_path, "d/a.txt", "a cat")
        (tmp_path / "d" / "b.txt").symlink_to("nowhere")
        (tmp_path / "d" / "self").symlink_to(".")
        (tmp_path / "d" / "loop.txt").symlink_to("loop.txt")
        assert prompts(str(tmp_path / "d")) == ["a cat"]
        assert input_error(str(tmp_path / "d" / "b.txt")) == ": there is no such file; it is a link to nowhere"
        assert "cannot be read" in input_error(str(tmp_path / "d" / "loop.txt"))

    def test_a_pipe_in_a_directory(self, tmp_path: Path) -> None:
        """A named pipe in a directory is not waited for."""
        os.mkfifo(tmp_path / "a.txt")
        write(tmp_path, "b.txt", "a cat")
        assert prompts(str(tmp_path)) == ["a cat"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_what_another_user_may_not_read() -> None:
    """A directory that may not be searched, and a file in it, are named; one within another is left out."""
    with TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        path = write(folder, "closed/a.txt", "a cat")
        write(folder, "open/jobs.jsonl", CAT)
        (folder / "open" / "closed").mkdir()
        script = (
            "import os, sys; from krea_batch.sources import JobFiles; from krea_batch.errors import InputError\n"
            "os.setuid(65534)\n"
            "for path in sys.argv[1:]:\n"
            "    try: JobFiles([path])\n"
            "    except InputError as error: print(error)\n"
        )
        (folder / "closed").chmod(0o700)
        (folder / "open" / "closed").chmod(0o700)
        command = [sys.executable, "-c", script, path, str(folder / "closed"), str(folder / "open")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        denied = "permission denied; check its permissions"
        assert done.stdout.splitlines()[:2] == [f"{path}: {denied}", f"{folder}/closed: {denied}"], done.stderr
        assert done.stdout.splitlines()[2].endswith(f"name the job files in it: {folder}/open/jobs.jsonl")


def test_standard_input_that_is_closed() -> None:
    """A process that was started without standard input says so."""
    code = (
        "import os, sys; os.close(0); os.execv(sys.executable, [sys.executable, '-m', 'krea_batch', 'validate', '-'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "krea-batch: standard input is closed; name a file instead of -\n"
