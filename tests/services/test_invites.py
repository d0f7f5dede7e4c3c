"""Invite codes: how they read, and when they are usable."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pds.errors import RequestError
from pds.services.invites import MAX_CODES_PER_CALL, Invites
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
