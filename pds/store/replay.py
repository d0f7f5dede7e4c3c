"""The log of writes, and its proof: replayed into an empty database it gives the same rows.

Replication, backups and standbys are built on this log, so it must be complete. The engine hands
the writes of each committed group to a recorder; `WriteLog` is one that keeps them in memory.
`compare` compares every table that the migrations declare durable.
"""

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Protocol

from pds.store.engine import Params, Row, Statement
from pds.store.migrate import list_tables, load_migrations

MAX_DIFFERENCES: Final = 5


class ReplayConnection(Protocol):
    """What replaying and dumping needs of a connection."""

    def execute(self, sql: str, params: Params) -> list[Row]:
        """Run one statement."""


class WriteLog:
    """A recorder that keeps all groups: pass the object as `recorder`."""

    def __init__(self) -> None:
        self._groups: list[tuple[Statement, ...]] = []
        self._lock = threading.Lock()

    def __call__(self, statements: Sequence[Statement]) -> None:
        """Take the writes of one group."""
        with self._lock:
            self._groups.append(tuple(statements))

    @property
    def groups(self) -> list[tuple[Statement, ...]]:
        """The groups so far, in commit order."""
        with self._lock:
            return list(self._groups)


def replay(groups: Iterable[Sequence[Statement]], target: ReplayConnection) -> int:
    """Run the writes of `groups` on a migrated, empty database; return how many rows of
    parameters that were. Each group is one transaction."""
    count = 0
    for group in groups:
        target.execute("BEGIN", ())
        for statement in group:
            for params in statement.rows:
                target.execute(statement.sql, params)
                count += 1
        target.execute("COMMIT", ())
    return count


def list_all_tables() -> Mapping[str, str]:
    """Return the tables of this version's schema with their class, durable or scratch."""
    return list_tables(load_migrations())


def dump_rows(connection: ReplayConnection) -> dict[str, list[Row]]:
    """Return all rows of all durable tables, in an order that depends on their content only."""
    return {
        table: sorted(connection.execute(f"SELECT * FROM {table}", ()), key=repr)
        for table, kind in list_all_tables().items()
        if kind == "durable"
    }


def compare(
    original: Mapping[str, Sequence[Row]], replayed: Mapping[str, Sequence[Row]]
) -> list[str]:
    """Return what differs between two dumps, in words; empty when they are the same."""
    differences = []
    for table in sorted(original.keys() | replayed.keys()):
        here, there = original.get(table, []), replayed.get(table, [])
        if list(here) != list(there):
            lost = [row for row in here if row not in there][:MAX_DIFFERENCES]
            extra = [row for row in there if row not in here][:MAX_DIFFERENCES]
            differences.append(f"{table}: lost {lost!r:.400}, extra {extra!r:.400}")
    return differences
