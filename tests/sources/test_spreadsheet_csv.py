"""Test that CSV and TSV files are read as spreadsheets write them, without a lost prompt or a charged header."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from krea_batch.cli.app import app
from krea_batch.errors import InputError
from krea_batch.sources.formats.line_file import MAX_LINE_BYTES
from krea_batch.sources.options import Format
from tests.sources.test_formats import check_and_read, first_problem, format_notices, input_error, prompts


def write(folder: Path, content: str, name: str = "p.csv") -> str:
    path = folder / name
    path.write_text(content, newline="")
    return str(path)


class TestSeparatorLine:
    @pytest.mark.parametrize("line", ["sep=;", '"sep=;"', "SEP=;", "sep=;;;"])
    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    def test_line_of_excel(self, tmp_path: Path, line: str, end: str) -> None:
        """The line by which Excel names the separator is no header, and rows keep the numbers of their lines."""
        path = write(tmp_path, end.join([line, "Prompt;Seed", "a cat, asleep;7", "a dog;8", ""]))
        _, jobs = check_and_read(path)
        assert [(job.id, job.prompt, job.seed) for job in jobs] == [
            ("00003", "a cat, asleep", 7),
            ("00004", "a dog", 8),
        ]
        assert "separated by ;" in format_notices(path)

    @pytest.mark.parametrize("separator", ["|", "\t", ","])
    def test_other_separators(self, tmp_path: Path, separator: str) -> None:
        """Any separator can be named; so a file with an uncommon one can be read."""
        text = f"sep={separator}\nprompt{separator}seed\na cat; asleep{separator}7\n"
        assert prompts(write(tmp_path, text)) == ["a cat; asleep"]

    @pytest.mark.parametrize("header", ["prompt|seed", '"Prompt"|Seed', "Nr|prompts"])
    def test_pipes(self, tmp_path: Path, header: str) -> None:
        """A header that separates a column of prompts with | is enough; in other first lines | may be a choice."""
        path = write(tmp_path, f"{header}\na cat, asleep|7\n")
        assert len(prompts(path, columns={"id": ""})) == 1
        assert "separated by |" in format_notices(path)
        assert prompts(write(tmp_path, "a {red|blue} kite\n"), no_header=True) == ["a {red|blue} kite"]
        assert prompts(write(tmp_path, "prompt\na {red|blue} kite\n")) == ["a {red|blue} kite"]

    def test_tsv(self, tmp_path: Path) -> None:
        """The line is left out of TSV, too."""
        assert prompts(write(tmp_path, "sep=\t\nprompt\tseed\na cat\t7\n", "p.tsv")) == ["a cat"]


class TestRows:
    def test_empty_rows(self, tmp_path: Path) -> None:
        """Rows without anything but separators and blanks are no rows, and others keep the numbers of their lines."""
        path = write(tmp_path, "\n\nprompt,seed\n,\n  , \na cat,7\n\n,\na dog,8\n,\n,\n")
        _, jobs = check_and_read(path)
        assert [(job.id, job.prompt) for job in jobs] == [("00006", "a cat"), ("00009", "a dog")]
        assert len(format_notices(path)) == 1

    @pytest.mark.parametrize("name", ["p.csv", "p.tsv"])
    def test_rows_without_a_prompt_at_the_end(self, tmp_path: Path, name: str) -> None:
        """Rows at the end in which only other cells are set are left out, counted, and the first is named."""
        text = "Done,Prompt,Nr\nTRUE,a cat,1\nFALSE,a dog,2\nFALSE,,3\nFALSE, ,4\n,,\n"
        path = write(tmp_path, text.replace(",", "\t") if name == "p.tsv" else text, name)
        assert prompts(path) == ["a cat", "a dog"]
        assert format_notices(path)[-1] == "left out 2 rows without a prompt at the end; the first is in line 4"
        path = write(tmp_path, "prompt,nr\na cat,1\n,2")
        assert format_notices(path)[-1] == "left out 1 row without a prompt at the end, in line 3"

    def test_rows_without_a_prompt_elsewhere(self, tmp_path: Path) -> None:
        """A row without a prompt before others is a mistake, and each is reported."""
        path = write(tmp_path, "prompt,nr\n,1\na cat,2\n,3\n,4\na dog,5\n,6\n")
        checked, jobs = check_and_read(path, skip_invalid=True)
        assert [job.prompt for job in jobs] == ["a cat", "a dog"]
        assert [each.line for each in checked.problems] == [2, 4, 5]
        assert first_problem(path) == '2: "prompt" is empty; write a prompt, or remove the row'

    def test_rows_without_values_for_a_template(self, tmp_path: Path) -> None:
        """With a template, a row without a prompt is one in which all columns of the template are blank."""
        path = write(tmp_path, "animal,place,done\ncat,,no\n,,no\ndog,Rome,no\n,,no\n")
        checked, jobs = check_and_read(path, skip_invalid=True, template="a {animal} in {place}")
        assert [job.prompt for job in jobs] == ["a cat in ", "a dog in Rome"]
        assert str(checked.problems[0]).endswith(':3: "animal" is empty; write a prompt, or remove the row')
        assert "left out 1 row without a prompt at the end, in line 5" in format_notices(
            path, template="a {animal} in {place}"
        )

    def test_no_prompt_at_all(self, tmp_path: Path) -> None:
        """A table in which no row has a prompt has no jobs."""
        done = CliRunner().invoke(app, ["validate", write(tmp_path, "prompt,done\n,FALSE\n,FALSE\n")])
        assert done.exit_code == 2
        assert "left out 2 rows without a prompt at the end; the first is in line 2" in done.stderr

    @pytest.mark.parametrize("again", ["Prompt,Seed", "\ufeffPrompt, Seed"])
    def test_repeated_headers(self, tmp_path: Path, again: str) -> None:
        """Further copies of the header, as in joined files, are left out, counted, and the first is named."""
        path = write(tmp_path, f"Prompt,Seed\na cat,7\n{again}\na dog,8\n{again}\n")
        assert prompts(path) == ["a cat", "a dog"]
        assert format_notices(path)[-1] == "left out 2 rows like the header; the first is in line 3"

    def test_long_cells(self, tmp_path: Path) -> None:
        """A cell may be as long as a line, in quotes or not, whatever the limit of the csv module is elsewhere."""
        csv.field_size_limit(131_072)
        image = "A" * (MAX_LINE_BYTES - 100)
        path = write(tmp_path, f'prompt,image\na cat,{image}\na dog,"{image}"\nan owl,x\n')
        assert prompts(path) == ["a cat", "a dog", "an owl"]

    def test_cells_that_are_too_long(self, tmp_path: Path) -> None:
        """A cell that never ends names its row, and a line that is too long is refused with a fitting hint."""
        path = write(tmp_path, 'prompt\n"a cat\n' + "a dog\n" * 200_000)
        assert first_problem(path).startswith(
            "2: a cell is longer than 1 MiB; close its quote, or leave out the column"
        )
        path = write(tmp_path, "prompt,image\na cat,x\na dog," + "A" * 3 * MAX_LINE_BYTES)
        assert input_error(path) == ":3: the line is longer than 1 MiB; leave out the column with the long cells"

    def test_the_file_is_closed_after_an_error(self, tmp_path: Path) -> None:
        """An error in the header leaves no open file behind, even while its traceback is kept."""
        path = write(tmp_path, "wish\na cat\n")
        with pytest.raises(InputError) as error:
            check_and_read(path)
        assert error.value.__traceback__
        assert path not in [os.path.realpath(each) for each in Path("/proc/self/fd").iterdir()]

    def test_a_quote_that_is_never_closed(self, tmp_path: Path) -> None:
        """A quote that is never closed would hide the rows after it, so it is an error."""
        path = write(tmp_path, 'prompt\na cat\n"a dog\nan owl\n')
        assert first_problem(path).startswith("3: the quote of a cell is never closed; close it, or write")
        path = write(tmp_path, '\n"prompt\na cat\n')
        assert input_error(path).startswith(":2: cannot read the header: the quote of a cell is never closed; close")

    @pytest.mark.parametrize("name", ["p.csv", "p.tsv"])
    def test_mixed_line_ends(self, tmp_path: Path, name: str) -> None:
        """A row with CR within it is invalid, and the hint fits; other rows are read."""
        path = write(tmp_path, "prompt\na cat\na dog\ran owl\nan elk\n", name)
        assert first_problem(path).startswith("3: a carriage return (CR) in the row: line ends are mixed; convert")
        assert [job.prompt for job in check_and_read(path, skip_invalid=True)[1]] == ["a cat", "an elk"]

    def test_error_values(self, tmp_path: Path) -> None:
        """What a spreadsheet shows for a failed formula is no prompt; in other columns it is metadata."""
        path = write(tmp_path, "prompt,note\n#NAME?,x\na cat,#REF!\nErr:508,x\n")
        assert first_problem(path).startswith('2: "prompt" is #NAME?, the error value of a spreadsheet; write the')
        _, (job,) = check_and_read(path, skip_invalid=True)
        assert (job.prompt, job.metadata) == ("a cat", {"note": "#REF!"})


class TestTablesInTextFiles:
    @pytest.mark.parametrize(
        "text",
        ["Prompt\tSeed\na cat\t7\n", "Nr;Caption\n7;a cat\n", '"id","text"\n7,a cat\n', "Prompts\na cat\n"],
    )
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
    def test_the_advice_works(self, tmp_path: Path, text: str, encoding: str) -> None:
        """A text that begins with the header of a table is refused, since a header is no prompt; both ways work."""
        path = tmp_path / "p.txt"
        path.write_bytes(text.encode(encoding))
        error = input_error(str(path))
        assert error == (
            ": the first line looks like the header of a table; set --input-format csv to read it as one, or text if "
            "it is a prompt"
        )
        assert prompts(str(path), format=Format.CSV) == ["a cat"]
        assert len(prompts(str(path), format=Format.TEXT)) == 2

    def test_prompts_with_separators(self, tmp_path: Path) -> None:
        """Prompts with commas, and words that a header could have among others, are prompts."""
        lines = ["a prompt, a text", "a cat; caption in gold", "prompt"]
        assert prompts(write(tmp_path, "\n".join(lines), "p.txt")) == lines


class TestWithoutHeader:
    TEXT = "a cat over a field,7\na dog,8\n"

    def test_the_error_says_so(self, tmp_path: Path) -> None:
        """If the first row looks like a prompt, the error says how to read the file, and that works."""
        path = write(tmp_path, self.TEXT)
        done = CliRunner().invoke(app, ["validate", path])
        assert done.exit_code == 2
        assert (
            "if the first row is a prompt and not a header, add --no-header; else set --prompt-column" in done.stderr
        )
        done = CliRunner().invoke(app, ["validate", path, "--no-header"])
        assert (done.exit_code, done.stdout) == (0, "2 valid jobs, 0 invalid lines in 1 file\n")

    def test_other_first_rows(self, tmp_path: Path) -> None:
        """A header without a prompt column names both ways, a title the line of the header."""
        path = write(tmp_path, "wish,seed\na cat,7\n")
        assert input_error(path).endswith('"wish", "seed"; or add --no-header if the first row is not a header')
        assert input_error(path, columns={"id": "nr"}).endswith(
            "; or add --no-header if the first row is not a header"
        )
        path = write(tmp_path, "1,1,a cat\n2,2,a dog\n")
        assert ': two columns are named "1"; if the first row is a prompt' in input_error(path)
        path = write(tmp_path, "My prompts,\n,\nPrompt,Seed\na cat,7\n")
        assert input_error(path) == (
            ": no column is named prompt; line 3 looks like the header; remove the lines before it"
        )

    @pytest.mark.parametrize(
        ("columns", "expected"),
        [
            ({}, [("00001", "a cat over a field", {"2": "7"}), ("00002", "a dog", {"2": "8"})]),
            ({"id": "2"}, [("7", "a cat over a field", {}), ("8", "a dog", {})]),
            ({"prompt": "2"}, [("00001", "7", {"1": "a cat over a field"}), ("00002", "8", {"1": "a dog"})]),
            ({"prompt": "2", "id": "1"}, [("a cat over a field", "7", {}), ("a dog", "8", {})]),
        ],
    )
    @pytest.mark.parametrize("name", ["p.csv", "p.tsv"])
    def test_columns_by_number(
        self, tmp_path: Path, name: str, columns: dict[str, str], expected: list[tuple[str, str, dict[str, str]]]
    ) -> None:
        """The first row is a job; columns are named by number, and the first is the prompt by default."""
        path = write(tmp_path, self.TEXT.replace(",", "\t") if name == "p.tsv" else self.TEXT, name)
        _, jobs = check_and_read(path, no_header=True, columns=columns)
        assert [(job.id, job.prompt, job.metadata) for job in jobs] == expected

    def test_options(self, tmp_path: Path) -> None:
        """The command takes columns by number, also in templates."""
        path = write(tmp_path, self.TEXT)
        for args in (["--prompt-column", "1", "--column", "seed=2"], ["--prompt-template", "{1}, {2}"]):
            done = CliRunner().invoke(app, ["validate", path, "--no-header", *args])
            assert (done.exit_code, done.stdout) == (0, "2 valid jobs, 0 invalid lines in 1 file\n"), done.stderr
        assert 'there is no column "3"; the columns are "1", "2"' in input_error(
            path, no_header=True, columns={"prompt": "3"}
        )

    def test_a_header_is_no_prompt(self, tmp_path: Path) -> None:
        """A header is not charged as a prompt if --no-header is given by mistake."""
        path = write(tmp_path, "Prompt,Seed\na cat,7\n")
        assert input_error(path, no_header=True).startswith(": the first row is a header; leave out --no-header")

    def test_standard_input(self) -> None:
        """A table without a header can be piped."""
        _, jobs = check_and_read("-", stdin=b"a cat\na dog\n", no_header=True, format=Format.CSV)
        assert [job.prompt for job in jobs] == ["a cat", "a dog"]
