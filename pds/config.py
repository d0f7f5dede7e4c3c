"""Settings of one server: read from a TOML file, then the environment, then checked as a whole.

The only module that reads the environment. `Config` is a tree of frozen settings classes; each
field carries its environment name and help text in its metadata, from which the reference page is
made (`reference_table`). The names are those of the reference PDS, with the same meaning, so an
existing `pds.env` works: what Freehold does not have yet is accepted with a notice where ignoring
it is harmless, and refused where it is not. A name that nobody knows is an error.

In the TOML file a setting has its environment name in lower case without `PDS_`; tables join with
an underscore, so `[blobstore] disk_location` is `PDS_BLOBSTORE_DISK_LOCATION`. A secret may also be
named by a file: `PDS_JWT_SECRET_FILE`.
"""

import difflib
import os
import re
import tomllib
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, Self

from pds.errors import ConfigError
from pds.log import LogSettings
from pds.net.dns import DnsClient, DnsSettings
from pds.services.archive_settings import ArchiveSettings
from pds.services.blob_places import BlobPlaceSettings, ReplicationSettings
from pds.services.blobs import BlobSettings
from pds.services.hostname_change import HostnameChangeSettings
from pds.services.limits import RateSettings, RequestLimits
from pds.services.mail_transports import MailSettings
from pds.services.migration_settings import MigrationSettings
from pds.services.plc_watch import PlcWatchSettings
from pds.services.settings import (
    FederationSettings,
    HostSettings,
    IdentitySettings,
    OutboundSettings,
    SignUpSettings,
    ms_to_s,
    parse_bool,
    parse_integer,
    parse_list,
    setting,
)
from pds.services.spool import SpoolSettings
from pds.xrpc.listener import ListenerSettings

PREFIX: Final = "PDS_"
BLOBSTORE: Final = "PDS_BLOBSTORE_"
OUTSIDE_PREFIX: Final = ("LOG_ENABLED", "LOG_LEVEL", "LOG_SYSTEMS", "LOG_DESTINATION")
SUGGEST_SECRET: Final = "make one with: openssl rand -hex 32"  # noqa: S105 - a hint
MIN_JWT_SECRET_CHARS: Final = 16

WITHOUT_EFFECT: Final[Mapping[str, str]] = types.MappingProxyType(
    {
        **dict.fromkeys(
            (
                "PDS_ACCOUNT_DB_LOCATION",
                "PDS_SEQUENCER_DB_LOCATION",
                "PDS_DID_CACHE_DB_LOCATION",
                "PDS_ACTOR_STORE_DIRECTORY",
                "PDS_ACTOR_STORE_CACHE_SIZE",
                "PDS_SQLITE_DISABLE_WAL_AUTO_CHECKPOINT",
            ),
            "everything is in one database in PDS_DATA_DIRECTORY",
        ),
        **dict.fromkeys(
            (
                "PDS_REDIS_SCRATCH_ADDRESS",
                "PDS_REDIS_SCRATCH_PASSWORD",
            ),
            "nodes share their limits in the database",
        ),
        **dict.fromkeys(
            (
                "PDS_DPOP_SECRET",
                "PDS_OAUTH_TRUSTED_CLIENTS",
                "PDS_LOGO_URL",
                "PDS_PRIMARY_COLOR",
                "PDS_ERROR_COLOR",
                "PDS_WARNING_COLOR",
                "PDS_INFO_COLOR",
                "PDS_SUCCESS_COLOR",
                "PDS_BACKGROUND_LIGHT_URL",
                "PDS_BACKGROUND_DARK_URL",
            ),
            "there is no OAuth sign-in page yet",
        ),
        **dict.fromkeys(
            (
                "PDS_PROXY_ALLOW_HTTP2",
                "PDS_PROXY_MAX_RETRIES",
                "PDS_PROXY_PREFER_COMPRESSED",
            ),
            "there is nothing to tune here",
        ),
        "PDS_VERSION": "the version of Freehold is shown",
        "PDS_LEXICON_AUTHORITY_DID": "lexicons come with the program",
        "LOG_SYSTEMS": "all parts log alike",
        "LOG_DESTINATION": "the log goes to standard error",
    }
)
"""Names of the reference that are harmless to ignore, and why they have no effect."""

REFUSED: Final[Mapping[str, str]] = types.MappingProxyType(
    {
        "PDS_PLC_ROTATION_KEY_KMS_KEY_ID": (
            "set PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX instead"
        ),
        "PDS_ENTRYWAY_": "accounts are always kept by this server; remove it",
        "PDS_HCAPTCHA_": (
            "sign-up would be open to robots; set PDS_INVITE_REQUIRED=true and remove it"
        ),
    }
)
"""Beginnings of names that would be unsafe to ignore, and what to do."""

_HOSTNAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_HANDLE_DOMAIN: Final = re.compile(r"(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)+")
_HEX_KEY: Final = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """Where durable bytes lie, save for blobs."""

    directory: Path = setting(  # noqa: RUF009
        "PDS_DATA_DIRECTORY", "Folder of the database and the master key.", default=Path("data")
    )
    database_url: str | None = setting(
        "PDS_DATABASE_URL",
        "PostgreSQL database (`postgresql://...`), which any number of nodes may share; SQLite in"
        " the data folder when unset. Nodes need the same keys, secrets and blobs, and clocks"
        " within 2 s of the database's.",
        secret=True,
    )
    master_key: str | None = setting(
        "PDS_MASTER_KEY",
        "Key above all private keys, 64 hex digits; a file in the data folder when unset.",
        secret=True,
    )

    @property
    def is_shared(self) -> bool:
        """Whether other nodes may use the same database."""
        return self.database_url is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretSettings:
    """What only the operator knows."""

    jwt_secret: str | None = setting("PDS_JWT_SECRET", "Key of the session tokens.", secret=True)
    admin_password: str | None = setting(
        "PDS_ADMIN_PASSWORD", "Password of the operator's methods.", secret=True
    )
    plc_rotation_key: str | None = setting(
        "PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX",
        "Key with which this server changes did:plc identities, 64 hex digits.",
        secret=True,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings of one server, checked."""

    host: HostSettings = field(default_factory=HostSettings)
    listener: ListenerSettings = field(default_factory=ListenerSettings)
    data: DataSettings = field(default_factory=DataSettings)
    secrets: SecretSettings = field(default_factory=SecretSettings)
    identity: IdentitySettings = field(default_factory=IdentitySettings)
    sign_up: SignUpSettings = field(default_factory=SignUpSettings)
    mail: MailSettings = field(default_factory=MailSettings)
    limits: RequestLimits = field(default_factory=RequestLimits)
    rates: RateSettings = field(default_factory=RateSettings)
    blobs: BlobSettings = field(default_factory=BlobSettings)
    blobstore: BlobPlaceSettings = field(default_factory=BlobPlaceSettings)
    blobstore_2: BlobPlaceSettings = field(
        default_factory=BlobPlaceSettings, metadata={"number": 2}
    )
    blobstore_3: BlobPlaceSettings = field(
        default_factory=BlobPlaceSettings, metadata={"number": 3}
    )
    replication: ReplicationSettings = field(default_factory=ReplicationSettings)
    exports: SpoolSettings = field(default_factory=SpoolSettings)
    archives: ArchiveSettings = field(default_factory=ArchiveSettings)
    plc_watch: PlcWatchSettings = field(default_factory=PlcWatchSettings)
    hostname_change: HostnameChangeSettings = field(default_factory=HostnameChangeSettings)
    federation: FederationSettings = field(default_factory=FederationSettings)
    outbound: OutboundSettings = field(default_factory=OutboundSettings)
    migration: MigrationSettings = field(default_factory=MigrationSettings)
    log: LogSettings = field(default_factory=LogSettings)
    notices: tuple[str, ...] = ()
    """What to tell the operator at every start: settings without effect, or with a danger."""

    @property
    def is_local(self) -> bool:
        """Whether this server has no public name."""
        return self.host.hostname == "localhost"

    @property
    def netloc(self) -> str:
        """Host name as relays and URLs have it; a local server's with its port."""
        return f"localhost:{self.listener.port}" if self.is_local else self.host.hostname

    @property
    def public_url(self) -> str:
        """Where clients reach this server."""
        return f"{'http' if self.is_local else 'https'}://{self.netloc}"

    @property
    def service_did(self) -> str:
        """The DID of this server; a local one carries its port, so that it can be resolved."""
        if self.host.service_did:
            return self.host.service_did
        return f"did:web:{self.netloc.replace(':', '%3A')}"

    @property
    def handle_domains(self) -> tuple[str, ...]:
        """Domains of the handles given here, each with a leading dot."""
        if self.host.handle_domains is not None:
            return self.host.handle_domains
        return (".test",) if self.is_local else (f".{self.host.hostname}",)

    @property
    def former_urls(self) -> tuple[str, ...]:
        """The public URLs that this server had under its former names."""
        return tuple(
            f"http://localhost:{self.listener.port}" if name == "localhost" else f"https://{name}"
            for name in self.host.former_hostnames
        )

    @property
    def further_service_dids(self) -> tuple[str, ...]:
        """DIDs by which others may still call this server, beside its own; see `service_did`."""
        if not self.host.former_hostnames:
            return ()
        urls = (self.public_url, *self.former_urls)
        dids = (f"did:web:{url.partition('://')[2].replace(':', '%3A')}" for url in urls)
        return tuple(did for did in dids if did != self.service_did)

    @property
    def former_handle_domains(self) -> tuple[str, ...]:
        """Domains under which accounts may still have handles."""
        domains = self.host.former_handle_domains
        if domains is None:
            names = self.host.former_hostnames
            domains = tuple(".test" if name == "localhost" else f".{name}" for name in names)
        return tuple(domain for domain in domains if domain not in self.handle_domains)

    @property
    def blob_location(self) -> Path:
        """Folder of the blobs, if they are in one."""
        return self.blobstore.disk_location or self.data.directory / "blobs"

    @property
    def blob_places(self) -> dict[int, BlobPlaceSettings]:
        """The places where blobs are kept, by number; the first is always there."""
        more = {2: self.blobstore_2, 3: self.blobstore_3}
        return {1: self.blobstore, **{n: place for n, place in more.items() if place.is_set}}

    @property
    def blob_write_quorum(self) -> int:
        """How many places must have a blob before its upload is answered."""
        return self.replication.write_quorum or len(self.blob_places) // 2 + 1

    @property
    def is_unguarded(self) -> bool:
        """Whether requests that strangers aim may reach private addresses."""
        return self.outbound.disable_ssrf_protection or self.host.dev_mode

    def with_port(self, port: int) -> Self:
        """The same settings on another port."""
        return replace(self, listener=replace(self.listener, port=port))


def load_config(environ: Mapping[str, str] | None = None, *, file: Path | None = None) -> Config:
    """Read and check the settings of this process.

    Raises: ConfigError that names the setting and the fix.
    """
    environment = os.environ if environ is None else environ
    values: dict[str, str] = {}
    named = file or (Path(text) if (text := environment.get("PDS_CONFIG_FILE")) else None)
    if named is not None:
        values.update(_read_toml(named))
    values.update(
        (name, value)
        for name, value in environment.items()
        if value and (name.startswith(PREFIX) or name in OUTSIDE_PREFIX)
    )
    values.pop("PDS_CONFIG_FILE", None)
    groups = {
        entry.name: _fill(
            typing.cast("type[Any]", entry.default_factory), values, entry.metadata.get("number")
        )
        for entry in fields(Config)
        if entry.default_factory is not MISSING
    }
    notices = tuple(_judge_rest(values))
    config = Config(**groups, notices=(*notices, *groups["archives"].notices))
    _check(config)
    return config


def check_for_serving(config: Config) -> None:
    """Refuse to serve without the secrets that must survive a restart. Raises: ConfigError."""
    for name, value in (
        ("PDS_JWT_SECRET", config.secrets.jwt_secret),
        ("PDS_ADMIN_PASSWORD", config.secrets.admin_password),
        ("PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX", config.secrets.plc_rotation_key),
    ):
        if not value:
            raise ConfigError(f"{name} is missing; {SUGGEST_SECRET}, and keep it")


def settings_fields() -> Iterator[tuple[str, Field[Any]]]:
    """(group, field) of every setting that has a name, in the order of the reference page.

    The further blob stores have those of the first, with their number in the name.
    """
    for entry in fields(Config):
        if entry.default_factory is MISSING or "number" in entry.metadata:
            continue
        for inner in fields(typing.cast("type[Any]", entry.default_factory)):
            if "env" in inner.metadata:
                yield entry.name, inner


def _numbered(env: str, number: int | None) -> str:
    """The name of a setting of the second or third blob store."""
    return env if number is None else env.replace(BLOBSTORE, f"{BLOBSTORE}{number}_", 1)


def _fill(settings_class: type[Any], values: dict[str, str], number: int | None = None) -> Any:
    """Build one settings class, taking its values out of `values`."""
    hints = typing.get_type_hints(settings_class)
    given: dict[str, Any] = {}
    for entry in fields(settings_class):
        env = entry.metadata.get("env")
        if env is None:
            continue
        env = _numbered(env, number)
        text = values.pop(env, None)
        if entry.metadata.get("secret"):
            text = _read_secret(env, text, values.pop(f"{env}_FILE", None))
        if text is None:
            continue
        parse = entry.metadata.get("parse") or _parser_for(hints[entry.name])
        try:
            given[entry.name] = parse(text.strip())
        except ValueError as error:
            shown = "" if entry.metadata.get("secret") else f" (it is {text!r})"
            raise ConfigError(f"{env}: {error}{shown}") from error
    return settings_class(**given)


def _read_secret(env: str, text: str | None, file: str | None) -> str | None:
    if file is None:
        return text
    if text is not None:
        raise ConfigError(f"{env} and {env}_FILE are both set; keep one of them")
    try:
        return Path(file).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{env}_FILE: cannot read {file}: {error}") from error


def _parser_for(hint: Any) -> Callable[[str], Any]:
    """The parser for the type of a field, `None` in a union left aside."""
    if isinstance(hint, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not types.NoneType)
    if hint is bool:
        return parse_bool
    if hint is int:
        return parse_integer
    if typing.get_origin(hint) is tuple:
        return parse_list
    return typing.cast("Callable[[str], Any]", hint)  # str, float and Path are their own parsers.


def _read_toml(path: Path) -> dict[str, str]:
    try:
        tree = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read the settings file {path}: {error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the settings file {path} is not TOML: {error}") from error
    return dict(_flatten(tree, ""))


def _flatten(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        name = f"{prefix}{key}".upper()
        match value:
            case dict():
                yield from _flatten(value, f"{name}_")
            case list():
                yield _env_name(name), ",".join(str(item) for item in value)
            case bool():
                yield _env_name(name), str(value).lower()
            case _:
                yield _env_name(name), str(value)


def _env_name(name: str) -> str:
    return name if name in OUTSIDE_PREFIX else PREFIX + name


def _judge_rest(rest: Mapping[str, str]) -> Iterator[str]:
    """Notices for names of the reference that have no effect; refusal of all others."""
    known = [entry.metadata["env"] for _, entry in settings_fields()]
    for name in sorted(rest):
        if reason := next((why for start, why in REFUSED.items() if name.startswith(start)), None):
            raise ConfigError(f"{name} is not supported: {reason}")
        if name in WITHOUT_EFFECT:
            yield f"{name} has no effect: {WITHOUT_EFFECT[name]}"
            continue
        near = difflib.get_close_matches(name, [*known, *WITHOUT_EFFECT], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{name} is not a setting{hint}")


def _check(config: Config) -> None:
    """Hold the settings against each other. Raises: ConfigError."""
    host = config.host
    if not _HOSTNAME.fullmatch(host.hostname):
        raise ConfigError("PDS_HOSTNAME must be a host name only, without https:// and port")
    for name in host.former_hostnames:
        if not _HOSTNAME.fullmatch(name) or name == host.hostname:
            raise ConfigError("PDS_FORMER_HOSTNAMES must name hosts, and not that of PDS_HOSTNAME")
    for domain in config.former_handle_domains:
        if not _HANDLE_DOMAIN.fullmatch(domain):
            raise ConfigError(f"PDS_FORMER_HANDLE_DOMAINS: {domain!r} must look like .example.org")
    for domain in config.handle_domains:
        if not _HANDLE_DOMAIN.fullmatch(domain):
            raise ConfigError(f"PDS_SERVICE_HANDLE_DOMAINS: {domain!r} must look like .example.org")
        if domain.endswith(".test") and not (host.dev_mode or config.is_local):
            raise ConfigError("PDS_SERVICE_HANDLE_DOMAINS: .test needs PDS_DEV_MODE=true")
    secrets = config.secrets
    if secrets.jwt_secret and len(secrets.jwt_secret) < MIN_JWT_SECRET_CHARS:
        raise ConfigError(f"PDS_JWT_SECRET is too short; {SUGGEST_SECRET}")
    for name, value in (
        ("PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX", secrets.plc_rotation_key),
        ("PDS_MASTER_KEY", config.data.master_key),
    ):
        if value and not _HEX_KEY.fullmatch(value):
            raise ConfigError(f"{name} must be 64 hex digits; {SUGGEST_SECRET}")
    try:
        DnsClient(DnsSettings(nameservers=config.identity.backup_nameservers))
    except ConfigError as error:
        raise ConfigError(f"PDS_HANDLE_BACKUP_NAMESERVERS: {error}") from error
    config.mail.check()
    config.archives.check()
    _check_blob_places(config)
    services = config.federation
    for label, url, did in (
        ("PDS_BSKY_APP_VIEW", services.appview_url, services.appview_did),
        ("PDS_MOD_SERVICE", services.mod_service_url, services.mod_service_did),
        ("PDS_REPORT_SERVICE", services.report_service_url, services.report_service_did),
    ):
        if bool(url) != bool(did):
            raise ConfigError(f"{label}_URL and {label}_DID belong together; set both or neither")


def _check_blob_places(config: Config) -> None:
    for number, place in config.blob_places.items():
        prefix = BLOBSTORE if number == 1 else f"{BLOBSTORE}{number}_"
        if place.disk_location is not None and place.s3_bucket is not None:
            raise ConfigError(
                f"{prefix}DISK_LOCATION and {prefix}S3_BUCKET are both set; keep one of them"
            )
        if bool(place.s3_access_key_id) != bool(place.s3_secret_access_key):
            raise ConfigError(
                f"{prefix}S3_ACCESS_KEY_ID and {prefix}S3_SECRET_ACCESS_KEY belong together; set"
                " both or neither"
            )
        if place.s3_bucket is None:
            if place.s3_endpoint or place.s3_access_key_id:
                raise ConfigError(f"{prefix}S3_BUCKET is missing")
            if number > 1 and place.disk_location is None:
                raise ConfigError(
                    f"blob store {number} is nowhere: set {prefix}S3_BUCKET or"
                    f" {prefix}DISK_LOCATION"
                )
    if not 1 <= config.blob_write_quorum <= len(config.blob_places):
        raise ConfigError(
            f"PDS_BLOBSTORE_WRITE_QUORUM must be at most {len(config.blob_places)}, the number of"
            " blob stores"
        )


def reference_table() -> str:
    """The reference page of all settings, in Markdown."""
    lines = [
        "# Settings",
        "",
        "Made from the code by `make docs`; `pds config reference` prints the same. Times are",
        "milliseconds and sizes bytes unless the text says otherwise. In the TOML file a setting",
        "has its name in lower case without `PDS_`. A secret may be named by a file. A second and",
        "third blob store have the settings of the first with a number in the name, such as",
        "`PDS_BLOBSTORE_2_S3_BUCKET`.",
        "",
        "| setting | default | what it does |",
        "|---|---|---|",
        *(_reference_row(entry) for _, entry in settings_fields()),
        "",
        "Names of the reference PDS that are accepted and have no effect:",
        "",
        "| setting | because |",
        "|---|---|",
        *(f"| `{name}` | {reason} |" for name, reason in sorted(WITHOUT_EFFECT.items())),
        "",
        "Names that are refused, because ignoring them would be unsafe:",
        "",
        "| setting | what to do |",
        "|---|---|",
        *(f"| `{name}{'*' * name.endswith('_')}` | {text} |" for name, text in REFUSED.items()),
    ]
    return "\n".join(lines) + "\n"


def _reference_row(entry: Field[Any]) -> str:
    env = entry.metadata["env"]
    name = f"`{env}` or `{env}_FILE`" if entry.metadata.get("secret") else f"`{env}`"
    return f"| {name} | {_shown_default(entry)} | {entry.metadata['help']} |"


def _shown_default(entry: Field[Any]) -> str:
    """A default in the units of its environment name."""
    value = entry.default
    match value:
        case None | ():
            return ""
        case bool():
            return f"`{str(value).lower()}`"
        case float() if entry.metadata.get("parse") is ms_to_s:
            return f"`{int(value * 1000)}`"  # Seconds here, milliseconds there.
        case float() if value.is_integer():
            return f"`{int(value)}`"
        case tuple():
            return f"`{','.join(str(item) for item in value)}`"
        case _:
            return f"`{value}`"
