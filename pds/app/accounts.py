"""Makes what opens accounts and signs them in."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from pds.app.foundation import Foundation
from pds.config import Config
from pds.errors import ConfigError, RemoteError
from pds.protocol.data import Json
from pds.protocol.syntax import Did
from pds.services.account_cache import AccountCache
from pds.services.account_creation import AccountCreation, CreationSettings
from pds.services.account_journal import AccountJournal
from pds.services.account_mails import AccountMails
from pds.services.account_rows import AccountRows
from pds.services.accounts import Accounts
from pds.services.handles import HandlePolicy
from pds.services.journal_settling import JournalSettings
from pds.services.login_limits import LoginLimits
from pds.services.passwords import Passwords
from pds.services.rate_limits import RateLimits
from pds.services.reserved_keys import ReservedKeys
from pds.services.session_tokens import SessionTokens
from pds.services.sessions import Sessions, SessionSettings

ASK_TIMEOUT_S: Final = 3.0


def build_sessions(
    base: Foundation, cache: AccountCache, passwords: Passwords, rate_limits: RateLimits
) -> Sessions:
    """Make what signs accounts in. Raises: ConfigError."""
    config = base.config
    if not config.secrets.jwt_secret:
        raise ConfigError("PDS_JWT_SECRET is missing")
    return Sessions(
        engine=base.engine,
        clock=base.clock,
        wall=base.time,
        accounts=cache,
        tokens=SessionTokens(
            secrets=[config.secrets.jwt_secret],
            service_did=config.service_did,
            former_dids=config.further_service_dids,
        ),
        passwords=passwords,
        settings=SessionSettings(limits=LoginLimits() if config.rates.sign_ins_enabled else None),
        rate_limits=rate_limits,
        did_documents=_documents_for_sessions(base),
    )


def build_accounts(
    base: Foundation,
    cache: AccountCache,
    *,
    sessions: Sessions,
    passwords: Passwords,
    handles: HandlePolicy,
    reserved_keys: ReservedKeys,
    mails: AccountMails,
) -> Accounts:
    """Make what opens and finds accounts."""
    rows = AccountRows(keystore=base.keystore, sessions=sessions, cache=cache)
    journal = AccountJournal(
        engine=base.engine,
        clock=base.clock,
        keystore=base.keystore,
        rows=rows,
        plc=base.plc,
        rotation_signer=base.rotation_signer,
        settings=JournalSettings(exclusive=not base.config.data.is_shared),
    )
    creation = AccountCreation(
        engine=base.engine,
        clock=base.clock,
        keystore=base.keystore,
        rows=rows,
        journal=journal,
        sessions=sessions,
        passwords=passwords,
        handles=handles,
        resolver=base.resolver,
        rotation_signer=base.rotation_signer,
        mails=mails,
        settings=_creation_settings(base.config),
        reserved_keys=reserved_keys,
    )
    return Accounts(cache=cache, creation=creation, journal=journal)


def _documents_for_sessions(base: Foundation) -> Callable[[Did], Awaitable[Json]] | None:
    """DID documents for session answers: a login never waits long for the directory."""
    if not base.config.identity.did_doc_with_session:
        return None

    async def fetch(did: Did) -> Json:
        known = base.resolver.recall_did(did)
        if known is not None:
            return dict(known.source)
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                document = await base.resolver.resolve_did(did)
        except (RemoteError, TimeoutError):
            return None
        return dict(document.source)

    return fetch


def _creation_settings(config: Config) -> CreationSettings:
    return CreationSettings(
        public_url=config.public_url,
        invite_required=config.sign_up.invite_required,
        recovery_did_key=config.identity.recovery_did_key,
        blocked_email_domains=frozenset(config.mail.blocked_domains),
        dev=config.is_unguarded or config.is_local,
    )
