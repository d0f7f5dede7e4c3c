"""What is left of an account that is gone, table by table, and its removal.

Owns no table: it knows which tables have rows of an account. `delete_account_rows` takes what must
be gone with the account itself: credentials, codes, private data. `erase_some` takes what may be
large, some hundred rows at a time, and again what a request that was under way may have added.
The generations of its repo are garbage like any other (`store/repos`).

Three kinds of rows stay: the last event, which says that the account is deleted, the uses of invite
codes, so that deleting an account gives no use back, and the audit.

Spec: (ACC-46, SYNC-22)
"""

from typing import Final

from pds.store.blobs import discard_account_blobs
from pds.store.engine import MAX_BULK_ROWS, Txn
from pds.store.events import delete_superseded_events

ACCOUNT_TABLES: Final = (
    "session",
    "app_password",
    "preference",
    "mail_token",
    "account_choice",
    "record_takedown",
    "plc_watch",
    "plc_operation",
    "signing_key",
    "data_key",
)
"""Rows of these belong to one account and are few, or small."""


def delete_account_rows(txn: Txn, aid: int) -> None:
    """Delete credentials, codes, keys and private data of an account."""
    for table in ACCOUNT_TABLES:
        txn.write(f"DELETE FROM {table} WHERE aid = ?", (aid,))


def erase_some(txn: Txn, aid: int, *, now_us: int, max_rows: int = MAX_BULK_ROWS) -> bool:
    """Delete about `max_rows` rows of an account that is gone; return whether none are left."""
    left = max_rows - delete_superseded_events(txn, aid, limit=max_rows)
    if left > 0:
        left -= discard_account_blobs(txn, aid, now_us=now_us, limit=left)
    if left <= 0:
        return False
    delete_account_rows(txn, aid)
    return True
