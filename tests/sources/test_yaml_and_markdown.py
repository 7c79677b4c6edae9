"""Test that YAML and Markdown lists are read as they are meant, and that doubtful parts are reported or refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st

from krea_batch.cli.app import app
from krea_batch.sources.formats import markdown, yaml_document
from krea_batch.sources.options import Format
from krea_batch.sources.values import is_unusable
from tests.sources.test_formats import check_and_read, first_problem, format_notices, input_error, prompts


def write(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


class TestYaml:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("- a cat\n- a dog\n", [("00001", "a cat"), ("00002", "a dog")]),
            ("- prompt: a cat\n- prompt: a dog\n  id: dog\n", [("00001", "a cat"), ("dog", "a dog")]),
            ("007: a cat\nyes:\n  prompt: a dog\n", [("007", "a cat"), ("yes", "a dog")]),
            ("prompt: a cat\n", [("00001", "a cat")]),
            ("prompt: a cat\n---\nprompt: a dog\n", [("00001", "a cat"), ("00002", "a dog")]),
            (
                "- |\n  two\n  lines\n- >-\n  one\n  line\n- 'a: b # c'\n",
                [("00001", "two\nlines\n"), ("00002", "one line"), ("00003", "a: b # c")],
            ),
            (
                "- no\n- 2024-01-01\n- 'null'\n- .inf\n",
                [("00001", "no"), ("00002", "2024-01-01"), ("00003", "null"), ("00004", ".inf")],
            ),
        ],
        ids=["prompts", "objects", "by id", "one job", "documents", "styles", "words of YAML 1.1"],
    )
    @pytest.mark.parametrize("name", ["p.yaml", "p.yml"])
    def test_shapes(self, tmp_path: Path, name: str, text: str, expected: list[tuple[str, str]]) -> None:
        """The shapes of JSON documents are read, and several documents as one job each."""
        _, jobs = check_and_read(write(tmp_path, name, text))
        assert [(job.id, job.prompt) for job in jobs] == expected

    def test_values(self, tmp_path: Path) -> None:
        """Values are those of YAML 1.2: a ratio is no number in base 60, and an id keeps its zeros."""
        text = "- {prompt: a cat, aspect_ratio: 16:9, id: 0011, seed: 7, metadata: {a: 1.5, b: true, c: ~, d: on}}\n"
        _, (job,) = check_and_read(write(tmp_path, "p.yaml", text))
        assert (job.aspect_ratio, job.id, job.seed) == ("16:9", "0011", 7)
        assert job.metadata == {"a": 1.5, "b": True, "c": None, "d": "on"}

    def test_other_columns(self, tmp_path: Path) -> None:
        """Keys can be assigned to fields, and the format can be named for standard input."""
        _, jobs = check_and_read("-", stdin=b"- text: a cat\n", format=Format.YAML, columns={"prompt": "text"})
        assert [job.prompt for job in jobs] == ["a cat"]

    def test_comments_after_prompts(self, tmp_path: Path) -> None:
        """A notice counts the comments that follow values, since they may be halves of prompts."""
        path = write(tmp_path, "p.yaml", "# all\n- a kite #1\n- a#b\n- '#1' # quoted\n- a kite\n  in wind # x\n")
        assert prompts(path) == ["a kite", "a#b", "#1", "a kite in wind"]
        assert format_notices(path) == ["comments after values are left out: 2, the first in line 2"]

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            ("- &a {prompt: x}\n- *a\n", ":2: the reference *a is not read; write out what it refers to"),
            ("- a\n- !!python/object:os.system x\n", ":2: the tag tag:yaml.org,2002:python/object:os.system is not"),
            ("- a cat: b: c\n", ":1: invalid YAML (mapping values are not allowed in this context); put a prompt"),
            ("- prompt: x\n  prompt: y\n", ':2: duplicate key "prompt"; keep one'),
            ("? [a]\n: b\n", ":1: a key that is a list or mapping is not read; use text"),
            ("[" * 200_000, ":1: nested more than 100 levels deep"),
            ("- " * 200_000, ":1: nested more than 100 levels deep"),
            ("- \x07", ": cannot be read as YAML (unacceptable character #x0007: "),
            ("a cat\n", ': "a cat" is neither an array nor an object'),
            (b"- f\xfcr\n", ": byte 4 (0xfc) is not UTF-8; save the file as UTF-8"),
        ],
    )
    def test_what_is_not_read(self, tmp_path: Path, content: str | bytes, expected: str) -> None:
        """What JSON does not have, and invalid YAML, is refused with its line; depth does not end the process."""
        assert input_error(write(tmp_path, "p.yaml", content)).startswith(expected)

    def test_empty(self, tmp_path: Path) -> None:
        """A file without values has no jobs, and an empty entry is an invalid row."""
        assert not prompts(write(tmp_path, "p.yaml", "# nothing\n"))
        assert first_problem(write(tmp_path, "p.yaml", "- a\n-\n")).startswith("2: null is neither")

    def test_a_large_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file that would fill the memory is refused."""
        monkeypatch.setattr(yaml_document, "MAX_YAML_BYTES", 10)
        assert input_error(write(tmp_path, "p.yaml", "- a cat\n" * 9)).startswith(": longer than 0 MiB; write one")

    def test_without_pyyaml(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without the optional package, InputError names the extra to install, and another way."""
        monkeypatch.setitem(sys.modules, "yaml", None)
        error = input_error(write(tmp_path, "p.yaml", "- a cat\n"))
        assert error == ": reading YAML requires PyYAML; pip install 'krea-batch[yaml]', or write JSON"

    @given(st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Cn"]), min_size=1)))
    @example(["0E0", "1e3", "1.0e3", "1.0e+3", "7", "1.5"])
    def test_what_other_programs_write(self, tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
        """A list that PyYAML wrote is read as the same prompts."""
        path = tmp_path_factory.getbasetemp() / "any.yaml"
        path.write_bytes(yaml.safe_dump([{"prompt": text} for text in texts], allow_unicode=True).encode())
        jobs = check_and_read(str(path), skip_invalid=True)[1]
        assert [job.prompt for job in jobs] == [text for text in texts if text.strip() and not is_unusable(text)]


MARKDOWN = """\
# My prompts

Some words.

- a red kite
* a blue door
  in the wind
+ an *old* boat

1. first
2. [ ] second

```
- code
```
"""


class TestMarkdown:
    @pytest.mark.parametrize("name", ["p.md", "p.markdown"])
    def test_list_items(self, tmp_path: Path, name: str) -> None:
        """Items of any list are prompts, numbered by line; notices say what was left out, and what was kept."""
        path = write(tmp_path, name, MARKDOWN)
        _, jobs = check_and_read(path)
        assert [(job.id, job.prompt) for job in jobs] == [
            ("00005", "a red kite"),
            ("00006", "a blue door in the wind"),
            ("00008", "an *old* boat"),
            ("00010", "first"),
            ("00011", "second"),
        ]
        assert format_notices(path) == [
            "read as Markdown: each list item is a prompt; left out 5 other lines, the first is line 1",
            "check boxes are not part of the prompts (1 item), and ticked items are read, too",
            "prompts that keep their Markdown, such as **bold**: 1, the first in line 8",
        ]

    def test_only_a_list(self, tmp_path: Path) -> None:
        """A file with nothing but items needs no further notice; empty items are no prompts."""
        path = write(tmp_path, "p.md", "- a cat\n-\n- a dog\n\n  asleep\n")
        assert prompts(path) == ["a cat", "a dog\n\nasleep"]
        assert format_notices(path) == ["read as Markdown: each list item is a prompt"]

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("- Animals\n  - a cat\n", "1: the item has a list of its own; make it a heading (# …), and move its"),
            ("- a cat\nSome words.\n", "1: line 2 continues the item, but is not indented; indent it if it belongs"),
            ("- a cat\n\n  ```\n  x\n  ```\n", "1: the item has a heading, a quotation or code in it; write the"),
            ("- # a cat\n", "1: the item has a heading, a quotation or code in it; write the"),
        ],
    )
    def test_items_in_doubt(self, tmp_path: Path, text: str, expected: str) -> None:
        """An item that may be a heading, or may not belong to the text after it, is an invalid row."""
        assert first_problem(write(tmp_path, "p.md", text)).startswith(expected)

    def test_the_advice_works(self, tmp_path: Path) -> None:
        """A file without items is refused, and items written as the hint says are read."""
        path = write(tmp_path, "p.md", "a cat\n\na dog\n")
        done = CliRunner().invoke(app, ["validate", path])
        assert done.exit_code == 2
        assert "a Markdown file without list items; write each prompt as a list item (- a prompt)" in done.stderr
        assert prompts(write(tmp_path, "p.md", "- a cat\n\n- a dog\n")) == ["a cat", "a dog"]

    def test_other_content(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Bytes that are not UTF-8, and a file that would fill the memory, are refused."""
        assert input_error(write(tmp_path, "p.md", b"- f\xfcr\n")).startswith(": byte 4 (0xfc) is not UTF-8; save")
        assert prompts(write(tmp_path, "p.md", b"- f\xfcr\n"), encoding="cp1252") == ["für"]
        monkeypatch.setattr(markdown, "MAX_MARKDOWN_BYTES", 10)
        assert input_error(write(tmp_path, "p.md", "- a cat\n" * 9)).startswith(": longer than 0 MiB; write one")
