"""The client of a PLC directory: reading identities, and submitting operations safely.

Reads go to the read URL, which may be a replica that lags behind; everything that decides about a
write goes to the write URL, the primary (ID-60).

Submitting has three outcomes. Accepted means that the primary was seen to hold the operation.
`PlcRejected` means that it was refused. When the connection breaks at the wrong moment nobody
knows: the primary is asked whether it has the operation, which is named by its hash. If it has,
fine; if not, or if that fails too, the caller gets `PlcOutcomeUnknown`, because the operation may
still arrive.
"""

import asyncio
import json
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import quote

from pds.errors import BadAnswer, NotResolvable, Rejected, Unreachable
from pds.identity.errors import (
    DidDeactivated,
    DidNotFound,
    PlcOutcomeUnknown,
    PlcRateLimited,
    PlcRejected,
)
from pds.net.http import Answer, HttpClient
from pds.net.http_errors import HttpFailed, HttpNotFound, StatusError
from pds.protocol.diddoc import DidDocument, InvalidDidDocument, parse_did_document
from pds.protocol.plc import PlcError, PlcOperation, PlcState, parse_operation, parse_state
from pds.protocol.plc_log import PlcLog, verify_audit_log
from pds.protocol.syntax import Did

TIMEOUT_S: Final = 10.0
MAX_DOCUMENT_BYTES: Final = 65_536
"""An operation has at most 4,000 bytes, so its document is far smaller than this."""
MAX_LOG_BYTES: Final = 16_000_000
GATEWAY_TIMEOUT: Final = 504

_CONFIRM_DELAYS_S: Final = (0.0, 0.1, 0.3, 0.6, 1.0)
_ACCEPT: Final = {"Accept": "application/did+ld+json, application/json"}


class PlcClient:
    """One directory, known by a URL for reading and one for writing."""

    def __init__(
        self,
        read_url: str,
        http: HttpClient,
        *,
        write_url: str | None = None,
        timeout_s: float = TIMEOUT_S,
        confirm_delays_s: Sequence[float] = _CONFIRM_DELAYS_S,
    ) -> None:
        """Talk through `http`; the write URL is the read URL unless given.

        `confirm_delays_s` are the waits before each look for an operation that was accepted.
        """
        self._read_url = read_url.rstrip("/")
        self._write_url = (write_url or read_url).rstrip("/")
        self._http = http
        self._timeout_s = timeout_s
        self._confirm_delays_s = confirm_delays_s

    async def fetch_document(self, did: Did, *, primary: bool = False) -> bytes:
        """Return the JSON of the DID document as it was served.

        Raises: DidNotFound, DidDeactivated, Unreachable.
        """
        answer = await self._get(did, "", primary=primary, max_bytes=MAX_DOCUMENT_BYTES)
        return answer.body

    async def get_document(self, did: Did, *, primary: bool = False) -> DidDocument:
        """Return the DID document, uncached. Raises: as `fetch_document`."""
        content = _parse_json(await self.fetch_document(did, primary=primary))
        try:
            return parse_did_document(content, did)
        except InvalidDidDocument as error:
            raise Unreachable(f"the PLC directory served a bad document for {did}") from error

    async def get_data(self, did: Did, *, primary: bool = True) -> PlcState:
        """Return the current state with its rotation keys, from the primary (ID-70).

        Raises: as `fetch_document`.
        """
        answer = await self._get(did, "/data", primary=primary, max_bytes=MAX_DOCUMENT_BYTES)
        content = _parse_json(answer.body)
        try:
            return parse_state(did, content)
        except PlcError as error:
            raise Unreachable(f"the PLC directory served bad data for {did}") from error

    async def get_last_op(self, did: Did) -> PlcOperation:
        """Return the newest operation from the primary; it may be a tombstone.

        Raises: as `fetch_document`.
        """
        answer = await self._get(did, "/log/last", primary=True, max_bytes=MAX_DOCUMENT_BYTES)
        try:
            return parse_operation(_parse_json(answer.body))
        except PlcError as error:
            raise Unreachable(f"the PLC directory served a bad operation for {did}") from error

    async def get_audit_log(self, did: Did, *, primary: bool = True) -> PlcLog:
        """Return the whole log, verified from genesis (ID-61).

        Raises: as `fetch_document`; BadAnswer when the directory's log does not verify, which
        means that somebody has tampered with it.
        """
        answer = await self._get(did, "/log/audit", primary=primary, max_bytes=MAX_LOG_BYTES)
        content = _parse_json(answer.body)
        try:
            return verify_audit_log(did, content)
        except PlcError as error:
            raise BadAnswer(f"the PLC log of {did} does not verify: {error}") from error

    async def has_operation(self, did: Did, operation: PlcOperation) -> bool:
        """Return whether the primary holds this very operation as an active one.

        Raises: Unreachable, BadAnswer.
        """
        try:
            if (await self.get_last_op(did)).cid == operation.cid:
                return True
            log = await self.get_audit_log(did)
        except NotResolvable:
            return False
        return any(entry.operation.cid == operation.cid for entry in log.active)

    async def submit(self, did: Did, operation: PlcOperation) -> None:
        """Submit an operation and return once the primary was seen to hold it (ID-60).

        Submitting an operation that it already holds succeeds, so callers may repeat.

        Raises: PlcRejected (PlcRateLimited), Unreachable (it was not taken), PlcOutcomeUnknown.
        """
        try:
            await self._http.post_json(
                self._url(did, "", primary=True), operation.to_json(), timeout_s=self._timeout_s
            )
        except (Rejected, NotResolvable) as error:
            if await self._has_already(did, operation):
                return
            raise _rejection(error) from error
        except (Unreachable, BadAnswer) as error:
            if await self._find_out(did, operation):
                return
            if isinstance(error, HttpFailed) and error.status != GATEWAY_TIMEOUT:
                raise Unreachable(f"the PLC directory answered {error.status}") from error
            # Not there yet; but what was sent may still be on its way to the directory.
            raise PlcOutcomeUnknown("the PLC directory did not answer a submit") from error
        await self._confirm(did, operation)

    async def _confirm(self, did: Did, operation: PlcOperation) -> None:
        for delay_s in self._confirm_delays_s:
            await asyncio.sleep(delay_s)
            if await self._find_out(did, operation):
                return
        raise PlcOutcomeUnknown("the PLC directory accepted an operation but does not show it")

    async def _find_out(self, did: Did, operation: PlcOperation) -> bool:
        try:
            return await self.has_operation(did, operation)
        except (Unreachable, BadAnswer) as error:
            raise PlcOutcomeUnknown("the PLC directory does not answer after a submit") from error

    async def _has_already(self, did: Did, operation: PlcOperation) -> bool:
        """Whether a refusal only means that an earlier attempt had succeeded."""
        try:
            return await self.has_operation(did, operation)
        except (Unreachable, BadAnswer):
            return False  # The refusal itself is certain; the caller reports that.

    def _url(self, did: Did, path: str, *, primary: bool) -> str:
        base = self._write_url if primary else self._read_url
        return f"{base}/{quote(did, safe=':')}{path}"

    async def _get(self, did: Did, path: str, *, primary: bool, max_bytes: int) -> Answer:
        try:
            return await self._http.get_bytes(
                self._url(did, path, primary=primary),
                headers=_ACCEPT,
                max_bytes=max_bytes,
                timeout_s=self._timeout_s,
            )
        except HttpNotFound as error:
            message = error.detail.get("message")
            if error.status == 410 or (isinstance(message, str) and "not available" in message):
                raise DidDeactivated(f"{did} was deactivated") from error
            raise DidNotFound(f"{did} is not registered") from error
        except (NotResolvable, Rejected, BadAnswer) as error:
            # Whatever else the directory or the way to it says, it says nothing about the DID.
            raise Unreachable(f"the PLC directory did not answer about {did}") from error


def _parse_json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Unreachable("the PLC directory answered with invalid JSON") from error


def _rejection(error: Exception) -> PlcRejected:
    detail = error.detail.get("message") if isinstance(error, StatusError) else None
    message = detail[:300] if isinstance(detail, str) else "operation refused"
    if "too many operations" in message.lower():
        return PlcRateLimited(f"PLC directory: {message}")
    return PlcRejected(f"PLC directory: {message}")
