"""Every command works in every locale: it reads and writes UTF-8, and escapes what its output cannot show."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from krea_batch.cli.app import COMMANDS
from tests.processes import COMMAND, FAST_SIMULATION, PROCESS_TIMEOUT_S

pytestmark = pytest.mark.slow

PYTHONS_OWN_REMEDY_OFF = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # PEP 538 and PEP 540
LOCALES: dict[str, dict[str, str]] = {
    "C": {"LC_ALL": "C"} | PYTHONS_OWN_REMEDY_OFF,
    "ASCII output": {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "ascii"} | PYTHONS_OWN_REMEDY_OFF,
    "cp1252 output": {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "cp1252"} | PYTHONS_OWN_REMEDY_OFF,
}
ID, PROMPT = "füchs-狐", "ein Fuchs 🦊 – ü"
OUT = "läufe/狐"

COMMAND_LINES: dict[str, list[tuple[int, list[str]]]] = {
    "run": [
        (0, ["run", "jöbs.jsonl", "--out", OUT, *FAST_SIMULATION]),
        (
            0,
            [
                "run",
                "täble.csv",
                "--prompt-column",
                "Präom",
                "--out",
                "läufe/2",
                "--log-file",
                "lög.txt",
                *FAST_SIMULATION,
            ],
        ),
        (0, ["run", "--prompt", PROMPT, "--out", "läufe/3", "--json", *FAST_SIMULATION]),
        (2, ["run", "kaputt.jsonl", "--out", "läufe/4", *FAST_SIMULATION]),
        (2, ["run", "fehlt-狐.txt", "--out", "läufe/4", *FAST_SIMULATION]),
        (2, ["run", "jöbs.jsonl", "--set", "creativity=wüld", "--out", "läufe/4", *FAST_SIMULATION]),
        (2, ["run", "--öption", "狐"]),
    ],
    "validate": [(0, ["validate", "jöbs.jsonl"]), (2, ["validate", "kaputt.jsonl", "--json"])],
    "plan": [(0, ["plan", "jöbs.jsonl", "--latency-from", OUT]), (0, ["plan", "jöbs.jsonl", "--json"])],
    "status": [(0, ["status", OUT]), (0, ["status", OUT, "--json"]), (2, ["status", "läufe/fehlt-狐"])],
    "watch": [(0, ["watch", OUT])],
    "verify": [(0, ["verify", OUT]), (0, ["verify", OUT, "--json"])],
    "export": [
        (0, ["export", OUT, "--format", name, "--output", f"ü-{name}", "--ids-from", "ids-ü.txt"])
        for name in ("imagefolder", "parquet", "webdataset", "csv", "zip")
    ],
    "report": [(0, ["report", OUT, "--output", "bericht-ü.html"])],
    "inspect": [(0, ["inspect", "狐.png"]), (0, ["inspect", "狐.png", "--json"]), (2, ["inspect", "fehlt-狐.png"])],
    "resolve": [(0, ["resolve", OUT, "--list"]), (2, ["resolve", OUT, "--resubmit", ID])],
    "retry": [(2, ["retry", OUT, ID, "--yes"]), (2, ["retry", OUT, "unbekannt-狐", "--yes"])],
    "worker": [(0, ["worker", OUT, *FAST_SIMULATION]), (2, ["worker", "läufe/fehlt-狐"])],
    "recover": [(0, ["recover", OUT])],
    "schema": [(0, ["schema"])],
    "dashboard": [(0, ["dashboard"])],
    "demo": [(0, ["demo", "läufe/demo"])],
    "explain": [(0, ["explain"]), (0, ["explain", "seed"]), (2, ["explain", "狐"])],
    "init": [(0, ["init"])],
    "doctor": [(2, ["doctor", "--out", "läufe", "--gateway", "http://127.0.0.1:9"])],
    "completion": [(0, ["completion", shell]) for shell in ("bash", "zsh", "fish")],
    "view": [(2, ["view", "läufe/fehlt-狐", "--no-open"])],
    "simulate": [(2, ["simulate", "--latency", "wüld"])],
    "bench": [(2, ["bench", "--rates", "wüld"])],
}
"""The command lines of each command, with their exit codes, in an order in which they can run."""


def run_in(locale: dict[str, str], *arguments: str, cwd: Path) -> subprocess.CompletedProcess[bytes]:
    """Run the command in a locale."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    environment = kept | {"PIXAZO_API_KEY": "k", "SSL_CERT_FILE": os.devnull} | locale
    command = [os.fsencode(part) for part in (*COMMAND, *arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, timeout=PROCESS_TIMEOUT_S)


def write_inputs(folder: Path) -> None:
    (folder / "läufe").mkdir()
    row = {"prompt": PROMPT, "id": ID, "metadata": {"ключ": "значение"}}
    (folder / "jöbs.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", "utf-8")
    (folder / "täble.csv").write_text(f"Präom\n{PROMPT}\n", "utf-8")
    (folder / "kaputt.jsonl").write_text('{"prompt":"ü","creativity":"wüld-狐"}\n{"prömpt":"x"}\n狐\n', "utf-8")
    (folder / "ids-ü.txt").write_text(f"{ID}\n", "utf-8")


def test_every_command_is_in_the_table() -> None:
    """A new command needs its lines above."""
    assert set(COMMAND_LINES) == set(COMMANDS)


@pytest.mark.parametrize("locale", LOCALES)
def test_letters_of_every_language(tmp_path: Path, locale: str) -> None:
    """Prompts, ids, names of files and messages work in each command, and each text file is UTF-8."""
    write_inputs(tmp_path)
    for code, arguments in (line for lines in COMMAND_LINES.values() for line in lines):
        if arguments == COMMAND_LINES["inspect"][0][1]:
            shutil.copyfile(tmp_path / OUT / "images" / f"{ID}.png", tmp_path / "狐.png")
        done = run_in(LOCALES[locale], *arguments, cwd=tmp_path)
        assert done.returncode == code, (arguments, done.stdout, done.stderr)
        assert b"Traceback" not in done.stderr, (arguments, done.stderr)
        assert not re.search(rb"\\udc[89a-f]", done.stdout + done.stderr), (arguments, done.stdout, done.stderr)
        if "--json" in arguments:
            json.loads(done.stdout.decode(LOCALES[locale].get("PYTHONIOENCODING", "utf-8")))
    texts = [path for path in tmp_path.rglob("*") if path.suffix in {".jsonl", ".csv", ".html", ".txt", ".toml"}]
    assert {"results.jsonl", "metadata.jsonl", "bericht-ü.html", "lög.txt"} <= {path.name for path in texts}
    for path in texts:
        path.read_text("utf-8")
    (result,) = (tmp_path / OUT / "results.jsonl").read_text("utf-8").splitlines()
    assert (json.loads(result)["id"], json.loads(result)["request"]["prompt"]) == (ID, PROMPT)


def test_arguments_and_names_that_are_not_utf_8(tmp_path: Path) -> None:
    """A name of a file may have any bytes. A prompt, an id or a setting that is not UTF-8 is refused."""
    name = "\udcfe"  # how Python writes the byte FE
    (tmp_path / f"{name}.txt").write_text("a cat\n")
    utf_8 = {"LC_ALL": "C.UTF-8"}
    for arguments in (
        ["run", f"{name}.txt", "--out", name, *FAST_SIMULATION],
        ["status", name, "--json"],
        ["verify", name, "--json"],
        ["report", name, "--output", f"{name}.html"],
        ["export", name, "--format", "csv", "--output", f"{name}.csv"],
        ["inspect", f"{name}/images/00001.png", "--json"],
    ):
        done = run_in(utf_8, *arguments, cwd=tmp_path)
        assert done.returncode == 0, (arguments, done.stderr)
    assert "\\xfe" in (tmp_path / f"{name}.html").read_text("utf-8")
    assert "\\xfe" in (tmp_path / f"{name}.csv").read_text("utf-8")
    for arguments in (
        ["run", "--prompt", f"a {name}", "--out", "other", *FAST_SIMULATION],
        ["run", f"{name}.txt", "--set", f"creativity={name}", "--out", "other", *FAST_SIMULATION],
        ["retry", name, name],
        ["resolve", name, "--resubmit", name],
    ):
        done = run_in(utf_8, *arguments, cwd=tmp_path)
        assert done.returncode == 2, (arguments, done.stderr)
        assert b"is not UTF-8; write it in UTF-8, or into a file" in done.stderr
