"""Opening accounts: rules, effects and their order, the directory's moods, and migration in."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pds.errors import ConfigError, RequestError, Unreachable
from pds.protocol.car import read_car
from pds.protocol.commit import decode_commit, verify_commit
from pds.protocol.keys import make_signer, parse_did_key
from pds.protocol.syntax import Did
from pds.services.invites import Invites
from pds.services.mail import Mail
from pds.services.mail_tokens import MailPurpose, MailTokens
from pds.services.principal import Principal, PrincipalKind
from pds.store.accounts import (
    AccountStatus,
    get_account_by_did,
    update_deactivation,
    update_email,
    update_takedown,
)
from pds.store.engine import Txn
from pds.store.mail_tokens import get_mail_token
from tests.fakes.plc import Mood
from tests.services.account_host import SECRET
from tests.services.creation_host import (
    OPERATOR_KEY,
    PASSWORD,
    PUBLIC_URL,
    ROTATION,
    USER_KEY,
    CreationHost,
    creation_host,
)

MOVER = Did("did:web:mover.example.com")
MOVER_KEY = make_signer("k256", b"\x11" * 32).public_key


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[CreationHost]:
    async with creation_host(tmp_path) as host:
        yield host


async def refusal(call: Any) -> tuple[str, int]:
    with pytest.raises(RequestError) as refused:
        await call
    return refused.value.name, refused.value.status


async def assert_untouched(host: CreationHost) -> None:
    for table in ("account", "repo", "signing_key", "data_key", "session", "event", "journal"):
        assert await host.count(table) == 0, table
    assert host.live_dids() == []


async def test_new_account_has_identity_key_repo_session_and_mail(host: CreationHost) -> None:
    """ACC-11, ACC-13, ID-65; the key of repos is none of those that change the identity (ID-66)."""
    view = await host.accounts.create(host.request())
    assert (view.handle, view.email, view.is_active) == ("alice.pds.test", "alice@mail.test", True)
    assert view.tokens is not None
    principal = await host.sessions.authenticate_access(view.tokens.access)
    assert principal.did == view.did

    state = host.plc.directory.get_state(view.did)
    assert state is not None
    [(key_id, did_key)] = await host.rows("SELECT key_id, did_key FROM signing_key")
    assert state.rotation_keys == (ROTATION.public_key.did_key,)
    assert dict(state.verification_methods) == {"atproto": did_key}
    assert state.also_known_as == ("at://alice.pds.test",)
    assert state.services["atproto_pds"].endpoint == PUBLIC_URL
    assert did_key != ROTATION.public_key.did_key

    account = await host.accounts.lookup("ALICE.pds.test")
    assert account is not None
    assert (account.did, account.key_id, account.status) == (view.did, key_id, AccountStatus.ACTIVE)
    assert account.repo_id is not None
    assert isinstance(view.did_doc, dict)
    assert view.did_doc["id"] == view.did
    assert await host.count("journal") == 0
    await host.mails.settle()
    [received] = host.mailbox.received()
    assert (received.mail.to, received.mail.purpose) == ("alice@mail.test", "welcome")
    assert view.did in received.mail.text
    await host.sessions.login("alice@mail.test", PASSWORD)


async def test_events_come_in_the_order_relays_expect(host: CreationHost) -> None:
    """SYNC-40, ACC-11."""
    view = await host.accounts.create(host.request())
    identity, account, commit, sync = await host.frames()
    assert [frame.type for frame in (identity, account, commit, sync)] == [
        "#identity",
        "#account",
        "#commit",
        "#sync",
    ]
    assert identity.payload["handle"] == "alice.pds.test"
    assert account.payload["active"] is True
    assert "status" not in account.payload
    assert (commit.payload["repo"], commit.payload["since"], commit.payload["ops"]) == (
        view.did,
        None,
        [],
    )
    assert sync.payload["rev"] == commit.payload["rev"]
    blocks = sync.payload["blocks"]
    assert isinstance(blocks, bytes)
    (root,), content = read_car(blocks)
    state = host.plc.directory.get_state(view.did)
    assert state is not None
    signed = decode_commit(content[root])
    assert verify_commit(signed, parse_did_key(state.verification_methods["atproto"]))
    assert signed.did == view.did


async def test_rotation_keys_are_user_operator_server(tmp_path: Path) -> None:
    """ACC-14: the first has the last word."""
    async with creation_host(tmp_path, recovery_did_key=OPERATOR_KEY) as host:
        view = await host.accounts.create(host.request(recovery_key=USER_KEY))
        state = host.plc.directory.get_state(view.did)
        assert state is not None
        assert state.rotation_keys == (USER_KEY, OPERATOR_KEY, ROTATION.public_key.did_key)


async def test_operator_key_that_is_none_stops_the_start(tmp_path: Path) -> None:
    """ACC-14."""
    with pytest.raises(ConfigError, match="PDS_RECOVERY_DID_KEY"):
        async with creation_host(tmp_path, recovery_did_key="did:key:zgarbage"):
            pass


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"has_plc_op": True}, "InvalidRequest"),
        ({"password": None}, "InvalidPassword"),
        ({"password": "short"}, "InvalidPassword"),
        ({"password": "x" * 257}, "InvalidPassword"),
        ({"email": None}, "InvalidRequest"),
        ({"email": "no-at-sign"}, "InvalidRequest"),
        ({"email": "two words@mail.test"}, "InvalidRequest"),
        ({"email": "a@b@mail.test"}, "InvalidRequest"),
        ({"email": "a@" + "m" * 260 + ".test"}, "InvalidRequest"),
        ({"email": "a@throwaway.test"}, "InvalidRequest"),
        ({"handle": "al"}, "InvalidHandle"),
        ({"handle": "al.pds.test"}, "InvalidHandle"),
        ({"handle": "a.b.pds.test"}, "InvalidHandle"),
        ({"handle": "admin.pds.test"}, "HandleNotAvailable"),
        ({"handle": "alice.elsewhere.com"}, "UnsupportedDomain"),
        ({"recovery_key": "did:key:zgarbage"}, "InvalidRequest"),
        ({"recovery_key": "garbage"}, "InvalidRequest"),
        ({"recovery_key": ROTATION.public_key.did_key}, "InvalidRequest"),
    ],
)
async def test_bad_requests_leave_nothing(
    tmp_path: Path, changes: dict[str, Any], name: str
) -> None:
    """ACC-10, ACC-14, ID-20, ID-21."""
    blocked = frozenset({"throwaway.test"})
    async with creation_host(tmp_path, blocked_email_domains=blocked) as host:
        assert await refusal(host.accounts.create(host.request(**changes))) == (name, 400)
        await assert_untouched(host)
        assert host.plc.requests == []


async def test_handle_and_email_are_unique(host: CreationHost) -> None:
    """ACC-2: compared lower-case."""
    await host.accounts.create(host.request())
    assert await refusal(
        host.accounts.create(host.request(handle="ALICE.pds.test", email="b@mail.test"))
    ) == ("HandleNotAvailable", 400)
    assert await refusal(
        host.accounts.create(host.request(handle="bob.pds.test", email="ALICE@mail.TEST"))
    ) == ("InvalidRequest", 400)
    assert await host.count("account") == 1
    assert len(host.live_dids()) == 1


async def test_racing_sign_ups_for_one_handle_make_one_account(host: CreationHost) -> None:
    calls = [
        host.accounts.create(host.request(email=f"alice{number}@mail.test")) for number in range(5)
    ]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    made = [answer for answer in answers if not isinstance(answer, BaseException)]
    refused = [answer.name for answer in answers if isinstance(answer, RequestError)]
    assert (len(made), refused) == (1, ["HandleNotAvailable"] * 4)
    assert host.live_dids() == [made[0].did]
    assert await host.count("journal") == 0


async def test_racing_sign_ups_for_one_invite_make_one_account(tmp_path: Path) -> None:
    """ACC-25: re-checked inside the transaction; the loser's DID is tombstoned (ACC-11)."""
    async with creation_host(tmp_path, invite_required=True) as host:
        invites = Invites(engine=host.engine, clock=host.clock, hostname="pds.test")
        code = (await invites.create(code_count=1, use_count=1))[0].codes[0]
        calls = [
            host.accounts.create(
                host.request(handle=f"{name}.pds.test", email=f"{name}@mail.test", invite_code=code)
            )
            for name in ("alice", "bobby", "carol")
        ]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        made = [answer for answer in answers if not isinstance(answer, BaseException)]
        refused = [answer.name for answer in answers if isinstance(answer, RequestError)]
        assert (len(made), refused) == (1, ["InvalidInviteCode"] * 2)
        assert host.live_dids() == [made[0].did]
        assert await host.count("invite_use") == 1
        assert await host.count("journal") == 0


async def test_invite_is_demanded_checked_and_used(tmp_path: Path) -> None:
    """ACC-25."""
    async with creation_host(tmp_path, invite_required=True) as host:
        invites = Invites(engine=host.engine, clock=host.clock, hostname="pds.test")
        code = (await invites.create(code_count=1, use_count=1))[0].codes[0]
        for wrong in (None, "", "pds-test-aaaaa-aaaaa"):
            assert await refusal(host.accounts.create(host.request(invite_code=wrong))) == (
                "InvalidInviteCode",
                400,
            )
        await assert_untouched(host)
        await host.accounts.create(host.request(invite_code=code))
        again = host.request(handle="bob.pds.test", email="b@mail.test", invite_code=code)
        assert await refusal(host.accounts.create(again)) == ("InvalidInviteCode", 400)


async def test_where_no_invite_is_needed_a_good_one_counts_and_a_bad_one_does_not_matter(
    host: CreationHost,
) -> None:
    await host.accounts.create(host.request(invite_code="whatever"))
    assert await host.count("invite_use") == 0
    invites = Invites(engine=host.engine, clock=host.clock, hostname="pds.test")
    code = (await invites.create(code_count=1, use_count=1))[0].codes[0]
    again = host.request(handle="bob.pds.test", email="b@mail.test", invite_code=code)
    await host.accounts.create(again)
    assert await host.count("invite_use") == 1


@pytest.mark.parametrize("mood", [Mood.DOWN, Mood.FAULTY, Mood.SLOW, Mood.BABBLING])
async def test_directory_that_does_not_answer_leaves_nothing_in_the_end(
    host: CreationHost, mood: Mood
) -> None:
    """ACC-11, SYNC-43: 502 and no event, and the same sign-up succeeds once it is back."""
    host.plc.mood = mood
    assert await refusal(host.accounts.create(host.request())) == ("UpstreamFailure", 502)
    assert await host.frames() == []
    assert await host.count("account") == 0
    host.plc.mood = Mood.KIND
    view = await host.accounts.create(host.request())
    assert host.live_dids() == [view.did]
    assert await host.count("journal") == 0
    assert [frame.type for frame in await host.frames()] == [
        "#identity",
        "#account",
        "#commit",
        "#sync",
    ]


async def test_operation_taken_without_an_answer_is_found_out(host: CreationHost) -> None:
    """The connection breaks after the directory took the operation; the client asks."""
    host.plc.write_mood = Mood.FORGETFUL
    view = await host.accounts.create(host.request())
    assert host.live_dids() == [view.did]


async def test_unknown_outcome_is_undone_when_the_directory_can_be_asked(
    host: CreationHost,
) -> None:
    """ACC-11: the client was told 502, so the DID that came to be is tombstoned."""
    host.plc.write_mood, host.plc.read_mood = Mood.FORGETFUL, Mood.DOWN
    assert await refusal(host.accounts.create(host.request())) == ("UpstreamFailure", 502)
    assert len(host.live_dids()) == 1
    host.plc.mood = Mood.DOWN
    assert (await host.accounts.recover(now=False))["waiting"] == 1
    host.clock.advance(31)
    assert (await host.accounts.recover())["waiting"] == 1
    host.plc.mood = Mood.KIND
    assert (await host.accounts.recover())["waiting"] == 1
    host.clock.advance(61)
    assert (await host.accounts.recover())["undone"] == 1
    await assert_untouched(host)
    await host.accounts.create(host.request())


async def test_refusal_of_the_directory_is_told_and_leaves_nothing(host: CreationHost) -> None:
    """PLC directory failures that are not 5xx: 400 with its message."""
    host.plc.mood = Mood.RATE_LIMITED
    with pytest.raises(RequestError, match="Too many operations") as refused:
        await host.accounts.create(host.request())
    assert (refused.value.name, refused.value.status) == ("InvalidRequest", 400)
    await assert_untouched(host)


async def test_caller_that_leaves_does_not_stop_the_act(host: CreationHost) -> None:
    host.plc.mood = Mood.SLOW
    host.plc.delay_s = 0.1
    call = asyncio.ensure_future(host.accounts.create(host.request()))
    while not host.plc.requests:
        await asyncio.sleep(0.01)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await host.accounts.close()
    assert await host.count("account") == 1
    assert await host.count("journal") == 0


async def test_failing_mail_never_fails_creation(host: CreationHost) -> None:
    class DeadMailer:
        delivers = True

        async def send(self, mail: Mail, *, now_us: int) -> None:
            raise Unreachable("no mail today")

    host.mailbox = DeadMailer()  # type: ignore[assignment]
    host.restart()
    await host.accounts.create(host.request())
    await host.mails.settle()
    assert await host.count("account") == 1


# Moving in


def service(did: str = MOVER) -> Principal:
    return Principal(PrincipalKind.SERVICE, did=Did(did), lxm="com.atproto.server.createAccount")


def publish(host: CreationHost, did: str = MOVER, *, with_key: bool = True) -> None:
    methods = [
        {
            "id": f"{did}#atproto",
            "type": "Multikey",
            "controller": did,
            "publicKeyMultibase": MOVER_KEY.multibase,
        }
    ]
    host.resolver.documents[did] = {"id": did, "verificationMethod": methods if with_key else []}


async def test_brought_did_starts_deactivated_without_events(host: CreationHost) -> None:
    """ACC-20, ACC-21, SYNC-41."""
    publish(host)
    view = await host.accounts.create(host.request(did=MOVER), service())
    assert (view.did, view.status) == (MOVER, AccountStatus.DEACTIVATED)
    assert view.tokens is not None
    assert (await host.sessions.authenticate_access(view.tokens.access)).did == MOVER
    assert await host.frames() == []
    assert host.plc.requests == []
    assert await host.count("repo") == 1
    assert await host.count("journal") == 0
    [(did_key,)] = await host.rows("SELECT did_key FROM signing_key")
    assert did_key != MOVER_KEY.did_key


async def test_where_an_identity_points_is_not_its_state_here(host: CreationHost) -> None:
    """ACC-1: deactivated or active here, while the document names another host."""
    publish(host)
    elsewhere = {"type": "AtprotoPersonalDataServer", "serviceEndpoint": "https://old.example"}
    host.resolver.documents[MOVER]["service"] = [{"id": "#atproto_pds", **elsewhere}]
    view = await host.accounts.create(host.request(did=MOVER), service())
    assert view.status is AccountStatus.DEACTIVATED
    account = await host.accounts.lookup(MOVER)
    assert account is not None
    await host.engine.transact(
        "test",
        lambda txn: update_deactivation(txn, account.aid, deactivated_at=None, delete_after=None),
    )
    host.restart()
    assert (await host.sessions.login(MOVER, PASSWORD)).status is AccountStatus.ACTIVE


async def test_repeated_call_gets_the_same_account_if_it_knows_the_password(
    host: CreationHost,
) -> None:
    """ACC-24: for clients that lost the answer, and for tools that are run again."""
    publish(host)
    await host.accounts.create(host.request(did=MOVER), service())
    view = await host.accounts.create(host.request(did=MOVER), service())
    assert (view.did, view.handle) == (MOVER, "alice.pds.test")
    assert view.tokens is not None
    assert await host.count("account") == 1
    assert await refusal(
        host.accounts.create(host.request(did=MOVER, password="another password"), service())
    ) == ("InvalidRequest", 400)


async def test_repeated_call_gives_the_account_what_it_asks_for(host: CreationHost) -> None:
    """ACC-24: a tool that is run again with another handle gets that one, or a refusal."""
    publish(host)
    other = await host.accounts.create(host.request(handle="taken.pds.test", email="t@mail.test"))
    view = await host.accounts.create(host.request(did=MOVER), service())
    again = host.request(did=MOVER, handle="mover.pds.test", email="mover@mail.test")
    view = await host.accounts.create(again, service())
    assert (view.did, view.handle, view.email) == (MOVER, "mover.pds.test", "mover@mail.test")
    account = await host.accounts.lookup(MOVER)
    assert account is not None
    assert (account.handle, account.email) == ("mover.pds.test", "mover@mail.test")

    for taken, error in (
        ({"handle": other.handle}, "HandleNotAvailable"),
        ({"email": "t@mail.test"}, "InvalidRequest"),
        ({"handle": "elsewhere.example"}, "InvalidHandle"),
    ):
        wanted = {"handle": "new.pds.test", "email": "new@mail.test"} | taken
        refused = host.accounts.create(host.request(did=MOVER, **wanted), service())
        assert await refusal(refused) == (error, 400)
        assert await host.accounts.lookup(MOVER) == account

    def confirm(txn: Txn) -> None:
        update_email(txn, account.aid, account.email, confirmed_at=account.created_at)

    await host.engine.transact("test", confirm)
    view = await host.accounts.create(host.request(did=MOVER), service())
    assert (view.handle, view.email) == ("alice.pds.test", "mover@mail.test")


async def test_codes_that_were_mailed_to_an_address_are_worth_nothing_for_the_next(
    host: CreationHost,
) -> None:
    """ACC-36: nobody has shown that the new address is read, and who reads the old one is out."""
    publish(host)
    await host.accounts.create(host.request(did=MOVER, email="first@mail.test"), service())
    account = await host.accounts.lookup(MOVER)
    assert account is not None
    tokens = MailTokens(engine=host.engine, secret=SECRET)

    def issue(txn: Txn) -> None:
        for purpose in MailPurpose:
            tokens.issue(txn, account.aid, purpose, now_us=host.clock.now_us(), entropy=b"entropy")

    def count(txn: Txn) -> int:
        return sum(get_mail_token(txn, account.aid, purpose) is not None for purpose in MailPurpose)

    await host.engine.transact("test", issue)
    await host.accounts.create(host.request(did=MOVER, email="first@mail.test"), service())
    assert await host.engine.read("test", count) == len(MailPurpose)
    await host.accounts.create(host.request(did=MOVER, email="next@mail.test"), service())
    assert await host.engine.read("test", count) == 0


async def test_repeated_call_never_touches_an_account_that_is_not_deactivated(
    host: CreationHost,
) -> None:
    """ACC-24."""
    view = await host.accounts.create(host.request())
    sessions = await host.count("session")
    call = host.accounts.create(host.request(did=view.did), service(view.did))
    assert await refusal(call) == ("InvalidRequest", 400)

    publish(host)
    other = host.request(did=MOVER, handle="mover.pds.test", email="m@mail.test")
    await host.accounts.create(other, service())
    account = await host.engine.read("test", get_account_by_did, MOVER)
    await host.engine.transact("test", update_takedown, account.aid, "ref")
    assert await refusal(host.accounts.create(other, service())) == ("InvalidRequest", 400)
    assert await host.count("session") == sessions + 1


async def test_guesses_by_repeated_calls_are_counted(host: CreationHost) -> None:
    """ACC-24, XRPC-27: the holder of the key is perhaps not the holder of the password."""
    publish(host)
    await host.accounts.create(host.request(did=MOVER), service())
    wrong = host.request(did=MOVER, password="another password")
    seen = [await refusal(host.accounts.create(wrong, service())) for _ in range(31)]
    assert set(seen[:30]) == {("InvalidRequest", 400)}
    assert seen[30] == ("RateLimitExceeded", 429)


async def test_an_account_that_somebody_else_opened_is_not_filled_for_its_owner(
    host: CreationHost,
) -> None:
    """ACC-24: a rescue must not make the old host's account, with its password, the owner's."""
    publish(host)
    theirs = host.request(did=MOVER, password="known to the old host", email="old@mail.test")
    await host.accounts.create(theirs, service())
    admit = host.accounts.creation.admit
    assert await refusal(admit(host.request(did=MOVER))) == ("InvalidRequest", 400)
    account = await admit(theirs)
    assert (account.did, await host.count("account")) == (MOVER, 1)


@pytest.mark.parametrize(
    "principal",
    [None, service("did:web:other.example.com"), Principal(PrincipalKind.SESSION, did=MOVER)],
)
async def test_brought_did_needs_a_service_token_of_its_own(
    host: CreationHost, principal: Principal | None
) -> None:
    """ACC-20."""
    publish(host)
    call = host.accounts.create(host.request(did=MOVER), principal)
    assert await refusal(call) == ("AuthenticationRequired", 401)
    await assert_untouched(host)


async def test_brought_did_must_resolve_and_have_a_key(host: CreationHost) -> None:
    call = host.accounts.create(host.request(did=MOVER), service())
    assert await refusal(call) == ("UnresolvableDid", 400)
    publish(host, with_key=False)
    call = host.accounts.create(host.request(did=MOVER), service())
    assert await refusal(call) == ("IncompatibleDidDoc", 400)
    call = host.accounts.create(host.request(did="did:example:x"), service("did:example:x"))
    assert await refusal(call) == ("UnresolvableDid", 400)
    await assert_untouched(host)


async def test_brought_handle_must_resolve_to_the_did(host: CreationHost) -> None:
    """ACC-23, ID-21."""
    publish(host)
    request = host.request(did=MOVER, handle="mover.example.com")
    assert await refusal(host.accounts.create(request, service())) == ("InvalidHandle", 400)
    host.resolver.handles["mover.example.com"] = Did("did:web:other.example.com")
    assert await refusal(host.accounts.create(request, service())) == ("InvalidHandle", 400)
    await assert_untouched(host)
    host.resolver.handles["mover.example.com"] = MOVER
    assert (await host.accounts.create(request, service())).handle == "mover.example.com"


async def test_racing_calls_for_one_brought_did_make_one_account(host: CreationHost) -> None:
    publish(host)
    calls = [host.accounts.create(host.request(did=MOVER), service()) for _ in range(4)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(not isinstance(answer, BaseException) for answer in answers) >= 1
    for answer in answers:
        assert not isinstance(answer, BaseException) or isinstance(answer, RequestError)
    assert await host.count("account") == 1
