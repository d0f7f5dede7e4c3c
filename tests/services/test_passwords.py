"""Passwords: both stored forms, limits, and what an overloaded pool answers."""

import asyncio
import hashlib
import threading
from collections.abc import Iterator

import pytest

from pds.errors import RequestError
from pds.services.passwords import (
    Passwords,
    PasswordSettings,
    check_new_password,
    verify_reference_hash,
)

REFERENCE_SALT = "00112233445566778899aabbccddeeff"


def reference_hash(password: str) -> str:
    digest = hashlib.scrypt(
        password.encode(), salt=REFERENCE_SALT.encode(), n=16384, r=8, p=1, dklen=64
    )
    return f"{REFERENCE_SALT}:{digest.hex()}"


@pytest.fixture
def passwords() -> Iterator[Passwords]:
    passwords = Passwords()
    yield passwords
    passwords.close()


async def test_new_hash_verifies_and_is_argon2id_at_the_named_cost(passwords: Passwords) -> None:
    stored = await passwords.hash("correct horse")
    assert stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert await passwords.verify("correct horse", stored)
    assert not await passwords.verify("correct horsf", stored)
    assert not passwords.needs_rehash(stored)


async def test_reference_hash_verifies_and_asks_to_be_replaced(passwords: Passwords) -> None:
    """ACC-30: the salt is used as the hex text that it is stored as."""
    stored = reference_hash("hunter22")
    assert await passwords.verify("hunter22", stored)
    assert not await passwords.verify("hunter23", stored)
    assert passwords.needs_rehash(stored)


def test_reference_hash_of_node_is_accepted() -> None:
    """ACC-30: a value computed by Node.js itself."""
    stored = (
        "00112233445566778899aabbccddeeff:"
        "bfd3c42e8e6199d66807327db5e0f66f2e8514480dfe347faf5258c841e89077"
        "a41a5c3f9d0118670e0d13df1f52879ca6268f67774a05f358aaf6d65bd49d5e"
    )
    assert verify_reference_hash("hunter22", stored)


@pytest.mark.parametrize(
    "stored", ["", ":", "aa:", "aa:zz", "aa:00", "$argon2id$broken", ":" + "0" * 128]
)
async def test_damaged_hash_verifies_nothing(passwords: Passwords, stored: str) -> None:
    assert not await passwords.verify("", stored)
    assert not await passwords.verify("anything", stored)


async def test_unknown_account_costs_a_whole_check(passwords: Passwords) -> None:
    """XRPC-27: the decoy is hashed as a real one would be."""
    verified: list[str] = []
    real = passwords._hasher.verify

    class Spy:
        def __getattr__(self, name: str) -> object:
            return getattr(real.__self__, name)

        def verify(self, stored: str, password: str) -> bool:
            verified.append(stored)
            return bool(real(stored, password))

    passwords._hasher = Spy()  # type: ignore[assignment]
    assert not await passwords.verify("decoy", None)
    assert len(verified) == 1
    assert verified[0].startswith("$argon2id$v=19$m=19456,t=2,p=1$")


async def test_password_of_513_characters_is_never_checked(passwords: Passwords) -> None:
    """ACC-31: up to 512 characters verify, more is refused."""
    assert await passwords.verify("x" * 512, reference_hash("x" * 512))
    assert not await passwords.verify("x" * 513, reference_hash("x" * 513))


@pytest.mark.parametrize(("length", "accepted"), [(7, False), (8, True), (256, True), (257, False)])
def test_new_password_has_8_to_256_characters(length: int, accepted: bool) -> None:
    if accepted:
        check_new_password("x" * length)
        return
    with pytest.raises(RequestError) as refused:
        check_new_password("x" * length)
    assert refused.value.name == "InvalidPassword"


async def test_full_queue_is_refused_with_429_and_recovers() -> None:
    passwords = Passwords(PasswordSettings(threads=1, max_waiting=1))
    blocked = threading.Event()
    try:
        waiting = [
            asyncio.ensure_future(passwords._run(lambda: blocked.wait(60))) for _ in range(2)
        ]
        await asyncio.sleep(0)
        with pytest.raises(RequestError) as refused:
            await passwords.verify("x", None)
        assert (refused.value.name, refused.value.status) == ("RateLimitExceeded", 429)
        assert refused.value.headers["Retry-After"] == "5"

        waiting[0].cancel()
        await asyncio.sleep(0)
        with pytest.raises(RequestError):  # The caller left, its job still fills the place.
            await passwords.verify("x", None)

        blocked.set()
        assert await waiting[1]
        assert not await passwords.verify("x", None)
    finally:
        blocked.set()
        passwords.close()
