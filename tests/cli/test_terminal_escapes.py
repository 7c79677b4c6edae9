"""Nothing from outside controls the terminal: control characters in it are printed as escapes."""

from __future__ import annotations

import ast
import io
import json
import logging
import sys
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from krea_batch.cli.app import app, main
from krea_batch.cli.options.logging_options import configure_logging
from krea_batch.cli.ui.formatting import printable, printable_json, show_state
from krea_batch.cli.ui.progress import LiveDisplay
from krea_batch.cli.ui.run_status import RunStatus
from krea_batch.errors import InternalError
from krea_batch.jobs import ErrorInfo
from krea_batch.ledger.sqlite import SqliteLedger
from krea_batch.maintenance.export.png_metadata import embed_texts
from krea_batch.storage.png import make_chunk
from krea_batch.testing import make_png
from tests.processes import run_command

ROOT = Path(__file__).parents[2]
CONTROLS = [
    *map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0)),
    *"\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",
]  # fmt: skip
"""C0, DEL, C1, line separators, and the controls of the direction of text."""
HOSTILE = "x\x1b]0;owned\x07\x1b[2J\x9b1A\x7f\u202ey"
"""It sets the title, clears the screen, moves the cursor up and reverses what follows."""


def controls_in(text: str) -> set[str]:
    """Return the control characters of a text of several lines."""
    return {char for char in CONTROLS if char != "\n" and char in text}


def call(*arguments: str | Path, **env: str) -> Result:
    """Run a command, check that its output has no control character, and return it."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], env=env)
    assert controls_in(done.output) == set()
    return done


@pytest.fixture
def hostile_run(tmp_path: Path) -> Path:
    """A run whose prompts, messages and tenant are hostile. The ids cannot be, except for bidi controls."""
    out = tmp_path / "out"
    out.mkdir()
    store = SqliteLedger.open(out / "ledger.db")

    def insert(store: SqliteLedger, job_id: str, *, ambiguous: bool) -> None:
        body = json.dumps({"prompt": HOSTILE + "\nnext", "aspect_ratio": "1:1", "creativity": "raw"}).encode()
        metadata = json.dumps({HOSTILE: HOSTILE}).encode()
        job_no = store.record_intent(job_id, body, sha256(body).digest(), metadata, 1.0, HOSTILE)
        error = ErrorInfo("http_400", HOSTILE)
        (store.mark_ambiguous if ambiguous else store.mark_rejected)(job_no, error, 2.0)

    store.start_run("http://127.0.0.1:9", "0", 1.0)
    for state in "ar":
        store.transaction(partial(insert, job_id=f"{state}\u202e", ambiguous=state == "a"))
    store.close()
    return out


class TestOneFunction:
    @given(st.text() | st.text(st.sampled_from(CONTROLS)))
    def test_a_line_has_no_controls(self, text: str) -> None:
        """Whatever the text is, the printable form is one line without controls that UTF-8 can encode."""
        line = printable(text)
        assert not {char for char in CONTROLS if char in line}
        line.encode()

    def test_other_text_stays(self) -> None:
        """Text in any language, emoji and combining characters stay as they are."""
        for text in ("a cat", "füße", "鳥", "نص", "שלום", "👩\u200d👧", "e\u0301", "\u00a0"):
            assert printable(text) == text
        assert printable("a\x1b[1mb\n\u202e") == r"a\x1b[1mb\n\u202e"

    @given(st.text() | st.text(st.sampled_from(CONTROLS)))
    def test_json_keeps_its_value(self, text: str) -> None:
        """The printable form of JSON has the same value and no controls."""
        shown = printable_json(json.dumps({text: text}, ensure_ascii=False).encode("utf-8", "replace").decode())
        assert not {char for char in CONTROLS if char in shown}
        expected = text.encode("utf-8", "replace").decode()
        assert json.loads(shown) == {expected: expected}

    def test_nothing_else_prints(self) -> None:
        """In `cli`, text is printed by the functions of `formatting` only, so no command can forget to escape."""
        found = []
        for path in (ROOT / "krea_batch/cli").rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
                if name in ("click.echo", "click.secho", "print", "sys.stdout.write", "sys.stderr.write"):
                    found.append(path.name)
        assert set(found) == {"formatting.py"}


class TestCommands:
    def test_inspect(self, tmp_path: Path) -> None:
        """Keywords and texts of a PNG and the name of the file are escaped, as text and as JSON."""
        path = tmp_path / "a\x1b[2Jb.png"
        png = embed_texts(make_png(), {"Description": HOSTILE, "krea-batch": json.dumps({"id": HOSTILE, HOSTILE: 1})})
        keyword = make_chunk(b"tEXt", b"key\x1b[31m\x9b\x00text\x1b[0m")
        path.write_bytes(png[:33] + keyword + png[33:])
        done = call("inspect", path)
        assert done.exit_code == 0
        assert r"\x1b]0;owned\x07" in done.output
        assert r"key\x1b[31m\x9b" in done.output
        as_json = call("inspect", "--json", path)
        texts = json.loads(as_json.stdout)["texts"]
        assert texts["Description"] == HOSTILE
        assert texts["key\x1b[31m\x9b"] == "text\x1b[0m"

    @pytest.mark.parametrize("details", ["{}", "[" * 100_000, "7", '{"request": 7}', ""])
    def test_inspect_of_strange_details(self, tmp_path: Path, details: str) -> None:
        """Whatever the text of the keyword krea-batch is, `inspect` shows something and does not fail."""
        (tmp_path / "x.png").write_bytes(embed_texts(make_png(), {"krea-batch": details}))
        assert call("inspect", tmp_path / "x.png").exit_code == 0

    def test_file_names(self, tmp_path: Path) -> None:
        """The name of a file that cannot be read is escaped in the error."""
        done = call("inspect", tmp_path / "no\x1b[2J.png")
        assert done.exit_code == 2
        assert r"no\x1b[2J.png" in done.output
        bad = tmp_path / "bad\x1b[2J.jsonl"
        bad.write_text('{"prompt": ""}\n{"\x1b[2J": 1}\n')
        done = call("validate", bad)
        assert (done.exit_code, r"bad\x1b[2J.jsonl:1" in done.output) == (2, True)
        assert call("status", tmp_path / "no\x1b[2Jdir").exception

    def test_resolve(self, hostile_run: Path) -> None:
        """Ids, prompts and reasons of ambiguous jobs are escaped; the JSON has them as they are."""
        done = call("resolve", hostile_run)
        assert r"a\u202e  submitted" in done.output
        assert r"\x1b[2J" in done.output
        jobs = json.loads(call("resolve", hostile_run, "--json").stdout)["ambiguous"]
        assert (jobs[0]["reason"], jobs[0]["request"]["prompt"]) == (HOSTILE, HOSTILE + "\nnext")

    @pytest.mark.parametrize(
        "arguments",
        [
            ("status",),
            ("watch",),
            ("verify",),
            ("retry", "x\x1b[2J"),
            ("retry", "a\u202e"),
            ("resolve", "--adopt", "\x1b=\x1b"),
        ],
    )
    def test_other_commands(self, hostile_run: Path, arguments: tuple[str, ...]) -> None:
        """No other command prints a control character of the run or of its arguments."""
        command, *rest = arguments
        call(command, hostile_run, *rest, PIXAZO_API_KEY="k")

    def test_the_settings_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """An option name in krea-batch.toml is escaped in the error, and so is a wrong option or command."""
        monkeypatch.chdir(tmp_path)
        (tmp_path / "krea-batch.toml").write_text('"rate\\u001b[2J" = 1\n')
        assert r"rate\x1b[2J" in call("schema").output
        (tmp_path / "krea-batch.toml").unlink()
        assert call("schema", "--\x1b[2J").exit_code == 2
        assert call("simulate", "--fault", "\x1b[2J=1").exit_code == 2

    @pytest.mark.slow
    def test_errors_in_a_real_process(self, tmp_path: Path) -> None:
        """The message of a krea-batch error is escaped on standard error."""
        done = run_command("status", "no\x1b[2Jdir", cwd=tmp_path)
        assert done.returncode == 2
        assert controls_in(done.stderr) == set()
        assert r"no\x1b[2Jdir: not a run directory" in done.stderr


class TestDisplays:
    def test_the_live_display(self) -> None:
        """Errors and lines in the live display are escaped."""
        from rich.console import Console

        console = Console(file=io.StringIO(), force_terminal=False, width=200)
        display = LiveDisplay(console)
        display.say(f"Paused: {HOSTILE}.")
        status = RunStatus(
            total=1, done=1, succeeded=0, in_flight=0, downloading=0, unsuccessful=1, submitted=1, submits_per_s=1.0,
            limit_per_s=None, top_errors=((HOSTILE, 3),),
        )  # fmt: skip
        console.print(status.render("utf-8"))
        shown = console.file.getvalue()  # type: ignore[attr-defined]
        assert controls_in(shown) == set()
        assert shown.count(r"\x1b[2J") == 2

    def test_findings_of_doctor(self, capsys: pytest.CaptureFixture[str]) -> None:
        """The text of a finding is escaped; the colour of its state is not."""
        show_state("warn", f"disk {HOSTILE}")
        assert controls_in(capsys.readouterr().out) == set()

    @pytest.mark.parametrize("log_format", ["text", "json"])
    def test_logs(self, log_format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Fields, messages of other libraries and exceptions are escaped in a log."""
        monkeypatch.setattr(logging.root, "handlers", [])
        monkeypatch.setattr(logging.root, "level", logging.WARNING)
        configure_logging(
            {"verbose": 2, "log_file": tmp_path / "run.log", "log_format": log_format, "out": tmp_path / "out"}
        )
        logging.getLogger("krea_batch").info("! job=%s reason=%s", "a\u202eb", HOSTILE)
        logging.getLogger("other").info("got %s", HOSTILE)
        try:
            raise ValueError(HOSTILE)
        except ValueError:
            logging.getLogger("other").exception("failed")
        (handler,) = logging.root.handlers
        handler.close()
        text = (tmp_path / "run.log").read_text("utf-8")
        assert controls_in(text) == set()
        assert "owned" in text

    def test_a_traceback(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        """The message of a bug is escaped in its traceback."""

        def fail(**_: object) -> None:
            raise InternalError(HOSTILE)

        monkeypatch.setattr("krea_batch.cli.app.app", fail)
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)
        with pytest.raises(InternalError) as caught:
            main()
        sys.excepthook(caught.type, caught.value, caught.tb)
        shown = capsys.readouterr().err
        assert controls_in(shown) == set()
        assert r"krea_batch.errors.InternalError: x\x1b]0;owned" in shown
