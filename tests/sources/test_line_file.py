"""Test that lines are read unchanged, with their numbers, in bounded memory, and equal each time."""

from __future__ import annotations

import gzip
import io
import os
import tracemalloc
from pathlib import Path

import pytest

from krea_batch.errors import InputError
from krea_batch.sources.formats.line_file import BLOCK_BYTES, MAX_LINE_BYTES, FilePosition, LineFile
from krea_batch.sources.inputs import Input, numbered_rows
from krea_batch.sources.options import Format, InputOptions


def write_content(folder: Path, content: bytes, name: str = "jobs.jsonl") -> LineFile:
    path = folder / name
    path.write_bytes(content)
    return LineFile(str(path))


@pytest.mark.parametrize(
    ("content", "lines", "count"),
    [
        (b"", [], 0),
        (b"a", [(1, b"a")], 1),
        (b"a\nb\n", [(1, b"a"), (2, b"b")], 2),
        (b"a\nb", [(1, b"a"), (2, b"b")], 2),
        (b"\xef\xbb\xbfa\n", [(1, b"a")], 1),
        (b"\xef\xbb\xbf", [], 0),
        (b"a\r\nb\r\n", [(1, b"a\r"), (2, b"b\r")], 2),
        (b"\n\na\n \t\r\nb\n\n", [(3, b"a"), (5, b"b")], 6),
        (b"\n", [], 1),
        (b"  ", [], 1),
    ],
)
def test_lines_and_numbers(tmp_path: Path, content: bytes, lines: list[tuple[int, bytes]], count: int) -> None:
    """A byte order mark is removed, blank lines are counted but not yielded, and a final newline starts no line."""
    file = write_content(tmp_path, content)
    assert list(file.lines()) == lines
    assert file.line_count == count


@pytest.mark.parametrize("length", [1, 1000, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, MAX_LINE_BYTES])
def test_lines_across_blocks(tmp_path: Path, length: int) -> None:
    """A line of any allowed length is yielded whole, wherever blocks end."""
    content = [bytes([65 + n]) * length for n in range(5)]
    file = write_content(tmp_path, b"\n".join(content) + b"\n")
    assert [line for _, line in file.lines()] == content


@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n", b"\nlast"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf", b"\n"])
def test_lines_after_a_position(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: bytes, end: bytes) -> None:
    """Reading after any block position yields the remaining lines with the same numbers as a full reading."""
    monkeypatch.setattr("krea_batch.sources.formats.line_file.BLOCK_BYTES", 16)
    text = b"\n".join(b"x" * length for length in (5, 0, 40, 1, 15, 16, 17, 0, 0, 3)) + end
    file = write_content(tmp_path, start + text)
    positions: list[FilePosition] = []
    all_lines = list(file.lines(lambda lines, size_bytes, _: positions.append(FilePosition(size_bytes, lines))))
    assert len(positions) > 4
    for position in positions:
        assert list(file.lines(after=position)) == [line for line in all_lines if line[0] > position.lines]
        assert file.line_count == (all_lines[-1][0] if not end.endswith(b"\n\n") else all_lines[-1][0] + 1)


def test_long_line_is_truncated(tmp_path: Path) -> None:
    """A line of 10 MB is truncated to little more than the limit, and the lines before and after it are yielded."""
    file = write_content(tmp_path, b"before\n" + b"x" * 10_000_000 + b"\nafter\n")
    tracemalloc.start()
    try:
        lengths = [(number, len(line)) for number, line in file.lines()]
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [number for number, _ in lengths] == [1, 2, 3]
    assert MAX_LINE_BYTES < lengths[1][1] <= MAX_LINE_BYTES + BLOCK_BYTES + 1
    assert peak_bytes < 5_000_000


def test_long_blank_line_is_not_blank(tmp_path: Path) -> None:
    """A truncated line of spaces is not ignored as blank, since a job may follow after the limit."""
    file = write_content(tmp_path, b" " * 2_000_000 + b'{"prompt": "x"}' + b" " * 2_000_000)
    assert [number for number, _ in file.lines()] == [1]


@pytest.mark.parametrize("name", ["jobs.jsonl.gz", "jobs.jsonl"])
def test_gzip(tmp_path: Path, name: str) -> None:
    """Gzip is detected by its first bytes, not by the file name, and may have several members."""
    file = write_content(tmp_path, gzip.compress(b"\xef\xbb\xbfa\nb") + gzip.compress(b"c\nd\n"), name)
    assert [line for _, line in file.lines()] == [b"a", b"bc", b"d"]
    assert file.line_count == 3


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl.gz", b'{"prompt": "x"}\n', "not a gzip file"),
        ("a.jsonl.gz", b"", "not a gzip file"),
        ("a.jsonl.gz", gzip.compress(os.urandom(5000), mtime=0)[:2000], "the compressed data is truncated; copy"),
        ("a.jsonl.gz", gzip.compress(b"a" * 100, mtime=0)[:-6] + b"abcdef", "the compressed data is damaged"),
        ("a.jsonl.gz", gzip.compress(b"a" * 100, mtime=0)[:10] + b"\xff" * 30, "the compressed data is damaged"),
        ("a.jsonl", '{"prompt": "x"}'.encode("utf-16-le"), "seems to be encoded as UTF-16 without a byte order"),
        ("a.jsonl", '{"prompt": "x"}'.encode("utf-16-be"), "seems to be encoded as UTF-16 without a byte order"),
    ],
)
def test_unusable_content(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    """Damaged compression and unmarked UTF-16 raise an InputError that names the file and the reason."""
    file = write_content(tmp_path, content, name)
    with pytest.raises(InputError) as error_info:
        list(file.lines())
    assert str(error_info.value).startswith(f"{file.name}: {expected}")


def test_unusable_paths(tmp_path: Path) -> None:
    """A missing file, a directory, and an impossible path raise an InputError that names the path."""
    for path, expected in (
        (str(tmp_path / "none.jsonl"), "there is no such file"),
        (str(tmp_path), "is a directory; name"),
        ("a\0b", "cannot be read (embedded"),
        ("x" * 5000, "cannot be read (File name too long)"),
    ):
        with pytest.raises(InputError) as error_info:
            list(LineFile(path).lines())
        assert str(error_info.value).startswith(f"{path}: {expected}")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (PermissionError(13, "Permission denied"), "permission denied; check"),
        (OSError(5, "Input/output error"), "cannot be read (Input/output error)"),
    ],
)
def test_disk_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, expected: str) -> None:
    """An OSError is raised as an InputError that names the file and the reason."""
    file = write_content(tmp_path, b"a\n")

    def raise_error(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Path, "open", raise_error)
    with pytest.raises(InputError) as error_info:
        list(file.lines())
    assert str(error_info.value).startswith(f"{file.name}: {expected}")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda old: old.replace(b"line 7\n", b"line X\n"), id="same length"),
        pytest.param(lambda old: old + b"more\n", id="longer"),
        pytest.param(lambda old: old[:-7], id="shorter"),
        pytest.param(lambda old: b"", id="empty"),
        pytest.param(lambda old: old + b"x" * BLOCK_BYTES, id="one block longer"),
    ],
)
def test_changed_file(tmp_path: Path, change: object) -> None:
    """If the content differs from the first reading, InputError is raised before a line of a changed block."""
    content = b"".join(b"line %d\n" % number for number in range(1000))
    file = write_content(tmp_path, content)
    list(file.lines())
    assert callable(change)
    Path(file.name).write_bytes(change(content))
    lines_read: list[bytes] = []
    with pytest.raises(InputError, match="changed since it was checked"):
        lines_read.extend(line for _, line in file.lines())
    assert b"line X" not in lines_read


def test_changed_while_being_read(tmp_path: Path) -> None:
    """If a later block is edited while an earlier one is processed, no line of it is yielded."""
    content = b"".join(b"line %6d\n" % number for number in range(100_000))
    file = write_content(tmp_path, content)
    list(file.lines())
    lines = file.lines()
    assert next(lines) == (1, b"line      0")
    with Path(file.name).open("r+b") as edited:
        edited.seek(-12, os.SEEK_END)
        edited.write(b"LINE")
    lines_read: list[bytes] = []
    with pytest.raises(InputError, match="changed since"):
        lines_read.extend(line for _, line in lines)
    assert lines_read
    assert not any(line.startswith(b"LINE") for line in lines_read)


def test_new_timestamp(tmp_path: Path) -> None:
    """A file with another timestamp and the same content is read again without an error."""
    file = write_content(tmp_path, b"a\nb\n")
    first = list(file.lines())
    os.utime(file.name, (1, 1))
    assert list(file.lines()) == first


def test_spooled_content_is_read_again() -> None:
    """A spooled copy of a pipe can be read repeatedly, like a file."""
    file = LineFile("<stdin>", io.BufferedRandom(io.BytesIO(b"a\nb\n")))  # type: ignore[arg-type]
    assert list(file.lines()) == list(file.lines()) == [(1, b"a"), (2, b"b")]
    assert file.size_bytes() == 4
    file.close()


def test_row_numbers_continue_over_files(tmp_path: Path) -> None:
    """Running numbers include every line of the files before, also blank ones."""
    files = [
        write_content(tmp_path, b"a\n\nb\n", "1.jsonl"),
        write_content(tmp_path, b"", "2.jsonl"),
        write_content(tmp_path, b"\nc", "3.jsonl"),
    ]
    inputs = [Input(file, Format.JSONL, InputOptions()) for file in files]
    assert list(numbered_rows(inputs)) == [(1, b"a"), (3, b"b"), (5, b"c")]
