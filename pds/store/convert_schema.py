"""The tables as the migrations declare them, for whoever handles rows of every table alike.

Migrations are written in few forms (`CREATE TABLE` with one column a line, `ALTER TABLE ... ADD
COLUMN`, `CREATE INDEX`), and this reads those; a test compares the result with what SQLite made
of them.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from pds.errors import Corrupt
from pds.store.migrate import Migration, list_tables, render

_WORDS: Final = {"blob": "blob", "int": "int", "key": "key", "rowless": "", "strict": ""}
_CREATE: Final = re.compile(r"CREATE TABLE (\w+) \(\n(.*)\n\)", re.DOTALL)
_COLUMN: Final = re.compile(r"(\w+) (int|key|blob)\b(.*)")
_KEY: Final = re.compile(r"PRIMARY KEY \(([\w, ]+)\)")
_ADD: Final = re.compile(r"ALTER TABLE (\w+) ADD COLUMN (\w+) (int|key|blob)\b")
_INDEX: Final = re.compile(r"CREATE (UNIQUE )?INDEX (\w+) ON (\w+) ")
_OTHER: Final = re.compile(r"(?:INSERT|UPDATE|DELETE) ")


@dataclass(frozen=True, slots=True)
class Table:
    """A table: its columns with their kinds (`int`, `key` for text, `blob`) and its primary key."""

    name: str
    columns: tuple[str, ...]
    kinds: tuple[str, ...]
    key: tuple[str, ...]

    @property
    def key_at(self) -> tuple[int, ...]:
        """Where the columns of the primary key are."""
        return tuple(self.columns.index(name) for name in self.key)

    @property
    def content_at(self) -> int | None:
        """Where the column is that makes rows large, if any: the last one of bytes."""
        found = [at for at, kind in enumerate(self.kinds) if kind == "blob"]
        return found[-1] if found else None


@dataclass(frozen=True, slots=True)
class Index:
    """An index besides the primary keys, with the statement that makes it."""

    name: str
    table: str
    is_unique: bool
    sql: str


@dataclass(frozen=True, slots=True)
class Schema:
    """The durable tables in the order of their making, and their indexes."""

    tables: tuple[Table, ...]
    indexes: tuple[Index, ...]


def read_schema(migrations: Sequence[Migration]) -> Schema:
    """Return what the migrations make, without scratch tables. Raises: Corrupt."""
    declared = list_tables(migrations)
    tables: dict[str, Table] = {}
    indexes: dict[str, Index] = {}
    for statement in _statements(migrations):
        if found := _CREATE.match(statement):
            tables[found[1]] = _read_table(found[1], found[2])
        elif found := _ADD.match(statement):
            old = tables[found[1]]
            tables[found[1]] = Table(
                old.name, (*old.columns, found[2]), (*old.kinds, found[3]), old.key
            )
        elif found := _INDEX.match(statement):
            indexes[found[2]] = Index(found[2], found[3], found[1] is not None, statement)
        elif not _OTHER.match(statement):
            raise Corrupt(f"a migration has a statement that is not understood: {statement[:80]}")
    durable = {name for name, kind in declared.items() if kind == "durable"}
    return Schema(
        tuple(table for table in tables.values() if table.name in durable),
        tuple(index for index in indexes.values() if index.table in durable),
    )


def _statements(migrations: Sequence[Migration]) -> Iterator[str]:
    for migration in migrations:
        yield from render(migration.template, _WORDS)


def _read_table(name: str, body: str) -> Table:
    columns: list[str] = []
    kinds: list[str] = []
    key: tuple[str, ...] = ()
    for line in body.splitlines():
        text = line.strip()
        if found := _KEY.match(text):
            key = tuple(found[1].split(", "))
        elif found := _COLUMN.match(text):
            columns.append(found[1])
            kinds.append(found[2])
            if "PRIMARY KEY" in found[3]:
                key = (found[1],)
        else:
            raise Corrupt(f"the table {name} has a line that is not understood: {text}")
    if not key:
        raise Corrupt(f"the table {name} has no primary key")
    return Table(name, tuple(columns), tuple(kinds), key)
