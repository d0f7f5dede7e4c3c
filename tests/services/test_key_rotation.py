"""Replacing signing keys: the directory, the key and the head change together (ID-72)."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pds.errors import RequestError
from pds.protocol.commit import decode_commit, verify_commit
from pds.protocol.keys import make_signer, parse_did_key
from pds.protocol.plc import make_update, sign_operation
from pds.protocol.syntax import Did
from pds.services.audit import Order
from pds.services.journal_settling import Settled
from pds.store.accounts import Account, update_deactivation
from pds.store.audit import list_audit
from tests.fakes.plc import Mood
from tests.services.creation_host import ROTATION, USER_KEY, Crash, CrashPoint
from tests.services.identity_host import IdentityHost, identity_host

ADMIN = Order("admin")
STRANGER_KEY = make_signer("k256", b"\x0a" * 32).public_key.did_key


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[IdentityHost]:
    async with identity_host(tmp_path) as host:
        yield host


async def refusal(awaitable: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        await awaitable
    return caught.value


def published(host: IdentityHost, account: Account) -> str:
    return str(host.state(account.did).verification_methods["atproto"])


async def test_a_new_key_is_published_and_signs_the_head_anew(host: IdentityHost) -> None:
    """ID-72, SYNC-33: #identity, then the head under the new key."""
    alice = await host.add()
    old = published(host, alice)
    seen = len(await host.frames())
    new = await host.rotation.rotate(alice.did, order=ADMIN)
    assert new != old
    assert published(host, alice) == new
    await host.assert_agrees(alice.did)
    events = await host.events_since(seen)
    assert [kind for kind, _ in events] == ["#identity", "#commit", "#sync"]
    assert events[1][1]["ops"] == []
    assert events[1][1]["rev"] == events[2][1]["rev"]
    [row] = await host.engine.read("test.audit", lambda txn: list_audit(txn, limit=10))
    assert (row.act, row.subject) == ("account.set-signing-key", alice.did)
    assert old.encode() in (row.before or b"")


async def test_a_reserved_key_is_used_and_then_no_longer_reserved(host: IdentityHost) -> None:
    """ACC-15."""
    alice = await host.add()
    reserved = await host.reserved.reserve(alice.did)
    assert await host.rotation.rotate(alice.did, reserved, order=ADMIN) == reserved
    assert published(host, alice) == reserved
    await host.assert_agrees(alice.did)
    assert await host.count("reserved_key") == 0
    assert await host.rotation.rotate(alice.did, reserved, order=ADMIN) == reserved
    assert host.operations_of(alice.did) == 2


@pytest.mark.parametrize("key", [STRANGER_KEY, USER_KEY, "did:key:zNonsense", "did:web:a.test"])
async def test_a_key_that_we_do_not_hold_is_refused(host: IdentityHost, key: str) -> None:
    alice = await host.add()
    await host.reserved.reserve(alice.did)
    assert (await refusal(host.rotation.rotate(alice.did, key, order=ADMIN))).name == (
        "InvalidRequest"
    )
    assert host.operations_of(alice.did) == 1
    await host.assert_agrees(alice.did)


async def test_a_rehearsal_changes_nothing(host: IdentityHost) -> None:
    alice = await host.add()
    await host.rotation.rotate(alice.did, order=Order("admin", is_rehearsal=True))
    assert host.operations_of(alice.did) == 1
    await host.assert_agrees(alice.did)
    nobody = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"
    assert (await refusal(host.rotation.rotate(nobody, order=ADMIN))).name == "NotFound"


async def test_an_inactive_account_gets_a_head_but_no_commit_event(host: IdentityHost) -> None:
    """ACC-6, SYNC-31."""
    alice = await host.add()

    def deactivate(txn: Any) -> None:
        update_deactivation(txn, alice.aid, deactivated_at=1, delete_after=None)

    await host.engine.transact("test.deactivate", deactivate)
    host.cache.forget(alice.aid)
    seen = len(await host.frames())
    await host.rotation.rotate(alice.did, order=ADMIN)
    assert [kind for kind, _ in await host.events_since(seen)] == ["#identity"]
    await host.assert_agrees(alice.did)


async def test_without_our_rotation_key_the_document_comes_first(host: IdentityHost) -> None:
    """ID-26 in spirit: what we cannot sign, the owner publishes."""
    alice = await host.add()
    reserved = await host.reserved.reserve(alice.did)
    log = host.plc.directory.get_log(alice.did)
    assert log is not None
    fields = make_update(
        log.active[-1].operation,
        rotation_keys=[USER_KEY],
        verification_methods={"atproto": reserved},
    )
    host.plc.directory.submit(alice.did, sign_operation(fields, ROTATION).to_json())
    error = await refusal(host.rotation.rotate(alice.did, order=ADMIN))
    assert "holds no rotation key" in error.message
    await host.rotation.rotate(alice.did, reserved, order=ADMIN)
    await host.assert_agrees(alice.did)


async def test_a_did_web_document_comes_first(host: IdentityHost) -> None:
    """ID-41."""
    alice = await host.add()
    did = Did("did:web:alice.example.com")
    sql = "UPDATE account SET did = ? WHERE aid = ?"
    await host.engine.transact("test.did", lambda txn: txn.write(sql, (did, alice.aid)))
    host.cache.forget(alice.aid)
    reserved = await host.reserved.reserve(did)
    host.resolver.documents[did] = {"id": did}
    error = await refusal(host.rotation.rotate(did, reserved, order=ADMIN))
    assert "must name the new signing key" in error.message
    host.resolver.documents[did] = {
        "id": did,
        "verificationMethod": [
            {
                "id": f"{did}#atproto",
                "type": "Multikey",
                "controller": did,
                "publicKeyMultibase": reserved.removeprefix("did:key:"),
            }
        ],
    }
    await host.rotation.rotate(did, reserved, order=ADMIN)
    keys = await host.rows("SELECT did_key FROM signing_key WHERE aid = ?", alice.aid)
    assert keys == [(reserved,)]


@pytest.mark.parametrize(
    ("when", "what", "is_done"),
    [
        ("before", "identity.reserve", False),
        ("after", "identity.reserve", False),
        ("before", "identity.record", False),
        ("after", "identity.record", True),
        ("after", "plc.submit", True),
        ("before", "identity.confirm", True),
        ("after", "identity.confirm", True),
    ],
)
async def test_a_crash_at_each_step_leaves_one_key_in_both_places(
    host: IdentityHost, when: str, what: str, is_done: bool
) -> None:
    """Promise A8: no key is left over, none is missing."""
    alice = await host.add()
    old = published(host, alice)
    host.crash = CrashPoint(when, what)
    with pytest.raises(Crash):
        await host.rotation.rotate(alice.did, order=ADMIN)
    host.restart()
    assert (await host.journal.recover())[Settled.WAITING] == 0
    await host.assert_agrees(alice.did)
    assert (published(host, alice) != old) == is_done


async def test_a_refusal_of_the_directory_leaves_the_old_key(host: IdentityHost) -> None:
    alice = await host.add()
    host.plc.write_mood = Mood.RATE_LIMITED
    assert (await refusal(host.rotation.rotate(alice.did, order=ADMIN))).status == 429
    host.plc.write_mood = Mood.KIND
    await host.assert_agrees(alice.did)
    [(block,)] = await host.rows("SELECT commit_block FROM repo")
    assert verify_commit(decode_commit(block), parse_did_key(published(host, alice)))


async def test_a_handle_and_a_key_that_race_leave_one_story(host: IdentityHost) -> None:
    """An identity has one act at a time."""
    alice = await host.add()
    results = await asyncio.gather(
        host.rotation.rotate(alice.did, order=ADMIN),
        host.handle_change.change(alice.aid, "new.pds.test"),
        host.rotation.rotate(alice.did, order=ADMIN),
        return_exceptions=True,
    )
    assert sum(isinstance(result, RequestError) for result in results) == 2
    await host.assert_agrees(alice.did)
