"""Workers on several machines with a ledger in PostgreSQL, while processes, the database and networks fail."""

from __future__ import annotations

import os
import shutil
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from random import Random

import orjson
import pytest

from krea_batch.rules.pending_limit import INITIAL_PENDING
from tests.crash.crash_scenario import SIMULATOR_OPTIONS
from tests.crash.faulty_workers import Fault, Worker, duration_s, kill, run_with_faults, stop
from tests.crash.network_namespace import NETWORK, NetworkNamespace, require_namespaces
from tests.crash.test_database import DatabaseScenario
from tests.postgres_server import MISSING, USER, PostgresServer, find_programs
from tests.processes import RunningSimulator, StartSimulator, run_command

pytestmark = pytest.mark.slow

MIN_KILLS = int(os.environ.get("KILLS", "4"))
FAULTS_PER_KILL = {"stop": 0.25, "crash the database": 0.1, "cut the database": 0.1, "cut the gateway": 0.1}
KILLS_PER_RUN = 10
MACHINES = 3
JOBS = 450
CAP = 150
OPTIONS = ("--rate", "12/s", "--poll-interval", "0.3")


class Machine(DatabaseScenario):
    """One of several machines that work on a batch, each with a directory of its own below `directory`."""

    def __init__(
        self,
        simulator: RunningSimulator,
        directory: Path,
        url: str,
        batch: str,
        number: int,
        *,
        options: Sequence[str] = OPTIONS,
    ) -> None:
        super().__init__(simulator, directory, JOBS, url, batch, out=f"{batch}-on-{number}")
        self._options = ["--ledger", url, "--batch", batch, *options]
        self.others: list[Machine] = []
        self._temporary = directory / f"temporary-{number}"
        self._temporary.mkdir(exist_ok=True)

    @property
    def with_own_files(self) -> tuple[str, str]:
        """The command that hides the process locks of the machine from the others, so that they wait for leases."""
        return "env", f"TMPDIR={self._temporary}"

    def image_path(self, name: str) -> Path:
        """Return where an image is: on the machine that has downloaded it."""
        return next(path for each in self.others if (path := each.out / name).exists())


class CappedMachine(Machine):
    """A machine of a run with --max-charges."""

    def has_ended(self, code: int) -> bool:
        return super().has_ended(code) or (code == 3 and self.charges() >= CAP)

    def charges(self) -> int:
        """Return how many POSTs were charged, or may have been."""
        done = run_command("status", self.out.name, "--json", cwd=self.directory)
        charges = orjson.loads(done.stdout)["charges"]
        return int(charges["charged"] + charges["unknown"] + charges["refunded"])


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server that the namespaces reach."""
    programs = find_programs()
    if programs is None:
        pytest.skip(MISSING)
    pytest.importorskip("psycopg", reason=MISSING)
    with socket.create_server(("", 0)) as free:
        port = free.getsockname()[1]
    server = PostgresServer(programs, NETWORK, port)
    yield server
    server.remove()


def faults_of(server: PostgresServer, networks: dict[Path, NetworkNamespace]) -> dict[str, Fault]:
    """Return what can happen to a worker, by name."""

    def crash_database(_: Worker, __: Random) -> None:
        server.restart("immediate")

    def cut_network(kind: str, worker: Worker, random: Random) -> None:
        network = networks[worker.scenario.out]
        network.cut(kind)
        worker.disturb(lambda: network.connect(kind), duration_s(random))

    return {
        "kill": kill,
        "stop": stop,
        "crash the database": crash_database,
        "cut the database": lambda worker, random: cut_network("database", worker, random),
        "cut the gateway": lambda worker, random: cut_network("gateway", worker, random),
    }


def test_whatever_fails(simulate: StartSimulator, server: PostgresServer, tmp_path: Path) -> None:
    """No job is charged twice, no charged job is lost, and each machine has the results of all jobs at the end."""
    require_namespaces()
    simulator = simulate(*SIMULATOR_OPTIONS, "--host", "0.0.0.0")
    random = Random(os.environ.get("KILL_SEED", "1"))
    done, ambiguous, runs = Counter[str](), 0, 0
    with ExitStack() as stack:
        networks = [NetworkNamespace(number, simulator) for number in range(MACHINES)]
        for network in networks:
            stack.callback(network.close)
        while done["kill"] < MIN_KILLS:
            simulator.admin_request("/reset", {})
            kills = min(KILLS_PER_RUN, MIN_KILLS - done["kill"])
            counts = {"kill": kills} | {name: max(1, round(kills * part)) for name, part in FAULTS_PER_KILL.items()}
            urls = [f"postgresql://{USER}@{each.addresses['database']}:{server.port}/postgres" for each in networks]
            machines = [Machine(simulator, tmp_path, url, f"failing-{runs}", n) for n, url in enumerate(urls)]
            by_out = {machine.out: network for machine, network in zip(machines, networks, strict=True)}
            workers = [
                Worker(each, *network.wrapper, *each.with_own_files)
                for each, network in zip(machines, networks, strict=True)
            ]
            run_done = run_with_faults(workers, random, faults_of(server, by_out), counts)
            run_ambiguous = check_accounting(machines)
            assert run_ambiguous <= INITIAL_PENDING * run_done.total()
            done, ambiguous, runs = done + run_done, ambiguous + run_ambiguous, runs + 1
            for machine in machines:
                shutil.rmtree(machine.out)
    faults = ", ".join(f"{count} × {name}" for name, count in done.items())
    what = f"{runs} runs of {JOBS} jobs on {MACHINES} machines"
    print(f"{faults} in {what}: 0 charged twice, 0 lost, {ambiguous} ambiguous")


def check_accounting(machines: Sequence[Machine]) -> int:
    """Check the accounting of a run that has ended. Return the number of ambiguous jobs."""
    for machine in machines:
        machine.others = list(machines)
        machine.finish()
    return {machine.check_accounting() for machine in machines}.pop()


def test_the_limit_of_charges(simulate: StartSimulator, server: PostgresServer, tmp_path: Path) -> None:
    """Whichever processes are killed and stopped, the run ends with exactly so many charges, or possible ones."""
    simulator = simulate(*SIMULATOR_OPTIONS)
    options = (*OPTIONS, "--max-charges", str(CAP))
    machines = [
        CappedMachine(simulator, tmp_path, server.url, "capped", number, options=options)
        for number in range(MACHINES)
    ]
    workers = [Worker(each) for each in machines]
    random = Random(os.environ.get("KILL_SEED", "1"))
    counts = {"kill": 3, "stop": 1, "crash the database": 1}
    done = run_with_faults(workers, random, faults_of(server, {}), counts)
    assert done.total() >= 3
    assert {machine.charges() for machine in machines} == {CAP}
    posts = [post for post in simulator.admin_request("/ledger")["posts"] if post["charged"]]
    assert max(Counter(post["body"]["prompt"] for post in posts).values()) == 1
    sql = "SELECT s.request_id, s.result, body FROM submissions s JOIN jobs USING (job_no)"
    submissions = [
        (request_id, result, orjson.loads(body)["prompt"]) for request_id, result, body in machines[0].query(sql)
    ]
    recorded = {request_id for request_id, _, _ in submissions}
    ambiguous = {prompt for _, result, prompt in submissions if result == "ambiguous"}
    assert all(post["request_id"] in recorded or post["body"]["prompt"] in ambiguous for post in posts)
