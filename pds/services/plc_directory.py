"""A PLC directory of our own: for `pds dev` and tests, so that neither needs the network.

It judges operations by the same rules as the public one (`protocol/plc_log`), so an operation that
it takes will be taken there. State is in memory; with a file, every accepted operation is appended
to it, one JSON line each, and the file is replayed (and verified anew) at the next start.

Not a service for the public: one process, no limits per address.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pds.errors import ConfigError
from pds.protocol.plc import PlcError, PlcOperation, PlcState, parse_operation
from pds.protocol.plc_log import (
    DEFAULT_RATE_LIMITS,
    LogEntry,
    PlcLog,
    PlcRateLimits,
    parse_time_us,
    validate_new_operation,
)
from pds.protocol.syntax import Did, InvalidSyntax, is_blessed_did, parse_did

MAX_EXPORT: Final = 1000
_MILLISECOND_US: Final = 1000


@dataclass(frozen=True, slots=True)
class Sequenced:
    """One accepted operation in the order of the whole directory; `seq` starts at 1."""

    seq: int
    did: Did
    cid: str


class PlcDirectory:
    """Identities and their logs."""

    def __init__(
        self,
        *,
        now_us: Callable[[], int],
        file: Path | None = None,
        rate_limits: PlcRateLimits | None = DEFAULT_RATE_LIMITS,
    ) -> None:
        """Start empty, or from `file` if it exists.

        Raises: ConfigError if the file holds something that is not a valid log.
        """
        self._now_us = now_us
        self._file = file
        self._rate_limits = rate_limits
        self._logs: dict[Did, PlcLog] = {}
        self._order: list[Sequenced] = []
        if file is not None and file.exists():
            self._replay(file)

    def __len__(self) -> int:
        return len(self._logs)

    def get_log(self, did: str) -> PlcLog | None:
        """Return the log of an identity, None if it is not registered."""
        return self._logs.get(Did(did))

    def get_state(self, did: str) -> PlcState | None:
        """Return what an identity is now, None if it is not registered or was ended."""
        log = self.get_log(did)
        return None if log is None else log.state

    def submit(self, did: str, content: object) -> PlcOperation:
        """Judge one operation, and keep it if it is valid.

        Raises: PlcError; PlcRateLimited.
        """
        subject = _parse_plc_did(did)
        operation = parse_operation(content)
        log = self._logs.get(subject, PlcLog(subject))
        now_us = self._now_us() // _MILLISECOND_US * _MILLISECOND_US
        if log.entries:
            now_us = max(now_us, log.entries[-1].created_at_us + _MILLISECOND_US)
        changed = validate_new_operation(
            subject, log, operation, now_us, rate_limits=self._rate_limits
        )
        if self._file is not None:
            _append(self._file, changed.entries[-1].to_json(subject))
        self._keep(changed)
        return operation

    def export(self, *, count: int, after_seq: int) -> list[tuple[int, dict[str, Any]]]:
        """Return (seq, entry) of at most `count` operations after a position, oldest first."""
        found = []
        for item in self._order[max(after_seq, 0) :][: min(count, MAX_EXPORT)]:
            entry = self._entry(item)
            found.append((item.seq, entry.to_json(item.did)))
        return found

    def seq_at(self, time_us: int) -> int:
        """Return the position of the newest operation that is not later than a time."""
        early = (item.seq for item in self._order if self._entry(item).created_at_us <= time_us)
        return max(early, default=0)

    def _entry(self, item: Sequenced) -> LogEntry:
        entries = self._logs[item.did].entries
        return next(entry for entry in entries if entry.operation.cid == item.cid)

    def _keep(self, log: PlcLog) -> None:
        self._logs[log.did] = log
        cid = log.entries[-1].operation.cid
        self._order.append(Sequenced(len(self._order) + 1, log.did, cid))

    def _replay(self, file: Path) -> None:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            try:
                entry = json.loads(line)
                did = _parse_plc_did(entry["did"])
                changed = validate_new_operation(
                    did,
                    self._logs.get(did, PlcLog(did)),
                    parse_operation(entry["operation"]),
                    parse_time_us(entry["createdAt"]),
                    rate_limits=None,
                )
            except (ValueError, KeyError, TypeError) as error:
                message = f"line {number} of {file} is not a valid PLC operation; move it away"
                raise ConfigError(message) from error
            self._keep(changed)


def _parse_plc_did(text: str) -> Did:
    try:
        did = parse_did(text)
    except InvalidSyntax as error:
        raise PlcError("not a DID") from error
    if not did.startswith("did:plc:") or not is_blessed_did(did):
        raise PlcError("not a did:plc identifier")
    return did


def _append(file: Path, entry: dict[str, Any]) -> None:
    line = json.dumps(entry, separators=(",", ":")) + "\n"
    with file.open("a", encoding="utf-8") as out:
        out.write(line)
        out.flush()
        os.fsync(out.fileno())
