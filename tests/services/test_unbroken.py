"""Acts that go on to their end when the caller leaves."""

import asyncio
import contextlib

import pytest

from pds.services.unbroken import UnbrokenActs


class Act:
    """An act that ends when it is told to."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.may_end = asyncio.Event()
        self.began = asyncio.Event()
        self.has_ended = False
        self._failure = failure

    async def carry_out(self) -> str:
        self.began.set()
        await self.may_end.wait()
        self.has_ended = True
        if self._failure is not None:
            raise self._failure
        return "done"


async def leave(acts: UnbrokenActs, act: Act) -> None:
    """Ask for an act, and leave once it has begun."""
    caller = asyncio.create_task(acts.run(act.carry_out()))
    await act.began.wait()
    caller.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await caller
    assert caller.cancelled()


async def test_who_stays_gets_the_result_or_the_failure() -> None:
    acts, good, bad = UnbrokenActs(), Act(), Act(ValueError("no"))
    good.may_end.set()
    bad.may_end.set()
    assert await acts.run(good.carry_out()) == "done"
    with pytest.raises(ValueError, match="no"):
        await acts.run(bad.carry_out())


@pytest.mark.parametrize("failure", [None, ValueError("nobody hears of it")])
async def test_an_act_goes_on_without_its_caller_and_is_waited_for(
    failure: Exception | None,
) -> None:
    acts, act = UnbrokenActs(), Act(failure)
    await leave(acts, act)
    assert not act.has_ended
    asyncio.get_running_loop().call_soon(act.may_end.set)
    await acts.close()
    assert act.has_ended
    await acts.close()  # Nothing is left to wait for.
