"""Invite codes: how they read, and when they are usable."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pds.errors import RequestError
from pds.protocol.syntax import Did
from pds.services.invites import MAX_CODES_PER_CALL, Invites, InviteSettings
from pds.store.accounts import update_takedown
from pds.store.engine import Txn
from pds.store.invites import get_invite_code, insert_invite_use, is_invite_code_usable
from tests.services.account_host import ALICE, SessionHost, session_host


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[SessionHost]:
    async with session_host(tmp_path) as host:
        yield host


@pytest.fixture
def invites(host: SessionHost) -> Invites:
    return Invites(engine=host.engine, clock=host.clock, hostname="pds.example.com")


async def usable(host: SessionHost, code: str) -> bool:
    return await host.engine.read("test", is_invite_code_usable, code)


async def test_codes_name_the_host_and_their_holder(host: SessionHost, invites: Invites) -> None:
    """ACC-25, ACC-26."""
    made = await invites.create(code_count=2, use_count=3, for_accounts=[ALICE, "did:web:b", ALICE])
    assert [entry.account for entry in made] == [ALICE, "did:web:b"]
    codes = [code for entry in made for code in entry.codes]
    assert len(set(codes)) == 4
    for code in codes:
        assert re.fullmatch(r"pds-example-com-[a-z2-7]{5}-[a-z2-7]{5}", code)
        assert await usable(host, code)
    stored = await host.engine.read("test", get_invite_code, codes[0])
    assert stored is not None
    assert (stored.use_count, stored.for_account, stored.created_by) == (3, ALICE, "admin")
    assert (await invites.create(code_count=1, use_count=1))[0].account == "admin"


async def test_code_is_used_up(host: SessionHost, invites: Invites) -> None:
    """ACC-25."""
    code = (await invites.create(code_count=1, use_count=2))[0].codes[0]
    for aid in (7, 8):
        assert await usable(host, code)

        def use(txn: Txn, aid: int = aid) -> None:
            insert_invite_use(txn, code, aid=aid, now_us=1)

        await host.engine.transact("test", use)
    assert not await usable(host, code)
    assert not await usable(host, "pds-example-com-aaaaa-aaaaa")


@pytest.mark.parametrize("column", ["takedown_ref", "invites_disabled"])
async def test_code_of_a_barred_holder_is_not_usable(
    host: SessionHost, invites: Invites, column: str
) -> None:
    """ACC-25."""
    aid = await host.add_account()
    code = (await invites.create(code_count=1, use_count=2, for_accounts=[ALICE]))[0].codes[0]
    assert await usable(host, code)
    if column == "takedown_ref":
        await host.change(update_takedown, aid, "ref")
    else:
        await host.engine.transact(
            "test", lambda txn: txn.write("UPDATE account SET invites_disabled = 1")
        )
    assert not await usable(host, code)


async def test_disabled_code_is_not_usable(host: SessionHost, invites: Invites) -> None:
    """ACC-25."""
    code = (await invites.create(code_count=1, use_count=2))[0].codes[0]
    await host.engine.transact("test", lambda txn: txn.write("UPDATE invite_code SET disabled = 1"))
    assert not await usable(host, code)


@pytest.mark.parametrize(
    ("code_count", "use_count"), [(0, 1), (1, 0), (1, -1), (MAX_CODES_PER_CALL + 1, 1), (1, 10**9)]
)
async def test_senseless_numbers_are_refused(
    invites: Invites, code_count: int, use_count: int
) -> None:
    with pytest.raises(RequestError) as refused:
        await invites.create(code_count=code_count, use_count=use_count)
    assert refused.value.name == "InvalidRequest"


# Earned codes

DAY_S = 86_400.0


def earning(
    host: SessionHost,
    *,
    required: bool = True,
    interval_s: float | None = DAY_S,
    epoch_s: float = 0,
) -> Invites:
    return Invites(
        engine=host.engine,
        clock=host.clock,
        hostname="pds.example.com",
        settings=InviteSettings(required=required, interval_s=interval_s, epoch_s=epoch_s),
    )


async def spend(host: SessionHost, code: str, aid: int) -> None:
    def use(txn: Txn) -> None:
        insert_invite_use(txn, code, aid=aid, now_us=host.clock.now_us())

    await host.engine.transact("test", use)


async def test_accounts_earn_a_code_per_interval_up_to_five_open(host: SessionHost) -> None:
    """ACC-26."""
    aid = await host.add_account()
    invites = earning(host)
    assert await invites.list_of_account(aid) == []
    host.clock.advance(DAY_S * 2.5)
    first = await invites.list_of_account(aid)
    assert [(code.use_count, code.for_account, code.created_by) for code in first] == [
        (1, ALICE, ALICE)
    ] * 2
    assert await invites.list_of_account(aid) == first
    host.clock.advance(DAY_S * 30)
    assert len(await invites.list_of_account(aid)) == 5
    for number, code in enumerate(await invites.list_of_account(aid)):
        await spend(host, code.code, 100 + number)
    again = await invites.list_of_account(aid)
    assert len(again) == 10
    assert len(await invites.list_of_account(aid, include_used=False)) == 5


async def test_a_use_counts_also_when_its_account_is_gone(host: SessionHost) -> None:
    """ACC-26: the code stays used, though nobody can say by whom."""
    aid = await host.add_account()
    invites = earning(host)
    host.clock.advance(DAY_S)
    [code] = await invites.list_of_account(aid)
    await spend(host, code.code, 4711)
    assert await invites.list_of_account(aid, include_used=False) == []
    [listed] = await invites.list_of_account(aid)
    assert listed.uses == ()


async def test_uses_name_the_account(host: SessionHost) -> None:
    aid = await host.add_account()
    bob = await host.add_account(
        did=Did("did:web:bob.test"), handle="bob.pds.test", email="bob@mail.test"
    )
    invites = earning(host)
    host.clock.advance(DAY_S)
    [code] = await invites.list_of_account(aid)
    await spend(host, code.code, bob)
    [listed] = await invites.list_of_account(aid)
    assert [use.used_by for use in listed.uses] == ["did:web:bob.test"]


async def test_codes_given_by_the_operator_are_listed_and_do_not_count(host: SessionHost) -> None:
    """ACC-26."""
    aid = await host.add_account()
    invites = earning(host)
    await invites.create(code_count=6, use_count=3, for_accounts=[ALICE])
    host.clock.advance(DAY_S)
    listed = await invites.list_of_account(aid)
    assert sorted(code.created_by for code in listed) == ["admin"] * 6 + [ALICE]


async def test_epoch_takes_back_what_was_earned_before(host: SessionHost) -> None:
    """ACC-26."""
    aid = await host.add_account()
    host.clock.advance(DAY_S * 4)
    assert len(await earning(host).list_of_account(aid)) == 4
    invites = earning(host, epoch_s=host.clock.now_us() / 1_000_000)
    host.clock.advance(DAY_S)
    assert len(await invites.list_of_account(aid)) == 5
    host.clock.advance(DAY_S * 9)
    assert len(await invites.list_of_account(aid)) == 5


@pytest.mark.parametrize("settings", [{"interval_s": None}, {"required": False}, {"interval_s": 0}])
async def test_without_interval_or_need_nothing_is_earned(
    host: SessionHost, settings: dict[str, Any]
) -> None:
    """ACC-26."""
    aid = await host.add_account()
    host.clock.advance(DAY_S * 9)
    assert await earning(host, **settings).list_of_account(aid) == []


async def test_asking_only_for_a_list_makes_nothing(host: SessionHost) -> None:
    aid = await host.add_account()
    host.clock.advance(DAY_S)
    assert await earning(host).list_of_account(aid, create_available=False) == []


async def test_barred_account_earns_disabled_codes_that_are_not_listed(host: SessionHost) -> None:
    """ACC-25: as the reference has it, so that the interval is used up meanwhile."""
    aid = await host.add_account()
    await host.engine.transact(
        "test", lambda txn: txn.write("UPDATE account SET invites_disabled = 1")
    )
    host.clock.advance(DAY_S * 2)
    assert await earning(host).list_of_account(aid) == []
    rows = await host.engine.read("test", lambda txn: txn.read("SELECT disabled FROM invite_code"))
    assert rows == [(1,), (1,)]


async def test_asking_twice_at_once_makes_each_code_once(host: SessionHost) -> None:
    """ACC-26."""
    aid = await host.add_account()
    invites = earning(host)
    host.clock.advance(DAY_S * 3)
    lists = await asyncio.gather(*(invites.list_of_account(aid) for _ in range(4)))
    assert [len(codes) for codes in lists] == [3] * 4
