"""Asking the PLC directory: how long, and what is said when it does not help."""

import asyncio

import pytest

from pds.errors import (
    BadAnswer,
    NotResolvable,
    Rejected,
    RemoteError,
    RequestError,
    Unreachable,
)
from pds.protocol.plc import PlcOperation
from pds.protocol.syntax import Did
from pds.services.plc_asking import PlcInTime, refusing_without_plc

DID = Did("did:plc:ab2cd3ef4gh5ij6kl7mn2opq")
OPERATION = object()


class Silent:
    """A directory that never answers."""

    async def get_last_op(self, did: Did) -> PlcOperation:
        return await asyncio.get_running_loop().create_future()

    async def submit(self, did: Did, operation: PlcOperation) -> None:
        await asyncio.get_running_loop().create_future()


class Refusing(Silent):
    """A directory that answers at once, with an error."""

    def __init__(self, error: RemoteError) -> None:
        self.error = error

    async def get_last_op(self, did: Did) -> PlcOperation:
        raise self.error

    async def submit(self, did: Did, operation: PlcOperation) -> None:
        raise self.error


async def test_silence_counts_as_unreachable() -> None:
    """Promise A8."""
    plc = PlcInTime(Silent(), 0.01)
    with pytest.raises(Unreachable, match="in time"):
        await plc.get_last_op(DID)
    with pytest.raises(Unreachable, match="in time"):
        await plc.submit(DID, OPERATION)  # type: ignore[arg-type]


async def test_what_the_directory_says_is_passed_on() -> None:
    plc = PlcInTime(Refusing(Rejected("bad signature")), 60)
    with pytest.raises(Rejected, match="bad signature"):
        await plc.get_last_op(DID)
    with pytest.raises(Rejected, match="bad signature"):
        await plc.submit(DID, OPERATION)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "name", "status", "message"),
    [
        (NotResolvable("x"), "InvalidRequest", 400, "The DID is not registered"),
        (Unreachable("x"), "UpstreamFailure", 502, "did not answer; nothing was changed"),
        (BadAnswer("x"), "UpstreamFailure", 502, "did not answer; nothing was changed"),
    ],
)
def test_unknown_and_unreachable_are_different_refusals(
    error: RemoteError, name: str, status: int, message: str
) -> None:
    with (
        pytest.raises(RequestError, match=message) as caught,
        refusing_without_plc("nothing was changed"),
    ):
        raise error
    assert (caught.value.name, caught.value.status) == (name, status)
    assert caught.value.__cause__ is error
