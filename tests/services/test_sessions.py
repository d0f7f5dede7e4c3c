"""Sessions over a real database: login, renewal, revocation, and what is asked of the database."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from pds.errors import RequestError
from pds.protocol.jwt import decode_jwt
from pds.protocol.syntax import Did
from pds.services.app_passwords import AppPasswords
from pds.services.login_limits import LoginLimits, Window
from pds.services.principal import PrincipalKind, Scope
from pds.services.rate_limits import DIGEST_BYTES, RateLimits
from pds.services.sessions import Sessions, SessionSettings, SessionView, TokenPair
from pds.store.accounts import (
    AccountStatus,
    delete_account,
    get_account_by_aid,
    update_deactivation,
    update_password_hash,
    update_suspension,
    update_takedown,
)
from tests.services.account_host import ALICE, PASSWORD, SERVICE_DID, SessionHost, session_host
from tests.services.test_passwords import reference_hash

HOUR = 3600
DAY = 24 * HOUR


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[SessionHost]:
    async with session_host(tmp_path) as host:
        yield host


async def login(host: SessionHost, name: str = "alice.pds.test", **options: Any) -> TokenPair:
    view = await host.sessions.login(name, PASSWORD, **options)
    assert view.tokens is not None
    return view.tokens


async def renewed(sessions: Sessions, token: str) -> TokenPair:
    tokens = (await sessions.refresh(token)).tokens
    assert tokens is not None
    return tokens


async def refusal(call: Any) -> tuple[str, int]:
    with pytest.raises(RequestError) as refused:
        await call
    return refused.value.name, refused.value.status


@pytest.mark.parametrize(
    "name",
    [
        "alice.pds.test",
        "ALICE.pds.test",
        "@alice.pds.test",
        ALICE,
        "alice@mail.test",
        "Alice@Mail.Test",
    ],
)
async def test_login_by_handle_did_and_email_in_any_case(host: SessionHost, name: str) -> None:
    """XRPC-27."""
    aid = await host.add_account()
    view = await host.sessions.login(name, PASSWORD)
    assert (view.did, view.handle, view.email) == (ALICE, "alice.pds.test", "alice@mail.test")
    assert not view.email_confirmed
    assert view.status is AccountStatus.ACTIVE
    assert view.tokens is not None
    principal = await host.sessions.authenticate_access(view.tokens.access)
    assert (principal.kind, principal.did, principal.aid) == (PrincipalKind.SESSION, ALICE, aid)
    assert principal.scope is Scope.ACCESS


async def test_tokens_have_the_claims_and_lifetimes_that_clients_know(host: SessionHost) -> None:
    """XRPC-22, XRPC-23."""
    await host.add_account()
    tokens = await login(host)
    now_s = host.clock.now_us() // 1_000_000
    access, refresh = decode_jwt(tokens.access), decode_jwt(tokens.refresh)
    assert (access.header["typ"], access.header["alg"]) == ("at+jwt", "HS256")
    assert (refresh.header["typ"], refresh.header["alg"]) == ("refresh+jwt", "HS256")
    session_id = access.claims.pop("sid")
    assert access.claims == {
        "scope": "com.atproto.access",
        "aud": SERVICE_DID,
        "sub": ALICE,
        "iat": now_s,
        "exp": now_s + 2 * HOUR,
    }
    assert refresh.claims.pop("jti")
    assert refresh.claims == {
        "scope": "com.atproto.refresh",
        "aud": SERVICE_DID,
        "sub": ALICE,
        "iat": now_s,
        "exp": now_s + 90 * DAY,
        "sid": session_id,
    }


async def test_unknown_account_and_wrong_password_answer_alike(host: SessionHost) -> None:
    """XRPC-27, no enumeration by text or status."""
    await host.add_account()
    answers = set()
    for name in (
        "alice.pds.test",
        "nobody.pds.test",
        "did:plc:nobody",
        "x@mail.test",
        "",
        "@",
        "\0",
    ):
        with pytest.raises(RequestError) as refused:
            await host.sessions.login(name, "wrong password")
        answers.add((refused.value.name, refused.value.status, refused.value.message))
    assert answers == {("AuthenticationRequired", 401, "Invalid identifier or password")}


async def test_failed_login_takes_at_least_the_floor(host: SessionHost) -> None:
    """XRPC-27: the floor lies under failures of both kinds."""
    await host.add_account()
    sessions = Sessions(
        engine=host.engine,
        clock=host.clock,
        wall=host.clock,
        accounts=host.cache,
        tokens=host.tokens,
        passwords=host.passwords,
    )
    for name in ("alice.pds.test", "nobody.pds.test"):
        started = time.monotonic()
        assert await refusal(sessions.login(name, "wrong password")) == (
            "AuthenticationRequired",
            401,
        )
        assert time.monotonic() - started >= 0.349


async def test_reference_hash_is_replaced_at_login(host: SessionHost) -> None:
    """ACC-30."""
    aid = await host.add_account(password_hash=reference_hash(PASSWORD))
    await login(host)
    account = await host.engine.read("test", get_account_by_aid, aid)
    assert account is not None
    assert (account.password_hash or "").startswith("$argon2id$")
    await login(host)


async def test_authentication_asks_the_database_once_for_each_session(host: SessionHost) -> None:
    await host.add_account()
    tokens = await login(host)
    host.reads.clear()
    for _ in range(5):
        await host.sessions.authenticate_access(tokens.access)
    assert host.reads == ["session.load"]


async def test_session_outlives_a_restart(host: SessionHost) -> None:
    await host.add_account()
    tokens = await login(host)
    restarted = host.restart()
    assert (await restarted.authenticate_access(tokens.access)).did == ALICE
    await restarted.logout(tokens.refresh)
    assert await refusal(host.restart().authenticate_access(tokens.access)) == ("ExpiredToken", 400)


async def test_access_token_expires_after_two_hours(host: SessionHost) -> None:
    """XRPC-24: 400 ExpiredToken is what clients refresh upon."""
    await host.add_account()
    tokens = await login(host)
    host.clock.advance(2 * HOUR - 1)
    await host.sessions.authenticate_access(tokens.access)
    host.clock.advance(1)
    assert await refusal(host.sessions.authenticate_access(tokens.access)) == ("ExpiredToken", 400)


async def test_refresh_rotates_and_keeps_the_session(host: SessionHost) -> None:
    """XRPC-25."""
    await host.add_account()
    first = await login(host)
    host.clock.advance(60)
    second = await renewed(host.sessions, first.refresh)
    assert second.refresh != first.refresh
    claims = decode_jwt(second.refresh).claims
    assert claims["exp"] == host.clock.now_us() // 1_000_000 + 90 * DAY
    assert claims["sid"] == decode_jwt(first.access).claims["sid"]
    for tokens in (first, second):
        await host.sessions.authenticate_access(tokens.access)


async def test_used_refresh_token_leads_to_the_same_successor_for_two_hours(
    host: SessionHost,
) -> None:
    """XRPC-25: for clients that lost the answer; afterwards it is revoked."""
    await host.add_account()
    first = await login(host)
    successor = decode_jwt((await renewed(host.sessions, first.refresh)).refresh).claims["jti"]
    host.clock.advance(2 * HOUR - 1)
    again = decode_jwt((await renewed(host.restart(), first.refresh)).refresh).claims["jti"]
    assert again == successor
    host.clock.advance(1)
    assert await refusal(host.sessions.refresh(first.refresh)) == ("ExpiredToken", 400)


async def test_concurrent_refreshes_get_one_successor(host: SessionHost) -> None:
    """XRPC-25."""
    await host.add_account()
    tokens = await login(host)
    pairs = await asyncio.gather(*(renewed(host.sessions, tokens.refresh) for _ in range(8)))
    assert len({decode_jwt(pair.refresh).claims["jti"] for pair in pairs}) == 1


async def test_logout_with_any_token_of_the_chain_ends_all_of_it(host: SessionHost) -> None:
    """XRPC-25: also with an expired refresh token; other sessions stay."""
    await host.add_account()
    other = await login(host)
    first = await login(host)
    second = await renewed(host.sessions, first.refresh)
    await host.sessions.authenticate_access(second.access)
    await host.sessions.logout(first.refresh)
    for tokens in (first, second):
        assert await refusal(host.sessions.authenticate_access(tokens.access)) == (
            "ExpiredToken",
            400,
        )
        assert await refusal(host.sessions.refresh(tokens.refresh)) == ("ExpiredToken", 400)
    await host.sessions.authenticate_access(other.access)
    host.clock.advance(91 * DAY)
    assert await refusal(host.sessions.refresh(other.refresh)) == ("ExpiredToken", 400)
    await host.sessions.logout(other.refresh)


async def test_tokens_of_the_wrong_kind_are_refused(host: SessionHost) -> None:
    """XRPC-22: each verifier wants its own type."""
    await host.add_account()
    tokens = await login(host)
    assert await refusal(host.sessions.authenticate_access(tokens.refresh)) == ("InvalidToken", 400)
    assert await refusal(host.sessions.refresh(tokens.access)) == ("InvalidToken", 400)
    assert await refusal(host.sessions.logout(tokens.access)) == ("InvalidToken", 400)


async def test_ending_all_sessions_stops_access_tokens_at_once(host: SessionHost) -> None:
    """XRPC-26: what a password change does."""
    aid = await host.add_account()
    kept, ended = await login(host), await login(host)
    await host.sessions.authenticate_access(ended.access)
    keep = (await host.sessions.authenticate_access(kept.access)).session_id
    await host.engine.transact(
        "test", lambda txn: host.sessions.end_sessions(txn, aid, keep_session_id=keep)
    )
    await host.sessions.authenticate_access(kept.access)
    assert await refusal(host.sessions.authenticate_access(ended.access)) == ("ExpiredToken", 400)


async def test_password_changed_during_login_opens_no_session(host: SessionHost) -> None:
    aid = await host.add_account()
    real = host.passwords.verify

    async def verify_then_change(password: str, stored: str | None) -> bool:
        is_right = await real(password, stored)
        await host.change(update_password_hash, aid, "$argon2id$another")
        return is_right

    host.passwords.verify = verify_then_change  # type: ignore[method-assign]
    assert await refusal(login(host)) == ("AuthenticationRequired", 401)


@pytest.mark.parametrize("fn", [update_takedown, update_suspension])
async def test_takedown_stops_sessions_and_opens_a_narrow_one_on_request(
    host: SessionHost, fn: Callable[..., None]
) -> None:
    """XRPC-27, ACC-45."""
    aid = await host.add_account()
    before = await login(host)
    await host.sessions.authenticate_access(before.access)
    await host.change(fn, aid, "ref-1" if fn is update_takedown else 1)
    assert await refusal(host.sessions.authenticate_access(before.access)) == (
        "AccountTakedown",
        401,
    )
    assert await refusal(host.sessions.refresh(before.refresh)) == ("AccountTakedown", 401)
    assert await refusal(login(host)) == ("AccountTakedown", 401)
    assert await refusal(host.sessions.login("alice.pds.test", "wrong password")) == (
        "AuthenticationRequired",
        401,
    )
    narrow = await login(host, allow_takendown=True)
    principal = await host.sessions.authenticate_access(narrow.access)
    assert (principal.scope, principal.is_takendown, principal.is_full) == (
        Scope.TAKENDOWN,
        True,
        False,
    )
    await host.change(fn, aid, None)
    assert await refusal(host.sessions.refresh(narrow.refresh)) == ("ExpiredToken", 400)
    assert (await host.sessions.authenticate_access(before.access)).is_full
    await host.sessions.logout(narrow.refresh)
    assert await refusal(host.sessions.authenticate_access(narrow.access)) == ("ExpiredToken", 400)


async def test_deactivated_account_signs_in_and_says_so(host: SessionHost) -> None:
    """ACC-5."""
    aid = await host.add_account()

    def deactivate(txn: Any, aid: int) -> None:
        update_deactivation(txn, aid, deactivated_at=5, delete_after=None)

    tokens = await login(host)
    assert (await host.sessions.authenticate_access(tokens.access)).status is AccountStatus.ACTIVE
    await host.change(deactivate, aid)
    principal = await host.sessions.authenticate_access(tokens.access)
    assert principal.status is AccountStatus.DEACTIVATED
    view: SessionView = await host.sessions.login(ALICE, PASSWORD)
    assert view.status is AccountStatus.DEACTIVATED


async def test_deleted_account_is_not_found(host: SessionHost) -> None:
    """XRPC-24."""
    aid = await host.add_account()
    tokens = await login(host)
    await host.sessions.authenticate_access(tokens.access)

    def delete(txn: Any) -> None:
        delete_account(txn, aid)
        host.sessions.end_sessions(txn, aid)
        host.cache.forget_after(txn, aid)

    await host.engine.transact("test", delete)
    assert await refusal(host.sessions.authenticate_access(tokens.access)) == (
        "AccountNotFound",
        403,
    )


@pytest.mark.parametrize("privileged", [False, True])
async def test_app_password_opens_a_narrower_session(host: SessionHost, privileged: bool) -> None:
    """ACC-33, ACC-34, XRPC-27."""
    aid = await host.add_account()
    service = AppPasswords(engine=host.engine, clock=host.clock, sessions=host.sessions)
    new = await service.create(aid, "phone", privileged=privileged)
    assert [len(part) for part in new.password.split("-")] == [4, 4, 4, 4]
    view = await host.sessions.login("alice.pds.test", new.password)
    assert view.tokens is not None
    principal = await host.sessions.authenticate_access(view.tokens.access)
    assert principal.scope is (Scope.APP_PASS_PRIVILEGED if privileged else Scope.APP_PASS)
    assert (principal.is_full, principal.is_privileged) == (False, privileged)
    next_pair = await renewed(host.sessions, view.tokens.refresh)
    again = await host.sessions.authenticate_access(next_pair.access)
    assert again.scope is principal.scope

    await service.revoke(aid, "phone")
    assert await refusal(host.sessions.authenticate_access(next_pair.access)) == (
        "ExpiredToken",
        400,
    )
    assert await refusal(host.sessions.refresh(next_pair.refresh)) == ("ExpiredToken", 400)
    assert await refusal(host.sessions.login("alice.pds.test", new.password)) == (
        "AuthenticationRequired",
        401,
    )


async def test_app_password_never_works_for_a_takendown_account(host: SessionHost) -> None:
    """XRPC-27."""
    aid = await host.add_account()
    service = AppPasswords(engine=host.engine, clock=host.clock, sessions=host.sessions)
    new = await service.create(aid, "phone", privileged=True)
    await host.change(update_takedown, aid, "ref")
    refused = await refusal(
        host.sessions.login("alice.pds.test", new.password, allow_takendown=True)
    )
    assert refused == ("AuthenticationRequired", 401)


async def test_app_password_names_are_unique_and_listing_shows_no_secret(host: SessionHost) -> None:
    """ACC-33."""
    aid = await host.add_account()
    service = AppPasswords(engine=host.engine, clock=host.clock, sessions=host.sessions)
    new = await service.create(aid, "phone", privileged=False)
    assert await refusal(service.create(aid, " phone ", privileged=False)) == (
        "InvalidRequest",
        400,
    )
    assert await refusal(service.create(aid, "  ", privileged=False)) == ("InvalidRequest", 400)
    listed = await service.list(aid)
    assert [entry.name for entry in listed] == ["phone"]
    assert new.password.encode() not in listed[0].hash


async def test_attempts_are_limited_per_account_whatever_the_spelling(host: SessionHost) -> None:
    await host.add_account()
    host.sessions = Sessions(
        engine=host.engine,
        clock=host.clock,
        wall=host.clock,
        accounts=host.cache,
        tokens=host.tokens,
        passwords=host.passwords,
        settings=SessionSettings(
            login_floor_s=0.0,
            limits=LoginLimits(per_address=(Window(3, 300),), per_account=(Window(5, 300),)),
        ),
        rate_limits=RateLimits(now_s=lambda: 0.0),
    )
    for name in ("alice.pds.test", ALICE, "alice@mail.test"):
        assert (await refusal(host.sessions.login(name, "wrong", address="a")))[1] == 401
    assert await refusal(login(host, address="a")) == ("RateLimitExceeded", 429)
    await login(host, address="b")
    await login(host, address="c")
    assert await refusal(login(host, address="d")) == ("RateLimitExceeded", 429)
    for _ in range(3):
        assert (await refusal(host.sessions.login("nobody.test", "x", address="a")))[1] == 401
    assert (await refusal(host.sessions.login("nobody.test", "x", address="a")))[1] == 429


async def test_invented_names_neither_take_memory_nor_push_out_real_counts(
    host: SessionHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    await host.add_account()
    monkeypatch.setattr("pds.services.login_limits.MAX_SUBJECTS", 4)
    rates = RateLimits(now_s=lambda: 0.0)
    sessions = Sessions(
        engine=host.engine,
        clock=host.clock,
        wall=host.clock,
        accounts=host.cache,
        tokens=host.tokens,
        passwords=host.passwords,
        settings=SessionSettings(
            login_floor_s=0.0,
            limits=LoginLimits(per_address=(Window(1, 300),), per_account=(Window(9, 300),)),
        ),
        rate_limits=rates,
    )
    assert (await refusal(sessions.login("alice.pds.test", "wrong", address="a")))[1] == 401
    for number in range(5):
        name = f"{number}" + "x" * 100_000
        assert (await refusal(sessions.login(name, "wrong", address="a")))[1] == 401
    assert (await refusal(sessions.login("alice.pds.test", "wrong", address="a")))[1] == 429
    vain = rates._buckets["sign-in-unknown-300"]
    assert 0 < len(vain) <= 4
    assert {len(key) for key in vain._counts} == {DIGEST_BYTES}


async def test_sweep_deletes_expired_rows_only(host: SessionHost) -> None:
    """XRPC-25: expired rows are tidied."""
    await host.add_account()
    await host.add_account(
        did=Did("did:plc:bobbbbbbbbbbbbbbbbbbbbbb"), handle="bob.pds.test", email="b@mail.test"
    )
    await login(host)
    host.clock.advance(50 * DAY)
    fresh = await login(host, "bob.pds.test")
    host.clock.advance(50 * DAY)
    assert await host.sessions.sweep() == 1
    await host.sessions.refresh(fresh.refresh)


async def test_describe_shows_the_placeholder_for_an_account_without_handle(
    host: SessionHost,
) -> None:
    await host.add_account()
    tokens = await login(host)
    await host.engine.transact("test", lambda txn: txn.write("UPDATE account SET handle = NULL"))
    host.restart()
    principal = await host.sessions.authenticate_access(tokens.access)
    view = await host.sessions.describe(principal)
    assert (view.handle, view.tokens) == ("handle.invalid", None)


async def test_login_flood_does_not_slow_down_others(host: SessionHost) -> None:
    """Promise B4: ordinary requests under 500 ms, what does not fit in the queue gets 429.

    How long they take is counted in passwords that are checked meanwhile, of which a slow machine
    checks fewer: who had to wait for the queue would see a good part of it go by.
    """
    await host.add_account()
    tokens = await login(host)
    sessions = Sessions(
        engine=host.engine,
        clock=host.clock,
        wall=host.clock,
        accounts=host.cache,
        tokens=host.tokens,
        passwords=host.passwords,
        settings=SessionSettings(login_floor_s=0.0, limits=None),
    )
    flood = [
        asyncio.ensure_future(refusal(sessions.login("alice.pds.test", "wrong password")))
        for _ in range(60)
    ]
    while not any(attempt.done() for attempt in flood):
        await asyncio.sleep(0)
    accepted = sum(not attempt.done() for attempt in flood)
    waits = []
    while not all(attempt.done() for attempt in flood):
        before = sum(attempt.done() for attempt in flood)
        await host.sessions.authenticate_access(tokens.access)
        await host.engine.read("test", lambda txn: txn.read("SELECT 1"))
        waits.append(sum(attempt.done() for attempt in flood) - before)
        await asyncio.sleep(0)
    answers = {attempt.result() for attempt in flood}
    assert answers == {("AuthenticationRequired", 401), ("RateLimitExceeded", 429)}
    assert sorted(waits)[int(len(waits) * 0.95)] < accepted / 4
