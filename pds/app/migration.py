"""Makes the service that moves whole accounts."""

import asyncio
from dataclasses import dataclass

from pds.app.foundation import Foundation, name_node
from pds.services.account_lifecycle import AccountLifecycle
from pds.services.account_status import IdentityCheck
from pds.services.accounts import Accounts
from pds.services.blobs import Blobs
from pds.services.crawlers import Crawlers
from pds.services.export import Exports
from pds.services.handles import HandlePolicy
from pds.services.identity_journal import IdentityJournal
from pds.services.invites import Invites
from pds.services.migration import Migration
from pds.services.migration_watch import Watch
from pds.services.migration_work import MigrationParts
from pds.services.oauth_client import OAuthClient
from pds.services.operator import Operator
from pds.services.plc_operations import PlcOperations
from pds.services.preferences import Preferences
from pds.services.repo_import import RepoImports
from pds.services.repos import Repos
from pds.services.service_tokens import ServiceTokens
from pds.services.sessions import Sessions


@dataclass(frozen=True, slots=True, kw_only=True)
class MovingParts:
    """What moves are made of, beside the foundation."""

    accounts: Accounts
    blobs: Blobs
    crawlers: Crawlers
    exports: Exports
    handles: HandlePolicy
    identities: IdentityCheck
    identity_journal: IdentityJournal
    invites: Invites
    lifecycle: AccountLifecycle
    operator: Operator
    plc_operations: PlcOperations
    preferences: Preferences
    repo_imports: RepoImports
    repos: Repos
    service_tokens: ServiceTokens
    sessions: Sessions


def build_migration(base: Foundation, parts: MovingParts) -> Migration:
    """Make the service. Other hosts are reached by the client that calls of users have."""
    config = base.config
    return Migration(
        MigrationParts(
            engine=base.engine,
            clock=base.clock,
            keystore=base.keystore,
            http=base.proxy_guarded,
            resolver=base.resolver,
            plc=base.plc,
            rotation_signer=base.rotation_signer,
            accounts=parts.accounts,
            admin_accounts=parts.operator.accounts,
            blobs=parts.blobs,
            exports=parts.exports,
            handles=parts.handles,
            identities=parts.identities,
            identity_journal=parts.identity_journal,
            invites=parts.invites,
            lifecycle=parts.lifecycle,
            moderation=parts.operator.moderation,
            oauth=OAuthClient(
                base.proxy_guarded,
                base.clock,
                base.keystore.client_signer(),
                config.public_url,
                former_urls=config.former_urls,
            ),
            plc_operations=parts.plc_operations,
            preferences=parts.preferences,
            repo_imports=parts.repo_imports,
            repos=parts.repos,
            service_tokens=parts.service_tokens,
            sessions=parts.sessions,
            watch=Watch(
                http=base.trusted,
                relays=config.federation.crawlers,
                appview_url=config.federation.appview_url,
                announce=parts.crawlers.announce_all,
            ),
            settings=config.migration,
            public_url=config.public_url,
            former_urls=config.former_urls,
            service_did=config.service_did,
            recovery_did_key=config.identity.recovery_did_key,
            invite_required=config.sign_up.invite_required,
            node=name_node(),
            is_alone=not config.data.is_shared,
            sleep=asyncio.sleep,
        )
    )
