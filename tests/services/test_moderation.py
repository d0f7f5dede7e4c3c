"""Takedowns and their trail, close to the rows: what stays hidden, what stays kept, what is noted.

How it looks from outside is in tests/scenarios/test_moderation.py.
"""

import json
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest

from pds.errors import RequestError
from pds.protocol.car import read_car
from pds.protocol.cid import Cid, parse_cid
from pds.protocol.syntax import Did
from pds.services.account_states import AccountStates
from pds.services.audit import MAX_NOTE_CHARS, AuditTrail, Order, audit_view, order_of
from pds.services.moderation import (
    MAX_REF_CHARS,
    AccountChange,
    BlobSubject,
    Moderation,
    RecordSubject,
)
from pds.services.passwords import Passwords
from pds.services.principal import ADMIN, Principal, PrincipalKind, ReplayId
from pds.services.repos import RecordWrite
from pds.services.session_tokens import SessionTokens
from pds.services.sessions import Sessions
from pds.store.engine import Txn
from pds.store.moderation import put_record_takedown
from tests.services.account_host import SECRET, SERVICE_DID
from tests.services.repo_host import (
    ALICE,
    BOB,
    POST,
    RepoHost,
    post,
    refused,
    repo_host,
    strange,
)
from tests.services.repo_host import write as write_valid

ORDER = Order("admin")


async def write(host: RepoHost, *writes: RecordWrite) -> None:
    """Write records whose keys are short words."""
    await write_valid(host, *writes, validate=False)


NOBODY = Did("did:plc:nobodyyyyyyyyyyyyyyyyyyy")


@dataclass
class Court:
    """A host with accounts, and who judges there."""

    host: RepoHost
    moderation: Moderation
    audit: AuditTrail

    async def hide(self, path: str, *, ref: str | None = "r", cid: Cid | None = None) -> None:
        await self.moderation.change_record(
            RecordSubject(ALICE, path, cid), takedown=True, ref=ref, order=ORDER
        )

    async def show(self, path: str) -> None:
        await self.moderation.change_record(
            RecordSubject(ALICE, path), takedown=False, ref=None, order=ORDER
        )

    async def listed(self, **options) -> tuple[list[str], str | None]:
        page = json.loads(await self.host.repos.list_records(ALICE, POST, **options))
        return [record["uri"].rsplit("/", 1)[1] for record in page["records"]], page.get("cursor")

    async def acts(self, **options) -> list[str]:
        rows, _ = await self.audit.list(**options)
        return [row.act for row in rows]


@pytest.fixture
async def court(tmp_path: Path) -> AsyncIterator[Court]:
    passwords = Passwords()
    async with repo_host(tmp_path) as host:
        await host.add_account()
        sessions = Sessions(
            engine=host.engine,
            clock=host.clock,
            wall=host.clock,
            accounts=host.accounts,
            tokens=SessionTokens(secrets=[SECRET], service_did=SERVICE_DID),
            passwords=passwords,
        )
        states = AccountStates(keystore=host.keystore, sessions=sessions, cache=host.accounts)
        moderation = Moderation(
            engine=host.engine,
            clock=host.clock,
            clock_id=3,
            accounts=host.accounts,
            sessions=sessions,
            states=states,
            identities=AlwaysHere(),
            documents=Forgetful(),
        )
        yield Court(host, moderation, AuditTrail(engine=host.engine))
    passwords.close()


class AlwaysHere:
    """Identities that name this host unless they moved away."""

    moved = False

    async def check(self, account) -> None:
        if self.moved:
            raise RequestError("InvalidRequest", "DID document names another host")


class Forgetful:
    async def forget(self, did, handle=None) -> None:
        return None


async def test_a_path_stays_hidden_when_its_record_is_written_anew(court: Court) -> None:
    """ACC-44: deleting and posting again is no way around a takedown."""
    await write(court.host, post("first", "self"), post("other", "b"))
    await court.hide(f"{POST}/self")
    for again in (post("second", "self", "put"), post("", "self", "delete"), post("3", "self")):
        await write(court.host, again)
        assert (await court.listed())[0] == ["b"]
        with pytest.raises(RequestError) as error:
            await court.host.repos.get_record(ALICE, POST, "self")
        assert error.value.name == "RecordNotFound"
    await court.show(f"{POST}/self")
    assert (await court.listed())[0] == ["self", "b"]


async def test_a_record_that_is_not_here_is_hidden_by_its_cid(court: Court) -> None:
    cid = Cid.of_data(b"gone")
    with pytest.raises(RequestError) as error:
        await court.hide(f"{POST}/later")
    assert error.value.name == "NotFound"
    await court.hide(f"{POST}/later", cid=cid)
    state = await court.moderation.record_state(RecordSubject(ALICE, f"{POST}/later"))
    assert (state.takedown_ref, state.cid) == ("r", cid)
    await write(court.host, post("hello", "later"))
    assert await court.listed() == ([], None)
    state = await court.moderation.record_state(RecordSubject(ALICE, f"{POST}/later"))
    assert state.cid != cid
    for did in (ALICE, NOBODY):
        with pytest.raises(RequestError):
            await court.moderation.record_state(RecordSubject(did, f"{POST}/never"))


async def test_pages_skip_hidden_records_and_go_on(court: Court) -> None:
    """XRPC-13: a page may be short, and its cursor still leads on."""
    await write(court.host, *(post(name, name) for name in "abcdef"))
    for name in "bcf":
        await court.hide(f"{POST}/{name}")
    seen: list[str] = []
    cursor = None
    while True:
        names, cursor = await court.listed(limit=2, cursor=cursor, reverse=True)
        seen += names
        if cursor is None:
            break
    assert seen == ["a", "d", "e"]
    owner = court.host.principal()
    assert (await court.listed(principal=owner))[0] == list("fedcba")
    assert (await court.listed(principal=ADMIN))[0] == list("fedcba")


async def test_content_that_stands_elsewhere_in_the_open_is_served(court: Court) -> None:
    """Only what is under hidden paths alone is left out of exports and blocks."""
    host = court.host
    await write(host, post("same", "a"), post("same", "b"), strange("c", x=1))
    cid = Cid((await host.rows("SELECT cid FROM record WHERE path = ?", f"{POST}/a"))[0][0])
    await court.hide(f"{POST}/a")
    assert cid in (await host.export())[1]
    await court.hide(f"{POST}/b")
    assert cid not in (await host.export())[1]
    assert cid in (await host.export(principal=host.principal()))[1]
    rev = (await host.exports.head(ALICE))[1]
    await write(host, post("newer", "d"))
    newer = Cid((await host.rows("SELECT cid FROM record WHERE path = ?", f"{POST}/d"))[0][0])
    assert newer in (await host.export(since=rev))[1]
    await court.hide(f"{POST}/d")
    assert newer not in (await host.export(since=rev))[1]
    with pytest.raises(RequestError) as error:
        async with host.exports.blocks(ALICE, [str(newer)]):
            pass
    assert error.value.name == "BlockNotFound"
    async with host.exports.blocks(ALICE, [str(newer)], principal=ADMIN) as chunks:
        assert newer in read_car(b"".join([chunk async for chunk in chunks]))[1]
    for path in "abd":
        await court.show(f"{POST}/{path}")
    await host.verify_stored()


async def test_operators_may_leave_exports_whole(tmp_path: Path) -> None:
    """For readers that refuse a repo from which a record is left out."""
    async with repo_host(tmp_path, with_hidden_records=True) as host:
        aid = await host.add_account()
        await write(host, post("bad", "a"))
        cid = Cid((await host.rows("SELECT cid FROM record"))[0][0])
        before = await host.export()

        def hide(txn: Txn) -> None:
            put_record_takedown(txn, aid, f"{POST}/a", cid=cid, takedown_ref="r", now_us=1)

        await host.engine.transact("test", hide)
        assert await host.export() == before
        assert cid in before[1]
        with pytest.raises(RequestError):
            await host.exports.record_proof(ALICE, POST, "a")


async def test_a_blob_in_quarantine_outlives_its_record_and_its_time(court: Court) -> None:
    """XRPC-82, XRPC-83, XRPC-85: nothing collects it, and letting it out settles what is due."""
    host, moderation = court.host, court.moderation
    used, unused = await host.upload(b"used"), await host.upload(b"unused")
    await write(host, post("x", "a", image=used))
    subjects = [BlobSubject(ALICE, parse_cid(ref["ref"]["$link"])) for ref in (used, unused)]
    for subject in subjects:
        await moderation.change_blob(subject, takedown=True, ref=None, order=ORDER)
    error = await refused(host, post("y", "b", image=used), validate=False)
    assert error.name == "BlobNotFound"
    await write(host, post("", "a", "delete"))
    host.clock.advance(7 * 86_400)
    assert await host.blobs.collect() == 0
    for subject in subjects:
        assert (await moderation.blob_state(subject)).takedown_ref is not None
    content = (await host.blobs.open(ALICE, str(subjects[0].cid), principal=ADMIN)).content
    assert content == b"used"
    for subject in subjects:
        await moderation.change_blob(subject, takedown=False, ref=None, order=ORDER)
    assert await host.blobs.collect() == 2
    with pytest.raises(RequestError):
        await moderation.blob_state(subjects[0])


async def test_letting_a_blob_out_that_a_record_needs_keeps_it(court: Court) -> None:
    ref = await court.host.upload(b"kept")
    await write(court.host, post("x", "a", image=ref))
    subject = BlobSubject(ALICE, parse_cid(ref["ref"]["$link"]))
    for takedown in (True, True, False, False):
        await court.moderation.change_blob(subject, takedown=takedown, ref="z", order=ORDER)
    court.host.clock.advance(7 * 86_400)
    assert await court.host.blobs.collect() == 0
    assert (await court.host.blobs.open(ALICE, str(subject.cid))).content == b"kept"


async def test_a_second_takedown_keeps_the_reference_unless_given_another(court: Court) -> None:
    async def take_down(ref: str | None) -> object:
        change = AccountChange(takedown=True, takedown_ref=ref)
        return (await court.moderation.change_account(ALICE, change, ORDER)).after["takedownRef"]

    assert await take_down("one") == "one"
    announced = len(court.host.events)
    assert await take_down(None) == "one"
    assert await take_down("two") == "two"
    assert len(court.host.events) == announced
    lifted = AccountChange(takedown=False)
    await court.moderation.change_account(ALICE, lifted, ORDER)
    again = await take_down(None)
    assert isinstance(again, str)
    assert again.startswith("20")


@pytest.mark.parametrize("seed", range(4))
async def test_the_network_always_knows_the_state_that_counts(court: Court, seed: int) -> None:
    """SYNC-80, SYNC-81: whatever is ordered, the last `#account` says what getRepoStatus says,
    and no two in a row say the same."""
    choose = random.Random(seed)
    await write(court.host, post("a", "a"))
    for _ in range(40):
        change = AccountChange(*(choose.choice([None, True, False]) for _ in range(4)))
        change = replace(change, takedown_ref=choose.choice([None, "x", "y"]))
        is_dry = choose.random() < 0.2
        try:
            await court.moderation.change_account(ALICE, change, Order("admin", None, is_dry))
        except RequestError:
            assert change.takedown
            assert change.deactivated is False
        told = [
            (frame.payload["active"], frame.payload.get("status"))
            for frame in court.host.frames()
            if frame.type == "#account"
        ]
        status = await court.host.exports.status(ALICE)
        known = (status.active, None if status.status is None else status.status.value)
        assert known == (told[-1] if told else (True, None))
        assert all(one != other for one, other in pairwise(told))


async def test_who_moved_away_is_not_activated(court: Court) -> None:
    """ACC-40: the network would be told what is not so."""
    away, back = AccountChange(deactivated=True), AccountChange(deactivated=False)
    await court.moderation.change_account(ALICE, back, ORDER)
    await court.moderation.change_account(ALICE, away, ORDER)
    court.moderation._identities.moved = True
    with pytest.raises(RequestError):
        await court.moderation.change_account(ALICE, back, ORDER)
    court.moderation._identities.moved = False
    done = await court.moderation.change_account(ALICE, back, ORDER)
    assert done.after == {"status": "active"}
    assert await court.acts() == ["account.activate", "account.deactivate", "account.activate"]


async def test_what_is_refused_leaves_no_row(court: Court) -> None:
    """A row in the trail means that it happened: both are one transaction."""
    blob = BlobSubject(ALICE, Cid.of_raw(b"nothing"))
    moderation = court.moderation
    long = "x" * (MAX_REF_CHARS + 1)
    for work in (
        moderation.change_account(NOBODY, AccountChange(takedown=True), ORDER),
        moderation.change_account(ALICE, AccountChange(takedown=True, deactivated=False), ORDER),
        moderation.change_account(ALICE, AccountChange(takedown=True, takedown_ref=long), ORDER),
        moderation.change_blob(blob, takedown=True, ref=None, order=ORDER),
        moderation.change_blob(blob, takedown=True, ref=long, order=ORDER),
        moderation.end_sessions(NOBODY, ORDER),
        moderation.delete_account(NOBODY, ORDER),
        moderation.account_state(NOBODY),
    ):
        with pytest.raises(RequestError):
            await work
    assert await court.acts() == []


async def test_a_token_of_the_moderators_is_used_up_by_its_act(court: Court) -> None:
    """XRPC-44: whichever node remembers it, one token is one act."""
    replay = ReplayId(b"digest of a token", court.host.clock.now_us() + 60_000_000)
    order = Order("did:web:mod.test", replay=replay)
    takedown, lift = AccountChange(takedown=True), AccountChange(takedown=False)
    with pytest.raises(RequestError):
        await court.moderation.change_blob(
            BlobSubject(ALICE, Cid.of_raw(b"none")), takedown=True, ref=None, order=order
        )
    await court.moderation.change_account(ALICE, takedown, order)
    with pytest.raises(RequestError) as error:
        await court.moderation.change_account(ALICE, lift, order)
    assert (error.value.name, error.value.status) == ("BadJwt", 401)
    assert await court.acts() == ["account.takedown"]
    state = await court.moderation.account_state(ALICE)
    assert state.takedown_ref is not None


async def test_the_trail_tells_who_what_and_when(court: Court) -> None:
    moderator = Principal(PrincipalKind.MODERATOR, did=Did("did:web:mod.test"), lxm="x.y.z")
    await write(court.host, post("a", "a"))
    note = "n" * (MAX_NOTE_CHARS + 5)
    change = AccountChange(suspended=True)
    await court.moderation.change_account(ALICE, change, order_of(moderator, note=note))
    await court.hide(f"{POST}/a")
    await court.moderation.end_sessions(ALICE, order_of(ADMIN))
    rows, more = await court.audit.list()
    assert more is None
    assert [(row.actor, row.act, row.subject) for row in rows] == [
        ("admin", "account.end-sessions", ALICE),
        ("admin", "record.takedown", f"at://{ALICE}/{POST}/a"),
        ("did:web:mod.test", "account.suspend", ALICE),
    ]
    view = audit_view(rows[2])
    assert view["before"] == {"status": "active"}
    assert view["after"]["status"] == "suspended"
    assert view["note"] == "n" * MAX_NOTE_CHARS
    assert str(view["at"]).endswith("Z")


async def test_the_trail_is_paged_and_filtered(court: Court) -> None:
    await court.host.add_account(BOB, "bob.test")
    ref = await court.host.upload(b"blob")
    cid = parse_cid(ref["ref"]["$link"])
    await write(court.host, post("a", "a"))
    for did in (ALICE, BOB, ALICE, BOB):
        await court.moderation.end_sessions(did, ORDER)
    await court.hide(f"{POST}/a")
    blob = BlobSubject(ALICE, cid)
    await court.moderation.change_blob(blob, takedown=True, ref=None, order=ORDER)
    of_alice = ["blob.takedown", "record.takedown", *["account.end-sessions"] * 2]
    assert await court.acts(subject=ALICE) == of_alice
    assert await court.acts(subject=BOB) == ["account.end-sessions"] * 2
    assert await court.acts(subject=f"at://{ALICE}/{POST}/a") == ["record.takedown"]
    assert await court.acts(subject=ALICE[:-1]) == []
    seen: list[str] = []
    cursor = None
    while True:
        rows, cursor = await court.audit.list(subject=ALICE, cursor=cursor, limit=1)
        seen += [row.act for row in rows]
        if cursor is None:
            break
    assert seen == of_alice


async def test_deleting_an_account_forgets_what_was_hidden_and_keeps_the_trail(
    court: Court,
) -> None:
    """ACC-46."""
    await write(court.host, post("a", "a"))
    await court.hide(f"{POST}/a")
    rehearsed = await court.moderation.delete_account(ALICE, Order("cli:x", is_rehearsal=True))
    assert await court.listed() == ([], None)
    done = await court.moderation.delete_account(ALICE, Order("cli:x"))
    assert done == rehearsed
    assert done["handle"] == "alice.test"
    assert await court.host.rows("SELECT count(*) FROM record_takedown") == [(0,)]
    assert await court.acts(subject=ALICE) == ["account.delete", "record.takedown"]
