"""Test that workbooks make the same jobs as CSV files of their sheets, and that other formats name a way."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from python_calamine import CalamineWorkbook, PasswordError

from krea_batch.cli.app import app
from krea_batch.errors import InputError
from krea_batch.sources import JobFiles
from krea_batch.sources.formats import sheet
from krea_batch.sources.values import is_unusable
from tests.sources.test_formats import check_and_read, csv_of, format_notices, prompts
from tests.sources.workbooks import Cell, Sheets, write_ods, write_xlsx

ROWS: list[list[Cell]] = [
    ["Done", "Prompt", "Seed", "id", "Score"],
    [True, "a cat, asleep", 7, "007", 0.5],
    [None, None, None, None, None],
    [False, 'a "dog" & <an> owl', 8.0, 12, 3],
    [False, None, None, None, None],
]
CSV_ROWS = [
    ["Done", "Prompt", "Seed", "id", "Score"],
    ["TRUE", "a cat, asleep", "7", "007", "0.5"],
    ["", "", "", "", ""],
    ["FALSE", 'a "dog" & <an> owl', "8", "12", "3"],
    ["FALSE", "", "", "", ""],
]

Writer = Callable[[Path, Sheets], str]
by_kind = pytest.mark.parametrize(
    ("name", "write"), [("p.xlsx", write_xlsx), ("p.ods", write_ods)], ids=["xlsx", "ods"]
)


class TestWorkbooks:
    @by_kind
    def test_same_jobs_as_csv(self, tmp_path: Path, name: str, write: Writer) -> None:
        """A sheet makes the jobs of a CSV file with its cells, with the same ids, numbers and notices."""
        path = write(tmp_path / name, {"S": ROWS})
        csv_path = tmp_path / "p.csv"
        csv_path.write_text(csv_of(*CSV_ROWS))
        assert check_and_read(path)[1] == check_and_read(str(csv_path))[1]
        assert format_notices(path) == format_notices(str(csv_path))
        assert format_notices(path)[-1] == "left out 1 row without a prompt at the end, in line 5"

    @by_kind
    def test_without_a_header(self, tmp_path: Path, name: str, write: Writer) -> None:
        """Columns are named by their number in the sheet, also where the first columns are empty."""
        path = write(tmp_path / name, {"S": [[None, "a cat", 7], [None, "a dog", 8]]})
        _, jobs = check_and_read(path, no_header=True, columns={"prompt": "2", "seed": "3"})
        assert [(job.id, job.prompt, job.seed) for job in jobs] == [("00001", "a cat", 7), ("00002", "a dog", 8)]

    @by_kind
    def test_several_sheets(self, tmp_path: Path, name: str, write: Writer) -> None:
        """Of several sheets the first is read, and a notice says so; --sheet names another."""
        path = write(tmp_path / name, {"Cats": [["prompt"], ["a cat"]], "Dogs": [["prompt"], ["a dog"]]})
        assert prompts(path) == ["a cat"]
        assert 'read the sheet "Cats" only; --sheet names another: "Dogs"' in format_notices(path)
        assert prompts(path, sheet="Dogs") == ["a dog"]
        with pytest.raises(InputError, match='there is no sheet "Owls"; the sheets are "Cats", "Dogs"'):
            check_and_read(path, sheet="Owls")
        done = CliRunner().invoke(app, ["validate", path, "--sheet", "Dogs"])
        assert (done.exit_code, done.stdout) == (0, "1 valid job, 0 invalid lines in 1 file\n")

    def test_a_first_sheet_without_prompts(self, tmp_path: Path) -> None:
        """If the first sheet has no column of prompts, the hint names the other sheets; hidden ones come last."""
        sheets: Sheets = {"Lists": [["raw"], ["high"]], "Cover": [["About"]], "Cats": [["prompt"], ["a cat"]]}
        path = write_xlsx(tmp_path / "p.xlsx", sheets, hidden=["Lists"])
        with pytest.raises(InputError, match='or name another sheet with --sheet: "Cats", "Lists"'):
            check_and_read(path)

    def test_sheet_without_a_workbook(self, tmp_path: Path) -> None:
        """Options for tables are refused if no file is one, since they would be ignored."""
        (tmp_path / "p.txt").write_text("a cat\n")
        path = str(tmp_path / "p.txt")
        for args, expected in ((["--sheet", "S"], "no file is a workbook"), (["--no-header"], "no file is a table")):
            done = CliRunner().invoke(app, ["validate", path, *args])
            assert done.exit_code == 2
            assert expected in done.stderr

    def test_wherever_it_comes_from(self, tmp_path: Path) -> None:
        """A workbook is recognized by its first bytes: piped, compressed, or under the name of a CSV file."""
        content = Path(write_xlsx(tmp_path / "p.xlsx", {"S": [["prompt"], ["a cat"]]})).read_bytes()
        assert [job.prompt for job in check_and_read("-", stdin=content)[1]] == ["a cat"]
        (tmp_path / "q.csv").write_bytes(content)
        assert "read as a workbook" in format_notices(str(tmp_path / "q.csv"))
        (tmp_path / "q.xlsx.gz").write_bytes(gzip.compress(content))
        assert prompts(str(tmp_path / "q.xlsx.gz")) == ["a cat"]

    @pytest.mark.parametrize("content", [b"<table><tr><td>prompt</td></tr></table>", b"PK\x03\x04damaged", b""])
    def test_no_workbook(self, tmp_path: Path, content: bytes) -> None:
        """A file with the name of a workbook and another content is refused with a way."""
        (tmp_path / "p.xls").write_bytes(content)
        with pytest.raises(InputError, match=r"cannot be read as a workbook .*save it as .xlsx, .ods or CSV UTF-8"):
            check_and_read(str(tmp_path / "p.xls"))

    def test_a_password(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A protected workbook is named as such."""
        path = write_xlsx(tmp_path / "p.xlsx", {"S": [["prompt"], ["a cat"]]})

        class Protected:
            @staticmethod
            def from_filelike(_: object) -> CalamineWorkbook:
                raise PasswordError

        monkeypatch.setattr("python_calamine.CalamineWorkbook", Protected)
        with pytest.raises(InputError, match="protected by a password; save it without one"):
            check_and_read(path)

    def test_a_large_workbook(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A workbook that would fill the memory is refused."""
        path = write_xlsx(tmp_path / "p.xlsx", {"S": [["prompt"], ["a cat"]]})
        monkeypatch.setattr(sheet, "MAX_WORKBOOK_BYTES", 100)
        with pytest.raises(InputError, match="longer than 0 MiB; save the sheet as CSV UTF-8"):
            check_and_read(path)

    def test_without_calamine(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without the optional package, InputError names the extra to install, and another way."""
        path = write_xlsx(tmp_path / "p.xlsx", {"S": [["prompt"], ["a cat"]]})
        monkeypatch.setitem(sys.modules, "python_calamine", None)
        with pytest.raises(InputError, match=r"krea-batch\[sheets\]', or save the sheet as CSV UTF-8"):
            check_and_read(path)

    def test_a_workbook_that_changes(self, tmp_path: Path) -> None:
        """A workbook that is edited after its check yields no unchecked prompt."""
        path = write_xlsx(tmp_path / "p.xlsx", {"S": [["prompt"], ["a cat"]]})
        with JobFiles([path]) as files:
            files.check()
            write_xlsx(tmp_path / "p.xlsx", {"S": [["prompt"], ["a dog"]]})
            with pytest.raises(InputError, match="changed since it was checked"):
                list(files)

    @given(
        st.lists(
            st.tuples(
                st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Cn"]), min_size=1, max_size=20),
                st.none() | st.integers(0, 2**31),
            ),
            min_size=1,
            max_size=5,
        )
    )
    def test_any_prompts(self, tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, int | None]]) -> None:
        """Every prompt of a sheet is read unchanged, with its seed."""
        path = write_xlsx(tmp_path_factory.getbasetemp() / "any.xlsx", {"S": [["prompt", "seed"], *rows]})
        _, jobs = check_and_read(path, skip_invalid=True)
        expected = [(prompt, seed) for prompt, seed in rows if prompt.strip() and not is_unusable(prompt)]
        assert [(job.prompt, job.seed if isinstance(job.seed, int) else None) for job in jobs] == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("p.numbers", "an Apple Numbers document, which is not read; export it as CSV or Excel"),
        ("P.DOCX", "a text document, which is not read; write its prompts into a .txt file"),
        ("p.zip", "an archive, which is not read; unpack it"),
        ("p.tar.gz", "an archive, which is not read; unpack it"),
        ("p.csv.xz", "compressed in a way that is not read; decompress it"),
    ],
)
def test_formats_that_are_not_read(tmp_path: Path, name: str, expected: str) -> None:
    """A format that is not read is named, with a way that works instead of an option that would charge for it."""
    path = tmp_path / name
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(InputError) as error:
        check_and_read(str(path))
    assert str(error.value).startswith(f"{path}: {expected}")
