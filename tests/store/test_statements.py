"""The subset of SQL that jobs may use."""

import re
from pathlib import Path

import pytest

import pds.store
from pds.store.statements import MAX_REMEMBERED, BadStatement, StatementCheck, find_fault


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT a FROM t WHERE b = ? AND c LIKE 'x''y'",
        "\n  SELECT a FROM t ORDER BY updated_at",
        "WITH x AS (SELECT 1) SELECT * FROM x",
        "SELECT date, time FROM t",
    ],
)
def test_reads_are_admitted_as_reads(sql: str) -> None:
    assert find_fault(sql, writes=False) is None
    assert find_fault(sql, writes=True) is not None


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO t (a, b) VALUES (?, ?) ON CONFLICT (a) DO UPDATE SET b = excluded.b",
        "UPDATE t SET a = CASE WHEN a < ? THEN ? ELSE a END WHERE id = 1 RETURNING a",
        "DELETE FROM t WHERE a = ? AND b = ':literal; -- no comment'",
        "WITH x AS (SELECT a FROM t) DELETE FROM t WHERE a IN (SELECT a FROM x)",
        "INSERT INTO t (a) SELECT b FROM u WHERE c = ?",
    ],
)
def test_writes_are_admitted_as_writes(sql: str) -> None:
    assert find_fault(sql, writes=True) is None
    assert find_fault(sql, writes=False) is not None


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT now()",
        "SELECT RANDOM ()",
        "SELECT a FROM t ORDER BY random()",
        "SELECT strftime('%s')",
        "SELECT datetime('now')",
        "SELECT CURRENT_TIMESTAMP",
        "SELECT last_insert_rowid()",
        "SELECT rowid FROM t",
        "SELECT a FROM t WHERE b = ?2",
        "SELECT a FROM t WHERE b = :b",
        "SELECT a FROM t WHERE b = @b",
        "SELECT a FROM t WHERE b = $1",
        "SELECT a FROM t WHERE b = '?'",
        "SELECT a FROM t WHERE b LIKE 'x%'",
        'SELECT "a" FROM t',
        "SELECT a FROM t;",
        "SELECT a FROM t; SELECT b FROM t",
        "SELECT a -- comment\nFROM t",
        "SELECT a /* comment */ FROM t",
        "EXPLAIN SELECT 1",
        "",
    ],
)
def test_what_cannot_be_replayed_or_shared_is_refused(sql: str) -> None:
    assert find_fault(sql, writes=False) is not None
    with pytest.raises(BadStatement):
        StatementCheck().admit(sql, writes=False)


def test_what_is_remembered_is_bounded() -> None:
    check = StatementCheck()
    for number in range(MAX_REMEMBERED + 10):
        check.admit(f"SELECT a{number} FROM t", writes=False)
    assert len(check.reads) <= MAX_REMEMBERED


def test_no_module_of_rows_writes_sql_of_one_database() -> None:
    """What the check would refuse at run time, found in the text of the modules."""
    bad = re.compile(r"(?i)\b(?:autoincrement|insert or|strftime\(|randomblob|current_timestamp)")
    folder = Path(pds.store.__file__).parent
    found = [
        path.name
        for path in folder.glob("*.py")
        if path.name not in ("statements.py", "engine.py") and bad.search(path.read_text("utf-8"))
    ]
    assert found == []
