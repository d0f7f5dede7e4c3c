"""Codes sent by mail: one use, one account, one purpose, a quarter of an hour, five tries."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pds.errors import RequestError
from pds.services.mail_tokens import (
    KEEP_EXPIRED_S,
    LIFETIME_S,
    MAX_ATTEMPTS,
    MailCode,
    MailPurpose,
    MailTokens,
)
from pds.store.accounts import update_email
from pds.store.engine import Txn
from tests.services.account_host import SECRET, SessionHost, session_host

RESET = MailPurpose.RESET_PASSWORD
ENTROPY = bytes(range(7))


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[SessionHost]:
    async with session_host(tmp_path) as host:
        yield host


@pytest.fixture
def tokens(host: SessionHost) -> MailTokens:
    return MailTokens(engine=host.engine, secret=SECRET)


async def issue(
    host: SessionHost,
    tokens: MailTokens,
    aid: int,
    purpose: MailPurpose = RESET,
    entropy: bytes = ENTROPY,
) -> str:
    def job(txn: Txn, now_us: int) -> str:
        return tokens.issue(txn, aid, purpose, now_us=now_us, entropy=entropy)

    return await host.engine.transact("test.issue", job, host.clock.now_us(), accounts=(aid,))


def nothing(txn: Txn) -> str:
    return "done"


async def use(
    host: SessionHost, tokens: MailTokens, aid: int, code: str, purpose: MailPurpose = RESET
) -> str:
    """Use a code; returns `done` or the name of the refusal."""
    given = MailCode(aid, purpose, code, host.clock.now_us())
    try:
        return await tokens.use("test.use", given, nothing)
    except RequestError as error:
        return error.name if error.status == 400 else str(error.status)


async def test_code_reads_as_two_groups_and_works_once(
    host: SessionHost, tokens: MailTokens
) -> None:
    """ACC-36."""
    aid = await host.add_account()
    code = await issue(host, tokens, aid)
    assert re.fullmatch(r"[A-Z2-7]{5}-[A-Z2-7]{5}", code)
    assert await tokens.find_owner(RESET, code) == aid
    assert await use(host, tokens, aid, f" {code.lower().replace('-', ' ')} ") == "done"
    assert await use(host, tokens, aid, code) == "InvalidToken"
    assert await tokens.find_owner(RESET, code) is None


async def test_only_a_digest_is_stored_that_needs_the_secret(
    host: SessionHost, tokens: MailTokens
) -> None:
    """ACC-36."""
    aid = await host.add_account()
    code = await issue(host, tokens, aid)
    rows = await host.engine.read("test", lambda txn: txn.read("SELECT digest FROM mail_token"))
    assert code.encode() not in bytes(rows[0][0])
    assert code.replace("-", "").encode() not in bytes(rows[0][0])
    others = MailTokens(engine=host.engine, secret="another secret")
    assert await others.find_owner(RESET, code) is None
    assert await use(host, others, aid, code) == "InvalidToken"


async def test_code_is_for_one_account_and_one_purpose(
    host: SessionHost, tokens: MailTokens
) -> None:
    """ACC-36."""
    aid = await host.add_account()
    code = await issue(host, tokens, aid)
    assert await use(host, tokens, aid, code, MailPurpose.DELETE_ACCOUNT) == "InvalidToken"
    assert await use(host, tokens, aid + 1, code) == "InvalidToken"
    await issue(host, tokens, aid, MailPurpose.PLC_OPERATION, bytes(7))
    assert await use(host, tokens, aid, code) == "done"


async def test_a_new_code_replaces_the_old_and_its_count(
    host: SessionHost, tokens: MailTokens
) -> None:
    """ACC-36."""
    aid = await host.add_account()
    old = await issue(host, tokens, aid)
    for _ in range(MAX_ATTEMPTS - 1):
        assert await use(host, tokens, aid, "AAAAA-AAAAA") == "InvalidToken"
    new = await issue(host, tokens, aid, entropy=bytes(7))
    assert await use(host, tokens, aid, old) == "InvalidToken"
    assert await use(host, tokens, aid, new) == "done"


async def test_expired_code_is_told_from_a_wrong_one_until_it_is_swept(
    host: SessionHost, tokens: MailTokens
) -> None:
    """ACC-36."""
    aid = await host.add_account()
    code = await issue(host, tokens, aid)
    host.clock.advance(LIFETIME_S)
    assert await use(host, tokens, aid, "AAAAA-AAAAA") == "InvalidToken"
    assert await use(host, tokens, aid, code) == "ExpiredToken"
    host.clock.advance(KEEP_EXPIRED_S - 1)
    assert await tokens.sweep(host.clock.now_us()) == 0
    host.clock.advance(2)
    assert await tokens.sweep(host.clock.now_us()) == 1
    assert await use(host, tokens, aid, code) == "InvalidToken"


async def test_code_is_good_until_the_last_second(host: SessionHost, tokens: MailTokens) -> None:
    """ACC-36."""
    aid = await host.add_account()
    code = await issue(host, tokens, aid)
    host.clock.advance(LIFETIME_S - 1)
    assert await use(host, tokens, aid, code) == "done"


async def test_wrong_tries_are_counted_durably_and_end_the_code(
    host: SessionHost, tokens: MailTokens
) -> None:
    """ACC-36: the refused caller's count is committed, so another node sees it too."""
    aid = await host.add_account()
    code = await issue(host, tokens, aid)
    for tried in range(MAX_ATTEMPTS):
        rows = await host.engine.read(
            "test", lambda txn: txn.read("SELECT attempts FROM mail_token")
        )
        assert rows == [(tried,)]
        another_node = MailTokens(engine=host.engine, secret=SECRET)
        assert await use(host, another_node, aid, "AAAAA-AAAAA") == "InvalidToken"
    assert await use(host, tokens, aid, code) == "InvalidToken"


async def test_code_survives_a_job_that_fails_and_the_job_leaves_nothing(
    host: SessionHost, tokens: MailTokens
) -> None:
    """ACC-36: used up atomically with the effect."""
    aid = await host.add_account()
    code = await issue(host, tokens, aid)

    def fail(txn: Txn, aid: int) -> None:
        update_email(txn, aid, "half@done.test", confirmed_at=None)
        raise RequestError("InvalidRequest", "no")

    given = MailCode(aid, RESET, code, host.clock.now_us())
    with pytest.raises(RequestError, match="no"):
        await tokens.use("test.fail", given, fail, aid)
    rows = await host.engine.read("test", lambda txn: txn.read("SELECT email FROM account"))
    assert rows == [("alice@mail.test",)]
    assert await use(host, tokens, aid, code) == "done"


async def test_wrong_code_does_not_run_the_job(host: SessionHost, tokens: MailTokens) -> None:
    aid = await host.add_account()
    await issue(host, tokens, aid)
    ran: list[str] = []

    def note(txn: Txn) -> None:
        ran.append("ran")

    given = MailCode(aid, RESET, "AAAAA-AAAAA", host.clock.now_us())
    with pytest.raises(RequestError):
        await tokens.use("test.wrong", given, note)
    assert not ran


async def test_all_codes_of_an_account_can_be_dropped(
    host: SessionHost, tokens: MailTokens
) -> None:
    aid = await host.add_account()
    code = await issue(host, tokens, aid)
    await host.engine.transact("test.drop", tokens.drop_all, aid, accounts=(aid,))
    assert await use(host, tokens, aid, code) == "InvalidToken"


@pytest.mark.parametrize("code", ["", "-", "é" * 10, "A" * 100_000])
async def test_nonsense_is_an_invalid_code(
    host: SessionHost, tokens: MailTokens, code: str
) -> None:
    aid = await host.add_account()
    await issue(host, tokens, aid)
    assert await use(host, tokens, aid, code) == "InvalidToken"
    assert await tokens.find_owner(RESET, code) is None


async def test_too_little_entropy_is_a_bug(host: SessionHost, tokens: MailTokens) -> None:
    aid = await host.add_account()
    with pytest.raises(ValueError, match="entropy"):
        await issue(host, tokens, aid, entropy=bytes(6))
