"""Use cases: what the server does, free of HTTP and of database drivers.

`Services` is the one bundle that `pds/app.py` builds at start and every handler receives. A
handler takes from it what it needs and calls one method; nothing here knows which handler asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pds.protocol.lexicon.catalog import Catalog
    from pds.services.account_email import AccountEmail
    from pds.services.account_lifecycle import AccountLifecycle
    from pds.services.account_mails import AccountMails
    from pds.services.account_status import AccountReports
    from pds.services.accounts import Accounts
    from pds.services.admin_auth import AdminAuth
    from pds.services.app_passwords import AppPasswords
    from pds.services.app_views import AppViews
    from pds.services.appview_choices import AppviewChoices
    from pds.services.blobs import Blobs
    from pds.services.crawlers import Crawlers
    from pds.services.credentials import Credentials
    from pds.services.export import Exports
    from pds.services.firehose import Firehose
    from pds.services.handle_change import HandleChange
    from pds.services.handle_names import HandleNames
    from pds.services.health import Health
    from pds.services.hosting import Hosting
    from pds.services.hostname_change import HostnameChange
    from pds.services.identity import Identity
    from pds.services.identity_checks import IdentityChecks
    from pds.services.identity_journal import IdentityJournal
    from pds.services.invites import Invites
    from pds.services.keeping import Keeping
    from pds.services.key_rotation import KeyRotation
    from pds.services.lexicon_resolution import Lexicons
    from pds.services.limits import RequestLimits
    from pds.services.mail_tokens import MailTokens
    from pds.services.migration import Migration
    from pds.services.operator import Operator
    from pds.services.password_reset import PasswordReset
    from pds.services.plc_operations import PlcOperations
    from pds.services.preferences import Preferences
    from pds.services.proxy import Proxy
    from pds.services.rate_limits import RateLimits
    from pds.services.repo_import import RepoImports
    from pds.services.repos import Repos
    from pds.services.reserved_keys import ReservedKeys
    from pds.services.rewinds import Rewinds
    from pds.services.server_info import ServerInfo
    from pds.services.service_tokens import ServiceTokens
    from pds.services.sessions import Sessions


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything a handler may call."""

    account_email: AccountEmail
    account_lifecycle: AccountLifecycle
    account_mails: AccountMails
    account_reports: AccountReports
    accounts: Accounts
    admin: AdminAuth
    app_passwords: AppPasswords
    app_views: AppViews
    appview_choices: AppviewChoices
    blobs: Blobs
    catalog: Catalog
    crawlers: Crawlers
    credentials: Credentials
    exports: Exports
    firehose: Firehose
    handle_change: HandleChange
    handle_names: HandleNames
    health: Health
    hosting: Hosting
    hostname_change: HostnameChange
    identity: Identity
    identity_checks: IdentityChecks
    identity_journal: IdentityJournal
    invites: Invites
    keeping: Keeping
    key_rotation: KeyRotation
    lexicons: Lexicons
    limits: RequestLimits
    mail_tokens: MailTokens
    migration: Migration
    operator: Operator
    password_reset: PasswordReset
    plc_operations: PlcOperations
    preferences: Preferences
    proxy: Proxy
    rate_limits: RateLimits
    repo_imports: RepoImports
    repos: Repos
    reserved_keys: ReservedKeys
    rewinds: Rewinds
    server_info: ServerInfo
    service_tokens: ServiceTokens
    sessions: Sessions
