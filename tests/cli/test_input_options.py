"""`krea-batch run` and `validate` with the input formats and the options for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from krea_batch.cli.app import app
from tests.processes import RunningSimulator, StartSimulator, run_command

AWKWARD_PROMPTS = ["-dash", "# hash", "@at", "{} {x}", '"quoted" "words', "🦊 füße", "x" * 2500, "-dash"]


@pytest.fixture
def gateway(simulate: StartSimulator) -> RunningSimulator:
    return simulate("--tiny", "--latency=fixed:0.1")


@pytest.fixture
def run_options(gateway: RunningSimulator) -> tuple[str, ...]:
    """Return options of a run that ends soon."""
    return ("--out", "out", "--gateway", gateway.gateway_url, "--rate=100/s", "--poll-interval=0.1")


def validate(*args: str, stdin: str = "") -> Result:
    return CliRunner().invoke(app, ["validate", *args], input=stdin)


def result_lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.slow
class TestRun:
    @pytest.mark.parametrize("end", ["\n", "\r\n"])
    def test_text(self, run_options: tuple[str, ...], tmp_path: Path, end: str) -> None:
        """Each line of a text file becomes one image with that prompt unchanged; repeated lines become several."""
        (tmp_path / "p.txt").write_bytes(end.join(AWKWARD_PROMPTS).encode())
        done = run_command("run", "p.txt", *run_options, "--prompt-syntax", "plain", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "p.txt: read as text, one prompt per line" in done.stderr
        rows = result_lines(tmp_path / "out")
        assert sorted(row["request"]["prompt"] for row in rows) == sorted(AWKWARD_PROMPTS)
        assert len(list((tmp_path / "out" / "images").glob("*.png"))) == len(AWKWARD_PROMPTS)

    def test_tsv_with_a_sweep(self, run_options: tuple[str, ...], tmp_path: Path) -> None:
        """A sweep over a table makes one image per combination, with the values in its id."""
        (tmp_path / "p.tsv").write_text('Prompt\tCategory\n"a" cat\tpets\na dog\tpets\n')
        done = run_command(
            "run",
            "p.tsv",
            "--sweep",
            "creativity=raw,high",
            "--seeds",
            "1..2",
            *run_options,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        assert "2 rows make 8 jobs" in done.stderr
        rows = {row["id"]: row for row in result_lines(tmp_path / "out")}
        assert len(rows) == 8
        row = rows["00002-creativity=high-seed=2"]
        assert {"prompt": '"a" cat', "creativity": "high", "seed": 2}.items() <= row["request"].items()
        assert row["metadata"] == {"Category": "pets"}

    def test_a_larger_sweep_charges_only_new_images(
        self, gateway: RunningSimulator, run_options: tuple[str, ...], tmp_path: Path
    ) -> None:
        """The same command with a further value submits only the new images."""
        (tmp_path / "p.txt").write_text("a cat\na dog\n")
        for seeds, total in (("1..2", 4), ("1..3", 6), ("3,2,1", 6)):
            done = run_command("run", "p.txt", "--seeds", seeds, *run_options, cwd=tmp_path)
            assert done.returncode == 0, done.stderr
            assert gateway.admin_request("/totals")["charged"] == total
            assert all(row["attempts"] == 1 for row in result_lines(tmp_path / "out"))

    def test_a_template_changes_the_lines_of_an_earlier_run(
        self, run_options: tuple[str, ...], tmp_path: Path
    ) -> None:
        """The checkpoint of a run is not used with another template: the changed prompts are checked and refused."""
        (tmp_path / "p.txt").write_text("a cat\n")
        assert run_command("run", "p.txt", *run_options, cwd=tmp_path).returncode == 0
        done = run_command(
            "run",
            "p.txt",
            "--prompt-template",
            "{prompt} in oil",
            *run_options,
            cwd=tmp_path,
        )
        assert done.returncode == 2
        assert "the line or an option changed since its id" in done.stderr


def test_formats_are_reported_and_counted(folder: Path) -> None:
    """The column found, the dropped jobs and the number of jobs are printed."""
    (folder / "p.csv").write_text("Prompt,Note\na cat,x\na cat,y\na dog,z\n")
    done = validate("p.csv", "--dedupe", "--repeat", "2")
    assert done.exit_code == 0, done.stderr
    assert done.stderr.splitlines() == [
        'p.csv: prompt from "Prompt"; "Note" put into the metadata',
        "2 jobs dropped, whose requests duplicate earlier ones (--dedupe)",
        "3 rows make 4 jobs",
    ]
    assert done.stdout == "4 valid jobs, 0 invalid lines in 1 file\n"


def test_standard_input_of_any_format(folder: Path) -> None:
    """--input-format sets the format of standard input, which is required for text."""
    assert validate("-", "--input-format", "text", stdin="a cat\n").stdout.startswith("1 valid job")
    done = validate("-", stdin="a cat\n")
    assert done.exit_code == 2
    assert "set --input-format" in done.stderr


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--sweep", "creativty=raw"], '--sweep: "creativty" cannot be swept; did you mean "creativity"?'),
        (["--sweep", "creativity"], '--sweep: the sweep is "creativity"; write a field and its values'),
        (["--seeds", "4..1"], "--seeds: the seeds 4..1 end before they begin; write 1..4"),
        (["--repeat", "0"], "--repeat: repeat is 0"),
        (["--prompt-template", "a cat"], '--prompt-template: the template "a cat" names no column'),
        (["--column", "sead=x"], "--column: invalid value 'sead=x'; use FIELD=COLUMN"),
        (["--column", "id=x", "--id-column", "y"], "--column: id is given more than once"),
        (["--seeds", "1", "--sweep", "seed=2"], '"seed" is swept twice'),
        (["--prompt-column", "Text"], 'there is no column "Text"'),
    ],
)
def test_invalid_input_options(folder: Path, options: list[str], expected: str) -> None:
    """An invalid option is named, with a hint where there is one, and the exit code is 2."""
    (folder / "p.csv").write_text("prompt\na cat\n")
    done = validate("p.csv", *options)
    assert done.exit_code == 2
    assert expected in done.stderr
