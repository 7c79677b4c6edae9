"""Lines come out of files as they are, numbered, bounded, and the same each time."""

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
    """A byte order mark is taken off, blank lines are ignored and counted, and a last newline ends a line."""
    file = write_content(tmp_path, content)
    assert list(file.lines()) == lines
    assert file.line_count == count


@pytest.mark.parametrize("length", [1, 1000, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, MAX_LINE_BYTES])
def test_lines_over_blocks(tmp_path: Path, length: int) -> None:
    """A line of any allowed length comes out whole, wherever the blocks of the file end."""
    content = [bytes([65 + place]) * length for place in range(5)]
    file = write_content(tmp_path, b"\n".join(content) + b"\n")
    assert [line for _, line in file.lines()] == content


@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n", b"\nlast"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf", b"\n"])
def test_lines_after_a_position(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: bytes, end: bytes) -> None:
    """From wherever a reading was, the same lines with the same numbers come as if all had been read."""
    monkeypatch.setattr("krea_batch.sources.formats.line_file.BLOCK_BYTES", 16)
    text = b"\n".join(b"x" * length for length in (5, 0, 40, 1, 15, 16, 17, 0, 0, 3)) + end
    file = write_content(tmp_path, start + text)
    places: list[FilePosition] = []
    whole = list(file.lines(lambda lines, size_bytes, _: places.append(FilePosition(size_bytes, lines))))
    assert len(places) > 4
    for place in places:
        assert list(file.lines(after=place)) == [line for line in whole if line[0] > place.lines]
        assert file.line_count == (whole[-1][0] if not end.endswith(b"\n\n") else whole[-1][0] + 1)


def test_long_line_is_cut(tmp_path: Path) -> None:
    """A line of 10 MB is never held whole, is still known to be too long, and the lines around it are not lost."""
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
    """A line too long to be looked at whole is never taken for a blank one, for a job could hide in it."""
    file = write_content(tmp_path, b" " * 2_000_000 + b'{"prompt": "x"}' + b" " * 2_000_000)
    assert [number for number, _ in file.lines()] == [1]


@pytest.mark.parametrize("name", ["jobs.jsonl.gz", "jobs.jsonl"])
def test_gzip(tmp_path: Path, name: str) -> None:
    """Gzip is read by its first bytes, whatever the file is called, also in several members."""
    file = write_content(tmp_path, gzip.compress(b"\xef\xbb\xbfa\nb") + gzip.compress(b"c\nd\n"), name)
    assert [line for _, line in file.lines()] == [b"a", b"bc", b"d"]
    assert file.line_count == 3


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl.gz", b'{"prompt": "x"}\n', "not a gzip file"),
        ("a.jsonl.gz", b"", "not a gzip file"),
        ("a.jsonl.gz", gzip.compress(os.urandom(5000), mtime=0)[:2000], "the compressed data is truncated; copy"),
        ("a.jsonl.gz", gzip.compress(b"a" * 100, mtime=0)[:-6] + b"abcdef", "the compressed data is damaged"),
        ("a.jsonl.gz", gzip.compress(b"a" * 100, mtime=0)[:10] + b"\xff" * 30, "the compressed data is damaged"),
        ("a.jsonl", '{"prompt": "x"}'.encode("utf-16"), "encoded as UTF-16;"),
        ("a.jsonl", '{"prompt": "x"}'.encode("utf-16-le"), "encoded as UTF-16;"),
        ("a.jsonl", '{"prompt": "x"}'.encode("utf-16-be"), "encoded as UTF-16;"),
    ],
)
def test_unusable_content(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    """Content that cannot be lines of UTF-8 is an InputError that names the file and the reason."""
    file = write_content(tmp_path, content, name)
    with pytest.raises(InputError) as caught:
        list(file.lines())
    assert str(caught.value).startswith(f"{file.name}: {said}")


def test_unusable_paths(tmp_path: Path) -> None:
    """A path that is missing, a folder, or no path at all is an InputError that names it."""
    for path, said in (
        (str(tmp_path / "none.jsonl"), "there is no such file"),
        (str(tmp_path), "is a directory; name"),
        ("a\0b", "cannot be read (embedded"),
        ("x" * 5000, "cannot be read (embedded"),
    ):
        with pytest.raises(InputError) as caught:
            list(LineFile(path).lines())
        assert str(caught.value).startswith(f"{path}: {said}")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(13, "Permission denied"), "permission denied; check"),
        (OSError(5, "Input/output error"), "cannot be read (Input/output error)"),
    ],
)
def test_disk_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, said: str) -> None:
    """What the system says against a file is an InputError that names it, and no bare OSError."""
    file = write_content(tmp_path, b"a\n")

    def raise_error(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Path, "open", raise_error)
    with pytest.raises(InputError) as caught:
        list(file.lines())
    assert str(caught.value).startswith(f"{file.name}: {said}")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda old: old.replace(b"line 7\n", b"line X\n"), id="same length"),
        pytest.param(lambda old: old + b"more\n", id="longer"),
        pytest.param(lambda old: old[:-7], id="shorter"),
        pytest.param(lambda old: b"", id="emptied"),
        pytest.param(lambda old: old + b"x" * BLOCK_BYTES, id="a block more"),
    ],
)
def test_changed_file(tmp_path: Path, change: object) -> None:
    """A file whose content differs from the first reading is refused before a line of the new block comes out."""
    content = b"".join(b"line %d\n" % number for number in range(1000))
    file = write_content(tmp_path, content)
    list(file.lines())
    assert callable(change)
    Path(file.name).write_bytes(change(content))
    seen: list[bytes] = []
    with pytest.raises(InputError, match="changed since it was checked"):
        seen.extend(line for _, line in file.lines())
    assert b"line X" not in seen


def test_changed_while_being_read(tmp_path: Path) -> None:
    """A later block that is edited while an earlier one is worked through gives no line."""
    content = b"".join(b"line %6d\n" % number for number in range(100_000))
    file = write_content(tmp_path, content)
    list(file.lines())
    lines = file.lines()
    assert next(lines) == (1, b"line      0")
    with Path(file.name).open("r+b") as edited:
        edited.seek(-12, os.SEEK_END)
        edited.write(b"LINE")
    seen: list[bytes] = []
    with pytest.raises(InputError, match="changed since"):
        seen.extend(line for _, line in lines)
    assert seen
    assert not any(line.startswith(b"LINE") for line in seen)


def test_touched_file_is_the_same(tmp_path: Path) -> None:
    """A file that was copied back or touched, with the same content, is read again without a word."""
    file = write_content(tmp_path, b"a\nb\n")
    first = list(file.lines())
    os.utime(file.name, (1, 1))
    assert list(file.lines()) == first


def test_spooled_content_is_read_again() -> None:
    """What was copied from a pipe is read as often as a file is."""
    file = LineFile("<stdin>", io.BufferedRandom(io.BytesIO(b"a\nb\n")))  # type: ignore[arg-type]
    assert list(file.lines()) == list(file.lines()) == [(1, b"a"), (2, b"b")]
    assert file.size_bytes() == 4
    file.close()


def test_numbers_go_on_over_files(tmp_path: Path) -> None:
    """Running numbers count every line of the files before, blank ones too."""
    files = [
        write_content(tmp_path, b"a\n\nb\n", "1.jsonl"),
        write_content(tmp_path, b"", "2.jsonl"),
        write_content(tmp_path, b"\nc", "3.jsonl"),
    ]
    inputs = [Input(file, Format.JSONL, InputOptions()) for file in files]
    assert list(numbered_rows(inputs)) == [(1, b"a"), (3, b"b"), (5, b"c")]
