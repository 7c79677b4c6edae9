"""Refuses database servers that may forget a commit.

If the record of an intent is lost, its job is submitted and paid for a second time. So each commit must be on a disk,
and, where another server may take over, on that server too.
"""

from __future__ import annotations

from typing import Any

import msgspec
from psycopg import Connection


class ServerSettings(msgspec.Struct, frozen=True):
    """What decides whether a commit can be lost. `standbys` is the number of servers that copy this one."""

    fsync: str
    synchronous_commit: str
    synchronous_standby_names: str
    standbys: int
    is_standby: bool
    version: str = ""

    def __str__(self) -> str:
        standbys = "no standby" if not self.standbys else f"{self.standbys} standby servers"
        synchronous = f", synchronous: {self.synchronous_standby_names}" if self.synchronous_standby_names else ""
        return (
            f"PostgreSQL {self.version}, fsync = {self.fsync}, synchronous_commit = {self.synchronous_commit},"
            f" {standbys}{synchronous}"
        )


def read_settings(connection: Connection[Any]) -> ServerSettings:
    """Return the settings of this session, after those of the server, the database and the role."""
    row = connection.execute(
        "SELECT current_setting('fsync'), current_setting('synchronous_commit'),"
        " current_setting('synchronous_standby_names'), (SELECT count(*) FROM pg_stat_replication),"
        " pg_is_in_recovery(), split_part(current_setting('server_version'), ' ', 1)"
    ).fetchone()
    return ServerSettings(*row or ())


def find_danger(settings: ServerSettings) -> tuple[str, str] | None:
    """Return how the server may forget a commit, and what would be right; None if it does not. Pure."""
    commit, names = settings.synchronous_commit, settings.synchronous_standby_names
    if settings.is_standby:
        return "the server is a standby, which cannot be written", "connect to the primary server"
    if settings.fsync != "on":
        problem = "the server has fsync = off, so a crash of its machine loses commits, and jobs are paid for twice"
        return problem, "set fsync = on in postgresql.conf"
    if commit == "off":
        problem = "synchronous_commit is off, so a crash of the server loses commits, and jobs are paid for twice"
        return problem, "set synchronous_commit = on, for this role: ALTER ROLE … SET synchronous_commit = on"
    if commit == "local" and names:
        problem = (
            f"synchronous_commit is local, so the standbys ({names}) may not have the last commits when one of them"
            " takes over, and jobs are paid for twice"
        )
        return problem, "set synchronous_commit = on, for this role: ALTER ROLE … SET synchronous_commit = on"
    return None


def find_risk(settings: ServerSettings) -> str:
    """Return what is to be warned of; empty if there is nothing. Pure."""
    if not settings.standbys or settings.synchronous_standby_names:
        return ""
    standbys = "1 standby" if settings.standbys == 1 else f"{settings.standbys} standbys"
    return (
        f"the server has {standbys} and no synchronous one: if one takes over, the last commits are lost, and jobs"
        " may be paid for twice. Set synchronous_standby_names"
    )
