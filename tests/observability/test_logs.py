"""Tests of the log formatters: each line can be parsed, whatever its values contain."""

from __future__ import annotations

import json
import logging
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krea_batch.observability import JsonFormatter, LogfmtFormatter
from krea_batch.observability.logs import record_fields
from krea_batch.testing import run_virtual
from tests.engine_fixtures import rows_by_id
from tests.observability.outcomes import engine_with_listeners, gateway_with_every_outcome


def record(template: object, *args: Any, exc_info: Any = None) -> logging.LogRecord:
    return logging.LogRecord("krea_batch", logging.INFO, __file__, 1, template, args, exc_info)


def as_json(template: object, *args: Any, exc_info: Any = None) -> dict[str, Any]:
    line = JsonFormatter().format(record(template, *args, exc_info=exc_info))
    assert "\n" not in line
    parsed: dict[str, Any] = json.loads(line)
    return parsed


def message(template: object, *args: Any) -> str:
    """Return a text line without its time, level and logger."""
    return LogfmtFormatter().format(record(template, *args)).split(" ", 3)[3]


LOGFMT_TOKEN = r'"(?:[^"\\]|\\.)*"|[^ "=]+'


class TestJson:
    def test_a_line(self) -> None:
        """A line has time, level, logger and message, and each field of the message under its own key."""
        line = as_json("! job=%s stage=%s reason=%s", "fox", "poll", "no response in 60 s")
        assert line.pop("time").endswith("Z")
        assert line == {
            "level": "INFO",
            "logger": "krea_batch",
            "message": "! job=fox stage=poll reason=no response in 60 s",
            "job": "fox",
            "stage": "poll",
            "reason": "no response in 60 s",
        }

    def test_numbers_stay_numbers(self) -> None:
        """A number has full precision in its field, although the message rounds it."""
        line = as_json("! submits paused for_s=%.1f rate_per_s=%.2f n=%d", 2.25, 1 / 3, 7)
        assert (line["for_s"], line["rate_per_s"], line["n"]) == (2.25, 1 / 3, 7)

    def test_a_placeholder_without_a_key_is_no_field(self) -> None:
        """An argument that has no key in the template is left out, and the others keep their keys."""
        assert dict(record_fields(record("100%% of %s: job=%s", "all", "fox"))) == {"job": "fox"}

    def test_an_exception_has_its_own_field(self) -> None:
        """A traceback is one value, in the same line."""
        try:
            raise ZeroDivisionError("by\nzero")
        except ZeroDivisionError:
            line = as_json("! broken job=%s", "fox", exc_info=sys.exc_info())
        assert "ZeroDivisionError: by\nzero" in line["exception"]

    @pytest.mark.parametrize("args", [(), ({"job": "fox"},)], ids=["none", "a mapping"])
    def test_records_of_other_libraries(self, args: tuple[Any, ...]) -> None:
        """A record without arguments, or with named ones, has its message and no fields."""
        template = "%(job)s ended" if args else "100% job=done"
        line = as_json(template, *args)
        assert line["message"] == ("fox ended" if args else "100% job=done")
        assert "job" not in line

    def test_time_and_level_are_not_overwritten(self) -> None:
        """A field whose key the line itself uses is only in the message."""
        line = as_json("level=%s", "high")
        assert (line["level"], line["message"]) == ("INFO", "level=high")

    @given(st.text(alphabet=st.characters(codec=None)), st.integers() | st.floats() | st.none() | st.binary())
    def test_anything_can_be_logged(self, text: str, value: object) -> None:
        """Any value gives one line of JSON. Text is unchanged, except characters that UTF-8 cannot encode."""
        line = as_json("job=%s value=%s", text, value)
        assert line["job"] == text.encode("utf-8", "backslashreplace").decode()
        assert "value" in line


class TestText:
    def test_plain_values_are_not_quoted(self) -> None:
        """Words and numbers are not quoted, and are formatted as the template says."""
        assert message("= job=%s for_s=%.1f 100%%", "fox", 2.25) == "= job=fox for_s=2.2 100%"

    def test_values_with_spaces_are_quoted(self) -> None:
        """A reason that looks like more fields stays one value."""
        assert message("! job=%s reason=%s", "a fox", 'said "no" job=x') == (
            r'! job="a fox" reason="said \"no\" job=x"'
        )
        assert message("! request_id=%s", "") == '! request_id=""'

    @given(st.text(alphabet=st.characters(codec=None)), st.text(alphabet=st.characters(codec=None)))
    def test_values_can_be_parsed(self, job: str, reason: str) -> None:
        """Two values of any text give one line of two tokens, from which both values can be parsed."""
        line = message("job=%s reason=%s", job, reason)
        assert len(line.splitlines()) == 1
        line.encode()
        found = re.fullmatch(f"job=({LOGFMT_TOKEN}) reason=({LOGFMT_TOKEN})", line)
        assert found
        assert [json.loads(token) if token.startswith('"') else token for token in found.groups()] == [job, reason]


class TestRun:
    def test_the_log_has_the_final_states(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """The last state of each job in the log of a run is its status in the results."""
        gateway, jobs = gateway_with_every_outcome()

        async def main() -> None:
            async with engine_with_listeners(tmp_path, gateway, rate="2/s", job_timeout_s=200.0) as engine:
                await engine.run(jobs)

        with caplog.at_level(logging.DEBUG, "krea_batch"):
            run_virtual(main())
        lines = [json.loads(JsonFormatter().format(each)) for each in caplog.records if each.name == "krea_batch"]
        last = {line["job"]: line["to"] for line in lines if "to" in line}
        assert last == {job_id: row["status"] for job_id, row in rows_by_id(tmp_path).items()}
