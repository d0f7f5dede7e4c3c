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
    from pds.services.blobs import Blobs
    from pds.services.crawlers import Crawlers
    from pds.services.export import Exports
    from pds.services.firehose import Firehose
    from pds.services.health import Health
    from pds.services.identity import Identity
    from pds.services.invites import Invites
    from pds.services.limits import RequestLimits
    from pds.services.mail_tokens import MailTokens
    from pds.services.password_reset import PasswordReset
    from pds.services.preferences import Preferences
    from pds.services.proxy import Proxy
    from pds.services.rate_limits import RateLimits
    from pds.services.repos import Repos
    from pds.services.reserved_keys import ReservedKeys
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
    blobs: Blobs
    catalog: Catalog
    crawlers: Crawlers
    exports: Exports
    firehose: Firehose
    health: Health
    identity: Identity
    invites: Invites
    limits: RequestLimits
    mail_tokens: MailTokens
    password_reset: PasswordReset
    preferences: Preferences
    proxy: Proxy
    rate_limits: RateLimits
    repos: Repos
    reserved_keys: ReservedKeys
    server_info: ServerInfo
    service_tokens: ServiceTokens
    sessions: Sessions
