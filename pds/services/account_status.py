"""Does an identity name this host, and what has arrived of an account that moves in?

`IdentityCheck` asks the directory (or the host of a did:web) what others will be told: the document
has to name this host and the signing key that is kept here, and a did:plc must have our rotation
key, so that handle and key can be changed from here; operators may do without that for users who
keep their keys themselves (ID-70, ID-71). It is asked before an account becomes active.

`AccountReports` answers checkAccountStatus, in every state of the account: migration tools compare
its numbers with those of the host that the account leaves (ACC-51).
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from pds.errors import NotResolvable, RemoteError, RequestError, Unreachable, invalid_request
from pds.protocol.cid import Cid
from pds.protocol.diddoc import PDS_SERVICE_ID
from pds.protocol.plc import PlcState
from pds.protocol.syntax import Did, Tid
from pds.services.account_states import account_not_found
from pds.services.resolving import ForgetfulResolver
from pds.store.accounts import Account, get_account_by_aid
from pds.store.blobs import count_blobs
from pds.store.engine import Engine, Txn
from pds.store.keystore import KeyMissing, Keystore
from pds.store.records import count_record_blocks
from pds.store.repos import get_account_repo

ASK_TIMEOUT_S: Final = 10.0
"""Longest wait for a directory or a did:web host (promise A8)."""


class PlcReader(Protocol):
    """What this needs of the directory (`pds.identity.did_plc.PlcClient`)."""

    async def get_data(self, did: Did) -> PlcState:
        """Return the current state, from the primary; raises NotResolvable, Unreachable."""


@dataclass(frozen=True, slots=True)
class Claims:
    """What an identity says of its account; `rotation_keys` is None where there are none."""

    endpoint: str | None
    signing_key: str | None
    rotation_keys: tuple[str, ...] | None


class IdentityCheck:
    """Asks whether identities name this host."""

    def __init__(
        self,
        *,
        engine: Engine,
        keystore: Keystore,
        plc: PlcReader,
        documents: ForgetfulResolver,
        public_url: str,
        rotation_key: str | None,
        former_urls: Sequence[str] = (),
    ) -> None:
        """`rotation_key` is the did:key that a did:plc must list; None when none has to be.

        `former_urls` are as good as `public_url`.
        """
        self._engine = engine
        self._keystore = keystore
        self._plc = plc
        self._documents = documents
        self._urls = frozenset({public_url, *former_urls})
        self._rotation_key = rotation_key

    async def check(self, account: Account) -> None:
        """Refuse an account whose identity does not name this host and its key.

        Raises: RequestError `InvalidRequest`, in the words of the reference, `AccountNotFound`;
        RemoteError when it could not be found out. Spec: (ID-70, ID-71)
        """
        if account.key_id is None:
            raise invalid_request("The account has no signing key")
        try:
            ours = await self._engine.read("account.key", self._keystore.did_key, account.key_id)
        except KeyMissing as error:  # Deleted since the account was read.
            raise account_not_found() from error
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                claims = await self._ask(account.did)
        except NotResolvable as error:
            raise invalid_request("Could not resolve DID") from error
        except TimeoutError as error:
            raise Unreachable("the identity could not be looked up in time") from error
        keys = claims.rotation_keys
        if self._rotation_key is not None and keys is not None and self._rotation_key not in keys:
            raise invalid_request("Server rotation key not included in PLC DID data")
        if claims.endpoint not in self._urls:
            raise invalid_request(
                "DID document atproto_pds service endpoint does not match PDS public url"
            )
        if claims.signing_key != ours:
            raise invalid_request(
                "DID document verification method does not match expected signing key"
            )

    async def is_valid(self, account: Account) -> bool:
        """Whether `check` finds nothing wrong; what cannot be found out is not valid."""
        try:
            await self.check(account)
        except (RequestError, RemoteError):
            return False
        return True

    async def _ask(self, did: Did) -> Claims:
        if did.startswith("did:plc:"):
            state = await self._plc.get_data(did)
            service = state.services.get(PDS_SERVICE_ID)
            endpoint = None if service is None else service.endpoint.rstrip("/")
            return Claims(endpoint, state.verification_methods.get("atproto"), state.rotation_keys)
        # What was published a moment ago counts, whatever is remembered.
        await self._documents.forget(did)
        document = await self._documents.resolve_did(did, refresh=True)
        key = document.signing_key
        return Claims(document.pds_endpoint, None if key is None else key.did_key, None)


@dataclass(frozen=True, slots=True)
class AccountReport:
    """How far an account is; `blocks` are the blocks of its repo: commit, nodes and records.

    `is_activated` says that it is not deactivated, as elsewhere; it may still be taken down.
    """

    is_activated: bool
    is_did_valid: bool
    commit: Cid
    rev: Tid
    blocks: int
    records: int
    expected_blobs: int
    stored_blobs: int


class AccountReports:
    """Tells owners how far their accounts are."""

    def __init__(self, *, engine: Engine, identities: IdentityCheck) -> None:
        self._engine = engine
        self._identities = identities

    async def get(self, aid: int) -> AccountReport:
        """Answer checkAccountStatus for an account in any state (ACC-51).

        Raises: RequestError `AccountNotFound`.
        """
        account = await self._engine.read("account.get", get_account_by_aid, aid)
        if account is None:
            raise account_not_found()
        is_valid = await self._identities.is_valid(account)
        return await self._engine.read("account.report", _report, aid, is_valid)


def _report(txn: Txn, aid: int, is_did_valid: bool) -> AccountReport:
    account, owner = get_account_repo(txn, aid), get_account_by_aid(txn, aid)
    if account is None or owner is None or account.repo is None:
        raise account_not_found()
    repo = account.repo
    expected, stored = count_blobs(txn, aid, repo.repo_id)
    return AccountReport(
        is_activated=owner.deactivated_at is None,
        is_did_valid=is_did_valid,
        commit=repo.head.commit,
        rev=repo.head.rev,
        blocks=1 + repo.node_count + count_record_blocks(txn, repo.repo_id),
        records=repo.record_count,
        expected_blobs=expected,
        stored_blobs=stored,
    )
