"""Keys for accounts that do not exist yet: the same for a DID, sealed, bounded, and used once."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pds.errors import RequestError
from pds.protocol.keys import make_signer
from pds.services.reserved_keys import CURVE, LIFETIME_S, ReservedKeys
from tests.services.life_host import LifeHost, life_host

MOVER = "did:web:mover.example.com"


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[LifeHost]:
    async with life_host(tmp_path) as host:
        yield host


async def test_a_did_keeps_its_key_and_others_get_their_own(host: LifeHost) -> None:
    """ACC-15."""
    keys = host.reserved_keys
    first = await keys.reserve(MOVER)
    assert await keys.reserve(MOVER) == first
    assert len({first, await keys.reserve("did:web:other.example.com"), await keys.reserve()}) == 3
    secret = await keys.get_secret(MOVER)
    assert secret is not None
    assert make_signer(CURVE, secret).public_key.did_key == first
    assert await keys.get_secret("did:web:nobody.example.com") is None


async def test_secrets_are_not_stored_in_the_clear(host: LifeHost) -> None:
    await host.reserved_keys.reserve(MOVER)
    secret = await host.reserved_keys.get_secret(MOVER)
    [(sealed,)] = await host.rows_of("SELECT secret FROM reserved_key")
    assert secret not in sealed


async def test_reservations_end_after_a_week(host: LifeHost) -> None:
    """ACC-15: also before anybody has swept them away."""
    keys = host.reserved_keys
    first = await keys.reserve(MOVER)
    await keys.reserve()
    host.clock.advance(LIFETIME_S)
    assert await keys.get_secret(MOVER) is None
    second = await keys.reserve(MOVER)
    assert second != first
    assert await keys.sweep(host.clock.now_us()) == 1
    assert await host.rows_of("SELECT did_key FROM reserved_key") == [(second,)]


async def test_there_is_an_end_to_reserving(host: LifeHost) -> None:
    """ACC-15: what is reserved already can be asked for all the same."""
    keys = ReservedKeys(
        engine=host.engine, clock=host.clock, keystore=host.keystore, max_reserved=2
    )
    first = await keys.reserve(MOVER)
    await keys.reserve()
    for did in (None, "did:web:other.example.com"):
        with pytest.raises(RequestError) as refused:
            await keys.reserve(did)
        assert (refused.value.name, refused.value.status) == ("RateLimitExceeded", 429)
    assert await keys.reserve(MOVER) == first


async def test_an_account_takes_the_key_of_its_did_along(host: LifeHost) -> None:
    """ACC-15: the reservation goes in the transaction that makes the account."""
    await host.reserved_keys.reserve(MOVER)
    other = await host.reserved_keys.reserve("did:web:other.example.com")
    await host.open("mover", did=MOVER, is_active=False)
    assert await host.rows_of("SELECT did_key FROM reserved_key") == [(other,)]
