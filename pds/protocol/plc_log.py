"""did:plc logs: which chains of operations are valid, and which operation a directory may add.

The audit log of an identity lists every operation ever accepted, in order of time. The *active*
ones form a chain from genesis to the newest. A later operation may fork off before the end of the
chain and so *nullify* what came after the fork point (recovery), but only

* when its signer stands higher in the fork point's list of rotation keys than the signer of the
  first operation it nullifies, and
* within 72 hours after that operation.

Nullified operations stay in the audit log. `verify_audit_log` recomputes all of this from genesis
and believes nothing that the directory says but the times (ID-61); `validate_new_operation` is the
same judgement on one more operation, as a directory makes it.

Spec: (ID-50, ID-55, ID-56, ID-57, ID-59, ID-61)
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from pds.protocol.plc import (
    PlcError,
    PlcOperation,
    PlcState,
    check_limits,
    did_for_genesis,
    find_signer,
    parse_operation,
)
from pds.protocol.syntax import Did, InvalidSyntax, format_datetime, parse_datetime

HOUR_US: Final = 3_600_000_000
RECOVERY_WINDOW_US: Final = 72 * HOUR_US
MAX_LOG_ENTRIES: Final = 10_000
"""More operations than this are not verified; a directory admits about 100 a week."""

_ENTRY_FIELDS: Final = frozenset({"did", "operation", "cid", "nullified", "createdAt"})


class PlcRateLimited(PlcError):
    """The directory admits no further operation for this identity for a while (ID-59)."""


@dataclass(frozen=True, slots=True)
class PlcRateLimits:
    """How many operations a directory admits for one identity; recoveries are exempt."""

    per_hour: int = 10
    per_day: int = 30
    per_week: int = 100


DEFAULT_RATE_LIMITS: Final = PlcRateLimits()


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One operation of an audit log, with the time at which the directory accepted it."""

    operation: PlcOperation
    created_at_us: int
    nullified: bool = False

    def to_json(self, did: Did) -> dict[str, Any]:
        """The form in which the directory serves it."""
        return {
            "did": did,
            "operation": self.operation.to_json(),
            "cid": self.operation.cid,
            "nullified": self.nullified,
            "createdAt": format_datetime(self.created_at_us),
        }


@dataclass(frozen=True, slots=True)
class PlcLog:
    """A verified log: all entries in order of time."""

    did: Did
    entries: tuple[LogEntry, ...] = ()
    active: tuple[LogEntry, ...] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        active = tuple(entry for entry in self.entries if not entry.nullified)
        object.__setattr__(self, "active", active)

    @property
    def last(self) -> PlcOperation | None:
        """The newest active operation."""
        return self.active[-1].operation if self.active else None

    @property
    def state(self) -> PlcState | None:
        """What the identity is now; None if it was ended by a tombstone (or never begun)."""
        return self.active[-1].operation.state if self.active else None

    @property
    def is_tombstoned(self) -> bool:
        """Whether the newest active operation is a tombstone."""
        return bool(self.active) and self.active[-1].operation.is_tombstone


def verify_audit_log(did: Did, entries: object) -> PlcLog:
    """Verify the JSON of a whole audit log: hashes, signatures, order, forks and tombstones.

    Limits for new operations are not applied: old logs hold operations from before them. What a
    directory can still hide: nullified operations, and the newest ones of the chain.
    Raises: PlcError naming the first wrong entry. Spec: (ID-53, ID-55, ID-56, ID-57, ID-61)
    """
    if not isinstance(entries, list) or not 0 < len(entries) <= MAX_LOG_ENTRIES:
        raise PlcError("audit log is not a list of operations")
    seen: list[LogEntry] = []
    active: list[LogEntry] = []
    for at, content in enumerate(entries):
        try:
            entry = _parse_entry(did, content)
            nullifies = _check_next(did, seen[-1:], active, entry.operation, entry.created_at_us)
        except PlcError as error:
            raise PlcError(f"entry {at} of the audit log: {error}") from error
        if nullifies:
            del active[-nullifies:]
        seen.append(entry)
        active.append(entry)
    alive = {id(entry) for entry in active}
    if any(entry.nullified is (id(entry) in alive) for entry in seen):
        raise PlcError("audit log misstates which operations are nullified")
    return PlcLog(did, tuple(seen))


def parse_entries(did: Did, entries: Sequence[object]) -> PlcLog:
    """Rebuild a log from entries that this host verified and saved before."""
    return PlcLog(did, tuple(_parse_entry(did, entry) for entry in entries))


def verify_operation_log(did: Did, operations: object) -> PlcState | None:
    """Verify the plain log (active operations only, without times) and return the state.

    None means that the identity was ended by a tombstone. Raises: PlcError.
    """
    if not isinstance(operations, list) or not 0 < len(operations) <= MAX_LOG_ENTRIES:
        raise PlcError("log is not a list of operations")
    previous = parse_operation(operations[0])
    _check_genesis(did, previous)
    for content in operations[1:]:
        operation = parse_operation(content)
        if operation.prev != previous.cid or previous.state is None:
            raise PlcError("operation does not follow the one before it")
        find_signer(operation, previous.state.rotation_keys)
        previous = operation
    return previous.state


def validate_new_operation(
    did: Did,
    log: PlcLog,
    operation: PlcOperation,
    now_us: int,
    *,
    rate_limits: PlcRateLimits | None = DEFAULT_RATE_LIMITS,
) -> PlcLog:
    """Judge one more operation as a directory does, and return the log that holds it.

    `now_us` becomes its time, so it must be later than every time in the log.
    Raises: PlcError; PlcRateLimited when only the rate limits are in the way.
    Spec: (ID-55, ID-56, ID-57, ID-58, ID-59)
    """
    if log.did != did:
        raise PlcError("log of another identity")
    check_limits(operation)
    nullifies = _check_next(did, log.entries, log.active, operation, now_us)
    if rate_limits is not None and not nullifies:
        _check_rate(log, now_us, rate_limits)
    return _append(log, LogEntry(operation, now_us), nullifies)


def _check_next(
    did: Did,
    entries: Sequence[LogEntry],
    active: Sequence[LogEntry],
    operation: PlcOperation,
    now_us: int,
) -> int:
    """Check that `operation` may follow `entries`; return how many active ones it nullifies."""
    if not entries:
        _check_genesis(did, operation)
        return 0
    if now_us <= entries[-1].created_at_us:
        raise PlcError("times of operations must increase")
    at = len(active) - 1
    while at >= 0 and active[at].operation.cid != operation.prev:
        at -= 1
    if at < 0:
        raise PlcError("operation prev is not in the active history")
    fork_point = active[at].operation
    if fork_point.state is None:
        raise PlcError("the identity was ended by a tombstone")
    rotation_keys = fork_point.state.rotation_keys
    nullified = active[at + 1 :]
    if not nullified:
        find_signer(operation, rotation_keys)
        return 0
    disputed = find_signer(nullified[0].operation, rotation_keys)
    find_signer(operation, rotation_keys[:disputed])
    if now_us - nullified[0].created_at_us > RECOVERY_WINDOW_US:
        raise PlcError("recovery is only possible within 72 hours")
    return len(nullified)


def _check_genesis(did: Did, operation: PlcOperation) -> None:
    if operation.prev is not None or operation.state is None:
        raise PlcError("first operation is not a genesis operation")
    if did_for_genesis(operation) != did:
        raise PlcError("genesis operation makes another DID")
    find_signer(operation, operation.state.rotation_keys)


def _append(log: PlcLog, entry: LogEntry, nullifies: int) -> PlcLog:
    if not nullifies:
        return PlcLog(log.did, (*log.entries, entry))
    gone = {old.operation.cid for old in log.active[-nullifies:]}
    kept = (
        LogEntry(old.operation, old.created_at_us, old.nullified or old.operation.cid in gone)
        for old in log.entries
    )
    return PlcLog(log.did, (*kept, entry))


def _check_rate(log: PlcLog, now_us: int, limits: PlcRateLimits) -> None:
    spans = (
        ("hour", HOUR_US, limits.per_hour),
        ("day", 24 * HOUR_US, limits.per_day),
        ("week", 7 * 24 * HOUR_US, limits.per_week),
    )
    for name, span_us, limit in spans:
        recent = sum(1 for entry in log.entries if entry.created_at_us > now_us - span_us)
        if recent >= limit:
            raise PlcRateLimited(f"too many operations within the last {name} (max {limit})")


def _parse_entry(did: Did, entry: object) -> LogEntry:
    if not isinstance(entry, dict) or not entry.keys() >= _ENTRY_FIELDS:
        raise PlcError("not an audit log entry")
    if entry["did"] != did:
        raise PlcError("entry of another identity")
    operation = parse_operation(entry["operation"])
    if entry["cid"] != operation.cid:
        raise PlcError("CID does not match the operation")
    if not isinstance(entry["nullified"], bool):
        raise PlcError("nullified is not a boolean")
    return LogEntry(operation, parse_time_us(entry["createdAt"]), entry["nullified"])


def parse_time_us(text: object) -> int:
    """Return the unix microseconds of a log's `createdAt`. Raises: PlcError."""
    if not isinstance(text, str):
        raise PlcError("createdAt is not a string")
    try:
        moment = datetime.fromisoformat(parse_datetime(text))
    except (InvalidSyntax, ValueError) as error:
        raise PlcError("createdAt is not a time") from error
    since_epoch = moment - datetime.fromisoformat("1970-01-01T00:00:00Z")
    return (since_epoch.days * 86_400 + since_epoch.seconds) * 1_000_000 + since_epoch.microseconds
