"""`--name` and `--portable-names` of the commands: images in folders, with names that the next tool wants."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from krea_batch.rules.pending_limit import INITIAL_PENDING
from tests.processes import (
    FAST_SIMULATION,
    PROCESS_TIMEOUT_S,
    StartSimulator,
    result_rows,
    run_command,
    start_command,
    wait_until,
)

TABLE = """id,prompt,animal,seed
a,a cat: asleep,Cats,1
b,a dog,dogs/big,2
CON,a fox,foxes,3
d,a cat: asleep,Cats,1
"""


def run(tmp_path: Path, *options: str, table: str = TABLE, code: int = 0) -> Any:
    """Run the table with the simulator. Return what the command printed to standard error."""
    (tmp_path / "a.csv").write_text(table)
    arguments = ("run", "a.csv", "--out", "o", *FAST_SIMULATION, "--yes", *options)
    done = run_command(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    return done.stderr


def stored_paths(out: Path) -> dict[str, str]:
    """Return the path of the image of each job, which exists, and no image is left over."""
    paths = {row["id"]: row["files"][0]["path"] for row in result_rows(out)}
    assert sorted(f"images/{path.relative_to(out / 'images')}" for path in (out / "images").rglob("*.*")) == sorted(
        set(paths.values())
    )
    return paths


def test_a_template_with_folders(tmp_path: Path) -> None:
    """Columns, fields and the prompt make paths. An image whose name is taken gets the next one, as a notice says."""
    printed = run(tmp_path, "--name", "{animal}/{prompt}_{seed:03}")
    assert stored_paths(tmp_path / "o") == {
        "a": "images/Cats/a-cat-asleep_001.png",
        "b": "images/dogs_big/a-dog_002.png",
        "CON": "images/foxes/a-fox_003.png",
        "d": "images/Cats/a-cat-asleep_001~2.png",
    }
    assert "1 image would have the name of an earlier one, and get ~2, ~3 and so on after it" in printed
    verified = run_command("verify", "o", "--json", cwd=tmp_path)
    assert json.loads(verified.stdout)["mismatches"] == 0
    assert json.loads(verified.stdout)["images"] == 4


def test_an_image_never_replaces_another(tmp_path: Path) -> None:
    """Different images of the same name are both kept."""
    run(tmp_path, "--name", "{animal}", table=TABLE.replace("d,a cat: asleep,Cats,1", "d,a lion,Cats,9"))
    paths = stored_paths(tmp_path / "o")
    assert {paths["a"], paths["d"]} == {"images/Cats.png", "images/Cats~2.png"}


def test_portable_names(tmp_path: Path) -> None:
    """Without a template, ids become portable names; lines without an id keep their number."""
    run(tmp_path, "--portable-names", table="id,prompt\nA b,x\n,y\nCON,z\nÉté,w\n")
    assert stored_paths(tmp_path / "o") == {
        "A b": "images/a-b.png", "00003": "images/00003.png", "CON": "images/con_.png", "Été": "images/ete.png",
    }  # fmt: skip


def test_a_column_of_paths(tmp_path: Path) -> None:
    """A column can be the whole path, with its folders; its extension is not doubled."""
    run(tmp_path, "--column", "image_name=file", table="prompt,file\nx,train/1.jpg\ny,train/2.png\n")
    assert sorted(stored_paths(tmp_path / "o").values()) == ["images/train/1.png", "images/train/2.png"]


def test_rows_without_an_id(tmp_path: Path) -> None:
    """The id in a name is the number of the line, also of rows that have moved since an earlier run."""
    run(tmp_path, "--name", "x/{id}", table="prompt\na cat\na dog\n")
    run(tmp_path, "--name", "x/{id}", table="prompt\na new fox\na cat\na dog\n")
    paths = stored_paths(tmp_path / "o")
    assert len(paths) == 3
    assert all(path == f"images/x/{job_id}.png" for job_id, path in paths.items())


def test_a_sweep_of_a_named_row(tmp_path: Path) -> None:
    """The jobs of a sweep have names of their own."""
    (tmp_path / "a.jsonl").write_text(
        '{"id": "a", "prompt": "a cat", "image_name": "cats/a", "sweep": {"seed": [1, 2]}}\n'
    )
    arguments = ("run", "a.jsonl", "--out", "o", *FAST_SIMULATION, "--yes")
    assert run_command(*arguments, cwd=tmp_path).returncode == 0
    assert sorted(stored_paths(tmp_path / "o").values()) == ["images/cats/a-seed=1.png", "images/cats/a-seed=2.png"]


@pytest.mark.parametrize(("options", "message"), [
    (("--name", "{id}_{seed}"), 'a.csv:3: no "seed" for the name of the image; give each job a seed, or leave out'),
    (("--name", "{place}"), 'a.csv:2: no "place" for the name of the image; there are animal, path, id, prompt'),
    (("--name", "{animal}/{id}"), "a.csv:3: the name of the image would be '/b'; a part of it is empty"),
    (("--name", "../{id}"), "--name: the name '../{id}' has an empty part, or . or .."),
    (("--name", "cat"), "--name: the name 'cat' has no field, so all images would have it"),
    (("--column", "image_name=path"), 'a.csv:2: "image_name" is "../x"; write the path of the image below images/'),
    (("--name", "{id}", "--column", "image_name=path"),
     'a.csv:2: "image_name" is given in the row, and --name for all rows; keep one of them'),
])  # fmt: skip
def test_nothing_is_charged_for_a_name_in_doubt(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    """A name that cannot be made is reported with file and line before anything is charged."""
    table = "id,prompt,animal,seed,path\na,a cat,cats,1,../x\nb,a dog,,,\n"
    assert message in run(tmp_path, *options, table=table, code=2)
    assert not (tmp_path / "o/results.jsonl").exists()


@pytest.mark.slow
def test_killed_and_resumed(simulate: StartSimulator, tmp_path: Path) -> None:
    """A killed run continues with another template: jobs keep the names with which they were submitted, each once."""
    rows = "".join(f'{{"id": "{n}", "prompt": "p{n}", "metadata": {{"set": "s{n % 3}"}}}}\n' for n in range(150))
    (tmp_path / "a.jsonl").write_text(rows)
    gateway = simulate("--tiny", "--latency", "uniform:0.5,2")
    arguments = ("run", "a.jsonl", "--out", "o", "--gateway", gateway.gateway_url, "--poll-interval", "0.2", "--yes")
    images = tmp_path / "o/images"
    process = start_command(*arguments, "--rate", "40/s", "--name", "{set}/deep/{id}", cwd=tmp_path)
    wait_until(lambda: len(list(images.rglob("*.png"))) >= 10, process)
    process.kill()
    process.communicate(timeout=PROCESS_TIMEOUT_S)
    run_command(*arguments, "--rate", "100/s", "--name", "again/{id}", cwd=tmp_path)
    results = {row["id"]: [file["path"] for file in row["files"]] for row in result_rows(tmp_path / "o")}
    ambiguous = [job_id for job_id, files in results.items() if not files]
    assert len(results) == 150
    assert len(ambiguous) <= INITIAL_PENDING
    stored = [path for files in results.values() for path in files]
    assert sorted(stored) == sorted(f"images/{path.relative_to(images)}" for path in images.rglob("*.*"))
    for job_id, files in results.items():
        assert set(files) <= {f"images/s{int(job_id) % 3}/deep/{job_id}.png", f"images/again/{job_id}.png"}
    assert sum(path.startswith("images/s") for path in stored) >= 10
    assert any(path.startswith("images/again/") for path in stored)
