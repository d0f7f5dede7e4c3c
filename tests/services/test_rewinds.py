"""A database that is older than what relays have read: every active repo is stated again, once."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pds.errors import Unavailable
from pds.protocol.car import read_car
from pds.protocol.commit import decode_commit, verify_commit
from pds.protocol.keys import parse_did_key
from pds.services import rewinds
from pds.services.rewinds import Rewinds
from pds.store.accounts import AccountStatus
from tests.services.account_host import SettableClock
from tests.services.life_host import LifeHost, life_host


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[LifeHost]:
    async with life_host(tmp_path) as host:
        yield host


class StoppingClock:
    """Tells the time once, and is in doubt from then on."""

    def __init__(self, clock: SettableClock) -> None:
        self._clock = clock
        self._is_asked = False

    def now_us(self) -> int:
        if self._is_asked:
            raise Unavailable("the clock is in doubt")
        self._is_asked = True
        return self._clock.now_us()


def rewinds_of(host: LifeHost) -> Rewinds:
    return Rewinds(engine=host.engine, clock=host.clock, clock_id=7, keystore=host.keystore)


async def test_all_active_repos_are_stated_again(host: LifeHost) -> None:
    """ACC-65, ACC-66, promise A3."""
    alice, bob, carol = [await host.open(name) for name in ("alice", "bob", "carol")]
    await host.life.deactivate(bob.aid)
    heads = {account.did: await host.exports.head(account.did) for account in (alice, carol)}
    since = len(host.heard)
    last_seq = host.engine.last_seq
    rewind = rewinds_of(host)
    assert await rewind.note(last_seq + 1000, opened_seq=last_seq)
    assert await rewind.restate() == 2
    assert [event.kind for event in host.heard[since:]] == ["sync", "sync"]
    for account in (alice, carol):
        [frame] = host.frames(account.did, since=since)
        (root,), blocks = read_car(frame.payload["blocks"])
        commit = decode_commit(blocks[root])
        assert frame.payload["rev"] == commit.rev > heads[account.did][1]
        assert verify_commit(commit, parse_did_key(host.identities.told[account.did].signing_key))
        await host.write(account.aid)
        assert host.frames(account.did)[-1].payload["since"] == commit.rev
    assert (await host.exports.status(bob.did)).status is AccountStatus.DEACTIVATED
    assert await rewind.restate() == 0


async def test_numbers_that_are_here_are_no_rewind(host: LifeHost) -> None:
    """Also those that another node gave out since this one was started."""
    await host.open("alice")
    last_seq = host.engine.last_seq
    rewind = rewinds_of(host)
    assert not await rewind.note(last_seq, opened_seq=last_seq)
    assert not await rewind.note(last_seq, opened_seq=last_seq - 2)
    assert await rewind.restate() == 0


async def test_a_crash_in_between_loses_and_repeats_nothing(
    host: LifeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewinds, "PAGE_ACCOUNTS", 2)
    accounts = [await host.open(f"user{number}") for number in range(5)]
    rewind = Rewinds(
        engine=host.engine, clock=StoppingClock(host.clock), clock_id=7, keystore=host.keystore
    )
    assert await rewind.note(host.engine.last_seq + 1, opened_seq=host.engine.last_seq)
    since = len(host.heard)
    with pytest.raises(Unavailable):
        await rewind.restate()
    assert len(host.heard) - since == 2
    assert await rewinds_of(host).restate() == 3
    assert sorted(event.aid for event in host.heard[since:]) == [a.aid for a in accounts]
