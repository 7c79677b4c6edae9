"""Prompts with the syntax of other tools on the command line: nothing is charged before the user decides."""

from __future__ import annotations

import json
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from krea_batch.cli.app import app
from tests.cli.test_plan import InteractiveCommand
from tests.processes import FAST_SIMULATION, run_command

PROMPTS = {
    "dynamic": "a {red|blue} kite over a __place__",
    "a1111": '--prompt "a red kite" --negative_prompt blurry --seed 7 --width 1024 --height 576',
    "midjourney": "a red kite --ar 16:9 --seed 7 --v 6",
}


def invoke(*args: str) -> Result:
    return CliRunner().invoke(app, args)


def run(*args: str) -> CompletedProcess[str]:
    return run_command("run", *args, *FAST_SIMULATION, "--out", "out", cwd=Path.cwd())


def results(out: Path) -> dict[str, dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text("utf-8").splitlines()]
    return {row["id"]: row for row in rows}


def write(name: str, prompt: str) -> None:
    """Write two rows, the second with this prompt, in the format of the name."""
    prompts = ["a boat", prompt]
    path = Path(name)
    match path.suffix:
        case ".jsonl":
            path.write_text("".join(json.dumps({"prompt": each}) + "\n" for each in prompts))
        case ".json":
            path.write_text(json.dumps(prompts))
        case ".csv":
            cells = ['"' + each.replace('"', '""') + '"' for each in prompts]
            path.write_text("\n".join(["prompt", *cells]))
        case ".tsv":
            path.write_text("\n".join(["prompt", *prompts]))
        case ".parquet":
            pq.write_table(pa.table({"prompt": prompts}), path)
        case _:
            path.write_text("\n".join(prompts))


@pytest.mark.parametrize("syntax", PROMPTS)
@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "tsv", "parquet", "txt"])
def test_every_format(folder: Path, suffix: str, syntax: str) -> None:
    """In every format, `validate` and `plan` name the syntax, the rows, the first row and the options."""
    write(f"p.{suffix}", PROMPTS[syntax])
    line = 3 if suffix in ("csv", "tsv") else 2
    for command in ("validate", "plan"):
        done = invoke(command, f"p.{suffix}")
        assert done.exit_code == 0, done.stderr
        notice = next(each for each in done.stderr.splitlines() if "--prompt-syntax" in each)
        assert notice.startswith(f"p.{suffix}:{line}: 1 of 2 rows has ")
        assert f"--prompt-syntax {syntax} " in notice
        assert "--prompt-syntax plain sends prompts as they are" in notice
        assert "--prompt-syntax" not in invoke(command, f"p.{suffix}", "--prompt-syntax", "plain").stderr


@pytest.mark.slow
@pytest.mark.parametrize("syntax", PROMPTS)
def test_a_run_is_refused_and_the_advice_works(folder: Path, syntax: str) -> None:
    """Without a terminal, `run` submits nothing; with --prompt-syntax plain it sends the prompt as it is."""
    write("p.txt", PROMPTS[syntax])
    for option in ("--quiet", "--yes"):
        done = run("p.txt", option)
        assert done.returncode == 2
        assert "\nkrea-batch: p.txt:2: nothing was submitted, since 1 of 2 rows has " in f"\n{done.stderr}"
        assert not Path("out").exists()
    done = run("p.txt", "--prompt-syntax", "plain")
    assert done.returncode == 0, done.stderr
    assert results(folder / "out")["00002"]["request"]["prompt"] == PROMPTS[syntax]
    again = run("p.txt")
    assert again.returncode == 0, "nothing new would be charged"


@pytest.mark.slow
def test_dynamic_prompts(folder: Path) -> None:
    """Dynamic prompts are expanded, the original and the choices are kept, and a second run charges nothing."""
    write("p.txt", PROMPTS["dynamic"])
    (folder / "w").mkdir()
    (folder / "w" / "place.txt").write_text("field\nbridge\n")
    command = ("p.txt", "--prompt-syntax", "dynamic", "--wildcards", "w", "--repeat", "3")
    assert run(*command).returncode == 0
    rows = results(folder / "out")
    row = rows["00002-repeat=1"]
    colour, place = row["metadata"]["prompt_choices"]
    assert row["request"]["prompt"] == f"a {colour} kite over a {place}"
    assert row["metadata"]["original_prompt"] == PROMPTS["dynamic"]
    assert rows["00001-repeat=1"]["request"]["prompt"] == "a boat"
    assert rows["00001-repeat=1"]["metadata"] == {"repeat": 1}
    assert run(*command).returncode == 0
    assert results(folder / "out") == rows
    (folder / "w" / "place.txt").write_text("city\n")
    changed = run(*command)
    assert changed.returncode == 2
    assert "the line or an option changed since its id" in changed.stderr


@pytest.mark.slow
def test_arguments_of_a1111(folder: Path) -> None:
    """Seed and size become fields, and the other arguments are named once."""
    Path("p.txt").write_text(f"{PROMPTS['a1111']}\n--prompt 'a boat' --steps 50 --negative_prompt x\n")
    done = run("p.txt", "--prompt-syntax", "a1111")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("were put into the metadata, not sent: negative_prompt, steps") == 1
    row = results(folder / "out")["00001"]
    assert {"prompt": "a red kite", "seed": 7, "aspect_ratio": "16:9"}.items() <= row["request"].items()
    assert row["metadata"]["prompt_arguments"] == {"negative_prompt": "blurry"}


def test_two_syntaxes(folder: Path) -> None:
    """What one syntax leaves is still in doubt, and several can be read together."""
    write("p.txt", "a {red|blue} kite --ar 16:9")
    done = invoke("validate", "p.txt", "--prompt-syntax", "midjourney")
    assert "1 of 2 rows has dynamic prompts" in done.stderr
    done = invoke("validate", "p.txt", "--prompt-syntax", "midjourney", "--prompt-syntax", "dynamic")
    assert "1 of 2 rows" not in done.stderr
    done = invoke("validate", "p.txt", "--prompt-syntax", "midjourney", "--sweep", "aspect_ratio=1:1")
    assert 'p.txt:2: "aspect_ratio" is both given and swept' in done.stderr


def test_an_invalid_ratio(folder: Path) -> None:
    """A ratio that the API does not have is an invalid line that names those it has."""
    write("p.jsonl", "a red kite --ar 21:9")
    done = invoke("validate", "p.jsonl", "--prompt-syntax", "midjourney")
    assert done.exit_code == 2
    assert done.stderr.startswith(
        'p.jsonl:2: --ar is "21:9", an aspect ratio that the API does not have; '
        "use one of 1:1, 4:3, 3:2, 16:9, 2.35:1, 4:5, 2:3, 9:16; the nearest is 2.35:1\n"
    )


def test_wildcards_require_dynamic(folder: Path) -> None:
    """--wildcards without the syntax that uses it is an error, and so is a blank separator."""
    write("p.txt", "a boat")
    (folder / "w").mkdir()
    done = invoke("validate", "p.txt", "--wildcards", "w")
    assert (done.exit_code, done.stderr.splitlines()[0]) == (
        2,
        "krea-batch: --wildcards: requires --prompt-syntax dynamic; add it, or leave out --wildcards",
    )
    assert invoke("validate", "p.txt", "--separator", " ").exit_code == 2


@pytest.mark.slow
def test_separated_blocks(folder: Path) -> None:
    """Lines such as --- in a text are recognised, a run is refused, and --separator reads the blocks unchanged."""
    first, second = "a kite\r\n\r\n  over a field", "a boat"
    Path("p.txt").write_bytes(f"---\r\n{first}\r\n---\r\n\r\n---\n{second}\n\n".encode())
    done = run("p.txt")
    for stderr in (done.stderr, invoke("validate", "p.txt").stderr):
        assert "3 of 6 rows have a line that seems to separate prompts of several lines" in stderr
        assert "--separator='---' reads the lines between as one prompt" in stderr
    assert (done.returncode, Path("out").exists()) == (2, False)
    done = run("p.txt", "--separator=---")
    assert done.returncode == 0, done.stderr
    prompts = {row_id: row["request"]["prompt"] for row_id, row in results(folder / "out").items()}
    assert prompts == {"00002": first, "00008": second}


@pytest.mark.slow
@pytest.mark.parametrize(("answer", "exit_code"), [("y", 0), ("n", 2)])
def test_a_terminal_asks(folder: Path, answer: str, exit_code: int) -> None:
    """In a terminal, a message says what would be sent, and the answer of the user decides."""
    write("p.txt", PROMPTS["midjourney"])
    command = InteractiveCommand("run", "p.txt", *FAST_SIMULATION, "--out=out", cwd=folder)
    command.read_until("Send these prompts as they are? [y/N]: ")
    assert "1 of 2 rows has arguments of Midjourney" in command.text
    command.type(f"{answer}\n")
    assert command.end() == exit_code
    assert Path("out").exists() is (answer == "y")
