"""Makes the services out of the foundation and the settings: which part gets which."""

import secrets
from dataclasses import dataclass
from typing import Final

import pds
from pds.app.accounts import build_accounts, build_sessions
from pds.app.app_views import ViewServices, build_views
from pds.app.foundation import Foundation
from pds.app.hostname import build_hostname_change
from pds.app.identities import (
    IdentityServices,
    Parts,
    build_handle_policy,
    build_identity_services,
)
from pds.app.keeping import build_keeping
from pds.app.mail import build_mails
from pds.app.migration import MovingParts, build_migration
from pds.app.moving import build_repo_imports
from pds.app.operator import OperatorParts, build_operator
from pds.app.options import Options
from pds.config import Config
from pds.identity.lexicon_names import LexiconAuthorities
from pds.net.dns import DnsClient, DnsSettings
from pds.net.xrpc_client import XrpcClient
from pds.protocol.lexicon.catalog import Catalog
from pds.protocol.mst.tree import NodeCache
from pds.protocol.syntax import Did, Handle
from pds.services import Services
from pds.services.account_cache import AccountCache
from pds.services.account_email import AccountEmail
from pds.services.account_lifecycle import AccountLifecycle
from pds.services.account_mails import AccountMails
from pds.services.account_states import AccountStates
from pds.services.account_status import AccountReports, IdentityCheck
from pds.services.accounts import Accounts
from pds.services.admin_auth import AdminAuth
from pds.services.app_passwords import AppPasswords
from pds.services.blobs import Blobs
from pds.services.crawlers import CrawlClaims, Crawlers
from pds.services.credentials import Credentials
from pds.services.export import Exports
from pds.services.firehose import Firehose, FirehoseSettings
from pds.services.handles import HandlePolicy
from pds.services.health import Health
from pds.services.hosting import Hosting
from pds.services.identity import AskAppview, Identity
from pds.services.invites import Invites, InviteSettings
from pds.services.lexicon_fetch import LexiconFetcher
from pds.services.lexicon_resolution import Lexicons
from pds.services.lexicons import load_catalog
from pds.services.mail_tokens import MailTokens
from pds.services.operator import Operator
from pds.services.password_reset import PasswordReset
from pds.services.passwords import Passwords
from pds.services.preferences import Preferences
from pds.services.rate_limits import RateLimits
from pds.services.repos import Repos
from pds.services.reserved_keys import ReservedKeys
from pds.services.rewinds import Rewinds
from pds.services.server_info import ServerInfo, ServerInfoSettings
from pds.services.service_tokens import ServiceTokens
from pds.services.sessions import Sessions

ASK_TIMEOUT_S: Final = 3.0
OWN_SCHEMA_NODES: Final = 200
"""Tree nodes kept for proofs of schemas that our own accounts publish."""
CLOCK_IDS: Final = 1024
"""A TID has ten bits for the clock that made it (DM-60)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Common:
    """What several services are made of."""

    accounts: Accounts
    cache: AccountCache
    catalog: Catalog
    firehose: Firehose
    handles: HandlePolicy
    identities: IdentityCheck
    invites: Invites
    lexicons: Lexicons
    mail_tokens: MailTokens
    mails: AccountMails
    passwords: Passwords
    rate_limits: RateLimits
    repos: Repos
    reserved_keys: ReservedKeys
    service_tokens: ServiceTokens
    sessions: Sessions
    states: AccountStates


def build_services(base: Foundation, passwords: Passwords, options: Options) -> Services:
    """Make every service."""
    config, engine, clock, keystore = base.config, base.engine, base.clock, base.keystore
    common = _build_common(base, passwords, options)
    cache, sessions, repos = common.cache, common.sessions, common.repos
    identity = _build_identity_services(base, common)
    views = _build_views(base, common)
    blobs = Blobs(engine=engine, clock=clock, store=base.blobstore, settings=config.blobs)
    crawlers = _build_crawlers(base, common.firehose)
    exports = Exports(engine=engine, cache=repos.cache, settings=config.exports)
    lifecycle = _build_lifecycle(base, common)
    operator = _build_operator(base, common)
    preferences = Preferences(engine=engine, wall=base.time)
    repo_imports = build_repo_imports(base, cache, clock_id=_draw_clock_id())
    moving = MovingParts(
        accounts=common.accounts,
        blobs=blobs,
        crawlers=crawlers,
        exports=exports,
        handles=common.handles,
        identities=common.identities,
        identity_journal=identity.identity_journal,
        invites=common.invites,
        lifecycle=lifecycle,
        operator=operator,
        plc_operations=identity.plc_operations,
        preferences=preferences,
        repo_imports=repo_imports,
        repos=common.repos,
        service_tokens=common.service_tokens,
        sessions=sessions,
    )
    return Services(
        account_email=_build_account_email(base, common),
        account_lifecycle=lifecycle,
        account_mails=common.mails,
        account_reports=AccountReports(engine=engine, identities=common.identities),
        accounts=common.accounts,
        admin=_build_admin_auth(base, common),
        app_views=views.app_views,
        appview_choices=views.appview_choices,
        app_passwords=AppPasswords(engine=engine, clock=clock, sessions=sessions),
        blobs=blobs,
        catalog=common.catalog,
        crawlers=crawlers,
        credentials=Credentials(engine=engine, clock=clock, accounts=cache, sessions=sessions),
        exports=exports,
        firehose=common.firehose,
        handle_change=identity.handle_change,
        handle_names=identity.handle_names,
        health=Health(engine=engine, version=pds.__version__, blobs=base.blobstore.ping),
        hosting=_build_hosting(base),
        hostname_change=build_hostname_change(base, common.handles, identity.identity_journal),
        identity=_build_identity(base, common),
        identity_checks=identity.identity_checks,
        identity_journal=identity.identity_journal,
        invites=common.invites,
        keeping=build_keeping(base, moving, common.mails),
        key_rotation=identity.key_rotation,
        lexicons=common.lexicons,
        limits=config.limits,
        mail_tokens=common.mail_tokens,
        migration=build_migration(base, moving),
        operator=operator,
        password_reset=_build_password_reset(base, common),
        plc_operations=identity.plc_operations,
        preferences=preferences,
        proxy=views.proxy,
        rate_limits=common.rate_limits,
        repo_imports=repo_imports,
        repos=repos,
        reserved_keys=common.reserved_keys,
        rewinds=Rewinds(engine=engine, clock=clock, clock_id=_draw_clock_id(), keystore=keystore),
        server_info=ServerInfo(_server_info_settings(config)),
        service_tokens=common.service_tokens,
        sessions=sessions,
    )


def _draw_clock_id() -> int:
    return secrets.randbelow(CLOCK_IDS)


def _build_common(base: Foundation, passwords: Passwords, options: Options) -> _Common:
    config, engine, clock, keystore = base.config, base.engine, base.clock, base.keystore
    cache = AccountCache(engine)
    handles = build_handle_policy(base)
    catalog = load_catalog()
    rate_limits = RateLimits(
        secret=config.secrets.jwt_secret or "",
        engine=engine,
        is_shared=config.data.is_shared,
        now_s=base.time.now_s,
    )
    mail_tokens = MailTokens(engine=engine, secret=config.secrets.jwt_secret or "")
    mails = build_mails(
        config, engine=engine, clock=clock, tokens=mail_tokens, mailbox=options.mailbox
    )
    sessions = build_sessions(base, cache, passwords, rate_limits)
    reserved_keys = ReservedKeys(engine=engine, clock=clock, keystore=keystore)
    lexicons = _build_lexicons(base, catalog)
    return _Common(
        accounts=build_accounts(
            base,
            cache,
            sessions=sessions,
            passwords=passwords,
            handles=handles,
            reserved_keys=reserved_keys,
            mails=mails,
        ),
        cache=cache,
        catalog=catalog,
        firehose=_build_firehose(base),
        handles=handles,
        identities=_build_identity_check(base),
        invites=_build_invites(base),
        lexicons=lexicons,
        mail_tokens=mail_tokens,
        mails=mails,
        passwords=passwords,
        rate_limits=rate_limits,
        repos=Repos(
            engine=engine,
            clock=clock,
            keystore=keystore,
            catalog=catalog,
            accounts=cache,
            documents=base.resolver,
            clock_id=_draw_clock_id(),
            lexicons=lexicons,
        ),
        reserved_keys=reserved_keys,
        service_tokens=_build_service_tokens(base, cache),
        sessions=sessions,
        states=AccountStates(keystore=keystore, sessions=sessions, cache=cache),
    )


def _build_identity_services(base: Foundation, common: _Common) -> IdentityServices:
    parts = Parts(
        cache=common.cache,
        accounts=common.accounts,
        handles=common.handles,
        repos=common.repos,
        states=common.states,
        reserved_keys=common.reserved_keys,
        mail_tokens=common.mail_tokens,
        mails=common.mails,
        clock_id=_draw_clock_id(),
    )
    return build_identity_services(base, parts)


def _build_account_email(base: Foundation, common: _Common) -> AccountEmail:
    return AccountEmail(
        engine=base.engine,
        clock=base.clock,
        accounts=common.cache,
        tokens=common.mail_tokens,
        mails=common.mails,
        blocked_domains=base.config.mail.blocked_domains,
    )


def _build_lifecycle(base: Foundation, common: _Common) -> AccountLifecycle:
    return AccountLifecycle(
        engine=base.engine,
        clock=base.clock,
        clock_id=_draw_clock_id(),
        states=common.states,
        cache=common.cache,
        sessions=common.sessions,
        identities=common.identities,
        documents=base.resolver,
        mail_tokens=common.mail_tokens,
    )


def _build_lexicons(base: Foundation, catalog: Catalog) -> Lexicons:
    dns = DnsClient(DnsSettings(timeout_s=base.config.identity.resolver_timeout_s))
    own = Exports(engine=base.engine, cache=NodeCache(OWN_SCHEMA_NODES))

    async def prove(did: Did, collection: str, rkey: str) -> bytes:
        return await own.record_proof(did, collection, rkey)

    fetcher = LexiconFetcher(
        authorities=LexiconAuthorities(dns),
        documents=base.resolver,
        http=base.guarded,
        own_url=base.config.public_url,
        own_proof=prove,
    )
    return Lexicons(
        engine=base.engine,
        fetcher=fetcher,
        catalog=catalog,
        policy=base.config.federation.lexicon_resolution,
        wall=base.time,
    )


def _build_crawlers(base: Foundation, firehose: Firehose) -> Crawlers:
    return Crawlers(
        http=base.trusted,
        relays=base.config.federation.crawlers,
        hostname=base.config.netloc,
        reader_count=lambda: firehose.reader_count,
        monotonic=base.time.boot_s,
        claims=CrawlClaims(base.engine, base.time),
    )


def _build_hosting(base: Foundation) -> Hosting:
    config = base.config
    return Hosting(
        engine=base.engine,
        hostname=config.netloc,
        former_hostnames=config.host.former_hostnames,
    )


def _build_identity(base: Foundation, common: _Common) -> Identity:
    return Identity(
        resolver=base.resolver,
        accounts=common.accounts,
        handles=common.handles,
        engine=base.engine,
        ask_appview=_ask_appview(base),
    )


def _build_operator(base: Foundation, common: _Common) -> Operator:
    parts = OperatorParts(
        cache=common.cache,
        sessions=common.sessions,
        passwords=common.passwords,
        states=common.states,
        mails=common.mails,
        accounts=common.accounts,
        invites=common.invites,
        handles=common.handles,
        identities=common.identities,
    )
    return build_operator(base, parts, clock_id=_draw_clock_id())


def _build_admin_auth(base: Foundation, common: _Common) -> AdminAuth:
    secret_settings = base.config.secrets
    return AdminAuth(
        secret_settings.admin_password,
        common.rate_limits,
        secret=secret_settings.jwt_secret or "",
    )


def _build_password_reset(base: Foundation, common: _Common) -> PasswordReset:
    return PasswordReset(
        engine=base.engine,
        clock=base.clock,
        accounts=common.cache,
        sessions=common.sessions,
        passwords=common.passwords,
        tokens=common.mail_tokens,
        mails=common.mails,
    )


def _build_views(base: Foundation, common: _Common) -> ViewServices:
    return build_views(
        base, cache=common.cache, catalog=common.catalog, tokens=common.service_tokens
    )


def _build_invites(base: Foundation) -> Invites:
    config = base.config
    return Invites(
        engine=base.engine,
        clock=base.clock,
        hostname=config.host.hostname,
        settings=InviteSettings(
            required=config.sign_up.invite_required,
            interval_s=config.sign_up.invite_interval_s,
            epoch_s=config.sign_up.invite_epoch_s,
        ),
    )


def _build_identity_check(base: Foundation) -> IdentityCheck:
    rotation_key = base.rotation_signer.public_key.did_key
    return IdentityCheck(
        engine=base.engine,
        keystore=base.keystore,
        plc=base.plc,
        documents=base.resolver,
        public_url=base.config.public_url,
        former_urls=base.config.former_urls,
        rotation_key=None if base.config.identity.allow_self_custody else rotation_key,
    )


def _build_firehose(base: Foundation) -> Firehose:
    federation = base.config.federation
    settings = FirehoseSettings(
        window_s=federation.backfill_s, ring_events=federation.max_subscription_buffer
    )
    return Firehose(engine=base.engine, wall=base.time, settings=settings)


def _build_service_tokens(base: Foundation, cache: AccountCache) -> ServiceTokens:
    return ServiceTokens(
        engine=base.engine,
        wall=base.time,
        keystore=base.keystore,
        accounts=cache,
        resolver=base.resolver,
        service_did=base.config.service_did,
        former_dids=base.config.further_service_dids,
        moderator_did=base.config.federation.mod_service_did,
        dev=base.config.is_unguarded,
    )


def _server_info_settings(config: Config) -> ServerInfoSettings:
    host = config.host
    return ServerInfoSettings(
        version=pds.__version__,
        service_did=config.service_did,
        hostname=host.hostname,
        former_hostnames=host.former_hostnames,
        public_url=config.public_url,
        handle_domains=config.handle_domains,
        invite_required=config.sign_up.invite_required,
        blob_upload_limit=config.limits.blob_bytes,
        service_name=host.service_name,
        privacy_policy_url=host.privacy_policy_url,
        terms_of_service_url=host.terms_of_service_url,
        contact_email=host.contact_email,
        home_url=host.home_url,
        support_url=host.support_url,
    )


def _ask_appview(base: Foundation) -> AskAppview | None:
    """Handles as the AppView knows them, if there is one."""
    url = base.config.federation.appview_url
    if url is None:
        return None
    client = XrpcClient(base.trusted)

    async def ask(handle: Handle) -> str | None:
        answer = await client.query(
            url,
            "com.atproto.identity.resolveHandle",
            {"handle": str(handle)},
            timeout_s=ASK_TIMEOUT_S,
        )
        did = answer.get("did")
        return did if isinstance(did, str) else None

    return ask
