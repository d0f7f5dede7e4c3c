"""What nodes that share a database leave behind when they are gone."""

from typing import Final

from pds.store.engine import MAX_BULK_ROWS, Txn

NODE_AGE_US: Final = 86_400_000_000
"""A row of `commit_group` this old belongs to no commit whose outcome anybody waits for."""


def forget_old_nodes(txn: Txn, now_us: int) -> int:
    """Drop the rows of nodes that have not written for a day; return how many."""
    rows = txn.read(
        "SELECT node FROM commit_group WHERE begun_at < ? ORDER BY node LIMIT ?",
        (now_us - NODE_AGE_US, MAX_BULK_ROWS),
    )
    txn.write_many("DELETE FROM commit_group WHERE node = ?", rows)
    return len(rows)
