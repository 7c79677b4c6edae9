"""The images of a Ray Dataset. Without Ray, only what is refused before Ray is used is tested."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from benchmarks.ray_rows import actor_processes
from krea_batch import InputError, SettingsError
from krea_batch.ray import ActorOptions, generate_images
from tests.engine_fixtures import query_ledger
from tests.postgres_server import shared_server
from tests.processes import PROCESS_TIMEOUT_S, ThreadedSimulator, wait_until
from tests.storage.s3_server import S3Server

ROOT = Path(__file__).parents[1]
KEY = "test-key"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
RAY_IS_MISSING = "Ray is not installed (pip install 'krea-batch[ray]'), so no dataset is executed"

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason=RAY_IS_MISSING)
with_warnings_of_ray = pytest.mark.filterwarnings("default")  # of its own deprecations


class ColumnNames:
    """A dataset of which only the columns are looked at."""

    def __init__(self, *names: str) -> None:
        self._names = list(names)

    def columns(self) -> list[str]:
        return self._names


@pytest.mark.parametrize(
    ("columns", "parameters", "says"),
    [
        (("prompt",), {}, "no column id .it has prompt.; give each row an id of its own.* do not number the rows"),
        (("id", "seed"), {}, "no column prompt"),
        (("id", "prompt", "sede"), {}, "'sede' is not a field of a job; did you mean 'seed'"),
        (("id", "prompt", "label"), {}, "'label' is not a field of a job; pass keep_extra=True"),
        (("id", "prompt", "status"), {"keep_extra": True}, "a column 'status', which is added; rename or drop"),
        (("id", "prompt"), {"workers": 0}, "workers: 0 actors; use 1 or more"),
        (("id", "prompt"), {"api_key": "secret"}, "api_key: cannot be passed.* set PIXAZO_API_KEY on each node"),
        (("id", "prompt"), {"rate": "fast"}, "rate: invalid rate 'fast'"),
        (("id", "prompt"), {"speed": 1}, "speed: unknown setting"),
        (("id", "prompt"), {"batch": "cats"}, "batch: names a batch in a database.* pass ledger"),
    ],
    ids=[
        "no id", "no prompt", "a typing error", "an extra column", "a result column", "no actors", "a key",
        "a bad rate", "an unknown setting", "a batch without a ledger",
    ],
)  # fmt: skip
def test_refused_before_anything_is_charged(
    columns: tuple[str, ...], parameters: dict[str, Any], says: str, tmp_path: Path
) -> None:
    """What cannot work is refused when the dataset is made, with what to do instead."""
    with pytest.raises(InputError, match=says) as caught:
        generate_images(ColumnNames(*columns), out=tmp_path, **parameters)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({}, "out: missing; pass the run directory"),
        ({"ledger": "postgresql://db/krea"}, "batch: missing; name the batch"),
        ({"ledger": "postgresql://db/krea", "batch": "cats"}, "sink: missing, although the ledger is in a database"),
        ({"ledger": "postgresql://a:b@db/krea", "batch": "cats", "sink": "s3://b"}, "ledger: the url has a password"),
        (
            {"ledger": "sqlite:///x", "batch": "cats", "sink": "s3://b"},
            "ledger: the url does not start with postgres",
        ),
    ],
    ids=["no out", "no batch", "no sink", "a password", "another database"],
)
def test_refused_places_of_the_ledger(parameters: dict[str, Any], says: str) -> None:
    """A ledger that the actors of several nodes cannot share is refused."""
    with pytest.raises(SettingsError, match=says):
        generate_images(ColumnNames("id", "prompt"), **parameters)


def test_the_key_is_not_pickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent to the actors has no key."""
    monkeypatch.setenv("PIXAZO_API_KEY", "a-secret-key")
    assert b"a-secret-key" not in pickle.dumps(ActorOptions.of(tmp_path, None, None, {"rate": "5/s"}))


@contextmanager
def ray_session(**environment: str) -> Iterator[None]:
    """Run Ray on this machine. Its workers have these environment variables."""
    import ray

    environment |= {"PYTHONPATH": str(ROOT)}
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        runtime_env={"env_vars": environment},
    )
    try:
        yield
    finally:
        ray.shutdown()


def execute(rows: list[dict[str, Any]], gateway: ThreadedSimulator, **parameters: Any) -> dict[str, dict[str, Any]]:
    """Return the rows that the dataset yields by their id; each comes once."""
    import ray

    dataset = ray.data.from_items(rows, override_num_blocks=1)
    given: dict[str, Any] = {"rate": "200/s", "gateway": gateway.gateway_url, "poll_interval_s": 0.3} | parameters
    executed = generate_images(dataset, **given).take_all()
    assert len(executed) == len(rows)
    return {row["id"]: row for row in executed}


def charged_prompts(gateway: ThreadedSimulator) -> Counter[str]:
    posts = gateway.admin_request("/ledger")["posts"]
    return Counter(post["body"]["prompt"] for post in posts if post["charged"])


def numbered_rows(count: int) -> list[dict[str, Any]]:
    return [{"id": f"row-{n}", "prompt": f"image {n}"} for n in range(count)]


@pytest.fixture(scope="module")
def ray_bucket() -> Iterator[S3Server]:
    """An empty bucket, which the actors of `session` find."""
    with S3Server() as server:
        server.reset()
        yield server


@pytest.fixture(scope="module")
def session(ray_bucket: S3Server) -> Iterator[None]:
    """One session of Ray for several tests."""
    with ray_session(PIXAZO_API_KEY=KEY, **ray_bucket.environment):
        yield


@pytest.fixture
def gateway() -> Iterator[ThreadedSimulator]:
    simulator = ThreadedSimulator("--tiny", "--latency", "uniform:0.3,0.8")
    yield simulator
    simulator.close()


@needs_ray
@pytest.mark.slow
@with_warnings_of_ray
def test_a_node_without_a_key(tmp_path: Path, simulate: Callable[..., ThreadedSimulator]) -> None:
    """The error names the environment variable."""
    with ray_session(PIXAZO_API_KEY=""), pytest.raises(Exception, match="set PIXAZO_API_KEY"):
        execute(numbered_rows(1), simulate("--tiny"), out=tmp_path / "out")


@needs_ray
@pytest.mark.slow
@with_warnings_of_ray
@pytest.mark.usefixtures("session")
class TestExecution:
    """Datasets in one session of Ray."""

    def test_rows_come_back_with_their_images(self, gateway: ThreadedSimulator, tmp_path: Path) -> None:
        """Each row has its other columns and its image; an invalid one says why. The same rows again are free."""
        rows = [{**row, "seed": 7, "label": "a"} for row in numbered_rows(50)]
        rows[3]["prompt"] = " "
        first = execute(rows, gateway, out=tmp_path / "out", keep_extra=True)
        refused = first.pop("row-3")
        assert (refused["status"], refused["paths"], refused["request_id"]) == ("rejected", [], None)
        assert "prompt" in refused["error"]
        for row in first.values():
            assert (row["status"], row["error"], row["label"], row["seed"]) == ("succeeded", None, "a", 7)
            assert row["request_id"]
            assert [Path(path).read_bytes()[:8] for path in row["paths"]] == [PNG_SIGNATURE]
        again = execute(rows, gateway, out=tmp_path / "out", keep_extra=True)
        assert [again[name] for name in first] == list(first.values())
        assert charged_prompts(gateway) == Counter(row["prompt"] for row in rows if row["prompt"] != " ")

    def test_an_id_with_another_prompt(self, gateway: ThreadedSimulator, tmp_path: Path) -> None:
        """A row whose id was paid for with another prompt is not sent."""
        execute(numbered_rows(1), gateway, out=tmp_path / "out")
        changed = execute([{"id": "row-0", "prompt": "another"}], gateway, out=tmp_path / "out")["row-0"]
        assert changed["status"] == "rejected"
        assert "row-0" in changed["error"]
        assert charged_prompts(gateway) == {"image 0": 1}

    def test_a_row_without_an_id(self, gateway: ThreadedSimulator, tmp_path: Path) -> None:
        """It ends the dataset, with advice, because Ray may number rows differently each time."""
        rows: list[dict[str, Any]] = [{"id": None, "prompt": "a cat"}, {"id": "b", "prompt": "a dog"}]
        with pytest.raises(Exception, match="a row has no id; give each row an id of its own"):
            execute(rows, gateway, out=tmp_path / "out")

    def test_a_limit_of_charges(self, gateway: ThreadedSimulator, tmp_path: Path) -> None:
        """The actors keep to one limit exactly, the error names it, and a higher one resumes."""
        with pytest.raises(Exception, match="max_charges"):
            execute(numbered_rows(60), gateway, out=tmp_path / "out", max_charges=25)
        assert charged_prompts(gateway).total() == 25
        rows = execute(numbered_rows(60), gateway, out=tmp_path / "out", max_charges=60)
        assert {row["status"] for row in rows.values()} == {"succeeded"}
        assert charged_prompts(gateway) == Counter(f"image {n}" for n in range(60))

    def test_a_ledger_in_a_database(self, gateway: ThreadedSimulator, tmp_path: Path) -> None:
        """The actors of several nodes share a database and a bucket; each node has a directory of its own."""
        pytest.importorskip("psycopg")
        place = {"ledger": shared_server().url, "batch": "ray", "sink": "s3://images/cats"}
        first = execute(numbered_rows(40), gateway, out=tmp_path / "one", **place)
        assert {row["status"] for row in first.values()} == {"succeeded"}
        assert {row["paths"][0] for row in first.values()} == {f"s3://images/cats/row-{n}.png" for n in range(40)}
        assert execute(numbered_rows(40), gateway, out=tmp_path / "another", **place) == first
        assert charged_prompts(gateway) == Counter(f"image {n}" for n in range(40))

    def test_an_actor_that_stands_still(self, gateway: ThreadedSimulator, tmp_path: Path) -> None:
        """Others take over its jobs. When it goes on, it opens a new engine, and completes its rows."""

        def suspend_one() -> None:
            wait_until(lambda: gateway.accepted() >= 100)
            stopped.append(actor_processes()[0])
            os.kill(stopped[0], signal.SIGSTOP)
            wait_until(lambda: query_ledger(tmp_path / "out", "SELECT 1 FROM runs WHERE ended_at IS NOT NULL"))
            os.kill(stopped[0], signal.SIGCONT)

        stopped: list[int] = []
        suspending = threading.Thread(target=suspend_one)
        suspending.start()
        rows = execute(numbered_rows(400), gateway, out=tmp_path / "out", rate="15/s")
        suspending.join()
        assert stopped
        assert {row["status"] for row in rows.values()} <= {"succeeded", "ambiguous"}
        assert max(charged_prompts(gateway).values()) == 1


@needs_ray
@pytest.mark.slow
def test_killed_actors() -> None:
    """Actors are killed: every row comes out once, and none is paid for twice. The control shows that it could be."""
    command = [sys.executable, "-m", "benchmarks.ray_rows", "--rows", "300", "--kills", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PROCESS_TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    _, _, engine, control = (line.split("|") for line in done.stdout.splitlines() if line.startswith("|"))
    assert [cell.strip() for cell in engine[1:6]] == ["engine", "300", "300", "2", "0"]
    assert [cell.strip() for cell in control[1:5]] == ["control", "300", "300", "2"]
    assert int(control[5]) > 0
