"""May this caller see this repo, may this account write? One rule for each, asked in the snapshot.

The content of an account that is not active is shown to nobody but the account itself and the
operator (SYNC-70). Refusals are 400 with a name for each state; clients and relays switch on the
names.
"""

from typing import Protocol

from pds.errors import RequestError
from pds.protocol.syntax import Did
from pds.services.principal import Principal
from pds.store.accounts import AccountStatus


class HostedAccount(Protocol):
    """What the rule looks at; `Account` and `AccountRepo` have it."""

    @property
    def did(self) -> Did:
        """Who it is."""

    @property
    def status(self) -> AccountStatus:
        """The state of the account here."""


def check_available(account: HostedAccount, principal: Principal | None = None) -> None:
    """Let active accounts pass, and others for themselves and the operator.

    Raises: RequestError `RepoTakendown`, `RepoSuspended`, `RepoDeactivated`. Spec: SYNC-70
    """
    status = account.status
    if status is AccountStatus.ACTIVE:
        return
    if sees_hidden(account.did, principal):
        return
    match status:
        case AccountStatus.TAKENDOWN:
            raise RequestError("RepoTakendown", f"Repo has been taken down: {account.did}")
        case AccountStatus.SUSPENDED:
            raise RequestError("RepoSuspended", f"Repo has been suspended: {account.did}")
        case AccountStatus.DEACTIVATED:
            raise RequestError("RepoDeactivated", f"Repo has been deactivated: {account.did}")


def sees_hidden(did: Did, principal: Principal | None) -> bool:
    """Whether what was taken down of this account is open to the caller: its owner, the operator.

    People may take their data along, whatever the operator shows of it to others (ACC-44).
    """
    return principal is not None and (principal.is_admin or principal.did == did)


def repo_not_found(did: str) -> RequestError:
    """Return the refusal for an account that does not live here (SYNC-70)."""
    return RequestError("RepoNotFound", f"Could not find repo for DID: {did}")


def check_may_write(account: HostedAccount) -> None:
    """Let only active accounts write; asked inside the transaction of the write.

    A deactivated one may do everything else that concerns itself (ACC-5).

    Raises: RequestError `AccountTakedown` or `AccountDeactivated`, 401. Spec: XRPC-24, SYNC-32
    """
    match account.status:
        case AccountStatus.ACTIVE:
            return
        case AccountStatus.DEACTIVATED:
            raise RequestError("AccountDeactivated", "Account is deactivated", 401)
        case AccountStatus.TAKENDOWN:
            raise RequestError("AccountTakedown", "Account has been taken down", 401)
        case AccountStatus.SUSPENDED:
            raise RequestError("AccountTakedown", "Account is suspended", 401)
