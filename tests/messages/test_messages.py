"""Test each message about a bad input: its words, that nothing is sent, and that its advice works."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import Any

import click
import pytest
from click.testing import CliRunner

from krea_batch import errors
from krea_batch.cli.app import app
from krea_batch.cli.commands.validate import validate
from krea_batch.cli.options.selection_options import open_job_files
from krea_batch.cli.ui.error_messages import error_text
from krea_batch.errors import InputError
from tests.messages.all_cases import CASES
from tests.messages.message_case import ANY, Content, MessageCase
from tests.processes import run_command

PACKAGE = Path(errors.__file__).parent
MODULES = sorted(
    str(path.relative_to(PACKAGE))
    for path in (
        *PACKAGE.glob("sources/**/*.py"),
        *(PACKAGE / "cli" / "options" / name for name in ("input_options.py", "selection_options.py")),
        PACKAGE / "rules" / "image_names.py",
        PACKAGE / "storage" / "reference_files.py",
    )
)
NOT_SITES = (Path(__file__), Path(errors.__file__), Path(click.exceptions.__file__))
ERRORS = ("InputError", "JobError", "EncodingError", "_HeaderError", "SettingsError", "UsageError")

NOT_FROM_A_FILE = {
    "is not a valid job": "cannot happen unless `field_errors` has a gap; then the message of msgspec is shown",
    "not a valid job (": "as above",
    "not a valid value (": "as above",
    "invalid JSON at character {position + 1}: ": "for messages that a later version of the JSON parser may have",
    'f"write {JSON_EXAMPLES[name]}"': "for a list that is invalid as a whole though each of its entries is valid",
    "changed since it was checked": "the file is edited during a run: tests/sources/test_line_file.py",
    "pays for": "a line that was submitted has changed: tests/cli/test_edited_lists.py",
    "restore it, give the line a new id, or use another --out": "as above",
    "is a directory": "a file is replaced by a directory during a run: tests/sources/test_line_file.py",
    "write one object per line (JSONL), which": "a file of 256 MiB: tests/sources/test_yaml_and_markdown.py",
    "MAX_WORKBOOK_BYTES": "a workbook of 256 MiB: tests/sources/test_workbooks.py",
    "the name of the file is not UTF-8": "a file system that has such names: tests/sources/test_edge_inputs.py",
    "standard input is closed": "a process of its own: tests/sources/test_edge_inputs.py",
    "save it without one": "an encrypted workbook, which no library of the tests can write",
    "permission denied": "the tests may run as root: tests/sources/test_line_file.py",
    "cannot be read ({reason})": "a damaged disk: tests/sources/test_line_file.py",
    "cannot be copied to a temporary file": "a full disk: tests/sources/test_job_files.py",
    "cannot be opened ({error.strerror})": "a pipe without permission: tests/sources/test_job_files.py",
    "cannot write hashes to a temporary file": "a full disk: tests/sources/test_duplicate_ids.py",
    "set TMPDIR to a directory with free space": "as above: tests/sources/test_moved_rows.py",
    "is a local reference image, which": "the advice needs a bucket: tests/storage/test_reference_store.py",
    "has changed since it was checked": "an image is edited during a run: tests/storage/test_reference_files.py",
    "use a smaller one": "an image of 32 MiB: tests/storage/test_reference_files.py",
    "pip install": "an extra that is not installed: tests/sources/test_formats.py",
}
"""Text in the source of an error that no case brings, and why."""


def write(files: Mapping[str, Content]) -> None:
    for name, content in files.items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def pattern_of(message: str) -> re.Pattern[str]:
    """Return the pattern of a line of standard error."""
    return re.compile(r"(?:krea-batch: |Error: )?" + re.escape(message).replace(re.escape(ANY), ".*"))


def invoke(*args: str) -> tuple[int, list[str]]:
    """Return the exit code of a command and the lines of its standard error, as `krea-batch` prints them."""
    done = CliRunner().invoke(app, args)
    lines = done.stderr.splitlines()
    if isinstance(done.exception, InputError):
        return 2, [*lines, f"krea-batch: {error_text(done.exception)}"]
    assert isinstance(done.exception, SystemExit | None), done.exception
    return done.exit_code, lines


def says(case: MessageCase, lines: list[str]) -> bool:
    return any(pattern_of(case.message).fullmatch(line) for line in lines)


def prompts_of(args: str) -> tuple[str, ...]:
    """Return the prompts of the jobs that `krea-batch validate` with these arguments reads."""
    with (
        validate.make_context("validate", shlex.split(args)) as context,
        open_job_files(context.params["jobs"], context.params) as files,
    ):
        files.check()
        return tuple(job.prompt for job in files)


ALL = [pytest.param(case, id=f"{topic}-{n}") for topic, cases in CASES.items() for n, case in enumerate(cases)]


@pytest.mark.parametrize("case", ALL)
def test_message(case: MessageCase, folder: Path) -> None:
    """The message is printed word for word, `run` sends nothing and leaves no directory, and the advice works."""
    write(case.files)
    if not case.only_run:
        exit_code, lines = invoke("validate", *shlex.split(case.args))
        assert (exit_code, says(case, lines)) == (0 if case.is_notice else 2, True), (case.message, lines)
    if not case.is_notice:
        exit_code, lines = invoke("run", *shlex.split(case.args), "--out", "out", "--simulate")
        assert (exit_code, says(case, lines)) == (2, True), (case.message, lines)
        assert not Path("out").exists()
    write(case.new_files)
    args = case.new_args or case.args
    exit_code, lines = invoke("validate", *shlex.split(args))
    assert exit_code == 0, lines
    assert not says(case, lines)
    assert prompts_of(args) == case.prompts


@pytest.mark.slow
@pytest.mark.parametrize("topic", CASES)
def test_the_command_prints_the_same(topic: str, folder: Path) -> None:
    """A process prints what the other tests read."""
    case = CASES[topic][0]
    write(case.files)
    done = run_command("run", *shlex.split(case.args), "--out", "out", "--simulate", cwd=folder)
    assert (done.returncode, says(case, done.stderr.splitlines())) == (2, True), done.stderr


def sites() -> Iterator[tuple[str, range, str]]:
    """Yield each place that makes an error: its module, lines and source."""
    for module in MODULES:
        text = (PACKAGE / module).read_text("utf-8")
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name in ERRORS:
                source = ast.get_source_segment(text, node) or ""
                yield module, range(node.lineno, (node.end_lineno or node.lineno) + 1), source


def test_every_error_has_a_case(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each place that makes an error about an input is reached by a case, or is named here with the reason."""
    reached: set[tuple[str, int]] = set()

    def record(frame: FrameType | None) -> None:
        while frame and (path := Path(frame.f_code.co_filename)) in NOT_SITES:
            frame = frame.f_back
        if frame and path.is_relative_to(PACKAGE):
            reached.add((str(path.relative_to(PACKAGE)), frame.f_lineno))

    for kind in (InputError, click.ClickException):
        original = kind.__init__

        def init(self: Any, *args: Any, original: Any = original, **named: Any) -> None:
            record(sys._getframe(1))
            original(self, *args, **named)

        monkeypatch.setattr(kind, "__init__", init)
    for n, case in enumerate(chain(*CASES.values())):
        subfolder = folder / str(n)
        subfolder.mkdir()
        monkeypatch.chdir(subfolder)
        write(case.files)
        command = ("run", "--out", "out", "--simulate") if case.only_run else ("validate",)
        invoke(*command, *shlex.split(case.args))
    missing = {
        f"{module}:{lines[0]}: {source}"
        for module, lines, source in sites()
        if not any((module, line) in reached for line in lines)
    }
    excused = {each for each in missing if any(text in each for text in NOT_FROM_A_FILE)}
    assert not missing - excused, "\n".join(sorted(missing - excused))
    unused = [text for text in NOT_FROM_A_FILE if not any(text in each for each in missing)]
    assert not unused, f"no error has this text any more: {unused}"
