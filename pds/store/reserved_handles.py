"""Handles that are set aside: by the operator for good, by an act in progress for a moment.

Owns the facts `reserved_handle:HANDLE` and the journal rows of kind `handle`. The first are set
with `temp.addReservedHandle`, beside the labels that settings reserve; the second hold a handle
while its change is between our database and the PLC directory.
"""

from typing import Final

from pds.protocol.syntax import Handle
from pds.store.engine import Txn

HANDLE_KIND: Final = "handle"
"""`journal.kind` of reservations; `journal.subject` is the handle, `state` the DID it is for."""

_PREFIX: Final = "reserved_handle:"


def put_reserved_handle(txn: Txn, handle: Handle) -> None:
    """Set a handle aside; one that is already is no error."""
    txn.write(
        "INSERT INTO fact (name, value) VALUES (?, ?) ON CONFLICT (name) DO NOTHING",
        (_PREFIX + handle, b"1"),
    )


def is_handle_reserved(txn: Txn, handle: Handle) -> bool:
    """Whether the operator has set this handle aside."""
    row = txn.read_one("SELECT name FROM fact WHERE name = ?", (_PREFIX + handle,))
    return row is not None
