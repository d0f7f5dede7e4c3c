"""A crash at any moment of opening an account leaves a whole account or none (promise A8)."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pds.errors import RequestError
from pds.protocol.keys import parse_did_key
from pds.services.journal_settling import Settled
from pds.store.accounts import AccountStatus
from tests.fakes.plc import Mood
from tests.services.creation_host import (
    PASSWORD,
    Crash,
    CrashPoint,
    CreationHost,
    creation_host,
)

EVENTS = ["#identity", "#account", "#commit", "#sync"]


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[CreationHost]:
    async with creation_host(tmp_path) as host:
        yield host


async def assert_whole(host: CreationHost) -> None:
    """One account: rows, identity and events agree, and its owner can sign in."""
    view = await host.sessions.login("alice.pds.test", PASSWORD)
    assert view.status is AccountStatus.ACTIVE
    assert host.live_dids() == [view.did]
    state = host.plc.directory.get_state(view.did)
    assert state is not None
    account = await host.accounts.lookup(view.did)
    assert account is not None
    assert account.key_id is not None
    signer = await host.engine.read("test", host.keystore.signer, account.key_id)
    assert signer.public_key == parse_did_key(state.verification_methods["atproto"])
    for table in ("account", "repo", "signing_key", "data_key"):
        assert await host.count(table) == 1, table
    assert await host.rows("SELECT repo_id FROM repo") == [(account.repo_id,)]
    assert [frame.type for frame in await host.frames()] == EVENTS
    assert await host.count("journal") == 0


async def assert_nothing(host: CreationHost) -> None:
    for table in ("account", "repo", "signing_key", "data_key", "session", "event", "journal"):
        assert await host.count(table) == 0, table
    assert host.live_dids() == []


async def crash_at(host: CreationHost, when: str, what: str) -> None:
    point = host.crash = CrashPoint(when, what)
    with pytest.raises(Crash):
        await host.accounts.create(host.request())
    assert point.hits == 1


@pytest.mark.parametrize(
    ("when", "what", "is_whole"),
    [
        ("before", "account.reserve", False),
        ("after", "account.reserve", False),
        ("before", "plc.submit", False),
        ("after", "plc.submit", True),
        ("before", "account.create", True),
        ("after", "account.create", True),
    ],
)
async def test_crash_at_each_step_leaves_a_whole_account_or_none(
    host: CreationHost, when: str, what: str, is_whole: bool
) -> None:
    """ACC-12."""
    await crash_at(host, when, what)
    host.restart()
    outcome = await host.accounts.recover(now=True)
    assert outcome[Settled.WAITING] == 0
    await (assert_whole if is_whole else assert_nothing)(host)
    assert sum((await host.accounts.recover(now=True)).values()) == 0
    if not is_whole:
        await host.accounts.create(host.request())
        await assert_whole(host)


@pytest.mark.parametrize(
    ("when", "what"),
    [
        ("before", "account.create"),
        ("after", "account.create"),
    ],
)
async def test_crash_of_the_recovery_itself_is_recovered_from(
    host: CreationHost, when: str, what: str
) -> None:
    """ACC-12."""
    await crash_at(host, "after", "plc.submit")
    host.restart()
    host.crash = CrashPoint(when, what)
    with pytest.raises(Crash):
        await host.accounts.recover(now=True)
    host.restart()
    await host.accounts.recover(now=True)
    await assert_whole(host)


async def take_the_handle(host: CreationHost) -> None:
    """Make the last transaction refuse: somebody else gets the address meanwhile."""

    def insert(txn: object) -> None:
        txn.write(  # type: ignore[attr-defined]
            "INSERT INTO account (aid, did, email, created_at) VALUES (?, ?, ?, ?)",
            (999, "did:web:other.test", "alice@mail.test", 1),
        )

    await host.real_engine.transact("test.take", insert)


async def give_the_handle_back(host: CreationHost) -> None:
    await host.real_engine.transact(
        "test.give", lambda txn: txn.write("DELETE FROM account WHERE aid = ?", (999,))
    )


@pytest.mark.parametrize(
    ("when", "what"),
    [
        ("before", "account.mark_undo"),
        ("after", "account.mark_undo"),
        ("before", "plc.tombstone"),
        ("after", "plc.tombstone"),
        ("before", "account.forget"),
        ("after", "account.forget"),
    ],
)
async def test_crash_while_undoing_is_undone_in_the_end(
    host: CreationHost, when: str, what: str
) -> None:
    """ACC-11: the DID made in this act is tombstoned when the account cannot be made."""
    host.after_submit = lambda: take_the_handle(host)
    await crash_at(host, when, what)
    host.restart()
    outcome = await host.accounts.recover(now=True)
    assert outcome[Settled.COMPLETED] == 0
    await give_the_handle_back(host)
    await assert_nothing(host)


async def test_refused_last_step_is_undone_at_once(host: CreationHost) -> None:
    """ACC-11."""
    host.after_submit = lambda: take_the_handle(host)
    with pytest.raises(RequestError, match="Email already taken"):
        await host.accounts.create(host.request())
    await give_the_handle_back(host)
    await assert_nothing(host)
    host.after_submit = None
    await host.accounts.create(host.request())
    await assert_whole(host)


async def test_undoing_waits_for_a_directory_that_is_down(host: CreationHost) -> None:
    """ACC-11: the tombstone is sent once it can be."""

    async def take_and_go_down() -> None:
        await take_the_handle(host)
        host.plc.mood = Mood.DOWN

    host.after_submit = take_and_go_down
    with pytest.raises(RequestError, match="Email already taken"):
        await host.accounts.create(host.request())
    await give_the_handle_back(host)
    host.restart()
    assert (await host.accounts.recover(now=True))[Settled.WAITING] == 1
    host.plc.mood = Mood.KIND
    assert (await host.accounts.recover(now=True))[Settled.UNDONE] == 1
    await assert_nothing(host)


async def test_recovery_waits_for_a_directory_that_is_down(host: CreationHost) -> None:
    await crash_at(host, "after", "plc.submit")
    host.restart()
    host.plc.mood = Mood.FAULTY
    assert (await host.accounts.recover(now=True))[Settled.WAITING] == 1
    assert await host.count("account") == 0
    with pytest.raises(RequestError, match="Handle already taken"):
        await host.accounts.create(host.request(email="other@mail.test"))
    host.plc.mood = Mood.KIND
    assert (await host.accounts.recover(now=True))[Settled.COMPLETED] == 1
    await assert_whole(host)


async def test_first_run_of_a_process_settles_what_the_one_before_left(
    host: CreationHost,
) -> None:
    await crash_at(host, "after", "plc.submit")
    host.restart()
    assert (await host.accounts.recover())[Settled.COMPLETED] == 1
    await assert_whole(host)


async def test_young_rows_of_another_node_are_left_alone(host: CreationHost) -> None:
    await crash_at(host, "after", "plc.submit")
    host.restart()
    assert (await host.accounts.recover(now=False))[Settled.WAITING] == 1
    host.clock.advance(30)
    assert (await host.accounts.recover(now=False))[Settled.COMPLETED] == 1
    await assert_whole(host)


async def test_act_completed_by_another_node_keeps_its_identity(host: CreationHost) -> None:
    """The owner was held up for longer than the grace; the other node's work stands."""
    other = CreationHost(
        real_engine=host.real_engine,
        clock=host.clock,
        plc=host.plc,
        plc_client=host.plc_client,
        passwords=host.passwords,
        resolver=host.resolver,
        settings=host.settings,
    )

    async def settle_elsewhere() -> None:
        assert (await other.accounts.recover(now=True))[Settled.COMPLETED] == 1

    host.after_submit = settle_elsewhere
    with pytest.raises(RequestError, match="settled meanwhile"):
        await host.accounts.create(host.request())
    await assert_whole(host)


async def test_act_given_up_by_another_node_is_not_completed(host: CreationHost) -> None:
    """The other node asked the directory before the operation was there."""

    async def forget_elsewhere() -> None:
        await host.real_engine.transact("test", lambda txn: txn.write("DELETE FROM journal"))

    host.after_submit = forget_elsewhere
    with pytest.raises(RequestError, match="settled meanwhile"):
        await host.accounts.create(host.request())
    await assert_nothing(host)


async def test_row_that_cannot_be_read_stops_no_other(host: CreationHost) -> None:
    def insert(txn: object) -> None:
        txn.write(  # type: ignore[attr-defined]
            "INSERT INTO journal (journal_id, kind, subject, state, created_at, updated_at)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (1000, "create_account", "aaa.pds.test", b"garbage", 1, 1),
        )

    await host.real_engine.transact("test.damage", insert)
    await crash_at(host, "after", "plc.submit")
    host.restart()
    outcome = await host.accounts.recover(now=True)
    assert outcome == {Settled.COMPLETED: 1, Settled.UNDONE: 0, Settled.WAITING: 1}
    [(attempts,)] = await host.rows("SELECT attempts FROM journal")
    assert attempts == 1


async def test_journal_holds_no_secret_in_the_clear(host: CreationHost) -> None:
    """ACC-12: the signing key is sealed, the password is hashed."""
    await crash_at(host, "before", "account.create")
    [(state,)] = await host.rows("SELECT state FROM journal")
    host.restart()
    await host.accounts.recover(now=True)
    account = await host.accounts.lookup("alice.pds.test")
    assert account is not None
    signer = await host.engine.read("test", host.keystore.signer, account.key_id)
    secret = signer.secret_bytes()
    import base64

    for form in (secret, secret.hex().encode(), base64.b64encode(secret), PASSWORD.encode()):
        assert form not in state


async def test_recovery_leaves_a_sign_up_alone_whose_row_was_just_written(
    host: CreationHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row is there before the act knows its number; both are in one process."""
    journal = host.accounts._journal
    transact = journal._engine.transact

    async def interrupted(label: str, *args: object, **more: object) -> object:
        answer = await transact(label, *args, **more)  # type: ignore[arg-type]
        if label == "account.reserve":
            assert (await host.accounts.recover(now=True))[Settled.WAITING] == 1
        return answer

    monkeypatch.setattr(journal._engine, "transact", interrupted)
    await host.accounts.create(host.request())
    await assert_whole(host)
