"""Asking the PLC directory: what use cases need of it, and what they say when it does not help.

`pds.identity.did_plc.PlcClient` is what stands behind these seams. That the directory knows nothing
of a DID and that it cannot be asked are different answers everywhere: only the first is final.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Protocol

from pds.errors import NotResolvable, RemoteError, RequestError, Unreachable, invalid_request
from pds.protocol.plc import PlcOperation
from pds.protocol.plc_log import PlcLog
from pds.protocol.syntax import Did


class PlcReader(Protocol):
    """Tells the last operation on an identity."""

    async def get_last_op(self, did: Did) -> PlcOperation:
        """Return the last operation; raises NotResolvable when there is none, or Unreachable."""


class PlcHistory(Protocol):
    """Tells all operations on an identity."""

    async def get_audit_log(self, did: Did) -> PlcLog:
        """Return the whole log, verified; raises NotResolvable, Unreachable or BadAnswer."""


class PlcLogReader(PlcReader, PlcHistory, Protocol):
    """Tells the last operation, or all of them."""


class PlcPublisher(PlcReader, Protocol):
    """Takes the next operation on an identity."""

    async def submit(self, did: Did, operation: PlcOperation) -> None:
        """Publish an operation; raises Rejected, or RemoteError when the outcome is unknown."""


class PlcInTime:
    """A directory that is not waited for longer than `timeout_s`, then it is Unreachable."""

    def __init__(self, plc: PlcPublisher, timeout_s: float) -> None:
        self._plc = plc
        self._timeout_s = timeout_s

    async def get_last_op(self, did: Did) -> PlcOperation:
        """As `PlcReader.get_last_op`."""
        async with _in_time(self._timeout_s):
            return await self._plc.get_last_op(did)

    async def submit(self, did: Did, operation: PlcOperation) -> None:
        """As `PlcPublisher.submit`."""
        async with _in_time(self._timeout_s):
            await self._plc.submit(did, operation)


@contextmanager
def refusing_without_plc(then: str = "try again later") -> Iterator[None]:
    """Refuse the request where the directory does not know the DID, or does not answer.

    `then` says what the caller can do, or what becomes of the act.

    Raises: RequestError `InvalidRequest`, or `UpstreamFailure` 502.
    """
    try:
        yield
    except NotResolvable as error:
        raise invalid_request("The DID is not registered in the PLC directory") from error
    except RemoteError as error:
        raise no_answer(then) from error


def no_answer(then: str) -> RequestError:
    """Return what to say when the directory did not answer; `then` as above."""
    return RequestError("UpstreamFailure", f"The PLC directory did not answer; {then}", 502)


@asynccontextmanager
async def _in_time(timeout_s: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError as error:
        raise Unreachable("the PLC directory did not answer in time") from error
