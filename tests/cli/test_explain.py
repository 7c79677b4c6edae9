"""Errors name the topic that explains them, and `krea-batch explain` prints it."""

from __future__ import annotations

import errno
import json
import os
from email.message import Message
from pathlib import Path

import pytest
from click.testing import CliRunner

from docs.explanations import explanations_json
from krea_batch.cli.app import BAD_INPUT, OK, STOPPED, app
from krea_batch.cli.ui import explanations
from krea_batch.cli.ui.error_messages import error_text
from krea_batch.cli.ui.explanations import (
    EXPLANATIONS_FILE,
    MAX_NAMED,
    Explanation,
    find_topic,
    further_reading,
    load_explanations,
    topic_of,
)
from krea_batch.errors import GatewayError, KreaBatchError, RunDirError
from krea_batch.ledger.sqlite.busy import locked_error
from krea_batch.pipeline.charge_budget import limit_reached
from krea_batch.rules.lifecycle import NEXT_STEPS
from krea_batch.storage.run_dir import RunDir, require_run, unusable_directory
from tests.messages.all_cases import CASES
from tests.processes import result_rows, run_command, write_jobs

ALL_CASES = [case for cases in CASES.values() for case in cases]


def test_the_file_is_up_to_date() -> None:
    """`make generate` has written the explanations of the current cases and of the current page."""
    assert EXPLANATIONS_FILE.read_text("utf-8") == explanations_json()


def test_every_message_is_explained() -> None:
    """Each message about an input leads to the topic that has it as an example."""
    for case in ALL_CASES:
        topic = find_topic(case.message)
        assert topic, case.message
        found = load_explanations()[topic]
        assert case.message.replace("<…>", "…") in [example.message for example in found.examples]


@pytest.mark.parametrize(
    ("message", "topic"),
    [
        ("my jobs, 2.jsonl:812: trailing comma at character 7; remove it", "trailing-comma"),
        ('x.csv:3: "seed" is "two words"; use an integer of at most 64 bits, or leave it out', "seed"),
        ('--set: "creativity" is "wild"; use one of raw, low, medium, high', "set-creativity"),
        ('a.jsonl:1: "colour" is not a field of a job; did you mean "creativity"?', "not-field-job"),
        ("photos.jsonl.gz: there is no such file", "there-no-such-file"),
        ("--seeds: the seeds 9..1 end before they begin; write 1..9", "seeds-seeds-end-before"),
    ],
)
def test_the_topic_has_no_values(message: str, topic: str) -> None:
    """File names, numbers and quoted text are not part of a topic, but options and the names of fields are."""
    assert topic_of(message) == topic


def stop(status: int) -> KreaBatchError:
    return GatewayError(status, "", NEXT_STEPS[status])


def not_a_run(out: Path) -> RunDirError:
    with pytest.raises(RunDirError) as caught:
        require_run(out)
    return caught.value


def lost_ledger(out: Path) -> RunDirError:
    (out / "results.jsonl").write_text("{}\n")
    return not_a_run(out)


def in_use(out: Path) -> RunDirError:
    first, second = RunDir(out), RunDir(out)
    first.lock()
    try:
        with pytest.raises(RunDirError) as caught:
            second.lock()
    finally:
        first.unlock()
    return caught.value


def full_disk(out: Path) -> RunDirError:
    return unusable_directory(out, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))


def test_errors_that_stop_a_run(tmp_path: Path) -> None:
    """Errors that are not about an input lead to their section of the page on troubleshooting."""
    errors: dict[str, list[KreaBatchError]] = {
        "key-refused": [stop(401), stop(403)],
        "no-balance": [stop(402)],
        "charge-limit": [limit_reached(7)],
        "ledger-locked": [locked_error(tmp_path / "ledger.db", "for 60 s")],
        "no-run": [not_a_run(tmp_path)],
        "in-use": [in_use(tmp_path)],
        "disk-full": [full_disk(tmp_path)],
        "ledger-lost": [lost_ledger(tmp_path)],
    }
    found = {topic: [find_topic(error_text(error)) for error in each] for topic, each in errors.items()}
    assert found == {topic: [topic] * len(each) for topic, each in errors.items()}


def test_few_topics_are_named() -> None:
    """A line names each topic once, and only a few of them; an error without a topic has no line."""
    assert further_reading(case.message for case in ALL_CASES)[0].count(" ") == 4 + MAX_NAMED - 1
    assert further_reading([ALL_CASES[0].message] * 2) == [
        f"For details: krea-batch explain {topic_of(ALL_CASES[0].message)}"
    ]
    assert further_reading(["something else"]) == []


class TestCommand:
    """`krea-batch explain`."""

    def test_a_message(self) -> None:
        """A topic, or the message itself, prints an example of what is wrong and of what is right."""
        by_topic = CliRunner().invoke(app, ["explain", "trailing-comma"])
        assert by_topic.exit_code == OK
        assert '  instead of: {"prompt": "a cat",}\n  write:      {"prompt": "a cat"}\n' in by_topic.stdout
        message = "jobs.jsonl:7: trailing comma at character 3; remove it"
        assert CliRunner().invoke(app, ["explain", message]).stdout == by_topic.stdout

    @pytest.mark.parametrize("topic", [topic for topic, each in load_explanations().items() if not each.examples])
    def test_a_symptom(self, topic: str) -> None:
        """Each symptom is listed, and its text has no Markdown; commands are on lines of their own."""
        listed = CliRunner().invoke(app, ["explain"]).stdout
        assert f"\n{topic} " in f"\n{listed}"
        shown = CliRunner().invoke(app, ["explain", topic]).stdout
        assert shown.splitlines()[0] == load_explanations()[topic].title
        assert not any(mark in shown for mark in ("```", "](", "**", "`"))
        assert shown.splitlines()[-1].endswith(f"troubleshooting.html#{topic}")

    def test_an_unknown_topic(self) -> None:
        """An unknown topic is an error that suggests a similar one."""
        done = CliRunner().invoke(app, ["explain", "no-balanse"])
        assert done.exit_code == BAD_INPUT
        assert "Did you mean 'no-balance'?" in done.stderr

    def test_the_address_of_the_documentation(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """If the metadata of the package has the address of the documentation, the last line is a link."""
        package = Message()
        package["Project-URL"] = "Documentation, https://docs.example/krea-batch"
        monkeypatch.setattr(explanations, "metadata", lambda _: package)
        last_line = Explanation("seed", "Fields", "reference/messages.html#seed").lines()[-1]
        assert last_line == "Documentation: https://docs.example/krea-batch/reference/messages.html#seed"


@pytest.mark.slow
class TestErrors:
    """What the commands print."""

    def test_invalid_lines(self, tmp_path: Path) -> None:
        """`validate` and `run` end with the topics of all invalid lines; --quiet leaves them out of `validate`."""
        (tmp_path / "jobs.jsonl").write_text('{"prompt": "a cat",}\n{"prompt": "a cat", "seed": "x"}\n')
        expected = "For details: krea-batch explain trailing-comma seed"
        for command in (["validate", "jobs.jsonl"], ["run", "jobs.jsonl", "--out", "out", "--simulate"]):
            assert run_command(*command, cwd=tmp_path).stderr.splitlines()[-1] == expected
        assert expected not in run_command("validate", "jobs.jsonl", "--quiet", cwd=tmp_path).stderr

    def test_a_usage_error(self, tmp_path: Path) -> None:
        """An error about arguments ends with its topic."""
        done = run_command("run", "a cat", "--out", "out", cwd=tmp_path)
        assert done.stderr.splitlines()[-1] == "For details: krea-batch explain there-no-file-if"

    def test_no_key(self, tmp_path: Path) -> None:
        """An error about the settings ends with its topic."""
        done = run_command("run", "--prompt", "a cat", "--out", "out", cwd=tmp_path, key="")
        assert (done.returncode, done.stderr.splitlines()[-1]) == (
            BAD_INPUT,
            "For details: krea-batch explain no-key",
        )

    def test_a_run_that_stops(self, tmp_path: Path) -> None:
        """The summary of a run that stopped early ends with the topic of the reason, and JSON stays as it is."""
        write_jobs(tmp_path / "jobs.jsonl", 2)
        options = ["--simulate", "--time-scale", "1000", "--poll-interval", "0.1", "--max-charges", "1"]
        done = run_command("run", "jobs.jsonl", "--out", "out", *options, cwd=tmp_path)
        assert (done.returncode, done.stdout.splitlines()[-1]) == (
            STOPPED,
            "For details: krea-batch explain charge-limit",
        )
        assert len(result_rows(tmp_path / "out")) == 1
        again = run_command("run", "jobs.jsonl", "--out", "out", *options, "--json", cwd=tmp_path)
        assert json.loads(again.stdout)["stopped"].startswith("--max-charges is reached")
