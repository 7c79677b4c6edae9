"""Connects to PostgreSQL, and tells which errors will pass.

The server never gets the password itself, only a proof that the client knows it (SCRAM): `ledger.toml` may come from
somewhere else, and its server would learn the PGPASSWORD of everyone who opens the run directory.

Nothing depends on the session: PgBouncer in transaction mode gives each transaction to another one. So there are no
prepared statements, and each transaction sets what it needs.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from krea_batch.ledger.postgres.ledger_address import LedgerAddress

STATEMENT_TIMEOUT_S = 10  # chosen: a statement takes milliseconds; in the way are locks, which it waits for again
IDLE_TIMEOUT_S = 10  # chosen: a process that stalls within a transaction keeps the others out for so long
CONNECT_TIMEOUT_S = 10  # chosen: many times what a network takes
NETWORK_TIMEOUT_S = 10  # chosen: data that no answer confirms for so long is lost

# psycopg warns of a pipeline that ends with a lost connection. Without this, Python would print that to stderr; what
# krea-batch does about it, it logs itself.
logging.getLogger("psycopg").addHandler(logging.NullHandler())

_DEFAULTS = {
    "connect_timeout": CONNECT_TIMEOUT_S,
    "tcp_user_timeout": NETWORK_TIMEOUT_S * 1000,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,  # with the two above: a dead network is noticed in 11 s while an answer is awaited
    "client_encoding": "utf8",
    "application_name": "krea-batch",
}

# Without it, libpq sends the password if the server asks for it (PostgreSQL, "require_auth").
_NO_PASSWORD = {"require_auth": "!password"}
_REQUIRE_AUTH_VERSION = 160000  # of libpq

_PASSING = (
    "08",  # connection exception
    "40",  # transaction rollback: deadlock, serialization failure
    "57",  # operator intervention: shutdown, crash, starting up, statement timeout
    "25006",  # read-only transaction: the server was demoted
    "25P03",  # idle in transaction for too long
    "53300",  # too many connections
    "55P03",  # lock not available
)
"""The beginnings of SQLSTATE codes of errors that pass (PostgreSQL, Appendix A)."""


def connect(address: LedgerAddress, *, read_only: bool) -> psycopg.Connection[Any]:
    """Connect to the database. Options of the URL come first. Raises psycopg.Error."""
    given = conninfo_to_dict(address.url)
    # Where the URL has several hosts, the standbys among them cannot be written.
    defaults: dict[str, Any] = _DEFAULTS | ({} if read_only else {"target_session_attrs": "read-write"})
    if "PGREQUIREAUTH" not in os.environ and psycopg.pq.version() >= _REQUIRE_AUTH_VERSION:
        defaults |= _NO_PASSWORD
    conninfo = make_conninfo(address.url, **{name: value for name, value in defaults.items() if name not in given})
    return psycopg.connect(conninfo, autocommit=True, prepare_threshold=None)


def is_passing(error: Exception) -> bool:
    """Return whether the database is away, or in use, and the same transaction will work later."""
    if isinstance(error, psycopg.Error) and error.sqlstate:
        return error.sqlstate.startswith(_PASSING)
    return isinstance(error, psycopg.OperationalError)  # of the connection


def describe(error: Exception) -> str:
    """Return the message of an error in one line."""
    return " ".join(str(error).split())
