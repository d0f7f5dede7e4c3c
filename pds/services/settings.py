"""What the operator can set about the use cases: names, defaults, help, and how values are parsed.

Every settings class of the program is a frozen dataclass whose fields say in their metadata how
they are named outside (`env`), what they mean (`help`), whether they are `secret`, and how text
becomes a value (`parse`, where the type does not say it). `pds/config.py` fills them and writes the
reference page from them; the names are the reference PDS's, with the same meaning and units.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final
from urllib.parse import urlsplit

from pds.errors import ProtocolError
from pds.protocol.syntax import parse_did

MAX_PORT: Final = 65_535
CDN_PLACES: Final = 3


def ms_to_s(text: str) -> float:
    """Seconds from the reference's milliseconds."""
    return parse_integer(text) / 1000


def parse_integer(text: str) -> int:
    """A decimal integer of zero or more. Raises: ValueError."""
    value = int(text, 10)
    if value < 0:
        raise ValueError("must not be negative")
    return value


def parse_bool(text: str) -> bool:
    """`true`, `1` and `yes`, or their opposites. Raises: ValueError."""
    match text.strip().lower():
        case "true" | "1" | "yes" | "on":
            return True
        case "false" | "0" | "no" | "off" | "":
            return False
        case _:
            raise ValueError("must be true or false")


def parse_list(text: str) -> tuple[str, ...]:
    """Items between commas, blanks dropped."""
    return tuple(item.strip() for item in text.split(",") if item.strip())


def parse_lower_list(text: str) -> tuple[str, ...]:
    """Items between commas in lower case, blanks dropped."""
    return parse_list(text.lower())


def parse_url(text: str) -> str:
    """An http(s) URL without a slash at its end. Raises: ValueError."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be a URL that starts with https://")
    return text.rstrip("/")


def parse_cdn_pattern(text: str) -> str:
    """A URL with three places to fill. Raises: ValueError."""
    if text.count("%s") != CDN_PLACES:
        raise ValueError("must have %s three times: kind, DID and CID")
    return parse_url(text)


def parse_urls(text: str) -> tuple[str, ...]:
    """URLs between commas. Raises: ValueError."""
    return tuple(parse_url(item) for item in parse_list(text))


def parse_port(text: str) -> int:
    """A TCP port. Raises: ValueError."""
    port = parse_integer(text)
    if port > MAX_PORT:
        raise ValueError(f"must be at most {MAX_PORT}")
    return port


def parse_did_setting(text: str) -> str:
    """A DID. Raises: ValueError."""
    try:
        return parse_did(text)
    except ProtocolError as error:
        raise ValueError(str(error)) from error


class LexiconPolicy(StrEnum):
    """What is done about collections whose schema does not come with the program."""

    OFF = "off"
    LAZY = "lazy"
    REQUIRED = "required"


def parse_lexicon_policy(text: str) -> LexiconPolicy:
    """One of the policies. Raises: ValueError."""
    try:
        return LexiconPolicy(text.lower())
    except ValueError as error:
        raise ValueError("must be off, lazy or required") from error


def setting(
    env: str,
    help_text: str,
    *,
    default: Any = None,
    parse: Callable[[str], Any] | None = None,
    secret: bool = False,
) -> Any:
    """A field of a settings class with its environment name and help."""
    metadata: dict[str, Any] = {"env": env, "help": help_text, "secret": secret}
    if parse is not None:
        metadata["parse"] = parse
    return field(default=default, metadata=metadata, repr=not secret)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSettings:
    """Who this server is."""

    hostname: str = setting(
        "PDS_HOSTNAME",
        "Public host name; `localhost` means `http://localhost:PORT`.",
        default="localhost",
    )
    former_hostnames: tuple[str, ...] = setting(
        "PDS_FORMER_HOSTNAMES",
        "Earlier host names, between commas, under which this server still answers: identities that"
        " name them count as here, and sessions made under them go on. See `pds hostname move`.",
        default=(),
        parse=parse_lower_list,
    )
    former_handle_domains: tuple[str, ...] | None = setting(
        "PDS_FORMER_HANDLE_DOMAINS",
        "Domains under which accounts still have handles and get no new ones, with a leading dot;"
        " those of PDS_FORMER_HOSTNAMES when unset.",
        parse=parse_lower_list,
    )
    admin_url: str | None = setting(
        "PDS_ADMIN_URL",
        "Where commands such as `pds account` reach the running server, when that is not its own"
        " port on this machine.",
    )
    service_did: str | None = setting(
        "PDS_SERVICE_DID",
        "DID of this server; `did:web:HOSTNAME` when unset.",
        parse=parse_did_setting,
    )
    service_name: str | None = setting("PDS_SERVICE_NAME", "Name shown to people.")
    handle_domains: tuple[str, ...] | None = setting(
        "PDS_SERVICE_HANDLE_DOMAINS",
        "Domains under which accounts get handles, with a leading dot; `.HOSTNAME` when unset.",
        parse=parse_list,
    )
    reserved_handles: tuple[str, ...] = setting(
        "PDS_RESERVED_HANDLES",
        "Front labels that nobody may take, beside our own list: `name` adds one, `-name` takes one"
        " out, `-*` takes out all of ours.",
        default=(),
        parse=parse_lower_list,
    )
    root_handles: bool = setting(
        "PDS_ROOT_HANDLES",
        "The names of the handle domains themselves may be handles; only the operator gives them.",
        default=False,
    )
    dev_mode: bool = setting(
        "PDS_DEV_MODE", "Development: plain http, `.test` handles.", default=False
    )
    privacy_policy_url: str | None = setting(
        "PDS_PRIVACY_POLICY_URL", "Linked by describeServer.", parse=parse_url
    )
    terms_of_service_url: str | None = setting(
        "PDS_TERMS_OF_SERVICE_URL", "Linked by describeServer.", parse=parse_url
    )
    contact_email: str | None = setting("PDS_CONTACT_EMAIL_ADDRESS", "Shown by describeServer.")
    home_url: str | None = setting("PDS_HOME_URL", "Named on the front page.", parse=parse_url)
    support_url: str | None = setting(
        "PDS_SUPPORT_URL", "Named on the front page.", parse=parse_url
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentitySettings:
    """How identities are made and found."""

    plc_url: str = setting(
        "PDS_DID_PLC_URL",
        "The PLC directory; operations are sent to it and judged by what it says.",
        default="https://plc.directory",
        parse=parse_url,
    )
    plc_read_url: str | None = setting(
        "PDS_DID_PLC_READ_URL",
        "A replica that is asked for documents, and may lag behind; the directory when unset.",
        parse=parse_url,
    )
    recovery_did_key: str | None = setting(
        "PDS_RECOVERY_DID_KEY", "A rotation key above ours in every new identity."
    )
    cache_stale_s: float = setting(
        "PDS_DID_CACHE_STALE_TTL",
        "Milliseconds after which a cached identity is fetched again.",
        default=3600.0,
        parse=ms_to_s,
    )
    cache_max_s: float = setting(
        "PDS_DID_CACHE_MAX_TTL",
        "Milliseconds for which a cached identity may be used at all.",
        default=86_400.0,
        parse=ms_to_s,
    )
    resolver_timeout_s: float = setting(
        "PDS_ID_RESOLVER_TIMEOUT",
        "Milliseconds that one look-up may take.",
        default=3.0,
        parse=ms_to_s,
    )
    allow_self_custody: bool = setting(
        "PDS_ALLOW_SELF_CUSTODY",
        "Accounts may be here although this server is none of their rotation keys.",
        default=True,
    )
    backup_nameservers: tuple[str, ...] = setting(
        "PDS_HANDLE_BACKUP_NAMESERVERS",
        "Addresses of name servers to ask when the usual ones know no handle.",
        default=(),
    )
    did_doc_with_session: bool = setting(
        "PDS_ENABLE_DID_DOC_WITH_SESSION", "Put the DID document into sessions.", default=True
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SignUpSettings:
    """Who may open or bring an account."""

    invite_required: bool = setting(
        "PDS_INVITE_REQUIRED", "Accounts need an invite code.", default=True
    )
    invite_interval_s: float | None = setting(
        "PDS_INVITE_INTERVAL",
        "Milliseconds after which each account earns another invite code.",
        parse=ms_to_s,
    )
    invite_epoch_s: float = setting(
        "PDS_INVITE_EPOCH",
        "Unix milliseconds from which invite codes are earned.",
        default=0.0,
        parse=ms_to_s,
    )
    accepting_imports: bool = setting(
        "PDS_ACCEPTING_REPO_IMPORTS", "Accounts may import a repo.", default=True
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FederationSettings:
    """Relays, AppView and other services."""

    crawlers: tuple[str, ...] = setting(
        "PDS_CRAWLERS",
        "URLs of the relays to tell about new commits.",
        default=(),
        parse=parse_urls,
    )
    backfill_s: float = setting(
        "PDS_REPO_BACKFILL_LIMIT_MS",
        "Milliseconds for which firehose events are kept.",
        default=72 * 3600.0,
        parse=ms_to_s,
    )
    max_subscription_buffer: int = setting(
        "PDS_MAX_SUBSCRIPTION_BUFFER",
        "Events a firehose reader may lag behind before it reads from the store.",
        default=500,
    )
    lexicon_resolution: LexiconPolicy = setting(  # noqa: RUF009
        "PDS_LEXICON_RESOLUTION",
        "Schemas of collections that do not come with the program: `lazy` looks them up behind"
        " the scenes, and checks the next writes; `required` refuses writes without one; `off`"
        " asks nobody and checks nothing.",
        default=LexiconPolicy.LAZY,
        parse=parse_lexicon_policy,
    )
    appview_url: str | None = setting(
        "PDS_BSKY_APP_VIEW_URL", "The AppView that unknown methods go to.", parse=parse_url
    )
    appview_did: str | None = setting("PDS_BSKY_APP_VIEW_DID", "Its DID.", parse=parse_did_setting)
    appview_cdn_url_pattern: str | None = setting(
        "PDS_BSKY_APP_VIEW_CDN_URL_PATTERN",
        "Where the AppView shows pictures: a URL in which `%s` stands three times, for the kind of"
        " picture, the DID and the CID; our own getBlob when unset.",
        parse=parse_cdn_pattern,
    )
    mod_service_url: str | None = setting(
        "PDS_MOD_SERVICE_URL", "The moderation service.", parse=parse_url
    )
    mod_service_did: str | None = setting(
        "PDS_MOD_SERVICE_DID", "Its DID.", parse=parse_did_setting
    )
    report_service_url: str | None = setting(
        "PDS_REPORT_SERVICE_URL",
        "Where reports go; the moderation service when unset.",
        parse=parse_url,
    )
    report_service_did: str | None = setting(
        "PDS_REPORT_SERVICE_DID", "Its DID.", parse=parse_did_setting
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboundSettings:
    """Requests that this server makes."""

    disable_ssrf_protection: bool = setting(
        "PDS_DISABLE_SSRF_PROTECTION",
        "Let requests that strangers aim reach private addresses; only for development.",
        default=False,
    )
    fetch_max_bytes: int = setting(
        "PDS_FETCH_MAX_RESPONSE_SIZE", "Largest small document fetched.", default=512 * 1024
    )
    proxy_headers_timeout_s: float = setting(
        "PDS_PROXY_HEADERS_TIMEOUT",
        "Milliseconds to wait for the first byte of a proxied answer.",
        default=10.0,
        parse=ms_to_s,
    )
    proxy_body_timeout_s: float = setting(
        "PDS_PROXY_BODY_TIMEOUT",
        "Milliseconds to wait for the next bytes of a proxied answer.",
        default=30.0,
        parse=ms_to_s,
    )
    proxy_max_bytes: int = setting(
        "PDS_PROXY_MAX_RESPONSE_SIZE", "Largest proxied answer.", default=10 * 1024 * 1024
    )
