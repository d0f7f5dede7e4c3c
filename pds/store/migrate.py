"""Bring a database to the schema of this version, and refuse one that is too new.

Migrations are `migrations/NNNN_name.sql`, templates in the subset of SQL that both databases share;
`{blob}`, `{int}`, `{key}` and `{rowless}` are filled in by the engine, and `strict` is what it puts
behind each table. All that are missing are
applied in one transaction, so an upgrade happens wholly or not at all.

Two numbers guard the data. `SCHEMA_VERSION` is what this version writes. `SCHEMA_COMPAT` is the
oldest version of the program's schema that may still use a database which this one has migrated:
it is raised only when something was removed or changed its meaning. A program opens a
newer database as long as that database's `compat` is not above the program's own version.

Owns the table `migration`.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Final, Protocol

from pds.errors import Corrupt, Unavailable
from pds.store.engine import Params, Row

SCHEMA_VERSION: Final = 4
SCHEMA_COMPAT: Final = 1

_NAME: Final = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
_TABLE: Final = re.compile(r"-- (durable|scratch): [^\n]*\n(?:--[^\n]*\n)*CREATE TABLE (\w+)")
_TOKEN: Final = re.compile(r"--[^\n]*|'(?:[^']|'')*'|;")
_PLACEHOLDER: Final = re.compile(r"\{(\w+)\}")

_CREATE: Final = """
CREATE TABLE migration (
  version {int} PRIMARY KEY,
  compat {int} NOT NULL,
  name {key} NOT NULL,
  checksum {key} NOT NULL,
  applied_at {int} NOT NULL
)
"""


class SchemaTooNew(Unavailable):
    """The database was written by a newer version that this one cannot work with."""


class MigrationConnection(Protocol):
    """What migrating needs of a connection."""

    def has_table(self, name: str) -> bool:
        """Whether the table exists."""

    def execute(self, sql: str, params: Params) -> list[Row]:
        """Run one statement."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered file."""

    version: int
    name: str
    template: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the file."""
        return hashlib.sha256(self.template.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class SchemaState:
    """What a database says of itself; version 0 is an empty one."""

    version: int
    compat: int


def load_migrations() -> tuple[Migration, ...]:
    """Return the migrations of this version, in order."""
    found = []
    for entry in resources.files("pds.store.migrations").iterdir():
        if match := _NAME.fullmatch(entry.name):
            found.append(
                Migration(int(match[1]), entry.name.removesuffix(".sql"), entry.read_text("utf-8"))
            )
    found.sort(key=lambda migration: migration.version)
    return tuple(found)


def list_tables(migrations: Sequence[Migration]) -> dict[str, str]:
    """Return each table and whether it is declared `durable` or `scratch`."""
    return {
        match[2]: match[1]
        for migration in migrations
        for match in _TABLE.finditer(migration.template)
    }


def render(template: str, types: Mapping[str, str]) -> list[str]:
    """Fill in the engine's words and return the statements one by one."""
    statements: list[str] = []
    current = ""
    at = 0
    for token in _TOKEN.finditer(template):
        current += template[at : token.start()]
        at = token.end()
        if token[0] == ";":
            statements.append(current.strip())
            current = ""
        elif token[0].startswith("'"):
            current += token[0]
    if (current + template[at:]).strip():
        raise Corrupt("a migration does not end with a semicolon")
    return [_fill(text, types) for text in statements]


def _fill(statement: str, types: Mapping[str, str]) -> str:
    """Fill in one statement; a table gets the engine's `strict` behind it."""
    filled = _PLACEHOLDER.sub(lambda match: types[match[1]], statement).strip()
    if types["strict"] and filled.startswith("CREATE TABLE"):
        filled += f"{'' if filled.endswith(')') else ','} {types['strict']}"
    return filled


def read_state(connection: MigrationConnection) -> SchemaState:
    """Return version and compat of the database."""
    if not connection.has_table("migration"):
        return SchemaState(0, 0)
    rows = connection.execute("SELECT version, compat FROM migration ORDER BY version", ())
    return SchemaState(rows[-1][0], rows[-1][1]) if rows else SchemaState(0, 0)


def check_state(
    connection: MigrationConnection, migrations: Sequence[Migration], *, version: int
) -> SchemaState:
    """Refuse a database that is too new, or whose applied migrations differ from ours."""
    state = read_state(connection)
    if state.compat > version:
        raise SchemaTooNew(
            f"the database has schema {state.version}, which needs a program that knows at least"
            f" schema {state.compat}; this one knows {version}"
        )
    if state.version:
        ours = {migration.version: migration for migration in migrations}
        for number, checksum in connection.execute("SELECT version, checksum FROM migration", ()):
            if number in ours and ours[number].checksum != checksum:
                raise Corrupt(f"migration {ours[number].name} changed after it was applied")
    return state


def apply_missing(
    connection: MigrationConnection,
    migrations: Sequence[Migration],
    *,
    types: Mapping[str, str],
    compat: int,
    now_us: int,
) -> list[str]:
    """Apply what the database lacks, inside the caller's transaction; return the names."""
    state = read_state(connection)
    missing = [migration for migration in migrations if migration.version > state.version]
    if missing and not connection.has_table("migration"):
        for statement in render(_CREATE + ";", types):
            connection.execute(statement, ())
    for migration in missing:
        for statement in render(migration.template, types):
            connection.execute(statement, ())
        connection.execute(
            "INSERT INTO migration (version, compat, name, checksum, applied_at)"
            " VALUES (?, ?, ?, ?, ?)",
            (migration.version, compat, migration.name, migration.checksum, now_us),
        )
    return [migration.name for migration in missing]
