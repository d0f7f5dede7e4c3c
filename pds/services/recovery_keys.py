"""Rotation keys that people keep themselves: the last word over their identity, whatever we do.

A key of the owner's stands above this server's in the list of rotation keys. With it the owner can
move the account without us (`rescue`), and take back within 72 hours what anybody with a lower key
has done, this server included. The private half is made where the owner is and never comes here:
all that a server is told is the did:key.

Adding, replacing and removing are operations on the identity like any other; they are signed with
our rotation key and go through the journal. Nothing is removed without which nobody could act.

Spec: (ID-58, ID-65, ID-71)
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from pds.errors import RequestError, invalid_request
from pds.protocol.keys import InvalidKey, Signer, parse_did_key
from pds.protocol.plc import MAX_ROTATION_KEYS, OperationJson, PlcOperation, make_update
from pds.services.account_cache import AccountCache
from pds.services.audit import Order
from pds.services.identity_acts import Act, ActKind, no_account
from pds.services.identity_journal import IdentityJournal, Plan
from pds.services.plc_asking import PlcReader, refusing_without_plc
from pds.store.accounts import Account, get_account_by_aid
from pds.store.engine import Txn


class KeyRole(StrEnum):
    """Whose a rotation key is, as far as we can tell."""

    OWNER = "owner"
    """Not ours: the owner's, or that of a service that the owner trusts."""
    OPERATOR = "operator"
    SERVER = "server"


@dataclass(frozen=True, slots=True)
class RotationKey:
    """One rotation key; the first of a list has the last word."""

    did_key: str
    role: KeyRole

    def to_json(self) -> dict[str, Any]:
        """Return it for people."""
        return {"key": self.did_key, "role": self.role.value}


class RecoveryKeys:
    """Lists and changes the rotation keys of accounts."""

    def __init__(
        self,
        *,
        accounts: AccountCache,
        plc: PlcReader,
        journal: IdentityJournal,
        rotation_signer: Signer,
        operator_key: str | None,
    ) -> None:
        """`operator_key` is the operator's own rotation key, if there is one (ACC-14)."""
        self._accounts = accounts
        self._plc = plc
        self._journal = journal
        self._server_key: Final = rotation_signer.public_key.did_key
        self._operator_key = operator_key

    async def list_keys(self, did: str) -> list[RotationKey]:
        """Return the rotation keys of an account, in order of authority.

        Raises: RequestError `AccountNotFound`, `InvalidRequest`, `UpstreamFailure`.
        """
        account = await self._get(did)
        with refusing_without_plc():
            last = await self._plc.get_last_op(account.did)
        keys = () if last.state is None else last.state.rotation_keys
        return [RotationKey(key, self._role(key)) for key in keys]

    async def add(
        self, did: str, did_key: str, *, order: Order, replaces: str | None = None
    ) -> list[RotationKey]:
        """Put a key of the owner's above all others, in place of the key `replaces` if given.

        Raises: RequestError `InvalidRequest`, `AccountNotFound`, `UpstreamFailure`.
        """
        try:
            new = parse_did_key(did_key).did_key
        except InvalidKey as error:
            raise invalid_request("The key is not a did:key of a P-256 or K-256 key") from error
        if self._role(new) is not KeyRole.OWNER:
            raise invalid_request("The key belongs to this server or its operator")
        if replaces is not None and self._role(replaces) is not KeyRole.OWNER:
            raise invalid_request("Only a key of the owner can be replaced")

        def change(keys: tuple[str, ...]) -> list[str]:
            if replaces is not None and replaces not in keys:
                raise invalid_request("The key to be replaced is none of the rotation keys")
            changed = [new, *(key for key in keys if key not in (new, replaces))]
            if len(changed) > MAX_ROTATION_KEYS:
                raise invalid_request(
                    f"An identity has at most {MAX_ROTATION_KEYS} rotation keys: remove one first"
                )
            return changed

        return await self._change(did, change, order)

    async def remove(self, did: str, did_key: str, *, order: Order) -> list[RotationKey]:
        """Take a key of the owner's out.

        Raises: as `add`.
        """
        if self._role(did_key) is not KeyRole.OWNER:
            raise invalid_request("Only a key of the owner can be removed here")

        def change(keys: tuple[str, ...]) -> list[str]:
            if did_key not in keys:
                raise invalid_request("The key is none of the rotation keys")
            return [key for key in keys if key != did_key]

        return await self._change(did, change, order)

    async def _change(self, did: str, change: Any, order: Order) -> list[RotationKey]:
        account = await self._get(did)
        result: list[str] = []

        def check(txn: Txn) -> None:
            found = get_account_by_aid(txn, account.aid)
            if found is None or found.did != account.did:
                raise no_account()

        def build(last: PlcOperation) -> OperationJson | None:
            keys = () if last.state is None else last.state.rotation_keys
            if self._server_key not in keys:
                raise invalid_request(
                    "This server is none of the rotation keys of the account and cannot change"
                    " them: sign the operation with a key that is"
                )
            result[:] = change(keys)
            if tuple(result) == keys:
                return None
            return make_update(last, rotation_keys=result)

        act = Act(ActKind.SUBMITTED, account.aid, account.did).ordered(order)
        plan = Plan(act=act, check=check, build=build)
        if order.is_rehearsal:
            await self._journal.rehearse(plan)
        else:
            await self._journal.carry_out(plan)
        return [RotationKey(key, self._role(key)) for key in result]

    async def _get(self, did: str) -> Account:
        account = await self._accounts.get(did)
        if account is None:
            raise RequestError("AccountNotFound", "Account not found", 404)
        if not account.did.startswith("did:plc:"):
            raise invalid_request("Only did:plc identities have rotation keys")
        return account

    def _role(self, did_key: str) -> KeyRole:
        if did_key == self._server_key:
            return KeyRole.SERVER
        return KeyRole.OPERATOR if did_key == self._operator_key else KeyRole.OWNER
