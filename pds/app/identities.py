"""Makes the services that change identities, or look at them."""

from dataclasses import dataclass

from pds.app.foundation import Foundation
from pds.services.account_cache import AccountCache
from pds.services.account_mails import AccountMails
from pds.services.account_states import AccountStates
from pds.services.accounts import Accounts
from pds.services.handle_change import HandleChange
from pds.services.handle_names import HandleNames
from pds.services.handles import HandlePolicy, HandleSettings, reserved_labels
from pds.services.identity_acts import ActRows
from pds.services.identity_checks import IdentityChecks
from pds.services.identity_journal import IdentityJournal
from pds.services.journal_settling import JournalSettings
from pds.services.key_rotation import KeyRotation
from pds.services.mail_tokens import MailTokens
from pds.services.plc_operations import PlcOperations, PlcSettings
from pds.services.repos import Repos
from pds.services.reserved_keys import ReservedKeys


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the services here are made of, beside the foundation."""

    cache: AccountCache
    accounts: Accounts
    handles: HandlePolicy
    repos: Repos
    states: AccountStates
    reserved_keys: ReservedKeys
    mail_tokens: MailTokens
    mails: AccountMails
    clock_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityServices:
    """What changes identities, or looks at them."""

    handle_change: HandleChange
    handle_names: HandleNames
    identity_checks: IdentityChecks
    identity_journal: IdentityJournal
    key_rotation: KeyRotation
    plc_operations: PlcOperations


def build_handle_policy(base: Foundation) -> HandlePolicy:
    """Make the rules for the handles of this host."""
    config = base.config
    return HandlePolicy(
        HandleSettings(
            service_domains=config.handle_domains,
            former_domains=config.former_handle_domains,
            reserved_labels=reserved_labels(config.host.reserved_handles),
            root_handles=config.host.root_handles,
            dev=config.host.dev_mode or config.is_local,
        )
    )


def build_identity_services(base: Foundation, parts: Parts) -> IdentityServices:
    """Make the services."""
    config, engine, clock, keystore = base.config, base.engine, base.clock, base.keystore
    journal = IdentityJournal(
        engine=engine,
        clock=clock,
        rows=ActRows(
            keystore=keystore,
            cache=parts.cache,
            nodes=parts.repos.cache,
            clock_id=parts.clock_id,
        ),
        plc=base.plc,
        rotation_signer=base.rotation_signer,
        resolver=base.resolver,
        settings=JournalSettings(exclusive=not config.data.is_shared),
    )
    return IdentityServices(
        handle_change=HandleChange(
            accounts=parts.cache,
            handles=parts.handles,
            resolver=base.resolver,
            journal=journal,
            sign_ups=parts.accounts,
            rotation_signer=base.rotation_signer,
        ),
        handle_names=HandleNames(engine=engine, clock=clock, handles=parts.handles),
        identity_checks=IdentityChecks(
            engine=engine,
            keystore=keystore,
            resolver=base.resolver,
            handles=parts.handles,
            states=parts.states,
            public_url=config.public_url,
            former_urls=config.former_urls,
        ),
        identity_journal=journal,
        key_rotation=KeyRotation(
            engine=engine,
            resolver=base.resolver,
            journal=journal,
            reserved=parts.reserved_keys,
            keystore=keystore,
            rotation_signer=base.rotation_signer,
        ),
        plc_operations=PlcOperations(
            engine=engine,
            clock=clock,
            keystore=keystore,
            plc=base.plc,
            journal=journal,
            rotation_signer=base.rotation_signer,
            tokens=parts.mail_tokens,
            mails=parts.mails,
            settings=PlcSettings(
                public_url=config.public_url,
                former_urls=config.former_urls,
                recovery_did_key=config.identity.recovery_did_key,
                allow_self_custody=config.identity.allow_self_custody,
            ),
        ),
    )
