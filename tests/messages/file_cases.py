"""Messages about files: those that are not there, not readable, or of another kind than they seem."""

from __future__ import annotations

from tests.messages.contents import gzipped, parquet
from tests.messages.message_case import Content, MessageCase, file

CAT = '{"prompt": "a cat"}'
JSONL = f"{CAT}\n"
ARROW_STATE = '{"_data_files": [{"filename": "../x.arrow"}]}'
TWO_SPLITS = {
    "d/data/test-00000-of-00001.parquet": parquet([{"prompt": "a dog"}]),
    "d/data/train-00000-of-00001.parquet": parquet([{"prompt": "a cat"}]),
}


def _unread(message: str, suffix: str, new_name: str = "a.txt", new_content: Content = "a cat\n") -> MessageCase:
    """Return the case of a format that is not read, which the advice converts."""
    name = f"a{suffix}"
    return MessageCase(
        message=message, files={name: "x"}, args=name, new_files={new_name: new_content}, new_args=new_name
    )


CASES: tuple[MessageCase, ...] = (
    MessageCase(
        message="the name of a file is empty; name a file, or . for all files of this directory",
        files={"a.txt": "a cat"},
        args="''",
        new_args=".",
    ),
    MessageCase(
        message="d/a.txt: the same file as d/a.txt; name each file once",
        files={"d/a.txt": "a cat"},
        args="d d/a.txt",
        new_args="d",
    ),
    file(
        "a.txt",
        "a.txt: a Git LFS pointer, not the file itself; run git lfs pull",
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 1\n",
        "a cat\n",
    ),
    file(
        "a.csv",
        "a.csv: a web page, which is not read; write its prompts into a .txt file, one per line",
        "<!DOCTYPE html><html>log in</html>",
        "prompt\na cat\n",
    ),
    file(
        "a.jsonl.gz",
        'a.jsonl.gz:1: expected an object at character 1; write {"prompt": "what the image shows"}',
        gzipped("\x1f\x8b"),
        gzipped(JSONL),
    ),
    MessageCase(
        message="job.jsonl: there is no such file; did you mean jobs.jsonl?",
        files={"jobs.jsonl": JSONL},
        args="job.jsonl",
        new_args="jobs.jsonl",
    ),
    MessageCase(
        message="*.text: there is no such file; no file matches the pattern; check it, and its directory",
        files={"a.txt": "a cat"},
        args="'*.text'",
        new_args="a.txt",
    ),
    MessageCase(
        message="d: a directory without text (.txt) or Parquet files; left out: jobs.jsonl; name the job "
        "files in it: d/jobs.jsonl",
        files={"d/jobs.jsonl": JSONL},
        args="d",
        new_args="d/jobs.jsonl",
    ),
    MessageCase(
        message="d: a directory without text (.txt) or Parquet files; left out: README.md, jobs.jsonl; "
        "name the job files in it: d/jobs.jsonl",
        files={"d/jobs.jsonl": JSONL, "d/README.md": "x"},
        args="d",
        new_args="d/jobs.jsonl",
    ),
    MessageCase(
        message="d: a directory without text (.txt) or Parquet files; left out: a.png; name a directory "
        "that has some, or a job file",
        files={"d/a.png": b"x", "jobs.jsonl": JSONL},
        args="d",
        new_args="jobs.jsonl",
    ),
    MessageCase(
        message="./jobs.jsonl: the same file as jobs.jsonl; name each file once",
        files={"jobs.jsonl": JSONL},
        args="jobs.jsonl ./jobs.jsonl",
        new_args="jobs.jsonl",
    ),
    MessageCase(
        message="d: a directory without text (.txt) or Parquet files; left out: x/; name the job files in it: d/x",
        files={"a.png": b"x", "d/x/a.txt": "a cat"},
        args="d",
        new_args="d/x",
    ),
    MessageCase(
        message="jobs: cannot detect the format from its name or first bytes; set --input-format to one of "
        "jsonl, json, csv, tsv, sheet, text, parquet, yaml, markdown",
        files={"jobs": "a cat\n"},
        args="jobs",
        new_args="jobs --input-format text",
    ),
    file(
        "jobs.jsonl.gz",
        "jobs.jsonl.gz: not a gzip file; remove .gz from its name, or compress it again",
        JSONL,
        gzipped(JSONL),
    ),
    MessageCase(
        message="jobs.jsonl.gz: not a gzip file; remove .gz from its name, or compress it again",
        files={"jobs.jsonl.gz": JSONL},
        args="jobs.jsonl.gz",
        new_files={"jobs.jsonl": JSONL},
        new_args="jobs.jsonl",
    ),
    MessageCase(
        message="jobs.jsonl.zst: not a Zstandard file; remove .zst from its name, or compress it again",
        files={"jobs.jsonl.zst": JSONL},
        args="jobs.jsonl.zst",
        new_files={"jobs.jsonl": JSONL},
        new_args="jobs.jsonl",
    ),
    file(
        "jobs.jsonl.gz",
        "jobs.jsonl.gz: the compressed data is truncated; copy or compress it again",
        gzipped(JSONL * 99)[:-9],
        gzipped(JSONL),
    ),
    file(
        "jobs.jsonl.gz",
        "jobs.jsonl.gz: the compressed data is truncated; copy or compress it again",
        gzipped(JSONL)[:12] + b"\xff" * 9,
        gzipped(JSONL),
    ),
    file(
        "jobs.jsonl.gz",
        "jobs.jsonl.gz: the compressed data is damaged (<…>); copy or compress it again",
        gzipped(JSONL)[:-8] + b"\xff" * 8,
        gzipped(JSONL),
    ),
    file(
        "jobs.jsonl.zst",
        "jobs.jsonl.zst: the compressed data is truncated; copy or compress it again",
        b"\x28\xb5\x2f\xfd\xff\xff\xff\xff\xff",
        gzipped(JSONL),
    ),
    file("jobs.jsonl", 'jobs.jsonl: no jobs found; write one job per line: {"prompt": "a red kite"}', "", JSONL),
    file("a.csv", 'a.csv: no jobs found; write a header with "prompt", and one job per row', "", "prompt\na cat\n"),
    file("a.txt", "a.txt: no jobs found; write one prompt per line", "\n\n", "a cat\n"),
    file("a.json", 'a.json: no jobs found; write a list of prompts: ["a red kite", "a blue door"]', "[]", f"[{CAT}]"),
    MessageCase(
        message="d: a run directory, not job files; name d/results.jsonl to use its jobs again",
        files={"d/results.jsonl": JSONL},
        args="d",
        new_args="d/results.jsonl",
    ),
    MessageCase(
        message="d: a dataset with several splits (test, train); name the files of one, such as "
        "d/data/test-00000-of-00001.parquet",
        files=TWO_SPLITS,
        args="d",
        new_args="d/data/test-00000-of-00001.parquet",
        prompts=("a dog",),
    ),
    MessageCase(
        message="d: a dataset with several splits; name one of them: d/train",
        files={"d/dataset_dict.json": "{}", "d/train/state.json": "{}"},
        args="d",
        new_files={"d/train/state.json": '{"_data_files": []}', "jobs.jsonl": JSONL},
        new_args="d/train jobs.jsonl",
    ),
    MessageCase(
        message="d: state.json does not describe a dataset (KeyError('_data_files')); use a directory "
        "written by Dataset.save_to_disk",
        files={"d/state.json": "{}"},
        args="d",
        new_files={"d/state.json": '{"_data_files": []}', "jobs.jsonl": JSONL},
        new_args="d jobs.jsonl",
    ),
    MessageCase(
        message="d: state.json lists ../x.arrow; the files of a dataset must be in its directory",
        files={"d/state.json": ARROW_STATE},
        args="d",
        new_files={"d/state.json": '{"_data_files": []}', "jobs.jsonl": JSONL},
        new_args="d jobs.jsonl",
    ),
    MessageCase(
        message="hf://datasets/me/cats: is a URL, not a file on this machine; download it (pip install "
        "huggingface_hub; hf download me/cats --repo-type dataset --local-dir cats), and name the "
        "directory cats",
        args="hf://datasets/me/cats",
        new_files={"cats/a.parquet": parquet([{"prompt": "a cat"}])},
        new_args="cats",
    ),
    MessageCase(
        message="https://example.com/cats.csv: is a URL, not a file on this machine; download it (curl -fL "
        "-o cats.csv https://example.com/cats.csv), and name the file cats.csv",
        args="https://example.com/cats.csv",
        new_files={"cats.csv": "prompt\na cat\n"},
        new_args="cats.csv",
    ),
    MessageCase(
        message="s3://bucket/cats.csv: is a URL, not a file on this machine; copy it to this machine, and "
        "name the file",
        args="s3://bucket/cats.csv",
        new_files={"cats.csv": "prompt\na cat\n"},
        new_args="cats.csv",
    ),
    _unread("a.docx: a text document, which is not read; write its prompts into a .txt file, one per line", ".docx"),
    _unread("a.html: a web page, which is not read; write its prompts into a .txt file, one per line", ".html"),
    _unread("a.zip: an archive, which is not read; unpack it, and name the files in it", ".zip"),
    _unread(
        "a.bz2: compressed in a way that is not read; decompress it, or compress it with gzip or zstd",
        ".bz2",
        "a.txt.gz",
        gzipped("a cat\n"),
    ),
    _unread(
        "a.feather: a table in a format that is not read; save it as Parquet or CSV",
        ".feather",
        "a.csv",
        "prompt\na cat\n",
    ),
    _unread("a.png: an image, not a list of prompts; write its prompts into a .txt file, one per line", ".png"),
    _unread(
        "a.numbers: an Apple Numbers document, which is not read; export it as CSV or Excel: File > Export To",
        ".numbers",
        "a.csv",
        "prompt\na cat\n",
    ),
    _unread(
        "a.gsheet: a link to a Google sheet, not the sheet; download the sheet as CSV: File > Download",
        ".gsheet",
        "a.csv",
        "prompt\na cat\n",
    ),
    _unread(
        "a.gdoc: a link to a Google document, not the document; write its prompts into a .txt file, one per line",
        ".gdoc",
    ),
    _unread(
        "a.fods: a flat OpenDocument sheet, which is not read; save it as .ods or CSV",
        ".fods",
        "a.csv",
        "prompt\na cat\n",
    ),
    _unread("a.toml: TOML, which is not read; write JSON or CSV", ".toml", "a.json", '["a cat"]'),
    _unread("a.xml: XML, which is not read; write JSON or CSV", ".xml", "a.json", '["a cat"]'),
)
