"""Taking an identity back: which operation a rotation key can answer a hostile one with.

A key may replace what came after any operation that lists it, if it stands higher there than the
key that signed the next operation, and if that one is not older than 72 hours; after the last
operation it needs neither (`plc_log`). `find_fork` looks for the newest point from which a key can
speak, so that as little as possible is taken back.

Spec: (ID-55, ID-57)
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pds.protocol.plc import PlcError, PlcOperation, find_signer
from pds.protocol.plc_log import RECOVERY_WINDOW_US, LogEntry, PlcLog


@dataclass(frozen=True, slots=True)
class Fork:
    """Where a key may go on: after `last`, which nullifies `undone` (none at the end)."""

    last: PlcOperation
    undone: tuple[LogEntry, ...]


@dataclass(frozen=True, slots=True)
class Signed:
    """One operation of a log with the did:key that signed it, and that key's place there."""

    entry: LogEntry
    key: str
    rank: int

    @property
    def deadline_us(self) -> int:
        """Until when it can be nullified."""
        return self.entry.created_at_us + RECOVERY_WINDOW_US


def find_fork(log: PlcLog, key: str, now_us: int) -> Fork:
    """Return the newest point from which `key` can change the identity.

    Raises: PlcError that says why there is none.
    """
    active = log.active
    reason = "the key was never one of its rotation keys"
    for at in range(len(active) - 1, -1, -1):
        state = active[at].operation.state
        if state is None or key not in state.rotation_keys:
            continue
        undone = active[at + 1 :]
        if not undone:
            return Fork(active[at].operation, ())
        try:
            check_can_undo(active, at + 1, key, now_us)
        except PlcError as error:
            reason = str(error)
            continue
        return Fork(active[at].operation, undone)
    raise PlcError(f"this key cannot change the identity: {reason}")


def check_can_undo(active: Sequence[LogEntry], at: int, key: str, now_us: int) -> None:
    """Refuse when `key` cannot nullify the active operation `at` (not the first) and all after it.

    Raises: PlcError that says why.
    """
    state = active[at - 1].operation.state
    if state is None or key not in state.rotation_keys:
        raise PlcError("the key was no rotation key of the identity before that operation")
    rank = state.rotation_keys.index(key)
    signer = find_signer(active[at].operation, state.rotation_keys)
    if rank == signer:
        raise PlcError("that operation was signed with the same key")
    if rank > signer:
        raise PlcError("that operation was signed with a key above this one")
    if now_us - active[at].created_at_us > RECOVERY_WINDOW_US:
        raise PlcError("that operation is older than 72 hours")


def list_signed(log: PlcLog) -> list[Signed]:
    """Return every operation of a verified log with the key that signed it."""
    by_cid = {entry.operation.cid: entry.operation for entry in log.entries}
    found: list[Signed] = []
    for entry in log.entries:
        operation = entry.operation
        before = operation if operation.prev is None else by_cid[operation.prev]
        keys = () if before.state is None else before.state.rotation_keys
        rank = find_signer(operation, keys)
        found.append(Signed(entry, keys[rank], rank))
    return found
