"""What `krea-batch bench --compare` compares: the programs, the faults, and what is counted for each program.

Everything is counted from outside, the same way for each program: charges and polls by the accounting of the
simulator, images by the files in the output directory.
"""

from __future__ import annotations

from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path

import msgspec

from krea_batch.benchmark.measurements import rate_per_s
from krea_batch.benchmark.simulator_ledger import SimulatedLedger
from krea_batch.storage.run_dir import PNG_END

FAULTS = {
    "submit-hang": 1.0,  # each POST is answered after ANSWER_DELAY_S
    "submit-503": 0.02,
    "submit-504": 0.01,  # charged: a proxy gives up, the gateway does not
    "poll-500": 0.02,
    "cdn-503": 0.02,
}
"""Chosen: the faults of an ordinary day, which each program has to survive."""
ANSWER_DELAY_S = 0.2  # chosen: what a POST to a distant gateway takes; a kill finds POSTs that wait for their answer
RATE = "50/s"  # chosen: low enough for two cores
KILLS = 3  # chosen: each time when another quarter of the jobs has been accepted
JOBS_DURATION_S = 20.0  # chosen: the submits of a program; several times what the programs take to start


class ComparedProgram(StrEnum):
    """A program of the comparison. The value is its name in tables and plots."""

    ENGINE = "krea-batch"
    CALLBACKS = "krea-batch, callbacks"
    THREADS = "requests, threads"
    TASKS = "asyncio, a task per job"
    DEMO = "the API's example in threads"
    CELERY = "Celery task"
    RAY = "Ray stage"

    @property
    def module(self) -> str:
        """The module that is run. The engine is run as the command."""
        return "krea_batch" if self in ENGINES else f"krea_batch.benchmark.scripts.{MODULES[self]}"

    @property
    def missing_package(self) -> str | None:
        """The package that this program needs and that is not installed."""
        package = PACKAGES.get(self)
        return package if package and find_spec(package) is None else None


ENGINES = (ComparedProgram.ENGINE, ComparedProgram.CALLBACKS)
MODULES = {
    ComparedProgram.THREADS: "thread_pool",
    ComparedProgram.TASKS: "asyncio_tasks",
    ComparedProgram.DEMO: "document_demo",
    ComparedProgram.CELERY: "celery_worker",
    ComparedProgram.RAY: "ray_stage",
}
PACKAGES = {ComparedProgram.CELERY: "celery", ComparedProgram.RAY: "ray"}
INSTALL_COMMANDS = {"celery": "pip install celery", "ray": "pip install 'krea-batch[ray]'"}


class ProgramRun(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the jobs of one run, restarts included.

    `paid_without_image` are charges whose image was never stored; `charged_twice` are the charges beyond one per job;
    `jobs_left` are jobs without an image, of which `jobs_not_charged` were never accepted. A program that fails again
    after its restarts has a `problem`.
    """

    jobs: int
    kills: int
    limit_utilisation: float | None
    polls_per_job: float
    rate_limited: int
    cpu_ms_per_job: float
    paid_without_image: int
    charged_twice: int
    jobs_left: int
    jobs_not_charged: int
    problem: str | None = None


class ComparisonRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the comparison: a run without kills, and one with kills; none if a package is missing."""

    program: ComparedProgram
    steady: ProgramRun | None = None
    killed: ProgramRun | None = None
    missing_package: str | None = None

    @property
    def remark(self) -> str:
        """Why values are missing; empty if none are."""
        if self.missing_package:
            return f"not installed: {INSTALL_COMMANDS[self.missing_package]}"
        return next((f"failed: {run.problem}" for run in (self.steady, self.killed) if run and run.problem), "")


def count_run(
    ledger: SimulatedLedger, images: int, *, jobs: int, kills: int, per_s: float, cpu_s: float, problem: str | None
) -> ProgramRun:
    """Count what became of the jobs of a run."""
    first_accepted_s: dict[object, float] = {}
    charges = [post for post in ledger.posts if post.charged]
    for post in charges:
        first_accepted_s.setdefault((post.body or {}).get("prompt"), post.at_s)
    accepted_per_s = rate_per_s([*first_accepted_s.values()])
    return ProgramRun(
        jobs=jobs,
        kills=kills,
        limit_utilisation=None if accepted_per_s is None else accepted_per_s / per_s,
        polls_per_job=ledger.totals.polls / jobs,
        rate_limited=sum(post.status == 429 for post in ledger.posts),
        cpu_ms_per_job=1000 * cpu_s / jobs,
        paid_without_image=len(charges) - images,
        charged_twice=len(charges) - len(first_accepted_s),
        jobs_left=jobs - images,
        jobs_not_charged=jobs - len(first_accepted_s),
        problem=problem,
    )


def count_images(out: Path) -> int:
    """Return the number of complete PNGs in a directory and those below it."""
    return sum(path.read_bytes().endswith(PNG_END) for path in out.rglob("*.png"))


def jobs_before_kill(jobs: int) -> int:
    """Return how many more submits are accepted after each start, before the program is killed."""
    return max(1, jobs // (KILLS + 1))
