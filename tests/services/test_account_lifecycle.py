"""Activating, deactivating, deleting, taking down: rules, events and what is left."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pds.errors import RequestError, Unreachable
from pds.protocol.car import read_car
from pds.protocol.commit import decode_commit, verify_commit
from pds.protocol.keys import make_signer
from pds.services.account_lifecycle import MIN_NOTICE_S, parse_delete_after
from pds.services.account_rows import UNFINISHED_MOVE_US
from pds.store.accounts import update_key
from pds.store.engine import Txn
from pds.store.invites import (
    ADMIN_HOLDER,
    InviteCode,
    insert_invite_codes,
    insert_invite_use,
    is_invite_code_usable,
)
from pds.store.keystore import KEY_ENTROPY_BYTES, KeyMissing
from tests.services.account_host import START_US
from tests.services.life_host import PASSWORD, LifeHost, life_host

MOVER = "did:web:mover.example.com"
DAY_US = 86_400_000_000


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[LifeHost]:
    async with life_host(tmp_path) as host:
        yield host


async def refusal(call: Any) -> tuple[str, int]:
    with pytest.raises(RequestError) as refused:
        await call
    return refused.value.name, refused.value.status


# Deactivation and activation


async def test_deactivation_hides_and_activation_announces_in_order(host: LifeHost) -> None:
    """ACC-42, SYNC-42."""
    alice = await host.open("alice")
    await host.write(alice.aid)
    since = len(host.heard)
    await host.life.deactivate(alice.aid)
    [frame] = host.frames(alice.did, since=since)
    assert (frame.type, frame.payload["active"]) == ("#account", False)
    assert frame.payload["status"] == "deactivated"
    assert await refusal(host.write(alice.aid)) == ("AccountDeactivated", 401)
    since = len(host.heard)
    await host.life.activate(alice.aid)
    account, identity, sync = host.frames(alice.did, since=since)
    assert [account.type, identity.type, sync.type] == ["#account", "#identity", "#sync"]
    assert account.payload["active"] is True
    assert "status" not in account.payload
    assert identity.payload["handle"] == "alice.pds.test"
    await host.write(alice.aid)


async def test_announced_head_is_new_and_signed_with_the_key_of_today(host: LifeHost) -> None:
    """ACC-41, SYNC-42: the rev rises, the tree stays, and the next commit follows on it."""
    alice = await host.open("alice")
    await host.write(alice.aid)
    before = await host.exports.head(alice.did)
    await host.life.deactivate(alice.aid)
    other = make_signer("k256", b"\x33" * 32)

    def change_key(txn: Txn) -> None:
        key_id, _ = host.keystore.create_signing_key(
            txn,
            alice.aid,
            curve="k256",
            secret=b"\x33" * 32,
            entropy=b"\x34" * KEY_ENTROPY_BYTES,
            now_us=host.clock.now_us(),
        )
        update_key(txn, alice.aid, key_id)
        host.cache.forget_after(txn, alice.aid)

    await host.engine.transact("test.key", change_key)
    host.identities.told[alice.did].signing_key = other.public_key.did_key
    await host.life.activate(alice.aid)
    sync = host.frames(alice.did)[-1]
    (root,), blocks = read_car(sync.payload["blocks"])
    commit = decode_commit(blocks[root])
    assert verify_commit(commit, other.public_key)
    assert commit.rev == sync.payload["rev"] > before[1]
    assert await host.exports.head(alice.did) == (root, commit.rev)
    await host.write(alice.aid)
    after = host.frames(alice.did)[-1]
    assert after.payload["since"] == commit.rev
    assert after.payload["prevData"] == commit.data


async def test_doing_it_twice_tells_nothing_twice(host: LifeHost) -> None:
    """ACC-40: only the date of deletion changes."""
    alice = await host.open("alice")
    since = len(host.heard)
    await host.life.activate(alice.aid)
    assert host.kinds(alice.did, since=since) == []
    await host.life.deactivate(alice.aid)
    deactivated_at = (await host.cache.get(alice.did)).deactivated_at
    host.clock.advance(60)
    await host.life.deactivate(alice.aid, delete_after="2031-01-01T00:00:00Z")
    assert host.kinds(alice.did, since=since) == ["#account"]
    account = await host.cache.get(alice.did)
    assert (account.deactivated_at, account.delete_after) == (
        deactivated_at,
        1_924_992_000_000_000,
    )
    await host.life.deactivate(alice.aid)
    assert (await host.cache.get(alice.did)).delete_after is None
    await host.life.activate(alice.aid)
    await host.life.activate(alice.aid)
    kinds = ["#account", "#account", "#identity", "#sync"]
    assert host.kinds(alice.did, since=since) == kinds


@pytest.mark.parametrize("name", ["alice", MOVER])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"endpoint": "https://old.example"}, "service endpoint"),
        ({"signing_key": make_signer("p256", b"\x05" * 32).public_key.did_key}, "signing key"),
        ({"rotation_keys": ()}, "rotation key"),
        (None, "resolve"),
    ],
)
async def test_identity_that_names_another_host_or_key_is_not_activated(
    host: LifeHost, name: str, change: dict[str, Any] | None, message: str
) -> None:
    """ACC-40, ID-70: of a did:web only what its document can say is asked."""
    did = MOVER if name == MOVER else None
    account = await host.open("mover", did=did, is_active=False)
    told = host.identities.told[account.did]
    if change is None:
        del host.identities.told[account.did]
    else:
        for key, value in change.items():
            setattr(told, key, value)
    if name == MOVER and change == {"rotation_keys": ()}:
        await host.life.activate(account.aid)
        return
    with pytest.raises(RequestError, match=message) as refused:
        await host.life.activate(account.aid)
    assert (refused.value.name, refused.value.status) == ("InvalidRequest", 400)
    assert host.heard == []
    assert not (await host.reports.get(account.aid)).is_did_valid


async def test_users_may_keep_all_rotation_keys_where_the_operator_allows_it(
    host: LifeHost,
) -> None:
    """ID-71."""
    account = await host.open("mover", is_active=False)
    host.identities.told[account.did].rotation_keys = ("did:key:zOther",)
    host.rotation_key = None
    host.restart()
    await host.life.activate(account.aid)
    assert host.kinds(account.did) == ["#account", "#identity", "#sync"]


async def test_directory_that_does_not_answer_changes_nothing(host: LifeHost) -> None:
    """SYNC-82: not knowing is not a no."""
    account = await host.open("mover", is_active=False)
    host.identities.is_reachable = False
    with pytest.raises(Unreachable):
        await host.life.activate(account.aid)
    assert (await host.reports.get(account.aid)).is_did_valid is False
    host.identities.is_reachable = True
    await host.life.activate(account.aid)


async def test_operator_closed_accounts_are_not_activated(host: LifeHost) -> None:
    """ACC-40, SYNC-83."""
    alice = await host.open("alice")
    await host.life.deactivate(alice.aid)
    await host.set_suspended(alice.aid, is_suspended=True)
    assert await refusal(host.life.activate(alice.aid)) == ("AccountTakedown", 401)
    await host.set_takedown(alice.aid, "ref")
    assert await refusal(host.life.activate(alice.aid)) == ("AccountTakedown", 401)
    assert (await host.cache.get(alice.did)).deactivated_at is not None


async def test_racing_activations_announce_once(host: LifeHost) -> None:
    alice = await host.open("alice")
    await host.life.deactivate(alice.aid)
    since = len(host.heard)
    await asyncio.gather(*(host.life.activate(alice.aid) for _ in range(4)))
    assert host.kinds(alice.did, since=since) == ["#account", "#identity", "#sync"]


async def test_activation_of_an_account_that_goes_meanwhile_is_refused(host: LifeHost) -> None:
    """Promise C1: the account was there when it was looked up."""
    alice = await host.open("alice")
    await host.life.deactivate(alice.aid)
    before = await host.cache.get(alice.did)
    await host.delete_now(alice.aid)
    assert await refusal(host.check.check(before)) == ("AccountNotFound", 403)
    assert await host.check.is_valid(before) is False


# Takedown and suspension


async def test_takedown_wins_over_suspension_over_deactivation(host: LifeHost) -> None:
    """ACC-3, SYNC-83: each change of what counts is announced, and nothing else."""
    alice = await host.open("alice")
    since = len(host.heard)
    steps = [
        (host.life.deactivate(alice.aid), "deactivated"),
        (host.set_suspended(alice.aid, is_suspended=True), "suspended"),
        (host.set_takedown(alice.aid, "case 1"), "takendown"),
        (host.set_suspended(alice.aid, is_suspended=False), None),
        (host.set_suspended(alice.aid, is_suspended=True), None),
        (host.set_takedown(alice.aid, "case 2"), None),
        (host.set_takedown(alice.aid, None), "suspended"),
        (host.set_suspended(alice.aid, is_suspended=False), "deactivated"),
    ]
    told = []
    for act, status in steps:
        await act
        told += [] if status is None else [status]
        assert [f.payload["status"] for f in host.frames(alice.did, since=since)] == told
        assert (await host.exports.status(alice.did)).status == told[-1]


async def test_lifting_the_last_takedown_restates_the_repo(host: LifeHost) -> None:
    """SYNC-22, SYNC-33: readers that were behind were not given what came before."""
    alice = await host.open("alice")
    await host.write(alice.aid)
    await host.set_takedown(alice.aid, "case 1")
    hidden = [f.type for f in await host.replay() if f.type in ("#commit", "#sync")]
    assert hidden == []
    since = len(host.heard)
    await host.set_takedown(alice.aid, None)
    assert host.kinds(alice.did, since=since) == ["#account", "#sync"]


@pytest.mark.parametrize("act", ["takedown", "suspension"])
async def test_closing_an_account_ends_its_sessions_for_good(host: LifeHost, act: str) -> None:
    """ACC-44, promise D3."""
    alice = await host.open("alice")
    view = await host.login("alice")
    if act == "takedown":
        await host.set_takedown(alice.aid, "case 1")
        await host.set_takedown(alice.aid, None)
    else:
        await host.set_suspended(alice.aid, is_suspended=True)
        await host.set_suspended(alice.aid, is_suspended=False)
    assert await refusal(host.sessions.authenticate_access(view.tokens.access)) == (
        "ExpiredToken",
        400,
    )
    assert await refusal(host.sessions.refresh(view.tokens.refresh)) == ("ExpiredToken", 400)


# Deletion


async def test_deleted_account_is_gone_and_its_name_is_free(host: LifeHost) -> None:
    """ACC-46, ACC-47."""
    alice = await host.open("alice")
    await host.write(alice.aid)
    view = await host.login("alice")
    code = await host.issue_code(alice.aid)
    await host.life.delete(alice.did, password=PASSWORD, code=code)
    assert await refusal(host.sessions.authenticate_access(view.tokens.access)) == (
        "AccountNotFound",
        403,
    )
    assert await refusal(host.exports.status(alice.did)) == ("RepoNotFound", 400)
    assert await refusal(host.login("alice")) == ("AuthenticationRequired", 401)
    [frame] = await host.stored(alice.aid)
    assert frame.type == "#account"
    assert (frame.payload["active"], frame.payload["status"]) == (False, "deleted")
    assert alice.did in host.identities.forgotten
    again = await host.open("alice", did="did:plc:anotheranotheranotherano")
    assert (again.handle, again.email) == (alice.handle, alice.email)
    assert again.aid != alice.aid


async def test_nothing_of_a_deleted_account_is_left(host: LifeHost) -> None:
    """ACC-46, SYNC-22: but its last event, and the use of its invite code."""
    alice, bob = await host.open("alice"), await host.open("bob")
    for account in (alice, bob):
        await host.app_passwords.create(account.aid, "phone", privileged=False)
        await host.login(account.handle.split(".")[0])
        await host.write(account.aid)
        await host.issue_code(account.aid)

    def add(txn: Txn) -> None:
        for aid in (alice.aid, bob.aid):
            for cid, takedown_ref in ((b"one", None), (b"two", "case")):
                txn.write(
                    "INSERT INTO blob (aid, cid, mime_type, size, created_at, takedown_ref)"
                    " VALUES (?, ?, 'image/png', 3, 0, ?)",
                    (aid, b"\x01\x55\x12\x20" + cid.ljust(32), takedown_ref),
                )
            txn.write(
                "INSERT INTO preference (aid, position, type, value) VALUES (?, 0, 't', ?)",
                (aid, b"{}"),
            )
            txn.write(
                "INSERT INTO account_choice (aid, name, value) VALUES (?, 'n', ?)", (aid, b"v")
            )
            insert_invite_use(txn, "code", aid=aid, now_us=1)

    await host.engine.transact("test.add", add)
    key_id = (await host.cache.get(alice.did)).key_id
    before = await _rows_by_table(host)
    await host.delete_now(alice.aid)
    assert await host.life.sweep_deleted() == 1
    await host.collect_garbage()
    after = await _rows_by_table(host)
    left = {table: rows[alice.aid] for table, rows in after.items() if alice.aid in rows}
    assert left == {"event": 1, "invite_use": 1, "blob_garbage": 2}
    assert {table: rows[bob.aid] for table, rows in after.items() if bob.aid in rows} == {
        table: rows[bob.aid] for table, rows in before.items() if bob.aid in rows
    }
    assert await host.rows_of("SELECT count(*) FROM record") == [(1,)]
    assert await host.rows_of("SELECT count(*) FROM journal") == [(0,)]
    with pytest.raises(KeyMissing):
        await host.engine.read("test.key", host.keystore.signer, key_id)
    assert await host.life.sweep_deleted() == 0


async def _rows_by_table(host: LifeHost) -> dict[str, dict[int, int]]:
    """Count the rows of each account in every table that has any: new tables are seen, too."""

    def count(txn: Txn) -> dict[str, dict[int, int]]:
        found = {}
        for table in TABLES_WITH_AID:
            rows = txn.read(f"SELECT aid, count(*) FROM {table} GROUP BY aid")
            found[table] = dict(rows)
        return found

    return await host.engine.read("test.count", count)


def _tables_with_aid() -> list[str]:
    """From the migrations, because that is where a new table appears first."""
    import re

    folder = Path(__file__).parents[2] / "pds" / "store" / "migrations"
    text = "\n".join(path.read_text() for path in sorted(folder.glob("*.sql")))
    tables = re.findall(r"CREATE TABLE (\w+) \((.*?)\n\)", text, re.DOTALL)
    return [name for name, columns in tables if re.search(r"^  aid \{int\}", columns, re.MULTILINE)]


TABLES_WITH_AID = _tables_with_aid()


async def test_long_history_is_taken_back_behind_the_deletion(host: LifeHost) -> None:
    """SYNC-22: more events than one job may delete; readers get none of the rest meanwhile."""
    alice = await host.open("alice")

    def emit(txn: Txn) -> None:
        for _ in range(1200):
            txn.emit("commit", alice.aid, lambda seq, at: b"x")

    await host.engine.transact("test.many", emit)
    host.heard.clear()
    await host.delete_now(alice.aid)
    assert [(f.type, f.payload.get("status")) for f in await host.replay()] == [
        ("#account", "deleted")
    ]
    assert await host.rows_of("SELECT count(*) > 500 FROM event") in ([(1,)], [(True,)])
    await host.life.sweep_deleted()
    assert len(await host.stored(alice.aid)) == 1


async def test_wrong_password_or_code_deletes_nothing(host: LifeHost) -> None:
    """ACC-36, ACC-46: app passwords do not count, and unknown DIDs look the same."""
    alice = await host.open("alice")
    app = await host.app_passwords.create(alice.aid, "phone", privileged=True)
    code = await host.issue_code(alice.aid)
    for password in ("wrong password", app.password, ""):
        call = host.life.delete(alice.did, password=password, code=code)
        assert await refusal(call) == ("AuthenticationRequired", 401)
    call = host.life.delete("did:plc:unknownunknownunknownunk", password=PASSWORD, code=code)
    assert await refusal(call) == ("AuthenticationRequired", 401)
    call = host.life.delete(alice.did, password=PASSWORD, code="AAAAA-AAAAA")
    assert await refusal(call) == ("InvalidToken", 400)
    host.clock.advance(16 * 60)
    call = host.life.delete(alice.did, password=PASSWORD, code=code)
    assert await refusal(call) == ("ExpiredToken", 400)
    assert (await host.login("alice")).is_active


async def test_accounts_in_any_state_can_be_deleted(host: LifeHost) -> None:
    """ACC-45, ACC-46."""
    for name in ("deactivated", "suspended", "takendown"):
        account = await host.open(name)
        match name:
            case "deactivated":
                await host.life.deactivate(account.aid)
            case "suspended":
                await host.set_suspended(account.aid, is_suspended=True)
            case "takendown":
                await host.set_takedown(account.aid, "case")
        code = await host.issue_code(account.aid)
        await host.life.delete(account.did, password=PASSWORD, code=code)
        assert host.frames(account.did)[-1].payload["status"] == "deleted"


async def test_racing_deletions_delete_once(host: LifeHost) -> None:
    alice = await host.open("alice")
    calls = [host.delete_now(alice.aid) for _ in range(3)]
    done = await asyncio.gather(*calls, return_exceptions=True)
    refused = [error.name for error in done if isinstance(error, RequestError)]
    assert refused == ["AccountNotFound"] * 2
    assert host.kinds(alice.did)[-2:] == ["#sync", "#account"]


async def test_invite_codes_of_a_deleted_account_end(host: LifeHost) -> None:
    """ACC-25; its own use of a code is not given back."""
    alice = await host.open("alice")

    def add(txn: Txn) -> None:
        codes = [
            InviteCode("hers", 5, False, alice.did, ADMIN_HOLDER, 1),
            InviteCode("used", 1, False, ADMIN_HOLDER, ADMIN_HOLDER, 1),
        ]
        insert_invite_codes(txn, codes)
        insert_invite_use(txn, "used", aid=alice.aid, now_us=1)

    await host.engine.transact("test.codes", add)
    assert await host.engine.read("test", is_invite_code_usable, "hers")
    await host.delete_now(alice.aid)
    assert not await host.engine.read("test", is_invite_code_usable, "hers")
    assert not await host.engine.read("test", is_invite_code_usable, "used")


# Dates of deletion


async def test_overdue_accounts_are_deleted_and_others_are_not(host: LifeHost) -> None:
    """ACC-22: the date is really kept."""
    asked = {"early": 2, "late": 5, "back": 2, "never": None}
    accounts = {}
    for name, days in asked.items():
        accounts[name] = account = await host.open(name)
        date = None if days is None else f"2025-10-{9 + days}T08:53:20Z"
        await host.life.deactivate(account.aid, delete_after=date)
    await host.life.activate(accounts["back"].aid)
    assert await host.life.sweep_overdue(START_US + 2 * DAY_US - 1) == 0
    assert await host.life.sweep_overdue(START_US + 2 * DAY_US) == 1
    assert await host.life.sweep_overdue(START_US + 400 * DAY_US) == 1
    left = await host.rows_of("SELECT handle FROM account ORDER BY aid")
    assert left == [("back.pds.test",), ("never.pds.test",)]
    assert host.frames(accounts["early"].did)[-1].payload["status"] == "deleted"


@pytest.mark.parametrize(
    ("text", "wanted_us"),
    [
        ("2025-10-20T08:53:20+00:00", START_US + 11 * DAY_US),
        ("2025-10-20T10:53:20+02:00", START_US + 11 * DAY_US),
        ("1999-01-01T00:00:00Z", START_US + MIN_NOTICE_S * 1_000_000),
        ("2025-10-09T09:00:00Z", START_US + MIN_NOTICE_S * 1_000_000),
    ],
)
def test_date_of_deletion_is_at_least_a_day_ahead(text: str, wanted_us: int) -> None:
    """ACC-42: no code from the mailbox stands behind it."""
    assert parse_delete_after(text, START_US) == wanted_us


@pytest.mark.parametrize("text", ["tomorrow", "0000-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00"])
def test_what_is_no_date_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="not a date"):
        parse_delete_after(text, START_US)


async def test_unfinished_move_is_given_up_after_a_month(host: LifeHost) -> None:
    """ACC-22; one that was finished is not."""
    await host.open("mover", did=MOVER, is_active=False)
    done = await host.open("done", is_active=False)
    await host.life.activate(done.aid)
    assert await host.life.sweep_overdue(START_US + UNFINISHED_MOVE_US - 1) == 0
    assert await host.life.sweep_overdue(START_US + UNFINISHED_MOVE_US) == 1
    assert await host.rows_of("SELECT handle FROM account") == [("done.pds.test",)]


# Reports


async def test_report_counts_what_is_here_in_every_state(host: LifeHost) -> None:
    """ACC-51."""
    alice = await host.open("alice")
    for number in range(3):
        await host.write(alice.aid, f"post {number}")
    await host.write(alice.aid, "post 0")  # The same block as the first.
    report = await host.reports.get(alice.aid)
    head = await host.exports.head(alice.did)
    assert (report.commit, report.rev) == head
    assert (report.is_activated, report.is_did_valid) == (True, True)
    assert report.records == 4
    async with host.exports.repo(alice.did) as chunks:
        _, blocks = read_car(b"".join([chunk async for chunk in chunks]))
    assert report.blocks == len(blocks)
    assert (report.expected_blobs, report.stored_blobs) == (0, 0)
    await host.set_takedown(alice.aid, "case")
    assert (await host.reports.get(alice.aid)).is_activated
    await host.life.deactivate(alice.aid)
    assert not (await host.reports.get(alice.aid)).is_activated
    await host.delete_now(alice.aid)
    assert await refusal(host.reports.get(alice.aid)) == ("AccountNotFound", 403)
