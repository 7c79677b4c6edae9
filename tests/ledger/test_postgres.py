"""The ledger in PostgreSQL keeps every commit, once, whatever happens to the connection and the server."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from itertools import count
from pathlib import Path
from typing import Any, get_args

import pytest

from krea_batch.errors import FencedError, InternalError, LedgerError, RunDirError
from krea_batch.jobs import State
from krea_batch.ledger import Charges, Ledger, read_ledger, snapshot_ledger, waiting
from krea_batch.ledger.opening import open_for_changes, read_if_any
from krea_batch.ledger.postgres.ledger_address import LedgerAddress, read_address
from krea_batch.ledger.sqlite import SqliteLedger
from krea_batch.ledger.writer import Operation, commit
from tests.ledger.operations import METADATA, REQUEST_BODY, STORE_ERROR, accept, apply_all, finish, intent
from tests.postgres_server import PostgresServer, find_programs, shared_server
from tests.processes import PROCESS_TIMEOUT_S, run_command

psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed, so no test of PostgreSQL runs")

from krea_batch.ledger.postgres.durability import ServerSettings, find_danger, find_risk  # noqa: E402
from krea_batch.ledger.postgres.postgres_ledger import SCHEMA_VERSION, PostgresLedger  # noqa: E402
from tests.ledger.cutting_proxy import Cut, CuttingProxy  # noqa: E402

PATH = Path("ledger.toml")
_numbers = count(1)


@pytest.fixture
def server() -> PostgresServer:
    return shared_server()


@pytest.fixture
def address(server: PostgresServer) -> LedgerAddress:
    """A batch that does not exist."""
    return LedgerAddress(server.url, f"new-{next(_numbers)}")


@pytest.fixture
def store(address: LedgerAddress) -> Iterator[PostgresLedger]:
    with closing(PostgresLedger.open(PATH, address)) as opened:
        yield opened


@pytest.fixture
def proxy(server: PostgresServer) -> Iterator[CuttingProxy]:
    with closing(CuttingProxy(server.folder)) as proxy:
        yield proxy


@pytest.fixture
def behind_proxy(proxy: CuttingProxy, address: LedgerAddress) -> Iterator[PostgresLedger]:
    """A ledger behind a proxy that can cut its connection."""
    with closing(PostgresLedger.open(PATH, LedgerAddress(proxy.url, address.batch))) as opened:
        yield opened


def execute(url: str, *statements: str) -> None:
    """Execute statements as another client, each on its own."""
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


# ---- the connection breaks -------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", get_args(Cut))
def test_an_intent_whose_answer_is_lost(proxy: CuttingProxy, behind_proxy: PostgresLedger, cut: Cut) -> None:
    """If the connection breaks at the commit of intents, they are recorded once, and callers get their numbers."""
    apply_all(behind_proxy, intent("a"), lambda ledger: ledger.revert_intent(1, "not_sent"))
    proxy.cut = cut
    assert apply_all(behind_proxy, intent("b"), intent("a")) == 1
    assert proxy.cuts == 1
    assert behind_proxy.charges() == Charges(unknown=2)
    assert [behind_proxy.outcome(number).attempts for number in (1, 2)] == [2, 1]
    assert behind_proxy.counts() == {State.SUBMITTING: 2}


@pytest.mark.parametrize("cut", get_args(Cut))
def test_each_transition_is_applied_once(proxy: CuttingProxy, behind_proxy: PostgresLedger, cut: Cut) -> None:
    """Whatever a transaction does, it is applied once, and its results are those of the first time."""
    steps: list[Callable[[Ledger], Any]] = [
        intent(), accept(), finish(), lambda ledger: ledger.refresh_urls(1),
        lambda ledger: ledger.requeue_errored(1, 3), intent(), accept(1, "r-2"),
        lambda ledger: ledger.mark_errored(1, STORE_ERROR, 4.0, 5),
    ]  # fmt: skip
    results = []
    for step in steps:
        proxy.cut = cut
        results.append(behind_proxy.transaction(step))
    assert proxy.cuts == len(steps)
    assert results[:-1] == [1, True, None, None, None, 1, True]
    outcome = results[-1]
    assert (outcome.status, outcome.attempts, outcome.request_id) == (State.ERRORED, 2, "r-2")
    assert behind_proxy.charges() == Charges(refunded=2)


def test_two_answers_are_lost_in_a_row(proxy: CuttingProxy, behind_proxy: PostgresLedger) -> None:
    """The question whether a commit was made may itself lose its answer."""
    proxy.cut = "after the commit"
    attempts = []

    def record(ledger: Ledger) -> int:
        attempts.append(ledger)
        return intent()(ledger)  # type: ignore[no-any-return]

    original = behind_proxy._was_committed

    def was_committed() -> bool:
        if proxy.cuts == 1:
            proxy.cut = "after the commit"
        return original()

    behind_proxy._was_committed = was_committed  # type: ignore[method-assign]
    assert behind_proxy.transaction(record) == 1
    assert (proxy.cuts, len(attempts)) == (2, 1)
    assert behind_proxy.charges() == Charges(unknown=1)


@pytest.mark.parametrize("mode", ["terminated", "restarted"])
@pytest.mark.parametrize("place", ["between transactions", "within a transaction"])
def test_the_connection_is_lost(server: PostgresServer, store: PostgresLedger, mode: str, place: str) -> None:
    """If the connection is lost before a commit, or the server crashes, the transaction is repeated as a whole."""
    attempts = []

    def lose() -> None:
        if mode == "restarted":
            server.restart("immediate")
        else:
            assert store._connection
            execute(server.url, f"SELECT pg_terminate_backend({store._connection.info.backend_pid})")

    def operation(ledger: Ledger) -> None:
        attempts.append(ledger)
        accept()(ledger)
        if place == "within a transaction" and len(attempts) == 1:
            lose()
        finish()(ledger)

    apply_all(store, intent())
    if place == "between transactions":
        lose()
    store.transaction(operation)
    assert store.counts() == {State.FINISHED: 1}
    assert store.charges() == Charges(charged=1)


def test_the_database_stays_away(
    proxy: CuttingProxy, address: LedgerAddress, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If the database is away for too long, the callers get an error, and no intent is half recorded."""
    monkeypatch.setattr(waiting, "MAX_WAIT_S", 0.0)
    with closing(PostgresLedger.open(PATH, LedgerAddress(proxy.url, address.batch))) as store:
        proxy.cut = "before the commit"
        with pytest.raises(LedgerError, match="the database has been unavailable") as raised:
            apply_all(store, intent())
        assert "start the database" in str(raised.value)
        monkeypatch.undo()
        assert apply_all(store, intent()) == 1
        assert store.charges() == Charges(unknown=1)


def test_a_run_that_was_fenced_in_the_meantime(proxy: CuttingProxy, behind_proxy: PostgresLedger) -> None:
    """If another process has taken over before the answer is known, no number is returned, and no POST is sent."""
    run_no = apply_all(behind_proxy, lambda ledger: ledger.start_run("https://a", "1", 1.0))
    behind_proxy.bind_run(run_no)
    proxy.cut = "after the commit"
    original = behind_proxy._was_committed

    def was_committed() -> bool:
        with closing(PostgresLedger.open(PATH, behind_proxy._address)) as other:
            other.transaction(Ledger.fence_others)
        return original()

    behind_proxy._was_committed = was_committed  # type: ignore[method-assign]
    with pytest.raises(FencedError):
        apply_all(behind_proxy, intent())
    assert behind_proxy.counts() == {State.AMBIGUOUS: 1}


def test_a_database_that_forgets(server: PostgresServer, store: PostgresLedger) -> None:
    """If confirmed commits are gone, as after a failover to a standby that was behind, nothing more is recorded."""
    apply_all(store, intent("a"))
    execute(server.url, f'UPDATE "{store._address.schema}".writers SET commit_no = commit_no - 1')
    with pytest.raises(LedgerError, match="has forgotten transactions"):
        apply_all(store, intent("b"))
    assert store.counts() == {State.SUBMITTING: 1}


def test_an_error_of_a_statement_is_not_waited_for(store: PostgresLedger) -> None:
    """An error that will not pass is raised immediately, with its message, and the ledger works afterwards."""
    with pytest.raises(LedgerError, match="no_such_table"):
        store.transaction(lambda ledger: store._execute("DELETE FROM no_such_table"))
    with pytest.raises(LedgerError, match="no_such_table"):
        store.read(lambda ledger: list(store._rows("TABLE no_such_table")))
    assert apply_all(store, intent()) == 1


def test_a_statement_that_waits_too_long(server: PostgresServer, store: PostgresLedger) -> None:
    """A transaction that is cancelled, as by its time-out, is repeated."""
    attempts = []

    def operation(ledger: Ledger) -> int:
        attempts.append(ledger)
        number: int = intent()(ledger)
        if len(attempts) == 1:
            store._execute("SET LOCAL statement_timeout = 1")
            store._rows("SELECT pg_sleep(60)")
        return number

    assert store.transaction(operation) == 1
    assert (len(attempts), store.charges()) == (2, Charges(unknown=1))


# ---- round trips -----------------------------------------------------------------------------------------


def test_a_group_commit_takes_few_round_trips(proxy: CuttingProxy, behind_proxy: PostgresLedger) -> None:
    """A group of transitions of one kind takes two round trips, accepted POSTs three, others with them one more."""

    def round_trips(*operations: Operation) -> int:
        before = proxy.round_trips
        assert not [result for result in commit(behind_proxy, operations) if isinstance(result, Exception)]
        return proxy.round_trips - before

    def intents(first: int) -> list[Operation]:
        values = (REQUEST_BODY, b"f" * 32, METADATA, 1.0, "", "")
        return [Operation(Ledger.record_intent, (str(n), *values), {}) for n in range(first, first + 100)]

    def accepted(first: int) -> list[Operation]:
        return [Operation(Ledger.mark_accepted, (n, f"r-{n}", 2.0), {}) for n in range(first, first + 100)]

    assert round_trips(*intents(1)) <= 2
    assert round_trips(*accepted(1)) <= 3
    assert round_trips(*intents(101)) <= 2
    assert round_trips(*accepted(101), *intents(201)) <= 4


# ---- the server ------------------------------------------------------------------------------------------

SAFE = ServerSettings("on", "on", "", 0, False)
DANGERS: list[tuple[ServerSettings, str]] = [
    (SAFE, ""),
    (ServerSettings("on", "local", "", 0, False), ""),
    (ServerSettings("on", "remote_apply", "b", 1, False), ""),
    (ServerSettings("off", "on", "", 0, False), "fsync = off"),
    (ServerSettings("on", "off", "", 0, False), "synchronous_commit is off"),
    (ServerSettings("on", "off", "b", 1, False), "synchronous_commit is off"),
    (ServerSettings("on", "local", "b", 1, False), "synchronous_commit is local"),
    (ServerSettings("on", "on", "", 0, True), "is a standby"),
]


@pytest.mark.parametrize(("settings", "problem"), DANGERS)
def test_dangerous_settings(settings: ServerSettings, problem: str) -> None:
    """A server that may forget a commit by itself is refused."""
    danger = find_danger(settings)
    assert (problem in danger[0]) if danger and problem else (not danger and not problem)


@pytest.mark.parametrize(
    ("standbys", "names", "text"),
    [(0, "", ""), (1, "b", ""), (1, "", "has 1 standby and"), (2, "", "has 2 standbys")],
)
def test_risky_settings(standbys: int, names: str, text: str) -> None:
    """Standbys of which none is synchronous are warned of."""
    assert text in find_risk(ServerSettings("on", "on", names, standbys, False))
    assert bool(text) == bool(find_risk(ServerSettings("on", "on", names, standbys, False)))


@pytest.fixture
def altered(server: PostgresServer) -> Iterator[Callable[..., None]]:
    """Change settings of the server, until the end of the test."""

    def alter(**settings: str) -> None:
        execute(server.url, *(f"ALTER SYSTEM SET {name} = '{value}'" for name, value in settings.items()))
        server.restart("fast")

    yield alter
    execute(server.url, "ALTER SYSTEM RESET ALL")
    server.restart("fast")


def test_a_server_without_fsync_is_refused(altered: Callable[..., None], address: LedgerAddress) -> None:
    """A ledger is not opened for changes where a crash can lose commits; it can be read."""
    PostgresLedger.open(PATH, address).close()
    altered(fsync="off")
    with pytest.raises(RunDirError, match="fsync = off") as raised:
        PostgresLedger.open(PATH, address)
    assert "set fsync = on" in str(raised.value)
    PostgresLedger.open(PATH, address, read_only=True).close()


@pytest.mark.parametrize(("commit_setting", "names"), [("off", ""), ("off", "elsewhere"), ("local", "elsewhere")])
def test_asynchronous_commits_are_refused(
    altered: Callable[..., None], address: LedgerAddress, commit_setting: str, names: str
) -> None:
    """A session whose commits do not wait for the disk, or for the standbys that are named, is refused."""
    if names:
        altered(synchronous_standby_names=names, synchronous_commit="local")
    url = f"{address.url}&options=-c%20synchronous_commit%3D{commit_setting}"
    with pytest.raises(RunDirError, match=f"synchronous_commit is {commit_setting}"):
        PostgresLedger.open(PATH, LedgerAddress(url, address.batch))


def test_asynchronous_standbys_are_warned_of(
    server: PostgresServer, address: LedgerAddress, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A server with a standby, none of them synchronous, is used with a warning."""
    programs = find_programs()
    assert programs
    command = [str(programs / "pg_receivewal"), f"--directory={tmp_path}", f"--dbname={server.url}", "--verbose"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as standby:
        assert standby.stderr
        assert "starting log streaming" in standby.stderr.readline()
        with closing(PostgresLedger.open(PATH, address)):
            standby.terminate()
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "1 standby and no synchronous one" in warning.getMessage()


# ---- opening ---------------------------------------------------------------------------------------------


def test_no_such_server(tmp_path: Path) -> None:
    """A server that cannot be reached is an error immediately, with the place."""
    with pytest.raises(RunDirError, match="cannot open the ledger") as raised:
        PostgresLedger.open(PATH, LedgerAddress(f"postgresql://postgres@/x?host={tmp_path}", "cats"))
    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_schema_of_others(server: PostgresServer, address: LedgerAddress) -> None:
    """A schema with other tables is not used."""
    execute(server.url, f'CREATE SCHEMA "{address.schema}"', f'CREATE TABLE "{address.schema}".jobs ()')
    with pytest.raises(RunDirError, match="already exists"):
        PostgresLedger.open(PATH, address)


@pytest.mark.parametrize(
    ("version", "says"),
    [(SCHEMA_VERSION + 1, "newer krea-batch"), (SCHEMA_VERSION - 1, "before the first release")],
    ids=["newer", "older"],
)
def test_another_schema(
    server: PostgresServer, store: PostgresLedger, address: LedgerAddress, version: int, says: str
) -> None:
    """A ledger of another version is refused."""
    execute(server.url, f'UPDATE "{address.schema}".ledger_version SET version = {version}')
    for read_only in (False, True):
        with pytest.raises(RunDirError, match=says):
            PostgresLedger.open(PATH, address, read_only=read_only)


def test_a_reader_cannot_write(store: PostgresLedger, address: LedgerAddress) -> None:
    """A ledger that is opened for reading sees what others commit, and has no transactions."""
    apply_all(store, intent())
    with closing(PostgresLedger.open(PATH, address, read_only=True)) as reader:
        apply_all(store, accept())
        assert reader.counts() == {State.ACCEPTED: 1}
        with pytest.raises(InternalError, match="for reading"):
            apply_all(reader, finish())


def test_a_nul_in_a_message(store: PostgresLedger) -> None:
    """A character that PostgreSQL cannot store does not keep the end of a job from being recorded."""
    error = type(STORE_ERROR)("failed", "a\0b")
    apply_all(store, intent(), accept())
    outcome = apply_all(store, lambda ledger: ledger.mark_failed(1, error, 3.0, 1))
    assert outcome.error.message == "a\ufffdb"


@pytest.fixture
def out(tmp_path: Path, address: LedgerAddress) -> Path:
    """A run directory whose ledger is in the database."""
    (tmp_path / "ledger.toml").write_text(f'url = "{address.url}"\nbatch = "{address.batch}"\n')
    return tmp_path


def test_a_run_directory_with_an_address(out: Path) -> None:
    """With a ledger.toml, the ledger is in the database, for changes, for reading and for a snapshot."""
    with read_ledger(out) as empty, closing(snapshot_ledger(out)) as empty_too:
        assert (empty.counts(), empty_too.counts()) == ({}, {})
    with closing(open_for_changes(out)) as store:
        assert isinstance(store, PostgresLedger)
        apply_all(store, intent())
        with closing(snapshot_ledger(out)) as snapshot, read_if_any(out) as reader:
            apply_all(store, accept())
            assert (snapshot.counts(), reader.counts()) == ({State.SUBMITTING: 1}, {State.ACCEPTED: 1})
            assert snapshot.read(Ledger.counts) == [{State.SUBMITTING: 1}]
    assert sorted(path.name for path in out.iterdir()) == ["ledger.toml"]


def test_two_ledgers_in_a_run_directory(out: Path) -> None:
    """A directory with an address and a ledger of its own is refused."""
    SqliteLedger.open(out / "ledger.db").close()
    for opening in (open_for_changes, read_ledger, snapshot_ledger):
        with pytest.raises(RunDirError, match="only one of the two"):
            opening(out)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "url"),
        ("url =", "Invalid value"),
        ('url = "mysql://db/x"\nbatch = "cats"', "does not start with postgresql://"),
        ('url = "postgresql://a:secret@db/x"\nbatch = "cats"', "has a password"),
        ('url = "postgresql://db/x?password=secret"\nbatch = "cats"', "has a password"),
        ('url = "postgresql://db/x"\nbatch = "Cats"', "batch 'Cats'"),
        ('url = "postgresql://db/x"\nbatch = "cats"\nname = 1', "name"),
    ],
    ids=["empty", "no TOML", "another database", "password", "password as option", "batch", "unknown key"],
)
def test_an_address_that_cannot_be_used(tmp_path: Path, text: str, problem: str) -> None:
    """An address is checked, and a password in it is not shown."""
    (tmp_path / "ledger.toml").write_text(text)
    with pytest.raises(RunDirError, match=r"ledger\.toml") as raised:
        read_address(tmp_path)
    assert problem in str(raised.value)
    assert "secret" not in str(raised.value)


WITHOUT_PSYCOPG = """
import sys
from pathlib import Path
from krea_batch.errors import RunDirError
from krea_batch.ledger.opening import open_for_changes
sys.modules["psycopg"] = None
try:
    open_for_changes(Path(sys.argv[1]))
except RunDirError as error:
    print(error)
"""


def test_psycopg_is_not_installed(out: Path) -> None:
    """Without psycopg, the error says how to install it; nothing else needs it."""
    process = subprocess.run(
        [sys.executable, "-c", WITHOUT_PSYCOPG, out], capture_output=True, text=True, timeout=PROCESS_TIMEOUT_S
    )
    assert "pip install 'krea-batch[postgres]'" in process.stdout
    assert process.stderr == ""


# ---- the password ----------------------------------------------------------------------------------------

_GREEDY_SERVER_ASKS = b"R" + (8).to_bytes(4, "big") + (3).to_bytes(4, "big")  # AuthenticationCleartextPassword


class GreedyServer:
    """A server that asks each client for its password, as one that a foreign ledger.toml names could do."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        self.received = b""

    @property
    def url(self) -> str:
        return (
            f"postgresql://krea@127.0.0.1:{self._listener.getsockname()[1]}/krea?sslmode=disable&gssencmode=disable"
        )

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, suppress(ConnectionError):
                client.recv(4096)
                client.sendall(_GREEDY_SERVER_ASKS)
                self.received += client.recv(4096)


def test_a_server_that_asks_for_the_password(tmp_path: Path) -> None:
    """It does not get it: ledger.toml may name any server, and PGPASSWORD is that of another one."""
    with closing(GreedyServer()) as greedy:
        (tmp_path / "ledger.toml").write_text(f'url = "{greedy.url}"\nbatch = "cats"\n')
        done = run_command("status", ".", cwd=tmp_path, PGPASSWORD="very-secret")
        assert done.returncode == 2
        assert "authentication method requirement" in done.stderr
        assert b"very-secret" not in greedy.received
        assert "very-secret" not in done.stdout + done.stderr
        done = run_command("status", ".", cwd=tmp_path, PGPASSWORD="p", PGREQUIREAUTH="password")
        assert b"p\0" in greedy.received, "the environment may allow it"
