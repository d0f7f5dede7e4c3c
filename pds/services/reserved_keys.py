"""Signing keys for accounts that do not exist yet (reserveSigningKey).

Who prepares an identity elsewhere asks for the key that its account will have here. The key of a
DID stays the same when it is asked for again, and createAccount for that DID uses it. Keys that
were asked for without a DID belong to nobody; they are kept for as long.

Anybody may ask, so reservations end after a week and are limited in all; how many one address may
make is counted with all other requests.

Spec: (ACC-15)
"""

import secrets
from typing import Final

from pds.errors import RequestError
from pds.protocol.keys import Curve, generate_secret, make_signer
from pds.services.sweeping import sweep_rows
from pds.store.clock import US_PER_S, Clock
from pds.store.engine import Engine, Txn
from pds.store.keystore import NONCE_BYTES, Keystore
from pds.store.reserved_keys import (
    ReservedKey,
    count_reserved_keys,
    delete_old_reserved_keys,
    get_reserved_key,
    insert_reserved_key,
)

CURVE: Final[Curve] = "k256"
"""Of new signing keys: what the network uses most (DM-50)."""
LIFETIME_S: Final = 7 * 86_400
MAX_RESERVED: Final = 100_000
"""In all: some hundred bytes each, and far more than any host opens accounts in a week."""


class ReservedKeys:
    """Reserves signing keys, and hands them to the accounts that they were made for."""

    def __init__(
        self,
        *,
        engine: Engine,
        clock: Clock,
        keystore: Keystore,
        max_reserved: int = MAX_RESERVED,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._keystore = keystore
        self._max_reserved = max_reserved

    async def reserve(self, did: str | None = None) -> str:
        """Return the did:key that an account will have: the same one for the same DID.

        Raises: RequestError `RateLimitExceeded` (429).
        """
        secret = generate_secret(CURVE, secrets.token_bytes(32))
        did_key = make_signer(CURVE, secret).public_key.did_key
        nonce = secrets.token_bytes(NONCE_BYTES)
        sealed = self._keystore.seal(seal_subject(did_key), secret, nonce=nonce)
        now_us = self._clock.now_us()
        new = ReservedKey(did_key, did, sealed, now_us)
        return await self._engine.transact("key.reserve", self._reserve, new)

    async def get_secret(self, did: str) -> bytes | None:
        """Return the secret of the key that is reserved for a DID.

        Whoever uses it drops the reservation in the same transaction.
        """
        since_us = self._clock.now_us() - LIFETIME_S * US_PER_S
        key = await self._engine.read("key.reserved", _get, did, since_us)
        return None if key is None else self._keystore.open(seal_subject(key.did_key), key.secret)

    async def sweep(self, now_us: int) -> int:
        """Drop reservations that are too old; return how many there were."""
        before_us = now_us - LIFETIME_S * US_PER_S
        return await sweep_rows(self._engine, "key.sweep", delete_old_reserved_keys, before_us)

    def _reserve(self, txn: Txn, new: ReservedKey) -> str:
        if new.did is not None:
            since_us = new.created_at - LIFETIME_S * US_PER_S
            known = get_reserved_key(txn, new.did, since_us=since_us)
            if known is not None:
                return known.did_key
        if count_reserved_keys(txn) >= self._max_reserved:
            raise RequestError(
                "RateLimitExceeded",
                "Too many signing keys reserved",
                429,
                headers={"Retry-After": "3600"},
            )
        insert_reserved_key(txn, new)
        return new.did_key


def seal_subject(did_key: str) -> str:
    """What the secret of a reserved key is sealed for."""
    return f"reserved_key {did_key}"


def _get(txn: Txn, did: str, since_us: int) -> ReservedKey | None:
    return get_reserved_key(txn, did, since_us=since_us)
