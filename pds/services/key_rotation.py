"""Giving an account another signing key.

The operation goes to the directory first, then the head is signed again with the new key and
announced; until then the old key stays (ID-72). See `identity_journal` for crashes in between.

We never sign with a key whose private half we do not have. So a key that is named must be the one
that `reserveSigningKey` made for this DID; without a name a new one is made. An identity that we
cannot change, a did:web or one without our rotation key, must name the reserved key already.
"""

import secrets
from typing import Final, Protocol

from pds.errors import NotResolvable, invalid_request
from pds.protocol.keys import (
    Curve,
    InvalidKey,
    PublicKey,
    Signer,
    generate_secret,
    make_signer,
    parse_did_key,
)
from pds.protocol.plc import SIGNING_KEY_ID, OperationJson, PlcOperation, make_update
from pds.protocol.syntax import Did
from pds.services.audit import Order
from pds.services.identity_acts import Act, ActKind, NewKey, no_account
from pds.services.identity_journal import IdentityJournal, Plan
from pds.services.moderation import subject_not_found
from pds.services.resolving import DidDocuments
from pds.store.accounts import Account, get_account_by_aid, get_account_by_did
from pds.store.engine import Engine, Txn
from pds.store.keystore import KEY_ENTROPY_BYTES, Keystore

CURVE: Final[Curve] = "k256"
"""Of keys that are made here: what the network uses most (DM-50)."""


class ReservedSecrets(Protocol):
    """What this needs of `pds.services.reserved_keys.ReservedKeys`."""

    async def get_secret(self, did: str) -> bytes | None:
        """Return the secret of the key that is reserved for a DID."""


class KeyRotation:
    """Replaces signing keys."""

    def __init__(
        self,
        *,
        engine: Engine,
        resolver: DidDocuments,
        journal: IdentityJournal,
        reserved: ReservedSecrets,
        keystore: Keystore,
        rotation_signer: Signer,
    ) -> None:
        self._engine = engine
        self._resolver = resolver
        self._journal = journal
        self._reserved = reserved
        self._keystore = keystore
        self._rotation_key = rotation_signer.public_key.did_key

    async def rotate(self, did: str, did_key: str | None = None, *, order: Order) -> str:
        """Give the account of `did` a new signing key, and return it as did:key.

        `did_key` is the key that was reserved for this DID; None makes one. Naming the key that
        the account has changes nothing.

        Raises: RequestError `InvalidRequest`, `AccountNotFound`, `UpstreamFailure`. Spec: (ID-72)
        """
        account, current = await self._engine.read("key.account", self._find, did)
        if did_key is not None and did_key == current:
            return current
        secret = await self._choose(account.did, did_key)
        new_key = make_signer(CURVE, secret).public_key
        is_plc = account.did.startswith("did:plc:")
        if not is_plc:
            await self._check_document(account.did, new_key)

        def check(txn: Txn) -> None:
            found = get_account_by_aid(txn, account.aid)
            if found is None or found.did != account.did or found.key_id != account.key_id:
                raise no_account()

        def build(last: PlcOperation) -> OperationJson | None:
            return self._next_operation(last, new_key)

        act = Act(
            ActKind.SIGNING_KEY,
            account.aid,
            account.did,
            new_key=NewKey(CURVE, secret, secrets.token_bytes(KEY_ENTROPY_BYTES)),
        ).ordered(order)
        plan = Plan(act=act, check=check, build=build if is_plc else None)
        if order.is_rehearsal:
            await self._journal.rehearse(plan)
        else:
            await self._journal.carry_out(plan)
        return new_key.did_key

    def _find(self, txn: Txn, did: str) -> tuple[Account, str]:
        account = get_account_by_did(txn, did)
        if account is None or account.key_id is None:
            raise subject_not_found()
        return account, self._keystore.did_key(txn, account.key_id)

    async def _choose(self, did: Did, did_key: str | None) -> bytes:
        """Return the secret that is meant, or a new one."""
        if did_key is None:
            return generate_secret(CURVE, secrets.token_bytes(32))
        try:
            wanted = parse_did_key(did_key)
        except InvalidKey as error:
            raise invalid_request("signingKey is not a did:key of a P-256 or K-256 key") from error
        secret = await self._reserved.get_secret(did)
        if secret is None or make_signer(CURVE, secret).public_key != wanted:
            raise invalid_request(
                "This server does not hold the private half of signingKey: reserve a key for the "
                "DID with com.atproto.server.reserveSigningKey, and name that one"
            )
        return secret

    def _next_operation(self, last: PlcOperation, new_key: PublicKey) -> OperationJson | None:
        state = last.state
        methods = {} if state is None else dict(state.verification_methods)
        if methods.get(SIGNING_KEY_ID) == new_key.did_key:
            return None
        if state is None or self._rotation_key not in state.rotation_keys:
            raise invalid_request(
                "This server holds no rotation key of the account: reserve a signing key for the "
                "DID, publish it with a key of yours, then name it here"
            )
        methods[SIGNING_KEY_ID] = new_key.did_key
        return make_update(last, verification_methods=methods)

    async def _check_document(self, did: Did, new_key: PublicKey) -> None:
        try:
            document = await self._resolver.resolve_did(did, refresh=True)
        except NotResolvable:
            document = None
        if document is None or document.signing_key != new_key:
            raise invalid_request("The DID document must name the new signing key already")
