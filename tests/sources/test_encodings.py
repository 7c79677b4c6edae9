"""Test that text in other encodings and with other line ends is read with a notice, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from krea_batch.cli.app import app
from krea_batch.errors import InputError
from krea_batch.sources import InputOptions, JobFiles
from krea_batch.sources.formats import encoding as encoding_module
from krea_batch.sources.formats.line_file import FilePosition, LineFile
from tests.sources.test_formats import check_and_read, first_problem, format_notices, prompts

WANTED = ["Café am See – Abend", "eine blaue Tür"]
CONTENT_BY_NAME = {
    "p.txt": "\n".join(WANTED) + "\n",
    "p.csv": "prompt,seed\n" + "".join(f"{each},7\n" for each in WANTED),
    "p.tsv": "prompt\tseed\n" + "".join(f"{each}\t7\n" for each in WANTED),
    "p.json": json.dumps(WANTED, ensure_ascii=False, indent=1),
    "p.jsonl": "".join(json.dumps({"prompt": each}, ensure_ascii=False) + "\n" for each in WANTED),
}
MARKED = ["utf-8-sig", "utf-16", "utf-32"]

by_name = pytest.mark.parametrize("name", CONTENT_BY_NAME)


def write(folder: Path, name: str, content: bytes) -> str:
    path = folder / name
    path.write_bytes(content)
    return str(path)


class TestEncodings:
    @by_name
    @pytest.mark.parametrize("encoding", [*MARKED, "utf-16-be with mark"])
    def test_a_byte_order_mark(self, tmp_path: Path, name: str, encoding: str) -> None:
        """A byte order mark decides, whatever encoding is chosen for the other files, and a notice tells it."""
        text = CONTENT_BY_NAME[name]
        content = text.encode(encoding) if encoding in MARKED else b"\xfe\xff" + text.encode("utf-16-be")
        path = write(tmp_path, name, content)
        for chosen in ("", "cp1252"):
            assert prompts(path, encoding=chosen) == WANTED
        told = [each for each in format_notices(path) if each.startswith("read as utf-")]
        assert len(told) == (encoding != "utf-8-sig")

    @by_name
    def test_advice_for_a_wrong_encoding(self, tmp_path: Path, name: str) -> None:
        """Bytes that are not UTF-8 are refused once for a file, and the encoding that the hint names reads it."""
        path = write(tmp_path, name, CONTENT_BY_NAME[name].encode("cp1252"))
        done = CliRunner().invoke(app, ["validate", path])
        assert done.exit_code == 2
        (told,) = [line for line in done.stderr.splitlines() if "is not UTF-8" in line]
        advice = told[told.index("--encoding") :].split()[:2]
        done = CliRunner().invoke(app, ["validate", path, *advice])
        assert (done.exit_code, done.stdout) == (0, "2 valid jobs, 0 invalid lines in 1 file\n")
        assert "read as cp1252: " in done.stderr
        assert "Café am See – Abend" in done.stderr
        assert prompts(path, encoding="cp1252") == WANTED

    @by_name
    @pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
    def test_advice_for_a_missing_mark(self, tmp_path: Path, name: str, encoding: str) -> None:
        """UTF-16 without a byte order mark is refused, and the encoding that the hint names reads it."""
        path = write(tmp_path, name, CONTENT_BY_NAME[name].encode(encoding))
        with pytest.raises(InputError, match=f"--encoding {encoding}"):
            check_and_read(path)
        assert prompts(path, encoding=encoding) == WANTED

    def test_several_wrong_rows(self, tmp_path: Path) -> None:
        """Only the first row that is not UTF-8 is shown, and a notice counts them; the others are still valid."""
        path = write(tmp_path, "p.txt", b"f\xfcr\na cat\nm\xfcde\n")
        checked, jobs = check_and_read(path, skip_invalid=True)
        assert (checked.bad_lines, len(checked.problems), [job.prompt for job in jobs]) == (2, 1, ["a cat"])
        assert "2 rows are in another encoding; only the first is shown" in format_notices(path)

    def test_many_files(self, tmp_path: Path) -> None:
        """The same notice about many files of a directory is shown once, with their number."""
        for n in range(5):
            write(tmp_path, f"{n}.txt", f"für {n}".encode("cp1252"))
        with JobFiles([str(tmp_path)], options=InputOptions(encoding="cp1252")) as files:
            assert files.check().jobs == 5
            (told,) = [each for each in files.notices() if "cp1252" in each]
        assert told == f"{tmp_path / '0.txt'}: read as cp1252: für 0 (and 4 more files alike)"

    def test_bytes_that_an_encoding_does_not_have(self, tmp_path: Path) -> None:
        """Bytes that the chosen encoding does not have are refused with their line."""
        path = write(tmp_path, "p.txt", b"a cat\nx\x81\n")
        with pytest.raises(InputError, match=r"p\.txt:2: byte 0x81 is not cp1252"):
            check_and_read(path, encoding="cp1252")
        path = write(tmp_path, "q.txt", b"\xff\xfea\0b")
        with pytest.raises(InputError, match=r"q\.txt:1: .* \(truncated data\)"):
            check_and_read(path)

    def test_utf_8_read_as_something_else(self, tmp_path: Path) -> None:
        """A notice shows the letters that a chosen encoding makes, and says that the file is valid UTF-8, too."""
        path = write(tmp_path, "p.txt", CONTENT_BY_NAME["p.txt"].encode())
        notices = format_notices(path, encoding="cp1252")
        assert "read as cp1252: CafÃ© am See â€“ Abend" in notices
        assert any(each.startswith("is valid UTF-8, too; leave out --encoding") for each in notices)
        assert format_notices(write(tmp_path, "q.txt", b"a cat\n"), encoding="cp1252")[1:] == ["read as cp1252"]

    def test_unknown_encodings(self, tmp_path: Path) -> None:
        """An unknown encoding, and one that does not encode text, is an error of the option; aliases are known."""
        path = write(tmp_path, "p.txt", "für\n".encode("cp1252"))
        for name in ("klingon", "base64", "", "a\0b"):
            done = CliRunner().invoke(app, ["validate", path, "--encoding", name])
            assert done.exit_code == 2
            assert f"--encoding: unknown encoding {name!r}" in done.stderr
        assert CliRunner().invoke(app, ["validate", path, "--encoding", "Windows-1252"]).exit_code == 0

    def test_a_checkpoint_of_another_encoding(self, tmp_path: Path) -> None:
        """A checkpoint is used again with the same encoding, and not with another."""
        path = write(tmp_path, "p.txt", "für\nmüde\n".encode("cp1252"))
        with JobFiles([path], options=InputOptions(encoding="cp1252")) as files:
            files.check()
            assert len(list(files)) == 2
            checkpoint = files.checkpoint()
        assert checkpoint
        for encoding, skipped in (("cp1252", 2), ("cp437", 0)):
            with JobFiles([path], options=InputOptions(encoding=encoding)) as files:
                files.resume_from(checkpoint[1])
                assert files.skipped == skipped

    @given(st.text(st.characters(exclude_categories=["Cs"])), st.sampled_from(["utf-16", "utf-32", "utf-16-be"]))
    def test_any_text_in_small_blocks(
        self, tmp_path_factory: pytest.TempPathFactory, text: str, encoding: str
    ) -> None:
        """Text is converted unchanged, wherever the blocks of the file end."""
        path = tmp_path_factory.getbasetemp() / "any.txt"
        path.write_bytes(text.encode(encoding))
        blocks = (path.read_bytes()[n : n + 3] for n in range(0, path.stat().st_size, 3))
        decoded = encoding_module.to_utf_8(blocks, encoding, "any.txt", lambda _: None)
        assert b"".join(decoded).decode() == text.encode(encoding).decode(encoding)


class TestLineEnds:
    @by_name
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
    def test_cr(self, tmp_path: Path, name: str, encoding: str) -> None:
        """Lines that end with CR alone are read in every format and encoding; a notice tells it."""
        path = write(tmp_path, name, CONTENT_BY_NAME[name].replace("\n", "\r").encode(encoding))
        assert prompts(path) == WANTED
        assert "lines end with CR, as old Macs write them" in format_notices(path)

    def test_cr_in_csv_with_line_feeds_in_cells(self, tmp_path: Path) -> None:
        """Excel for Mac ends rows with CR, and lines in a cell with LF."""
        path = write(tmp_path, "p.csv", b'prompt,seed\r"a cat\nasleep",7\ra dog,8\r')
        assert prompts(path) == ["a cat\nasleep", "a dog"]

    @pytest.mark.parametrize("content", [b"a cat\ra dog\nan owl\n", b"a cat\ra dog\r\nan owl\r\n"])
    def test_mixed_ends_beginning_with_cr(self, tmp_path: Path, content: bytes) -> None:
        """Text whose lines end partly with CR and partly with LF is refused, and the advice makes it readable."""
        path = write(tmp_path, "p.txt", content)
        with pytest.raises(InputError, match="convert them: tr"):
            check_and_read(path)
        assert prompts(write(tmp_path, "q.txt", content.replace(b"\r", b"\n"))) == ["a cat", "a dog", "an owl"]

    def test_mixed_ends_beginning_with_lf(self, tmp_path: Path) -> None:
        """A CR within a line that ends with LF is no part of a prompt; further CRs before the LF are."""
        path = write(tmp_path, "p.txt", b"a cat\na dog\ran owl\n\nan elk\r\r\n")
        assert first_problem(path).startswith("2: a carriage return (CR) in the line: line ends are mixed")
        assert [job.prompt for job in check_and_read(path, skip_invalid=True)[1]] == ["a cat", "an elk"]

    @pytest.mark.parametrize("content", [b"a cat\r\n", b"a cat\r", b"\r\n\r\na cat", b"a cat"])
    def test_other_ends(self, tmp_path: Path, content: bytes) -> None:
        """CRLF, a single CR at the end, and no end at all need no notice."""
        path = write(tmp_path, "p.txt", content)
        assert prompts(path) == ["a cat"]
        assert format_notices(path) == ["read as text, one prompt per line"]

    def test_after_a_checkpoint(self, tmp_path: Path) -> None:
        """A reading that begins after a position converts line ends as the first reading did."""
        file = LineFile(write(tmp_path, "p.txt", b"a\rb\rc"))
        assert list(file.lines(after=FilePosition(2, 1))) == [(2, b"b"), (3, b"c")]
