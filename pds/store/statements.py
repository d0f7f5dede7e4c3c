"""What SQL a job may use, checked once per statement text.

The subset is what SQLite and PostgreSQL share and what a log of writes can replay: parameters are
`?`, nothing in the text depends on the time, on chance or on a connection's state, and a text that
reads cannot be passed where writes are recorded, nor the other way round.
"""

import re
from typing import Final

from pds.errors import StoreError

MAX_REMEMBERED: Final = 4096
"""Texts remembered as good; texts built with a varying number of `?` would grow without end."""

_READS: Final = re.compile(r"\s*(?:SELECT|WITH)\b", re.IGNORECASE)
_WRITES: Final = re.compile(r"\s*(?:INSERT|UPDATE|DELETE|WITH)\b", re.IGNORECASE)
_CHANGES: Final = re.compile(
    r"\b(?:INSERT\s+INTO|UPDATE\s+\w+\s+SET|DELETE\s+FROM)\b", re.IGNORECASE
)
_QUOTED: Final = re.compile(r"'(?:[^']|'')*'")
_FORBIDDEN: Final = (
    (
        re.compile(
            r"\b(?:now|random|randomblob|gen_random_uuid|strftime|julianday|unixepoch)\s*\(", re.I
        ),
        "depends on the time or on chance",
    ),
    (re.compile(r"\b(?:date|time|datetime)\s*\(", re.I), "depends on the time"),
    (re.compile(r"\bCURRENT_(?:TIMESTAMP|TIME|DATE)\b", re.I), "depends on the time"),
    (
        re.compile(r"\b(?:last_insert_rowid|changes|total_changes)\s*\(", re.I),
        "depends on the connection",
    ),
    (
        re.compile(
            r"\b(?:AUTOINCREMENT|SERIAL)\b|\bINSERT\s+OR\b|\bREPLACE\s+INTO\b|\bROWID\b", re.I
        ),
        "is not in both databases",
    ),
    (re.compile(r"\bRANDOM\b", re.I), "depends on chance"),
    (re.compile(r"\?\d|(?<![\w:]):[A-Za-z]|@\w|\$\w"), "has a parameter that is not a plain ?"),
    (re.compile(r"\""), "has a quoted name"),
    (re.compile(r";\s*\S|;\s*$"), "has a semicolon"),
    (re.compile(r"--|/\*"), "has a comment"),
)


class BadStatement(StoreError):
    """A statement that no job may run: a mistake in our own code."""


def find_fault(sql: str, *, writes: bool) -> str | None:
    """Return what is wrong with `sql`, or None."""
    if not (_WRITES if writes else _READS).match(sql):
        return "is not a write" if writes else "is not a read"
    bare = _QUOTED.sub("''", sql)
    if bool(_CHANGES.search(bare)) != writes:
        return "writes nothing" if writes else "writes"
    for literal in _QUOTED.findall(sql):
        if "?" in literal or "%" in literal:
            return "has ? or % inside a literal"
    for pattern, fault in _FORBIDDEN:
        if pattern.search(bare):
            return fault
    return None


class StatementCheck:
    """Remembers which texts were found good; shared by the threads of one engine."""

    def __init__(self) -> None:
        self.reads: set[str] = set()
        self.writes: set[str] = set()

    def admit(self, sql: str, *, writes: bool) -> None:
        """Check a text that is not remembered yet; raises BadStatement."""
        fault = find_fault(sql, writes=writes)
        if fault is not None:
            raise BadStatement(f"statement {fault}: {sql}")
        known = self.writes if writes else self.reads
        if len(known) >= MAX_REMEMBERED:
            known.clear()
        known.add(sql)
