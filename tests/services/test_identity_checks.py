"""Looking at identities now and then: what counts is found twice (ID-4, ACC-6)."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pds.errors import Unreachable
from pds.protocol.plc import PlcService, make_tombstone, make_update, sign_operation
from pds.protocol.syntax import Did, Handle
from pds.services.account_states import AccountStates
from pds.services.identity_checks import CONFIRM_S, ROUND_S, IdentityChecks
from pds.store.accounts import AccountStatus
from tests.services.creation_host import PUBLIC_URL, ROTATION, USER_KEY
from tests.services.identity_host import IdentityHost, identity_host

ELSEWHERE = PlcService("AtprotoPersonalDataServer", "https://other.test")


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[IdentityHost]:
    async with identity_host(tmp_path) as host:
        yield host


def checks(host: IdentityHost, *, batch: int = 100) -> IdentityChecks:
    return IdentityChecks(
        engine=host.engine,
        keystore=host.keystore,
        resolver=host.resolver,
        handles=host.policy,
        states=AccountStates(keystore=host.keystore, sessions=host.sessions, cache=host.cache),
        public_url=PUBLIC_URL,
        batch=batch,
    )


def publish(host: IdentityHost, did: str, **parts: Any) -> None:
    log = host.plc.directory.get_log(did)
    assert log is not None
    fields = make_update(log.active[-1].operation, **parts)
    host.plc.directory.submit(did, sign_operation(fields, ROTATION).to_json())


async def next_round(host: IdentityHost) -> int:
    host.clock.advance(ROUND_S)
    return await checks(host).recheck(host.clock.now_us())


async def test_accounts_that_fit_are_looked_at_once_a_round_and_left_alone(
    host: IdentityHost,
) -> None:
    for n in range(5):
        await host.add(f"person{n}.pds.test")
    seen = len(await host.frames())
    looks = [await checks(host, batch=2).recheck(host.clock.now_us()) for _ in range(5)]
    assert looks == [2, 2, 1, 0, 0]
    assert await next_round(host) == 5
    assert await host.events_since(seen) == []
    assert await host.count("account_choice") == 0


async def test_a_handle_that_broke_is_announced_the_second_time_and_once(
    host: IdentityHost,
) -> None:
    """ID-4: the stored handle stays, and comes back when it holds again."""
    alice = await host.add()
    host.resolver.handles["alice.example.com"] = alice.did
    await host.handle_change.change(alice.aid, "alice.example.com")
    seen = len(await host.frames())
    del host.resolver.handles["alice.example.com"]
    assert await next_round(host) == 1
    assert await host.events_since(seen) == []
    for _ in range(3):
        await next_round(host)
    events = await host.events_since(seen)
    assert [(kind, payload["handle"]) for kind, payload in events] == [
        ("#identity", "handle.invalid")
    ]
    assert (await host.account(alice.did)).handle == "alice.example.com"
    assert (await host.account(alice.did)).is_active
    host.resolver.handles["alice.example.com"] = alice.did
    await next_round(host)
    await next_round(host)
    events = await host.events_since(seen + 1)
    assert [payload["handle"] for _, payload in events] == ["alice.example.com"]


async def test_a_document_that_names_another_handle_breaks_it(host: IdentityHost) -> None:
    """ID-1: both directions."""
    alice = await host.add()
    publish(host, alice.did, also_known_as=["at://somebody.example.com"])
    seen = len(await host.frames())
    await next_round(host)
    publish(host, alice.did, also_known_as=["at://alice.pds.test"])
    await next_round(host)
    assert await host.events_since(seen) == []  # It was over before the second look.


async def test_what_cannot_be_found_out_has_no_consequence(
    host: IdentityHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ID-36."""
    alice = await host.add()
    host.resolver.handles["alice.example.com"] = alice.did
    await host.handle_change.change(alice.aid, "alice.example.com")
    seen = len(await host.frames())

    async def silent(handle: Handle, *, refresh: bool = False) -> Did:
        raise Unreachable("no answer")

    monkeypatch.setattr(host.resolver, "resolve_handle", silent)
    for _ in range(3):
        assert await next_round(host) == 0
    assert await host.events_since(seen) == []


async def test_an_account_that_moved_away_is_deactivated_and_kept(host: IdentityHost) -> None:
    """ACC-6."""
    alice, bob = await host.add(), await host.add("bob.pds.test")
    publish(host, alice.did, services={"atproto_pds": ELSEWHERE})
    seen = len(await host.frames())
    await next_round(host)
    assert (await host.account(alice.did)).is_active
    host.clock.advance(CONFIRM_S)
    await next_round(host)
    account = await host.account(alice.did)
    assert account.status is AccountStatus.DEACTIVATED
    assert account.delete_after is None
    [(kind, payload)] = await host.events_since(seen)
    assert (kind, payload["did"], payload["status"]) == ("#account", alice.did, "deactivated")
    assert (await host.account(bob.did)).is_active


async def test_if_most_have_moved_it_is_us(host: IdentityHost) -> None:
    """A wrong host name must not deactivate everybody."""
    people = [await host.add(f"person{n}.pds.test") for n in range(4)]
    for person in people[:3]:
        publish(host, person.did, services={"atproto_pds": ELSEWHERE})
    for _ in range(3):
        await next_round(host)
    assert all([(await host.account(person.did)).is_active for person in people])


async def test_other_keys_and_lost_dids_are_for_people_to_judge(
    host: IdentityHost,
) -> None:
    alice, bob = await host.add(), await host.add("bob.pds.test")
    publish(host, alice.did, verification_methods={"atproto": USER_KEY})
    log = host.plc.directory.get_log(bob.did)
    assert log is not None
    tombstone = sign_operation(make_tombstone(log.active[-1].operation), ROTATION)
    host.plc.directory.submit(bob.did, tombstone.to_json())
    seen = len(await host.frames())
    for _ in range(3):
        await next_round(host)
    assert await host.events_since(seen) == []
    assert (await host.account(alice.did)).is_active
    assert (await host.account(bob.did)).is_active
    rows = await host.rows("SELECT aid, value FROM account_choice ORDER BY aid")
    kinds = [(aid, bytes(value).split()[0], bytes(value).split()[2]) for aid, value in rows]
    assert kinds == [(alice.aid, b"key", b"1"), (bob.aid, b"gone", b"1")]
