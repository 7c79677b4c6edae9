"""A run that is killed and resumed, and a check of its ledger and images against the simulator's accounting."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from tests.processes import (
    COMMAND,
    PROCESS_TIMEOUT_S,
    RunningSimulator,
    clean_environment,
    result_rows,
    run_command,
    wait_until,
    write_jobs,
)

SIMULATOR_OPTIONS = ("--tiny", "--latency", "uniform:0.2,0.8")
RUN_OPTIONS = ("--rate", "200/s", "--poll-interval", "0.3")


class CrashScenario:
    """A run of `count` jobs into `out`, which is started, killed and resumed."""

    def __init__(
        self,
        simulator: RunningSimulator,
        directory: Path,
        count: int,
        out: Path | None = None,
        options: Sequence[str] = RUN_OPTIONS,
    ) -> None:
        self.simulator = simulator
        self.directory = directory
        self.out = out or directory / "out"
        write_jobs(directory / "jobs.jsonl", count)
        self.count = count
        self.kills = 0
        self._options = options

    @property
    def command(self) -> list[str]:
        out, gateway = str(self.out), self.simulator.gateway_url
        return ["run", "jobs.jsonl", "--out", out, "--gateway", gateway, *self._options, "--quiet"]

    def start(self, *wrapper: str, stderr: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        """Start the command, under another one if a wrapper is given."""
        return subprocess.Popen(
            [*wrapper, *COMMAND, *self.command],
            cwd=self.directory,
            env=clean_environment(PIXAZO_API_KEY="test-key"),
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )

    def wait_for_accepted(self, count: int, process: subprocess.Popen[bytes]) -> None:
        """Wait until the gateway has accepted this many jobs of the process that was started."""
        wait_until(lambda: self.simulator.accepted() >= count, process)

    def kill_after(self, seconds: float) -> bool:
        """Run the command and kill it after this time. Returns False if it had already ended."""
        process = self.start()
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        process.wait(PROCESS_TIMEOUT_S)
        timer.cancel()
        self.kills += process.returncode < 0
        return process.returncode < 0

    def finish(self) -> int:
        """Run the command to its end and return its exit code, 0 or 1."""
        done = run_command(*self.command, cwd=self.directory)
        assert done.returncode in (0, 1), done.stderr
        return done.returncode

    def has_ended(self, code: int) -> bool:
        """Return whether a process with this exit code has nothing left to do."""
        return code in (0, 1)

    @property
    def ledger(self) -> Path:
        return self.out / "ledger.db"

    def accepted_request_ids(self) -> set[str]:
        """Return the recorded request ids, an empty set if there is no ledger yet."""
        if not self.query("SELECT 1 FROM sqlite_schema WHERE name = 'submissions'"):
            return set()
        return {
            request_id for (request_id,) in self.query("SELECT request_id FROM submissions WHERE result = 'accepted'")
        }

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(self.ledger)
        try:
            return connection.execute(sql).fetchall()
        finally:
            connection.close()

    def check_accounting(self) -> int:
        """Check that no job is charged twice, every charge is recorded or ambiguous, and all images are right.

        Returns the number of ambiguous jobs.
        """
        posts = [post for post in self.simulator.admin_request("/ledger")["posts"] if post["charged"]]
        charges = Counter(post["body"]["prompt"] for post in posts)
        assert max(charges.values(), default=0) <= 1, f"charged twice: {charges.most_common(3)}"
        sql = "SELECT s.request_id, body FROM submissions s JOIN jobs USING (job_no)"
        recorded = {request_id: json.loads(body)["prompt"] for request_id, body in self.query(sql) if request_id}
        status_of = {row["request"]["prompt"]: row["status"] for row in result_rows(self.out)}
        assert len(status_of) == self.count
        for post in posts:
            prompt = post["body"]["prompt"]
            if post["request_id"] not in recorded:
                assert status_of[prompt] == "ambiguous", f"{prompt} was charged, but is not recorded"
            else:
                assert recorded[post["request_id"]] == prompt
                assert status_of[prompt] == "succeeded"
        self.check_images()
        assert set(status_of.values()) <= {"succeeded", "ambiguous"}
        return list(status_of.values()).count("ambiguous")

    def check_images(self) -> None:
        """Check that every image is complete and belongs to its job."""
        for row in result_rows(self.out):
            for file in row["files"]:
                with Image.open(self.image_path(file["path"])) as image:
                    image.load()
                    assert image.text["prompt"] == row["request"]["prompt"]  # type: ignore[attr-defined]
                    assert image.text["request_id"] == row["request_id"]  # type: ignore[attr-defined]

    def image_path(self, name: str) -> Path:
        """Return where an image is."""
        return self.out / name
