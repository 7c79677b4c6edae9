"""`krea-batch run` as a real process, against a simulator in another process."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import signal
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from krea_batch import Engine, Job
from krea_batch.cli.ui.job_check import check_jobs
from krea_batch.cli.ui.run_session import RunSession
from krea_batch.rules.pending_limit import INITIAL_PENDING
from krea_batch.settings import Settings
from krea_batch.sources import JobFiles
from krea_batch.testing import ScriptedGateway
from tests.processes import (
    COMMAND,
    PROCESS_TIMEOUT_S,
    RunningSimulator,
    StartSimulator,
    clean_environment,
    result_rows,
    run_command,
    run_in_terminal,
    start_command,
    wait_until,
    write_jobs,
)

pytestmark = pytest.mark.slow

RUN_SIMULATOR_OPTIONS = ("--tiny", "--latency", "uniform:0.2,1.5")
RUN_OPTIONS = ("--rate", "500/s", "--poll-interval", "0.5")


def prompt_in(path: Path) -> str:
    """Return the prompt that the simulator wrote into an image."""
    with Image.open(path) as image:
        image.load()
        text: dict[str, Any] = getattr(image, "text", {})
    return str(text["prompt"])


def assert_all_stored(out: Path, prompts: dict[str, str]) -> None:
    """Assert that each job has one row and complete files with its own prompt, and that there are no other files."""
    by_id = {row["id"]: row for row in result_rows(out)}
    assert set(by_id) == set(prompts)
    assert len(result_rows(out)) == len(prompts)
    for job_id, prompt in prompts.items():
        row = by_id[job_id]
        assert row["status"] == "succeeded"
        assert row["request"]["prompt"] == prompt
        for file in row["files"]:
            path_on_disk = out / file["path"]
            assert hashlib.sha256(path_on_disk.read_bytes()).hexdigest() == file["sha256"]
            assert path_on_disk.stat().st_size == file["bytes"]
            assert prompt_in(path_on_disk) == prompt
            with Image.open(path_on_disk) as image:
                assert image.size == (file["width"], file["height"])
    stored = sorted(path.name for path in (out / "images").iterdir())
    assert stored == sorted(Path(file["path"]).name for row in by_id.values() for file in row["files"])


class TestCompleteRuns:
    def test_a_file_of_553_varied_jobs_becomes_553_images(self, simulate: StartSimulator, tmp_path: Path) -> None:
        """553 lines with different nested extra fields give 553 images, each with its own prompt, and exit code 0."""
        jobs = tmp_path / "jobs.jsonl"
        prompts = {f"{n + 1:05d}": f"a photo of {n} benches, “quoted”, 長椅子 {n}" for n in range(553)}
        lines = [
            {"tag": "counting", "include": [{"class": "bench", "count": n}], "prompt": prompt}
            | ({"exclude": [{"class": "cow", "count": 3}]} if n % 3 else {})
            for n, prompt in enumerate(prompts.values())
        ]
        jobs.write_text("".join(json.dumps(line, ensure_ascii=n % 2 == 0) + "\n" for n, line in enumerate(lines)))
        gateway = simulate(*RUN_SIMULATOR_OPTIONS)
        done = run_command(
            "run", jobs, "--keep-extra", "--out", "out", "--gateway", gateway.gateway_url, *RUN_OPTIONS, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        assert_all_stored(tmp_path / "out", prompts)
        metadata = {row["id"]: row["metadata"] for row in result_rows(tmp_path / "out")}
        assert metadata["00002"] == {key: value for key, value in lines[1].items() if key != "prompt"}
        assert gateway.admin_request("/totals")["charged"] == 553

    def test_simulate_needs_no_key_and_no_server(self, tmp_path: Path) -> None:
        """With --simulate and no key, real images with the requested aspect ratio are stored."""
        (tmp_path / "jobs.jsonl").write_text('{"prompt": "a fox", "aspect_ratio": "16:9", "id": "fox"}\n')
        done = run_command(
            "run", "jobs.jsonl", "--out", "out", "--simulate", "--time-scale=50", "--poll-interval=0.1",
            cwd=tmp_path, key="",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert_all_stored(tmp_path / "out", {"fox": "a fox"})
        with Image.open(tmp_path / "out/images/fox.png") as image:
            assert abs(image.width / image.height - 16 / 9) < 0.02
            assert image.width * image.height > 500_000

    def test_standard_input_gzip_and_several_files(self, simulate: StartSimulator, tmp_path: Path) -> None:
        """One run reads standard input, gzip and several files; line numbers continue over all of them."""
        (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "one"}\n{"prompt": "two"}\n'))
        gateway = simulate(*RUN_SIMULATOR_OPTIONS)
        done = run_command(
            "run", "a.jsonl.gz", "-", "--out", "out", "--gateway", gateway.gateway_url, *RUN_OPTIONS,
            cwd=tmp_path, stdin=b'{"prompt": "three"}\r\n',
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert_all_stored(tmp_path / "out", {"00001": "one", "00002": "two", "00003": "three"})

    def test_request_body(self, simulate: StartSimulator, tmp_path: Path) -> None:
        """The gateway receives the fields of the line and the API document's defaults; `seed` only if it is given."""
        full = {
            "prompt": "Ünïcode \u2028 \U0001f98a",
            "aspect_ratio": "2.35:1",
            "creativity": "raw",
            "seed": 18446744073709551615,
            "image_style_references": [{"image_url": "https://example.com/a.png", "strength": -0.5}],
            "styles": [{"id": "oil"}],
            "moodboards": [{"id": "00000000-0000-4000-8000-000000000000"}],
        }
        (tmp_path / "jobs.jsonl").write_text(json.dumps({"prompt": "bare"}) + "\n" + json.dumps(full) + "\n")
        gateway = simulate(*RUN_SIMULATOR_OPTIONS)
        done = run_command(
            "run", "jobs.jsonl", "--out", "out", "--gateway", gateway.gateway_url, *RUN_OPTIONS, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        bodies = {post["body"]["prompt"]: post["body"] for post in gateway.admin_request("/ledger")["posts"]}
        assert bodies["bare"] == {
            "prompt": "bare",
            "aspect_ratio": "1:1",
            "creativity": "medium",
            "image_style_references": [],
            "styles": [],
            "moodboards": [],
        }
        sent = full | {
            "styles": [{"id": "oil", "strength": 1.0}],
            "moodboards": [{"id": "00000000-0000-4000-8000-000000000000", "strength": 0.23}],
        }
        assert bodies[str(full["prompt"])] == sent

    def test_jobs_that_fail_give_exit_1_and_a_row_each(self, simulate: StartSimulator, tmp_path: Path) -> None:
        """FAILED jobs give exit code 1 and rows with the reason; the same command does not submit them again."""
        write_jobs(tmp_path / "jobs.jsonl", 5)
        gateway = simulate(*RUN_SIMULATOR_OPTIONS, "--fault", "job-failed=1")
        arguments = ("run", "jobs.jsonl", "--out", "out", "--gateway", gateway.gateway_url, *RUN_OPTIONS)
        for _ in range(2):
            done = run_command(*arguments, cwd=tmp_path)
            assert done.returncode == 1, done.stderr
            assert [row["status"] for row in result_rows(tmp_path / "out")] == ["failed"] * 5
            assert all(row["error"]["message"] for row in result_rows(tmp_path / "out"))
            assert gateway.accepted() == 5


class TestStops:
    def arguments(self, gateway: RunningSimulator, *extra_options: str) -> tuple[str, ...]:
        return (
            "run",
            "jobs.jsonl",
            "--out",
            "out",
            "--gateway",
            gateway.gateway_url,
            "--poll-interval",
            "0.5",
            *extra_options,
        )

    def wait_until(self, gateway: RunningSimulator, accepted: int, process: subprocess.Popen[str]) -> None:
        wait_until(lambda: gateway.accepted() >= accepted, process)

    def finish(self, gateway: RunningSimulator, tmp_path: Path, count: int) -> None:
        """Assert that the same command completes the run, with one charge per job."""
        done = run_command(*self.arguments(gateway, "--rate", "500/s"), cwd=tmp_path)
        assert done.returncode == 0, done.stderr + done.stdout
        assert_all_stored(tmp_path / "out", {f"{n + 1:05d}": f"image {n}" for n in range(count)})
        assert gateway.admin_request("/totals")["charged"] == count

    @pytest.mark.parametrize("stop_signal", [signal.SIGINT, signal.SIGTERM])
    def test_one_signal_waits_for_jobs_in_flight(
        self, simulate: StartSimulator, tmp_path: Path, stop_signal: signal.Signals
    ) -> None:
        """After one signal nothing more is submitted, all charged images are stored, and the run can be resumed."""
        write_jobs(tmp_path / "jobs.jsonl", 120)
        gateway = simulate("--tiny", "--latency", "fixed:1")
        process = start_command(*self.arguments(gateway, "--rate", "40/s"), cwd=tmp_path)
        self.wait_until(gateway, 20, process)
        process.send_signal(stop_signal)
        _, stderr = process.communicate(timeout=PROCESS_TIMEOUT_S)
        assert process.returncode == 130
        assert "Ctrl-C again" in stderr
        charged = gateway.admin_request("/totals")["charged"]
        assert 20 <= charged < 120
        assert [row["status"] for row in result_rows(tmp_path / "out")] == ["succeeded"] * charged
        self.finish(gateway, tmp_path, 120)

    def test_two_signals_stop_immediately_and_lose_nothing(self, simulate: StartSimulator, tmp_path: Path) -> None:
        """After a second Ctrl-C the process ends without waiting for images, and the next run downloads them."""
        write_jobs(tmp_path / "jobs.jsonl", 60)
        gateway = simulate("--tiny", "--latency", "fixed:0.5", "--fault", "poll-hang", "--hang-duration", "3600")
        process = start_command(*self.arguments(gateway, "--rate", "40/s"), cwd=tmp_path)
        self.wait_until(gateway, 20, process)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        while "Ctrl-C again" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PROCESS_TIMEOUT_S)
        assert process.returncode == 130
        assert result_rows(tmp_path / "out") == []
        gateway.admin_request("/settings", {"faults": {}})
        self.finish(gateway, tmp_path, 60)

    def test_a_killed_run_resumes_without_a_second_charge(self, simulate: StartSimulator, tmp_path: Path) -> None:
        """After kill -9 the next run downloads accepted images; few jobs are ambiguous, none is charged twice."""
        write_jobs(tmp_path / "jobs.jsonl", 150)
        gateway = simulate("--tiny", "--latency", "uniform:0.5,2")
        for accepted in (20, 60, 100):
            process = start_command(*self.arguments(gateway, "--rate", "60/s"), cwd=tmp_path)
            self.wait_until(gateway, accepted, process)
            process.kill()
            process.communicate(timeout=PROCESS_TIMEOUT_S)
        done = run_command(*self.arguments(gateway), cwd=tmp_path)
        status = [row["status"] for row in result_rows(tmp_path / "out")]
        ambiguous = status.count("ambiguous")
        assert status.count("succeeded") + ambiguous == 150, done.stderr
        assert ambiguous <= 3 * INITIAL_PENDING  # about as many POSTs are pending at a kill
        assert done.returncode == (1 if ambiguous else 0)
        prompts = [post["body"]["prompt"] for post in gateway.admin_request("/ledger")["posts"] if post["charged"]]
        assert len(prompts) == len(set(prompts))

    def test_max_charges_is_never_exceeded(self, simulate: StartSimulator, tmp_path: Path) -> None:
        """With --max-charges 30, two runs charge 30 together, exit with 3, and name the option to raise."""
        write_jobs(tmp_path / "jobs.jsonl", 60)
        gateway = simulate(*RUN_SIMULATOR_OPTIONS)
        for _ in range(2):
            done = run_command(*self.arguments(gateway, "--max-charges", "30"), cwd=tmp_path)
            assert done.returncode == 3
            assert "--max-charges" in done.stdout
            assert gateway.admin_request("/totals")["charged"] == 30
        self.finish(gateway, tmp_path, 60)

    def test_a_stopped_simulation_resumes(self, tmp_path: Path) -> None:
        """A killed run with --simulate resumes with --simulate, which still knows the jobs in flight."""
        write_jobs(tmp_path / "jobs.jsonl", 6)
        arguments = ("run", "jobs.jsonl", "--out", "out", "--simulate", "--poll-interval", "0.5")
        process = start_command(*arguments, "--time-scale", "3", cwd=tmp_path, key="")
        wait_until(lambda: accepted_count(tmp_path / "out") == 6, process)
        process.kill()
        process.communicate(timeout=PROCESS_TIMEOUT_S)
        done = run_command(*arguments, "--time-scale", "100", cwd=tmp_path, key="")
        assert done.returncode == 0, done.stderr
        assert_all_stored(tmp_path / "out", {f"{n + 1:05d}": f"image {n}" for n in range(6)})


def accepted_count(out: Path) -> int:
    """Return the number of accepted submits, read from the ledger of a run by another connection."""
    try:
        with closing(sqlite3.connect(f"file:{out}/ledger.db?mode=ro", uri=True)) as connection:
            (count,) = connection.execute("SELECT count(*) FROM submissions WHERE result = 'accepted'").fetchone()
            return int(count)
    except sqlite3.OperationalError:
        return 0  # the file or the table does not exist yet


class TestRefusals:
    """Mistakes that give exit code 2 before anything is charged."""

    def assert_refused(
        self, tmp_path: Path, *arguments: str, gateway: RunningSimulator | None = None, key: str = "k"
    ) -> str:
        gateway_option = ("--gateway", gateway.gateway_url) if gateway else ()
        done = run_command("run", *arguments, "--out", "out", *gateway_option, cwd=tmp_path, key=key)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        if gateway:
            assert gateway.accepted() == 0
        return done.stderr

    def test_a_missing_key(self, tmp_path: Path) -> None:
        """Without a key the error names the variable, the option for a file, and --simulate."""
        write_jobs(tmp_path / "jobs.jsonl", 1)
        stderr = self.assert_refused(tmp_path, "jobs.jsonl", key="")
        assert all(hint in stderr for hint in ("PIXAZO_API_KEY", "--api-key-file", "--simulate"))
        assert not (tmp_path / "out").exists()

    def test_an_invalid_key_is_named_by_its_source(self, tmp_path: Path) -> None:
        """The error names the variable for a key from the environment, and the option for a key from a file."""
        write_jobs(tmp_path / "jobs.jsonl", 1)
        (tmp_path / "key").write_text("two words")
        problem = "the API key is empty or contains spaces or control characters; use it as issued\n"
        stderr = self.assert_refused(tmp_path, "jobs.jsonl", key="two words")
        assert stderr == f"krea-batch: PIXAZO_API_KEY: {problem}"
        stderr = self.assert_refused(tmp_path, "jobs.jsonl", "--api-key-file", "key")
        assert stderr == f"krea-batch: --api-key-file: {problem}"
        assert not (tmp_path / "out").exists()

    def test_all_invalid_lines_are_named_and_nothing_is_charged(
        self, simulate: StartSimulator, tmp_path: Path
    ) -> None:
        """Each invalid line is named by file and line, and the valid lines are not submitted either."""
        (tmp_path / "jobs.jsonl").write_text('{"prompt": "good"}\n{"promt": "bad"}\n{"prompt": ""}\nnonsense\n')
        stderr = self.assert_refused(tmp_path, "jobs.jsonl", gateway=simulate(*RUN_SIMULATOR_OPTIONS))
        assert [line.split(":")[1] for line in stderr.splitlines() if line.startswith("jobs.jsonl:")] == [
            "2",
            "3",
            "4",
        ]
        assert '"prompt"' in stderr
        assert stderr.splitlines()[-2] == "krea-batch: 3 invalid lines; fix them, or use --skip-invalid"

    def test_repeats_of_a_problem_are_limited(self, simulate: StartSimulator, tmp_path: Path) -> None:
        """The same problem in hundreds of lines is printed five times, and does not hide another problem."""
        lines = ['{"prompt": "a", "tag": 1}\n'] * 300
        lines[50] = "nonsense\n"
        (tmp_path / "jobs.jsonl").write_text("".join(lines))
        stderr = self.assert_refused(tmp_path, "jobs.jsonl", gateway=simulate(*RUN_SIMULATOR_OPTIONS))
        printed = stderr.splitlines()
        named = [int(line.split(":")[1]) for line in printed if line.startswith("jobs.jsonl:")]
        assert named == [1, 2, 3, 4, 5, 51]
        assert "… and 294 more like these; krea-batch validate shows all" in printed

    def test_skip_invalid_runs_the_valid_lines(self, simulate: StartSimulator, tmp_path: Path) -> None:
        """With --skip-invalid the valid lines run, and the invalid lines are still named."""
        (tmp_path / "jobs.jsonl").write_text('{"prompt": "good"}\n{"promt": "bad"}\n{"prompt": "fine"}\n')
        gateway = simulate(*RUN_SIMULATOR_OPTIONS)
        done = run_command(
            "run",
            "jobs.jsonl",
            "--skip-invalid",
            "--out",
            "out",
            "--gateway",
            gateway.gateway_url,
            *RUN_OPTIONS,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        assert "jobs.jsonl:2:" in done.stderr
        assert_all_stored(tmp_path / "out", {"00001": "good", "00003": "fine"})

    def test_a_changed_line_with_the_same_id_is_refused(self, simulate: StartSimulator, tmp_path: Path) -> None:
        """A line that changed after its id was charged is named, and nothing is submitted."""
        gateway = simulate(*RUN_SIMULATOR_OPTIONS)
        write_jobs(tmp_path / "jobs.jsonl", 3)
        arguments = ("run", "jobs.jsonl", "--out", "out", "--gateway", gateway.gateway_url, *RUN_OPTIONS)
        assert run_command(*arguments, cwd=tmp_path).returncode == 0
        (tmp_path / "jobs.jsonl").write_text('{"prompt": "image 0"}\n{"prompt": "other"}\n{"prompt": "image 2"}\n')
        done = run_command(*arguments, cwd=tmp_path)
        assert done.returncode == 2
        assert "jobs.jsonl:2:" in done.stderr
        assert gateway.accepted() == 3

    def test_a_folder_in_use_is_refused(self, simulate: StartSimulator, tmp_path: Path) -> None:
        """A second process cannot use the same run directory."""
        gateway = simulate("--tiny", "--latency", "fixed:30")
        write_jobs(tmp_path / "jobs.jsonl", 1)
        arguments = ("run", "jobs.jsonl", "--out", "out", "--gateway", gateway.gateway_url)
        process = start_command(*arguments, cwd=tmp_path)
        wait_until(gateway.accepted, process)
        second = run_command(*arguments, cwd=tmp_path)
        process.kill()
        process.communicate(timeout=PROCESS_TIMEOUT_S)
        assert second.returncode == 2
        assert "another krea-batch" in second.stderr

    @pytest.mark.parametrize(
        ("arguments", "hint"),
        [
            (["--rate", "fast"], "10/s"),
            (["--rate", "0/s"], "10/s"),
            (["--max-in-flight", "0"], "at least 1"),
            (["--poll-interval", "-1"], "greater than 0"),
            (["--gateway", "http://gateway.example"], "unencrypted"),
            (["--gateway", "ftp://x"], "https://"),
            (["--ambiguous", "maybe"], "resubmit"),
            (["--api-key-file", "nowhere"], "nowhere"),
            (["--no-such-option"], "No such option"),
        ],
    )
    def test_invalid_settings(self, tmp_path: Path, arguments: list[str], hint: str) -> None:
        """An invalid setting is refused with a hint."""
        write_jobs(tmp_path / "jobs.jsonl", 1)
        assert hint in self.assert_refused(tmp_path, "jobs.jsonl", *arguments)

    def test_a_file_that_is_not_a_ledger_is_refused(self, tmp_path: Path) -> None:
        """A ledger.db that is not a ledger of krea-batch is refused and not changed."""
        (tmp_path / "out").mkdir()
        (tmp_path / "out/ledger.db").write_bytes(b"not a database, but still a file to keep" * 50)
        write_jobs(tmp_path / "jobs.jsonl", 1)
        before = (tmp_path / "out/ledger.db").read_bytes()
        self.assert_refused(tmp_path, "jobs.jsonl")
        assert (tmp_path / "out/ledger.db").read_bytes() == before


class TestOutput:
    def test_json_and_quiet(self, simulate: StartSimulator, tmp_path: Path) -> None:
        """--json prints one object on standard output, and --quiet prints nothing."""
        write_jobs(tmp_path / "jobs.jsonl", 2)
        arguments = (
            "run",
            "jobs.jsonl",
            "--out",
            "out",
            "--gateway",
            simulate(*RUN_SIMULATOR_OPTIONS).gateway_url,
            *RUN_OPTIONS,
        )
        done = run_command(*arguments, "--json", cwd=tmp_path)
        summary = json.loads(done.stdout)
        assert summary["jobs"] == {"succeeded": 2}
        assert summary["charges"] == {"charged": 2, "refunded": 0, "unknown": 0, "server_errors": 0}
        quiet = run_command(*arguments, "--quiet", cwd=tmp_path)
        assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")

    def test_a_terminal_shows_bars_and_a_pipe_gets_lines(self, simulate: StartSimulator, tmp_path: Path) -> None:
        """A terminal shows the live display; a pipe gets plain lines without control codes."""
        write_jobs(tmp_path / "jobs.jsonl", 8)
        arguments = ("run", "jobs.jsonl", "--gateway", simulate(*RUN_SIMULATOR_OPTIONS).gateway_url, *RUN_OPTIONS)
        piped = run_command(*arguments, "--out", "piped", cwd=tmp_path)
        assert "8/8 done" in piped.stderr
        assert "\x1b" not in piped.stderr + piped.stdout
        code, screen = run_in_terminal([*COMMAND, *arguments, "--out", "shown"], tmp_path)
        assert code == 0
        assert "━" in screen
        assert "8/8" in screen
        assert "in flight" in screen

    def test_options_from_environment_and_file(self, simulate: StartSimulator, tmp_path: Path) -> None:
        """Options can be set in krea-batch.toml or, with precedence, the environment; unknown ones are named."""
        write_jobs(tmp_path / "jobs.jsonl", 2)
        gateway = simulate(*RUN_SIMULATOR_OPTIONS)
        (tmp_path / "krea-batch.toml").write_text('poll-interval = 0.5\nlog-format = "json"\nrate = "nonsense"\n')
        done = run_command(
            "run", "jobs.jsonl", "-vv", cwd=tmp_path,
            KREA_BATCH_RATE="500/s", KREA_BATCH_OUT="given", KREA_BATCH_GATEWAY=gateway.gateway_url,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "given/results.jsonl").exists()
        assert '{"time":' in done.stderr
        (tmp_path / "krea-batch.toml").write_text('rat = "1/s"\n')
        done = run_command("run", "jobs.jsonl", "--out", "o", cwd=tmp_path)
        assert done.returncode == 2
        assert "'rate'" in done.stderr

    def test_status_reports_the_state_of_a_run(self, simulate: StartSimulator, tmp_path: Path) -> None:
        """`status` prints job counts as text and JSON; a directory without a run is named."""
        write_jobs(tmp_path / "jobs.jsonl", 3)
        gateway = simulate(*RUN_SIMULATOR_OPTIONS)
        run_command("run", "jobs.jsonl", "--out", "out", "--gateway", gateway.gateway_url, *RUN_OPTIONS, cwd=tmp_path)
        assert "3 stored" in run_command("status", "out", cwd=tmp_path).stdout
        status = json.loads(run_command("status", "out", "--json", cwd=tmp_path).stdout)
        assert status["jobs"] == {"succeeded": 3}
        nowhere = run_command("status", "elsewhere", cwd=tmp_path)
        assert nowhere.returncode == 2
        assert "elsewhere" in nowhere.stderr

    def test_help_imports_nothing_heavy(self, tmp_path: Path) -> None:
        """`krea-batch --help` imports none of the libraries that are slow to import."""
        code = (
            "import sys\nfrom krea_batch.cli.app import app\n"
            "try: app(['--help'], prog_name='krea-batch')\n"
            "except SystemExit: pass\n"
            "heavy = {'aiohttp', 'anyio', 'asyncio', 'rich', 'sqlite3', 'msgspec', 'PIL', 'orjson', 'aiolimiter'}\n"
            "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
        )
        done = subprocess.run(
            [COMMAND[0], "-c", code], capture_output=True, text=True, env=clean_environment(), cwd=tmp_path
        )
        assert done.stderr.strip() == "[]"
        assert "run" in done.stdout


def test_a_job_that_changed_after_the_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line whose id another run has used since the check is not sent; the run ends with 3 and names the job."""
    path = tmp_path / "jobs.jsonl"
    path.write_text('{"id": "new", "prompt": "new"}\n{"id": "x", "prompt": "this"}\n')
    settings = Settings.from_options(tmp_path / "out", gateway="http://127.0.0.1:1", poll_interval_s=0.05)
    options = {"quiet": False, "as_json": False, "metrics_port": None, "no_thumbnails": True, "time_scale": 100.0}
    with JobFiles([str(path)]) as files:
        session = RunSession(
            settings, None, files, check_jobs(files, settings, skip_invalid=False, quiet=True), options
        )
        other = Engine(settings=settings, gateway_client=ScriptedGateway())
        asyncio.run(generate_in(other, Job(prompt="other", id="x")))
        assert asyncio.run(session.run()) == 3
    assert {row["id"]: row["request"]["prompt"] for row in result_rows(settings.out)} == {"x": "other", "new": "new"}
    assert "job 'x': the job has changed since this id was submitted" in capsys.readouterr().out


async def generate_in(engine: Engine, job: Job) -> None:
    async with engine:
        assert (await engine.generate(job)).succeeded


def test_the_real_gateway_after_a_simulation(tmp_path: Path) -> None:
    """The run directory of a simulation is refused for the real gateway, and the error says what it is."""
    write_jobs(tmp_path / "jobs.jsonl", 1)
    options = ("jobs.jsonl", "--out", "out", "-q")
    assert run_command("run", *options, "--simulate", "--time-scale=100", cwd=tmp_path).returncode == 0
    done = run_command("run", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert "http://127.0.0.1 (the simulator, or another gateway of this machine), not to https://" in done.stderr
    assert "use another run directory" in done.stderr
