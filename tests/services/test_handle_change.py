"""Changing handles: whole or not at all, whatever crashes, races or refuses (promise A8)."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pds.errors import RequestError, Unreachable
from pds.protocol.keys import make_signer
from pds.protocol.plc import make_handle_update, make_update, sign_operation
from pds.protocol.syntax import Did, Handle
from pds.services.audit import Order
from pds.services.handles import HandleSettings, reserved_labels
from pds.services.identity_acts import ACT_KIND, decode_act, encode_act
from pds.services.journal_settling import Settled
from pds.store.accounts import Account, delete_account, update_takedown
from pds.store.audit import list_audit
from pds.store.engine import Txn
from pds.store.journal import list_journal, update_journal
from tests.fakes.plc import Mood
from tests.services.creation_host import (
    ROTATION,
    USER_KEY,
    Crash,
    CrashPoint,
)
from tests.services.identity_host import IdentityHost, identity_host

ADMIN = Order("admin")
USER_SIGNER = make_signer("p256", b"\x09" * 32)


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[IdentityHost]:
    async with identity_host(tmp_path) as host:
        yield host


async def refusal(awaitable: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        await awaitable
    return caught.value


def publish(host: IdentityHost, did: str, **parts: Any) -> None:
    """Change an identity at the directory, as its owner could elsewhere."""
    log = host.plc.directory.get_log(did)
    assert log is not None
    fields = make_update(log.active[-1].operation, **parts)
    host.plc.directory.submit(did, sign_operation(fields, ROTATION).to_json())


async def test_a_handle_of_ours_is_changed_in_both_places_and_announced(
    host: IdentityHost,
) -> None:
    """ID-25, SYNC-34."""
    alice = await host.add()
    seen = len(await host.frames())
    assert await host.handle_change.change(alice.aid, "Queen.pds.test") == "queen.pds.test"
    after = await host.assert_agrees(alice.did)
    assert after.handle == "queen.pds.test"
    [(kind, payload)] = await host.events_since(seen)
    assert kind == "#identity"
    assert (payload["did"], payload["handle"]) == (alice.did, "queen.pds.test")
    assert await host.accounts.lookup("alice.pds.test") is None
    bob = await host.add("bob.pds.test")
    await host.handle_change.change(bob.aid, "alice.pds.test")
    await host.assert_agrees(bob.did)


async def test_the_same_handle_again_is_announced_and_costs_no_operation(
    host: IdentityHost,
) -> None:
    """ID-25: the way to repair what others remember."""
    alice = await host.add()
    seen = len(await host.frames())
    await host.handle_change.change(alice.aid, "alice.pds.test")
    assert [kind for kind, _ in await host.events_since(seen)] == ["#identity"]
    assert host.operations_of(alice.did) == 1
    publish(host, alice.did, also_known_as=["at://strange.example.com"])
    await host.handle_change.change(alice.aid, "alice.pds.test")
    await host.assert_agrees(alice.did)


async def test_a_foreign_handle_must_lead_to_the_account(host: IdentityHost) -> None:
    """ID-21."""
    alice = await host.add()
    for leads_to in (None, Did("did:plc:aaaaaaaaaaaaaaaaaaaaaaaa")):
        if leads_to is not None:
            host.resolver.handles["alice.example.com"] = leads_to
        error = await refusal(host.handle_change.change(alice.aid, "alice.example.com"))
        assert error.name == "InvalidRequest"
        await host.assert_agrees(alice.did)
    host.resolver.handles["alice.example.com"] = alice.did
    await host.handle_change.change(alice.aid, "alice.example.com")
    assert (await host.assert_agrees(alice.did)).handle == "alice.example.com"


async def test_a_foreign_handle_that_cannot_be_asked_about_is_not_called_wrong(
    host: IdentityHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = await host.add()

    async def silent(handle: Handle, *, refresh: bool = False) -> Did:
        raise Unreachable("no answer")

    monkeypatch.setattr(host.resolver, "resolve_handle", silent)
    with pytest.raises(Unreachable):
        await host.handle_change.change(alice.aid, "alice.example.com")
    await host.assert_agrees(alice.did)


@pytest.mark.parametrize(
    ("handle", "name"),
    [
        ("bob.pds.test", "HandleNotAvailable"),
        ("admin.pds.test", "HandleNotAvailable"),
        ("al.pds.test", "InvalidHandle"),
        ("a.b.pds.test", "InvalidHandle"),
        ("alice", "InvalidHandle"),
        ("alice.onion", "InvalidHandle"),
        ("handle.invalid", "InvalidHandle"),
    ],
)
async def test_what_we_do_not_give_out_is_refused_and_nothing_is_sent(
    host: IdentityHost, handle: str, name: str
) -> None:
    """ID-2, ID-20, ACC-2."""
    alice = await host.add()
    await host.add("bob.pds.test")
    assert (await refusal(host.handle_change.change(alice.aid, handle))).name == name
    assert host.operations_of(alice.did) == 1
    await host.assert_agrees(alice.did)


async def test_the_operator_gives_reserved_names_and_leaves_a_trail(host: IdentityHost) -> None:
    """ID-21, ACC-48."""
    alice = await host.add()
    order = Order("admin", "asked for by mail")
    await host.handle_change.change(
        alice.aid, "admin.pds.test", order=Order("admin", is_rehearsal=True)
    )
    assert (await host.assert_agrees(alice.did)).handle == "alice.pds.test"
    await host.handle_change.change(alice.aid, "admin.pds.test", order=order)
    assert (await host.assert_agrees(alice.did)).handle == "admin.pds.test"
    [row] = await host.engine.read("test.audit", lambda txn: list_audit(txn, limit=10))
    assert (row.actor, row.act, row.subject) == ("admin", "account.set-handle", alice.did)
    assert row.note == "asked for by mail"
    await host.add("bob.pds.test")
    error = await refusal(host.handle_change.change(alice.aid, "bob.pds.test", order=order))
    assert error.message == "Handle already taken: bob.pds.test"


async def test_a_taken_down_account_is_renamed_by_the_operator_only(host: IdentityHost) -> None:
    alice = await host.add()
    await host.engine.transact("test.takedown", update_takedown, alice.aid, "ref")
    host.cache.forget(alice.aid)
    error = await refusal(host.handle_change.change(alice.aid, "other.pds.test"))
    assert (error.name, error.status) == ("AccountTakedown", 401)
    await host.handle_change.change(alice.aid, "renamed.pds.test", order=Order("admin"))
    assert (await host.assert_agrees(alice.did)).handle == "renamed.pds.test"


async def test_names_of_the_domains_are_given_by_the_operator_if_settings_allow(
    tmp_path: Path,
) -> None:
    """ID-20."""
    settings = HandleSettings(
        service_domains=(".pds.test",),
        dev=True,
        root_handles=True,
        reserved_labels=reserved_labels(["-*", "king"]),
    )
    async with identity_host(tmp_path, handle_settings=settings) as host:
        alice = await host.add()
        error = await refusal(host.handle_change.change(alice.aid, "pds.test"))
        assert error.name == "HandleNotAvailable"
        assert (await refusal(host.handle_change.change(alice.aid, "king.pds.test"))).name == (
            "HandleNotAvailable"
        )
        await host.handle_change.change(alice.aid, "pds.test", order=Order("admin"))
        assert (await host.assert_agrees(alice.did)).handle == "pds.test"


async def test_without_our_rotation_key_the_document_must_come_first(host: IdentityHost) -> None:
    """ID-26."""
    alice = await host.add()
    publish(host, alice.did, rotation_keys=[USER_KEY])
    error = await refusal(host.handle_change.change(alice.aid, "new.pds.test"))
    assert "at://new.pds.test" in error.message
    await host.assert_agrees(alice.did)
    log = host.plc.directory.get_log(alice.did)
    assert log is not None
    fields = make_update(log.active[-1].operation, also_known_as=["at://new.pds.test"])
    host.plc.directory.submit(alice.did, sign_operation(fields, USER_SIGNER).to_json())
    await host.handle_change.change(alice.aid, "new.pds.test")
    assert (await host.assert_agrees(alice.did)).handle == "new.pds.test"


async def test_a_did_web_document_is_its_owners(host: IdentityHost) -> None:
    """ID-41."""
    alice = await host.add()
    did = Did("did:web:alice.example.com")
    sql = "UPDATE account SET did = ? WHERE aid = ?"
    await host.engine.transact("test.did", lambda txn: txn.write(sql, (did, alice.aid)))
    host.cache.forget(alice.aid)
    document = {"id": did, "alsoKnownAs": ["at://old.pds.test"]}
    host.resolver.documents[did] = document
    error = await refusal(host.handle_change.change(alice.aid, "new.pds.test"))
    assert error.message.startswith("DID is not properly configured for handle")
    host.resolver.documents[did] = {**document, "alsoKnownAs": ["at://new.pds.test"]}
    await host.handle_change.change(alice.aid, "new.pds.test")
    assert (await host.account(did)).handle == "new.pds.test"
    assert await host.count("journal") == 0


async def test_five_racing_changes_of_one_account_leave_one_handle(host: IdentityHost) -> None:
    """Promise A8: rows and document end the same."""
    alice = await host.add()
    results = await asyncio.gather(
        *(host.handle_change.change(alice.aid, f"name{n}.pds.test") for n in range(5)),
        return_exceptions=True,
    )
    done = [result for result in results if isinstance(result, str)]
    assert len(done) == 1
    assert all(isinstance(result, str | RequestError) for result in results)
    assert (await host.assert_agrees(alice.did)).handle == done[0]
    assert host.operations_of(alice.did) == 2


async def test_five_accounts_that_race_for_one_handle_leave_one_holder(
    host: IdentityHost,
) -> None:
    """Promise A8: no document names a handle that its account did not get."""
    people = [await host.add(f"person{n}.pds.test") for n in range(5)]
    sign_up = host.accounts.create(host.request(handle="prize.pds.test", email="six@mail.test"))
    results = await asyncio.gather(
        *(host.handle_change.change(person.aid, "prize.pds.test") for person in people),
        sign_up,
        return_exceptions=True,
    )
    refused = [result for result in results if isinstance(result, RequestError)]
    assert len(refused) == 5
    holders = await host.rows("SELECT did FROM account WHERE handle = ?", "prize.pds.test")
    assert len(holders) == 1
    for did in host.live_dids():
        await host.assert_agrees(did)


async def test_a_handle_on_its_way_is_taken_for_everybody(host: IdentityHost) -> None:
    """ACC-2: the reservation holds while the directory is asked."""
    alice, bob = await host.add(), await host.add("bob.pds.test")
    host.identity_plc.gate = asyncio.Event()
    moving = asyncio.create_task(host.handle_change.change(alice.aid, "prize.pds.test"))
    while await host.count("journal") < 2:
        await asyncio.sleep(0)
    for attempt in (
        host.handle_change.change(bob.aid, "prize.pds.test"),
        host.accounts.create(host.request(handle="prize.pds.test", email="six@mail.test")),
    ):
        assert "Handle already taken" in (await refusal(attempt)).message
    assert not (await host.names.check("prize.pds.test")).is_available
    host.identity_plc.gate.set()
    await moving
    await host.assert_agrees(alice.did)
    await host.assert_agrees(bob.did)


async def crash(host: IdentityHost, alice: Account, when: str, what: str) -> None:
    point = host.crash = CrashPoint(when, what)
    with pytest.raises(Crash):
        await host.handle_change.change(alice.aid, "new.pds.test")
    assert point.hits == 1
    host.restart()


KILL_POINTS = [
    ("before", "identity.reserve", "alice.pds.test"),
    ("after", "identity.reserve", "alice.pds.test"),
    ("before", "identity.record", "alice.pds.test"),
    ("after", "identity.record", "new.pds.test"),
    ("before", "plc.submit", "new.pds.test"),
    ("after", "plc.submit", "new.pds.test"),
    ("before", "identity.confirm", "new.pds.test"),
    ("after", "identity.confirm", "new.pds.test"),
]


@pytest.mark.parametrize(("when", "what", "expected"), KILL_POINTS)
async def test_a_crash_at_each_step_leaves_one_handle_in_both_places(
    host: IdentityHost, when: str, what: str, expected: str
) -> None:
    """Promise A8."""
    alice = await host.add()
    seen = len(await host.frames())
    await crash(host, alice, when, what)
    outcome = await host.journal.recover()
    assert outcome[Settled.WAITING] == 0
    assert (await host.assert_agrees(alice.did)).handle == expected
    is_new = expected == "new.pds.test"
    assert len(await host.events_since(seen)) == int(is_new)
    assert sum((await host.journal.recover(now=True)).values()) == 0
    await host.handle_change.change(alice.aid, "last.pds.test")
    await host.assert_agrees(alice.did)


@pytest.mark.parametrize(("when", "what", "expected"), KILL_POINTS)
async def test_whoever_asks_again_settles_what_a_crash_left(
    host: IdentityHost, when: str, what: str, expected: str
) -> None:
    """Without waiting for the job of the start: by the account, or by others for the handle."""
    alice, bob = await host.add(), await host.add("bob.pds.test")
    await crash(host, alice, when, what)
    if expected == "new.pds.test":
        await refusal(host.handle_change.change(bob.aid, "new.pds.test"))
    await host.handle_change.change(alice.aid, "last.pds.test")
    assert (await host.assert_agrees(alice.did)).handle == "last.pds.test"
    await host.assert_agrees(bob.did)


@pytest.mark.parametrize("what", ["plc.submit", "identity.confirm"])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_crash_of_the_recovery_is_recovered_from(
    host: IdentityHost, when: str, what: str
) -> None:
    """Promise A8."""
    alice = await host.add()
    await crash(host, alice, "after", "identity.record")
    host.crash = CrashPoint(when, what)
    with pytest.raises(Crash):
        await host.journal.recover()
    host.restart()
    await host.journal.recover()
    assert (await host.assert_agrees(alice.did)).handle == "new.pds.test"


async def test_an_account_that_was_deleted_meanwhile_leaves_no_rows(host: IdentityHost) -> None:
    alice = await host.add()
    await crash(host, alice, "after", "plc.submit")
    await host.engine.transact("test.delete", delete_account, alice.aid)
    seen = len(await host.frames())
    await host.journal.recover()
    assert await host.count("journal") == 0
    assert await host.events_since(seen) == []


async def test_a_row_that_cannot_be_read_stops_no_other(host: IdentityHost) -> None:
    alice, bob = await host.add(), await host.add("bob.pds.test")
    await crash(host, alice, "after", "plc.submit")
    sql = "UPDATE journal SET state = ? WHERE kind = 'identity_act'"
    await host.engine.transact("test.damage", lambda txn: txn.write(sql, (b"?",)))
    host.crash = CrashPoint("after", "plc.submit")
    with pytest.raises(Crash):
        await host.handle_change.change(bob.aid, "robert.pds.test")
    host.restart()
    outcome = await host.journal.recover()
    assert outcome == {Settled.COMPLETED: 1, Settled.UNDONE: 0, Settled.WAITING: 1}


@pytest.mark.parametrize("mood", [Mood.DOWN, Mood.FAULTY, Mood.BABBLING, Mood.SLOW])
async def test_a_directory_that_does_not_answer_changes_nothing_and_is_told(
    host: IdentityHost, mood: Mood
) -> None:
    """Promise A8: PLC calls time out."""
    alice = await host.add()
    host.plc.read_mood = mood
    error = await refusal(host.handle_change.change(alice.aid, "new.pds.test"))
    assert (error.name, error.status) == ("UpstreamFailure", 502)
    host.plc.mood = Mood.KIND
    await host.assert_agrees(alice.did)


@pytest.mark.parametrize("mood", [Mood.DOWN, Mood.FAULTY, Mood.FORGETFUL, Mood.SLOW])
async def test_an_operation_of_unknown_fate_is_finished_when_the_directory_is_back(
    host: IdentityHost, mood: Mood
) -> None:
    """Promise A8: FORGETFUL takes the operation, the others may or may not."""
    alice = await host.add()

    async def now_down() -> None:
        host.plc.mood = mood

    plc_submit = host.identity_plc.submit

    async def submit(did: Did, operation: Any) -> None:
        host.plc.mood = mood
        await plc_submit(did, operation)

    host.identity_plc.submit = submit  # type: ignore[method-assign]
    if mood is Mood.FORGETFUL:  # The client finds out by itself that it was taken.
        await host.handle_change.change(alice.aid, "new.pds.test")
    else:
        error = await refusal(host.handle_change.change(alice.aid, "new.pds.test"))
        assert (error.name, error.status) == ("UpstreamFailure", 502)
        assert (await host.account(alice.did)).handle == "alice.pds.test"
        host.restart()
        assert (await host.journal.recover())[Settled.WAITING] == 1
        host.plc.mood = Mood.KIND
        assert (await host.journal.recover())[Settled.WAITING] == 1  # Not due yet.
        host.clock.advance(120)
        assert (await host.journal.recover())[Settled.COMPLETED] == 1
    host.plc.mood = Mood.KIND
    assert (await host.assert_agrees(alice.did)).handle == "new.pds.test"


async def test_a_refusal_of_the_directory_undoes_the_reservation(host: IdentityHost) -> None:
    """ID-59: also when it is asked too often, which has an error of its own."""
    alice, bob = await host.add(), await host.add("bob.pds.test")
    host.plc.write_mood = Mood.RATE_LIMITED
    error = await refusal(host.handle_change.change(alice.aid, "new.pds.test"))
    assert (error.name, error.status) == ("RateLimitExceeded", 429)
    host.plc.write_mood = Mood.KIND
    await host.assert_agrees(alice.did)
    await host.handle_change.change(bob.aid, "new.pds.test")
    await host.assert_agrees(bob.did)


async def test_an_identity_that_moved_on_meanwhile_undoes_what_a_crash_left(
    host: IdentityHost,
) -> None:
    """An operation names the one before it, so an old one is never sent over a newer one."""
    alice = await host.add()
    await crash(host, alice, "after", "identity.record")
    publish(host, alice.did, also_known_as=["at://alice.pds.test", "at://second.example.com"])
    assert (await host.journal.recover())[Settled.UNDONE] == 1
    assert (await host.assert_agrees(alice.did)).handle == "alice.pds.test"


async def test_a_caller_who_leaves_does_not_stop_the_change(host: IdentityHost) -> None:
    alice = await host.add()
    host.identity_plc.gate = asyncio.Event()
    moving = asyncio.create_task(host.handle_change.change(alice.aid, "new.pds.test"))
    while await host.count("journal") < 2:
        await asyncio.sleep(0)
    moving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await moving
    host.identity_plc.gate.set()
    await host.journal.close()
    assert (await host.assert_agrees(alice.did)).handle == "new.pds.test"


async def test_other_aliases_stay(host: IdentityHost) -> None:
    """ID-1: the first at:// alias is the handle."""
    alice = await host.add()
    publish(host, alice.did, also_known_as=["https://a.example", "at://alice.pds.test", "x:y"])
    await host.handle_change.change(alice.aid, "new.pds.test")
    assert host.state(alice.did).also_known_as == (
        "https://a.example", "at://new.pds.test", "x:y",
    )  # fmt: skip


async def test_availability_names_what_is_free_instead(host: IdentityHost) -> None:
    await host.add()
    assert (await host.names.check("free.pds.test")).is_available
    taken = await host.names.check(
        "Alice.pds.test", email="al.smith@mail.test", birth_date="1990-05-01T00:00:00Z"
    )
    assert not taken.is_available
    names = {suggestion.handle: suggestion.method for suggestion in taken.suggestions}
    assert names["alice90.pds.test"] == "birth_year"
    assert names["al-smith.pds.test"] == "email"
    for name in names:
        assert (await host.names.check(name)).is_available
    assert not (await host.names.check("admin.pds.test")).is_available
    foreign = await host.names.check("somebody.example.com")
    assert [s.handle for s in foreign.suggestions][:1] == ["somebody.pds.test"]
    error = await refusal(host.names.check("free.pds.test", email="nonsense"))
    assert error.name == "InvalidEmail"


async def test_what_the_operator_sets_aside_is_given_by_the_operator_only(
    host: IdentityHost,
) -> None:
    alice = await host.add()
    assert await host.names.reserve("Prize", order=ADMIN) == ["prize.pds.test"]
    assert await host.names.reserve("brand.example.com", order=ADMIN) == ["brand.example.com"]
    assert await host.names.reserve("prize.pds.test", order=ADMIN) == ["prize.pds.test"]
    error = await refusal(host.handle_change.change(alice.aid, "prize.pds.test"))
    assert error.name == "HandleNotAvailable"
    error = await refusal(
        host.accounts.create(host.request(handle="prize.pds.test", email="b@mail.test"))
    )
    assert error.name == "HandleNotAvailable"
    assert not (await host.names.check("prize.pds.test")).is_available
    await host.handle_change.change(alice.aid, "prize.pds.test", order=Order("admin"))
    await host.assert_agrees(alice.did)


async def test_another_node_leaves_young_acts_alone_and_settles_old_ones(
    host: IdentityHost,
) -> None:
    """With several nodes on one database a row may be somebody's."""
    alice = await host.add()
    await crash(host, alice, "after", "identity.record")
    other = host.make_journal(exclusive=False)
    assert (await other.recover())[Settled.WAITING] == 1
    error = await refusal(host.make_change(other).change(alice.aid, "impatient.pds.test"))
    assert "under way" in error.message
    host.clock.advance(31)
    assert (await other.recover())[Settled.COMPLETED] == 1
    assert (await host.assert_agrees(alice.did)).handle == "new.pds.test"


async def test_what_was_judged_too_early_is_not_undone(host: IdentityHost) -> None:
    """A row was read before its operation was written into it: it may be at the directory."""
    alice = await host.add()
    await crash(host, alice, "after", "identity.reserve")
    [row] = await host.engine.read("test.rows", list_journal, ACT_KIND)
    act = decode_act(row.state)
    log = host.plc.directory.get_log(alice.did)
    assert log is not None
    fields = make_handle_update(log.active[-1].operation, Handle("new.pds.test"))
    operation = sign_operation(fields, ROTATION)
    host.plc.directory.submit(alice.did, operation.to_json())
    state = encode_act(act.with_operation(operation))

    def record(txn: Txn) -> None:
        update_journal(txn, row.journal_id, state=state, attempts=0, now_us=host.clock.now_us())

    await host.engine.transact("test.record", record)
    assert await host.journal._settle(row) is Settled.WAITING
    await host.journal.recover()
    assert (await host.assert_agrees(alice.did)).handle == "new.pds.test"


async def test_a_journal_that_loses_its_row_to_another_node_says_so(host: IdentityHost) -> None:
    """The node was held up for long, and the act was settled meanwhile."""
    alice = await host.add()
    host.identity_plc.gate = asyncio.Event()
    slow = asyncio.create_task(host.handle_change.change(alice.aid, "new.pds.test"))
    while not any(
        decode_act(row.state).operation
        for row in await host.engine.read("test.rows", list_journal, ACT_KIND)
    ):
        await asyncio.sleep(0)
    host.clock.advance(60)
    other = host.make_journal(exclusive=False)
    host.identity_plc.gate.set()
    assert (await other.recover())[Settled.WAITING] == 0
    results = await asyncio.gather(slow, return_exceptions=True)
    assert isinstance(results[0], str | RequestError)
    assert (await host.assert_agrees(alice.did)).handle == "new.pds.test"
