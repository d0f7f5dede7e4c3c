"""Whom the commands give their orders to: the running server, or the same services in-process.

`connect_admin` looks for the server of these settings on this machine (or at `PDS_ADMIN_URL`). One
that answers with our DID gets the orders over HTTP under the admin password: it holds the database,
its memory is the one that must forget, and its firehose tells readers at once. If nothing answers,
the command opens the database itself. With SQLite the lock on the data folder settles the one case
in between, a server that runs and does not answer: then nothing is done.

The password goes to nobody who has not named our DID before, and over plain HTTP only to this
machine, and there only to who proves to know the secret of this server: another user may listen on
its port while it is down.
"""

import base64
import hmac
import re
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import pds
from pds.app.alone import services_alone
from pds.config import Config
from pds.errors import BadAnswer, ConfigError, RemoteError, RequestError, Unavailable
from pds.net.http import HttpSettings, TrustedClient
from pds.net.http_errors import StatusError
from pds.net.xrpc_client import XrpcClient
from pds.services.admin_api import AdminApi
from pds.services.admin_auth import server_proof
from pds.services.admin_keeping import LONG_ORDERS
from pds.services.audit import CLI_PREFIX
from pds.web.admin_api import ACTOR_HEADER, PROOF
from pds.web.admin_api import PREFIX as ORDERS_PATH

MAX_ANSWER_BYTES: Final = 64 << 20
TIMEOUT_S: Final = 120.0
"""An order may wait for the PLC directory and for relays."""
LONG_TIMEOUT_S: Final = 6 * 3600.0
"""A large account on its way in or out; the order goes on if nobody waits for its answer."""
ASK_TIMEOUT_S: Final = 3.0
ANY_ADDRESS: Final = frozenset({"", "0.0.0.0", "::", "*"})  # noqa: S104 - compared, not bound
LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._@-]")
_STEERING: Final = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069]")
"""Control characters but line feed and tab, and what turns the direction of writing."""


class AdminClient(Protocol):
    """Somebody who carries out orders."""

    async def call(self, name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out one order.

        Raises: RequestError when it is refused; RemoteError; StoreError.
        """


class PlainAdmin:
    """Has orders carried out, and hands on what comes back without what steers a terminal.

    Other hosts and strangers' documents word parts of answers, and people read them in a shell.
    """

    def __init__(self, client: AdminClient) -> None:
        self._client = client

    async def call(self, name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out one order."""
        try:
            answer = await self._client.call(name, fields)
        except RequestError as error:
            error.message = _plain(error.message)
            raise
        plain: dict[str, Any] = _plain(answer)
        return plain


class HttpAdmin:
    """Gives orders to a running server."""

    def __init__(self, http: TrustedClient, url: str, *, password: str, actor: str) -> None:
        self._http = http
        self._url = url.rstrip("/")
        token = base64.b64encode(f"admin:{password}".encode()).decode()
        self._headers = {"Authorization": f"Basic {token}", ACTOR_HEADER: actor}

    async def call(self, name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out one order over there."""
        url = f"{self._url}{ORDERS_PATH}{name}"
        try:
            wait_s = LONG_TIMEOUT_S if name in LONG_ORDERS else TIMEOUT_S
            answer = await self._http.post_json(
                url, dict(fields), headers=self._headers, timeout_s=wait_s
            )
        except StatusError as error:
            refusal, message = error.detail.get("error"), error.detail.get("message")
            if not isinstance(refusal, str) or not isinstance(message, str):
                raise
            raise RequestError(refusal, message, error.status) from error
        content = answer.json()
        if not isinstance(content, dict):
            raise BadAnswer(f"{self._url} did not answer with a JSON object")
        return content


class LocalAdmin:
    """Carries out orders in this process."""

    def __init__(self, api: AdminApi, *, actor: str) -> None:
        self._api = api
        self._actor = CLI_PREFIX + actor

    async def call(self, name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out one order here."""
        return await self._api.call(name, fields, actor=self._actor)


@asynccontextmanager
async def connect_admin(config: Config, *, actor: str) -> AsyncIterator[AdminClient]:
    """Find who carries out orders; `actor` is the name for the audit trail.

    Raises: ConfigError; Unavailable when a server holds the database and does not answer;
    RemoteError when the server at `PDS_ADMIN_URL` cannot be reached.
    """
    actor = _UNSAFE.sub("_", actor)[:64] or "somebody"
    settings = HttpSettings.trusted(
        user_agent=f"Freehold/{pds.__version__}",
        allow_private=True,
        small_max_bytes=MAX_ANSWER_BYTES,
    )
    url = config.host.admin_url or local_url(config)
    http = TrustedClient(settings)
    try:
        if await _is_ours(http, url, config):
            password = config.secrets.admin_password
            if not password:
                raise ConfigError(
                    f"a server runs at {url}, and PDS_ADMIN_PASSWORD is not set: give commands the"
                    " settings of the server"
                )
            await _check_proof(http, url, config)
            yield PlainAdmin(HttpAdmin(http, url, password=password, actor=actor))
            return
    finally:
        await http.close()
    async with _alone(config, url, actor) as client:
        yield client


@asynccontextmanager
async def _alone(config: Config, url: str, actor: str) -> AsyncIterator[AdminClient]:
    async with AsyncExitStack() as stack:
        try:
            services = await stack.enter_async_context(services_alone(config))
        except Unavailable as error:
            raise Unavailable(
                f"{error}, and no server of these settings answers at {url}: if it listens"
                " elsewhere, set PDS_ADMIN_URL"
            ) from error
        yield PlainAdmin(LocalAdmin(AdminApi(services), actor=actor))


def local_url(config: Config) -> str:
    """Where the server of these settings listens, as seen from this machine."""
    host = config.listener.host
    host = "127.0.0.1" if host in ANY_ADDRESS else f"[{host}]" if ":" in host else host
    return f"http://{host}:{config.listener.port}"


async def _is_ours(http: TrustedClient, url: str, config: Config) -> bool:
    """Whether a server of these settings answers; an address that was set must be right.

    Raises: ConfigError, RemoteError.
    """
    is_set = config.host.admin_url is not None
    parts = urlsplit(url)
    if is_set and parts.scheme != "https" and (parts.hostname or "") not in LOOPBACK:
        raise ConfigError(
            "PDS_ADMIN_URL must begin with https:// unless it is on this machine: the admin"
            " password goes there"
        )
    try:
        answer = await XrpcClient(http).query(
            url, "com.atproto.server.describeServer", timeout_s=ASK_TIMEOUT_S
        )
    except RemoteError:
        if is_set:
            raise
        return False
    if answer.get("did") == config.service_did:
        return True
    if is_set:
        raise ConfigError(
            f"PDS_ADMIN_URL: {url} is the server of {answer.get('did')}, and these settings are"
            f" those of {config.service_did}"
        )
    return False


async def _check_proof(http: TrustedClient, url: str, config: Config) -> None:
    """Have the server show that it has our secret; TLS has shown as much.

    Raises: ConfigError, RemoteError.
    """
    if url.startswith("https://"):
        return
    secret = config.secrets.jwt_secret
    if not secret:
        raise ConfigError(
            f"a server runs at {url}, and PDS_JWT_SECRET is not set: give commands the settings of"
            " the server"
        )
    nonce = secrets.token_hex(32)
    try:
        answer = await http.get_json(
            f"{url.rstrip('/')}{ORDERS_PATH}{PROOF}?nonce={nonce}", timeout_s=ASK_TIMEOUT_S
        )
    except StatusError:
        answer = None  # Something else, or an older version: both prove nothing.
    proof = answer.get("proof") if isinstance(answer, dict) else None
    if not isinstance(proof, str) or not hmac.compare_digest(
        proof.encode(), server_proof(secret, nonce).encode()
    ):
        raise ConfigError(
            f"what answers at {url} does not prove that it is the server of these settings, so it"
            " is not told the admin password: another program may be on its port, or PDS_JWT_SECRET"
            " differs"
        )


def _plain(value: Any) -> Any:
    """Return a value of JSON without steering characters in its texts and names."""
    if isinstance(value, str):
        return _STEERING.sub("\N{REPLACEMENT CHARACTER}", value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {_plain(name): _plain(item) for name, item in value.items()}
    return value
