"""The pages agree with the code: their tables are complete, the tests that they name exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
from prometheus_client import generate_latest

from krea_batch.cli.app import BAD_INPUT, INTERRUPTED, OK, SOME_FAILED, STOPPED, app
from krea_batch.jobs import ASPECT_RATIOS, CREATIVITIES, FIELDS, Outcome, State
from krea_batch.observability import MetricsListener
from krea_batch.settings import Settings
from krea_batch.testing import make_png
from tests.docs.pages import PAGES, ROOT, code_blocks, names_in_backticks, table_rows
from tests.processes import run_command
from tests.test_security import collect_test_names


def test_every_test_named_exists() -> None:
    """Each test that the page on reliability names exists."""
    named = re.findall(r"`(tests/[\w/]+\.py)::([\w:]+)`", PAGES["reliability.md"])
    assert len(named) >= 12
    assert [f"{path}::{name}" for path, name in named if name not in collect_test_names(ROOT / path)] == []


def test_the_states() -> None:
    """The table of states lists each state once."""
    assert [names_in_backticks(row[0])[0] for row in table_rows("reference/files.md", "States")] == [
        state.value for state in State
    ]


def test_the_exit_codes() -> None:
    """The table of exit codes lists each code once."""
    documented = re.findall(r"^\| (\d+) \|", PAGES["reference/files.md"], re.MULTILINE)
    assert [int(code) for code in documented] == [OK, SOME_FAILED, BAD_INPUT, STOPPED, INTERRUPTED]


def test_a_row_has_the_documented_fields() -> None:
    """The table of a result row lists each field of an outcome, in order."""
    documented = [
        name
        for row in table_rows("reference/files.md", "A row of results.jsonl")
        for name in names_in_backticks(row[0])
    ]
    assert documented == list(Outcome.__struct_fields__)


def test_the_fields_of_a_job() -> None:
    """The table of a job lists each field, and every value of the two choices."""
    table = {names_in_backticks(row[0])[0]: row[1] for row in table_rows("reference/jobs.md")}
    assert set(table) == {*FIELDS, "sweep"}
    assert names_in_backticks(table["aspect_ratio"]) == list(ASPECT_RATIOS)
    assert names_in_backticks(table["creativity"]) == list(CREATIVITIES)


def test_the_settings() -> None:
    """The table of settings lists each setting, and each of its options is an option of `run`."""
    table = {names_in_backticks(row[0])[0]: row for row in table_rows("reference/settings.md")}
    assert list(table) == [field.name for field in Settings.fields() if field.name != "out"]
    command = app.get_command(click.Context(app), "run")
    assert command is not None
    options = {option for param in command.params for option in param.opts}
    assert {option for row in table.values() for option in names_in_backticks(row[1])} <= options


def test_the_metrics() -> None:
    """Each metric that the page names is served."""
    served = generate_latest(MetricsListener().registry).decode()
    documented = set(re.findall(r"`(krea_batch_\w+)`", PAGES["howto/observability.md"]))
    assert len(documented) >= 8
    assert [name for name in documented if f"\n{name}" not in served] == []


def test_the_example_jobs_are_jobs(tmp_path: Path) -> None:
    """Every job line of the pages passes `krea-batch validate`."""
    found = code_blocks("json")
    assert len(found) >= 2
    (tmp_path / "refs").mkdir()
    (tmp_path / "refs/gouache.png").write_bytes(make_png())
    for block in found:
        assert all(json.loads(line) for line in block.text.splitlines())
        (tmp_path / "jobs.jsonl").write_text(block.text)
        assert run_command("validate", "jobs.jsonl", cwd=tmp_path).returncode == 0


def test_make_targets() -> None:
    """Each `make` of the pages is a target of the Makefile."""
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {target for page in PAGES.values() for target in re.findall(r"(?:^|`)make (\w+)", page, re.MULTILINE)}
    assert {"demo", "test"} <= named <= targets
