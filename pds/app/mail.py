"""Which transport carries mail, as the settings say."""

from typing import Final

from pds.config import Config
from pds.log import get_logger
from pds.services.account_mails import AccountMails, AccountMailSettings
from pds.services.mail import LogMailer, Mailer
from pds.services.mail_texts import MailTexts
from pds.services.mail_tokens import MailTokens
from pds.services.mail_transports import MailRoute, SendingMailer
from pds.store.clock import Clock
from pds.store.engine import Engine

WITHOUT_MAIL: Final = (
    "PDS_EMAIL_SMTP_URL is not set: nobody can reset a password, confirm an address, delete an"
    " account or move away without the operator's help"
)

_log: Final = get_logger(__name__)


def build_mails(
    config: Config,
    *,
    engine: Engine,
    clock: Clock,
    tokens: MailTokens,
    mailbox: Mailer | None,
) -> AccountMails:
    """What writes to account holders; `mailbox` takes all mail instead of the settings' routes."""
    mailer = mailbox or make_mailer(config, config.mail.route, config.mail.from_address)
    moderation_mailer = mailbox or make_mailer(
        config,
        config.mail.moderation_route,
        config.mail.moderation_address or config.mail.from_address,
    )
    if not mailer.delivers:
        _log.warning("mail.not_configured", notice=WITHOUT_MAIL)
    return AccountMails(
        engine=engine,
        clock=clock,
        tokens=tokens,
        mailer=mailer,
        moderation_mailer=moderation_mailer,
        settings=AccountMailSettings(
            service_name=_service_name(config),
            public_url=config.public_url,
            confirmation_link_url=_confirmation_link(config),
        ),
    )


def make_mailer(config: Config, route: MailRoute | None, sender: str | None) -> Mailer:
    """The transport for a route; one that only notes when there is none."""
    if route is None or sender is None:
        return LogMailer()
    return SendingMailer(
        route,
        sender=sender,
        service_name=_service_name(config),
        local_name=config.host.hostname,
    )


async def send_test_mail(config: Config, to: str, *, now_us: int) -> None:
    """Send a test mail by the settings, without a server. Raises: RemoteError."""
    texts = MailTexts(service_name=_service_name(config), public_url=config.public_url)
    mailer = make_mailer(config, config.mail.route, config.mail.from_address)
    await mailer.send(texts.write("test", to=to), now_us=now_us)


def _service_name(config: Config) -> str:
    return config.host.service_name or config.host.hostname


def _confirmation_link(config: Config) -> str | None:
    """The link shows the code to the page it opens, so there is one only for a known app."""
    if config.mail.no_confirmation_link or config.federation.appview_url is None:
        return None
    return config.mail.confirmation_link_url
