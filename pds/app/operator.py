"""Makes what operators and moderators call, out of the services of everybody."""

import secrets
from dataclasses import dataclass
from typing import Final

from pds.app.foundation import Foundation
from pds.services.account_cache import AccountCache
from pds.services.account_mails import AccountMails
from pds.services.account_states import AccountStates
from pds.services.account_status import IdentityCheck
from pds.services.accounts import Accounts
from pds.services.admin_accounts import AdminAccounts
from pds.services.admin_creation import AdminCreation
from pds.services.admin_lists import AdminLists
from pds.services.audit import AuditTrail
from pds.services.handles import HandlePolicy
from pds.services.invites import Invites
from pds.services.moderation import Moderation
from pds.services.operator import Operator
from pds.services.passwords import Passwords
from pds.services.sessions import Sessions

PASSWORD_BYTES: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorParts:
    """What the services of operators are made of."""

    cache: AccountCache
    sessions: Sessions
    passwords: Passwords
    states: AccountStates
    mails: AccountMails
    accounts: Accounts
    invites: Invites
    handles: HandlePolicy
    identities: IdentityCheck


def build_operator(base: Foundation, parts: OperatorParts, *, clock_id: int) -> Operator:
    """Make the services of operators."""
    engine, clock = base.engine, base.clock
    accounts = AdminAccounts(
        engine=engine,
        clock=clock,
        accounts=parts.cache,
        sessions=parts.sessions,
        passwords=parts.passwords,
        mails=parts.mails,
    )
    return Operator(
        accounts=accounts,
        audit=AuditTrail(engine=engine),
        creation=AdminCreation(
            engine=engine,
            clock=clock,
            accounts=parts.accounts,
            admin_accounts=accounts,
            invites=parts.invites,
            handles=parts.handles,
            invite_required=base.config.sign_up.invite_required,
            make_password=_make_password,
        ),
        lists=AdminLists(engine=engine, clock=clock),
        moderation=Moderation(
            engine=engine,
            clock=clock,
            clock_id=clock_id,
            accounts=parts.cache,
            sessions=parts.sessions,
            states=parts.states,
            identities=parts.identities,
            documents=base.resolver,
        ),
    )


def _make_password() -> str:
    """Return a password that nobody has to remember for long: 96 random bits."""
    return secrets.token_urlsafe(PASSWORD_BYTES)
