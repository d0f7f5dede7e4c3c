"""This host as an OAuth client: how it signs in at other hosts for who has an account there.

The requests that this host sends are made here. The pages at which other hosts and browsers come to
it are in `web/oauth_client`. What a sign-in is for, what is kept of it, and the check of `state`
and `iss` when the browser is back are in `services/migration_sign_in`.

Discovery, pushed request, code, renewal, revocation; every request carries a proof of the key to
which the tokens are bound, made anew with the server's nonce where one is demanded. The other
server is a stranger: it is reached through the guarded client, redirects are not followed, answers
have a size limit and a deadline, and what it says of itself is held against the rules.

Who we are: a host with a public name is a confidential client. Its id is the address of its
document (`CLIENT_PATH`), and it proves itself by a key of its own, derived from the master key, so
that all nodes have the same and nothing has to be kept. That costs one more signature per request,
and sessions live for three months without use instead of two weeks, which a move may need that
waits for its owner. A host without (development) is a loopback client, which is public.

Nothing is stored here: what has to outlive a request is in `PendingSignIn` and `OAuthSession`.

Spec: (OAUTH-1, OAUTH-2, OAUTH-20, OAUTH-22, OAUTH-30, OAUTH-60, OAUTH-70, OAUTH-72, OAUTH-73)
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import orjson

from pds.errors import BadAnswer, Rejected
from pds.net.http import HttpClient
from pds.net.http_body import StreamedAnswer
from pds.net.http_errors import HttpFailed
from pds.protocol.keys import Signer, generate_secret, make_signer
from pds.protocol.oauth.answers import TokenAnswer, parse_tokens
from pds.protocol.oauth.dpop import NONCE_HEADER, NONCE_NEEDED, PROOF_HEADER, make_proof
from pds.protocol.oauth.errors import OAuthInvalid
from pds.protocol.oauth.jwk import public_jwk, sign_jwt, thumbprint
from pds.protocol.oauth.metadata import (
    LOOPBACK_CLIENT,
    RESOURCE_PATH,
    SERVER_PATH,
    ServerMetadata,
    check_resource,
    check_server,
    client_document,
    is_discoverable,
    loopback_client_id,
)
from pds.protocol.oauth.pkce import METHOD, make_challenge, make_verifier
from pds.store.clock import Clock

CLIENT_PATH: Final = "/oauth-client-metadata.json"
CALLBACK_PATH: Final = "/oauth-client/callback"
MAX_DOCUMENT_BYTES: Final = 64 * 1024
"""Of documents and answers; those in use have some 2 KB, tokens some 1 KB."""
TIMEOUT_S: Final = 15.0
REVOKE_TIMEOUT_S: Final = 5.0
MAX_LIFE_S: Final = 3600
"""How long a link is good at most; servers say less."""
MAX_NONCE_CHARS: Final = 512
ASSERTION_LIFE_S: Final = 60
CLOCK_LEEWAY_S: Final = 10
"""How far our clock may be ahead: the reference (August 2026) takes no assertion of the future."""
ASSERTION_TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
US_PER_S: Final = 1_000_000


class OAuthRefused(Rejected):
    """An authorization server said no; `error` is the name by which OAuth knows why."""

    def __init__(self, host: str, error: str, description: str) -> None:
        error, description = _printable(error, 100), _printable(description, 300)
        super().__init__(f"{host}: {description or error}")
        self.error = error
        self.description = description


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingSignIn:
    """What has to be known when the browser comes back. Secret."""

    issuer: str
    token_endpoint: str
    revocation_endpoint: str | None
    client_id: str
    redirect_uri: str
    verifier: str = field(repr=False)
    key: str = field(repr=False)
    """The secret scalar, in hex."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OAuthSession:
    """Tokens at another host, and the key that they are bound to. Secret."""

    issuer: str
    token_endpoint: str
    revocation_endpoint: str | None
    client_id: str
    key: str = field(repr=False)
    access: str = field(repr=False)
    refresh: str | None = field(repr=False)
    scope: str


@dataclass(frozen=True, slots=True)
class Link:
    """Where somebody has to sign in, and how long the link is good."""

    url: str
    life_s: int


class Proofs:
    """Proves possession of one key to one server, with the newest nonce that it gave."""

    def __init__(self, clock: Clock, key: str) -> None:
        self._clock = clock
        self._signer = make_signer("p256", bytes.fromhex(key))
        self._nonce: str | None = None

    def make(self, method: str, url: str, access_token: str | None = None) -> str:
        """Return the header for one request."""
        return make_proof(
            self._signer,
            method=method,
            url=url,
            jti=secrets.token_urlsafe(24),
            now_s=self._clock.now_us() // US_PER_S,
            nonce=self._nonce,
            access_token=access_token,
        )

    def note(self, status: int, headers: Mapping[str, str]) -> bool:
        """Keep the nonce of an answer; whether the request may be made once more with it.

        A refused proof and a refused token look alike at some servers, so whatever is refused
        along with a new nonce is worth a second try (OAUTH-73).
        """
        given = headers.get(NONCE_HEADER)
        if not given or len(given) > MAX_NONCE_CHARS or not given.isprintable():
            return False
        is_new, self._nonce = given != self._nonce, given
        return is_new and status in (400, 401)


class OAuthClient:
    """Signs in at other hosts."""

    def __init__(
        self,
        http: HttpClient,
        clock: Clock,
        client_signer: Signer,
        public_url: str,
        *,
        former_urls: Sequence[str] = (),
    ) -> None:
        """What began under one of `former_urls` goes on: each has a document of its own."""
        self._former_urls = tuple(former_urls)
        self._http = http
        self._clock = clock
        self._signer = client_signer
        self._public_url = public_url
        self._is_confidential = is_discoverable(public_url)

    @property
    def clock(self) -> Clock:
        """The time of proofs."""
        return self._clock

    # Who we are

    @property
    def is_confidential(self) -> bool:
        """Whether this host has a public name, and proves itself by a key."""
        return self._is_confidential

    @property
    def redirect_uri(self) -> str:
        """Where browsers come back to; without a public name, to this machine (OAUTH-17)."""
        if self._is_confidential:
            return _come_back_to(self._public_url)
        parts = urlsplit(self._public_url)
        port = "" if parts.port is None else f":{parts.port}"
        return f"http://127.0.0.1{port}{CALLBACK_PATH}"

    def client_id(self, scope: str) -> str:
        """Return by what name other servers know us; without a document it says the scope."""
        if self._is_confidential:
            return f"{self._public_url}{CLIENT_PATH}"
        return loopback_client_id(self.redirect_uri, scope)

    def document(self, scope: str, *, name: str = "") -> dict[str, Any] | None:
        """Return the document about this client; None for a host without a public name.

        `name` is by which this host was asked: servers want the document to name its own address.
        """
        former = (url for url in self._former_urls if _host(url) == name.lower())
        url = next(former, self._public_url)
        if not is_discoverable(url):
            return None
        key = self._client_jwk()
        return client_document(
            client_id=f"{url}{CLIENT_PATH}",
            client_name=f"Freehold at {_host(url)}",
            client_uri=url,
            redirect_uris=(_come_back_to(url),),
            scope=scope,
            keys=({**key, "kid": thumbprint(key), "use": "sig", "alg": "ES256"},),
        )

    def _client_jwk(self) -> dict[str, str]:
        return public_jwk(self._signer.public_key)

    def _authentication(self, client_id: str, issuer: str) -> dict[str, str]:
        """Return the fields by which we say, and if we can prove, who we are (OAUTH-20)."""
        if client_id.startswith(LOOPBACK_CLIENT):
            return {"client_id": client_id}
        now_s = self._clock.now_us() // US_PER_S
        claims = {
            "iss": client_id,
            "sub": client_id,
            "aud": issuer,
            "jti": secrets.token_urlsafe(24),
            "iat": now_s - CLOCK_LEEWAY_S,
            "exp": now_s + ASSERTION_LIFE_S,
        }
        assertion = sign_jwt({"kid": thumbprint(self._client_jwk())}, claims, self._signer)
        return {
            "client_id": client_id,
            "client_assertion_type": ASSERTION_TYPE,
            "client_assertion": assertion,
        }

    # Signing in

    async def discover(self, url: str) -> ServerMetadata:
        """Return the authorization server of the host at `url`, as far as it keeps to the rules.

        Raises: NotResolvable when the host has no OAuth, OAuthInvalid, Unreachable, BadAnswer.
        """
        issuer = check_resource(await self._document(f"{url}{RESOURCE_PATH}"), url)
        return check_server(await self._document(f"{issuer}{SERVER_PATH}"), issuer)

    async def _document(self, url: str) -> object:
        answer = await self._http.fetch(
            "GET",
            url,
            headers={"Accept": "application/json"},
            max_bytes=MAX_DOCUMENT_BYTES,
            timeout_s=TIMEOUT_S,
        )
        kind = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if answer.status != 200 or kind != "application/json":
            raise BadAnswer(f"{urlsplit(url).netloc} answered {urlsplit(url).path} with no JSON")
        return answer.json()

    async def begin(
        self, server: ServerMetadata, *, scope: str, state: str, login_hint: str
    ) -> tuple[Link, PendingSignIn]:
        """Push a request, with a new key and a new verifier; return the link for the browser.

        Raises: OAuthRefused and as `discover`.
        """
        client_id = self.client_id(scope)
        pending = PendingSignIn(
            issuer=server.issuer,
            token_endpoint=server.token_endpoint,
            revocation_endpoint=server.revocation_endpoint,
            client_id=client_id,
            redirect_uri=self.redirect_uri,
            verifier=make_verifier(secrets.token_bytes(32)),
            key=generate_secret("p256", secrets.token_bytes(32)).hex(),
        )
        form = {
            "response_type": "code",
            "redirect_uri": pending.redirect_uri,
            "scope": scope,
            "state": state,
            "code_challenge": make_challenge(pending.verifier),
            "code_challenge_method": METHOD,
            "login_hint": login_hint,
        }
        answer = await self._post(server.par_endpoint, form, pending)
        request_uri, life_s = answer.get("request_uri"), answer.get("expires_in")
        if not isinstance(request_uri, str) or not 0 < len(request_uri) <= 1000:
            raise OAuthInvalid("the pushed request has no request_uri")
        if not isinstance(life_s, int) or life_s <= 0:
            raise OAuthInvalid("the pushed request has no expires_in")
        query = urlencode({"client_id": client_id, "request_uri": request_uri})
        mark = "&" if "?" in server.authorization_endpoint else "?"
        url = f"{server.authorization_endpoint}{mark}{query}"
        return Link(url, min(life_s, MAX_LIFE_S)), pending

    async def redeem(self, pending: PendingSignIn, code: str) -> tuple[str, OAuthSession]:
        """Exchange a code for tokens; return whose they are, and the session.

        Raises: as `begin`.
        """
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": pending.redirect_uri,
            "code_verifier": pending.verifier,
        }
        tokens = parse_tokens(await self._post(pending.token_endpoint, form, pending))
        session = OAuthSession(
            issuer=pending.issuer,
            token_endpoint=pending.token_endpoint,
            revocation_endpoint=pending.revocation_endpoint,
            client_id=pending.client_id,
            key=pending.key,
            access=tokens.access,
            refresh=tokens.refresh,
            scope=tokens.scope,
        )
        return tokens.sub, session

    async def renew(self, session: OAuthSession) -> TokenAnswer:
        """Exchange the refresh token, which is good once, for new tokens (OAUTH-62).

        Raises: OAuthRefused when the session has ended, and as `begin`.
        """
        if session.refresh is None:
            raise OAuthRefused(_host(session.issuer), "invalid_grant", "it cannot be renewed")
        form = {"grant_type": "refresh_token", "refresh_token": session.refresh}
        return parse_tokens(await self._post(session.token_endpoint, form, session))

    async def revoke(self, session: OAuthSession) -> None:
        """Have the other server forget a session (OAUTH-66). Raises: as `begin`."""
        if session.revocation_endpoint is None:
            return
        form = {"token": session.refresh or session.access}
        await self._post(session.revocation_endpoint, form, session, timeout_s=REVOKE_TIMEOUT_S)

    # The way all requests go

    async def _post(
        self,
        url: str,
        form: Mapping[str, str],
        sender: PendingSignIn | OAuthSession,
        *,
        timeout_s: float = TIMEOUT_S,
    ) -> dict[str, Any]:
        """Send a form with a proof; once more when the server wants its nonce in it (OAUTH-73).

        Each time with an assertion of its own: a server may have looked at the first one before it
        asked for the nonce, and takes none twice (OAUTH-20).
        """
        proofs = Proofs(self._clock, sender.key)
        for is_last in (False, True):
            fields = {**form, **self._authentication(sender.client_id, sender.issuer)}
            async with self._http.request(
                "POST",
                url,
                headers={
                    "Accept": "application/json",
                    "Accept-Encoding": "identity",
                    "Content-Type": "application/x-www-form-urlencoded",
                    PROOF_HEADER: proofs.make("POST", url),
                },
                body=urlencode(fields).encode(),
                max_bytes=MAX_DOCUMENT_BYTES,
                headers_timeout_s=timeout_s,
                total_timeout_s=timeout_s,
            ) as answer:
                has_nonce = proofs.note(answer.status, answer.headers)
                try:
                    value = await _read(answer, _host(url))
                except OAuthRefused as error:
                    if error.error != NONCE_NEEDED or not has_nonce or is_last:
                        raise
                    continue
                if NONCE_HEADER not in answer.headers:  # It does not look at proofs (OAUTH-72).
                    raise OAuthInvalid(f"{_host(url)} answered without a {NONCE_HEADER}")
                return value
        raise AssertionError("the last round returns or raises")


async def _read(answer: StreamedAnswer, host: str) -> dict[str, Any]:
    """Return the object in an answer. Raises: OAuthRefused, Unreachable, BadAnswer."""
    content = await answer.read(MAX_DOCUMENT_BYTES)
    if answer.status == 429 or answer.status >= 500:
        raise HttpFailed(host, answer.status, content, answer.headers.get("Retry-After"))
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise BadAnswer(f"{host} answered {answer.status} with invalid JSON") from error
    if not isinstance(value, dict):
        raise BadAnswer(f"{host} answered {answer.status} with no JSON object")
    if answer.status in (200, 201):
        return value
    if answer.status >= 400:
        name, words = value.get("error"), value.get("error_description")
        raise OAuthRefused(
            host,
            name if isinstance(name, str) else f"status {answer.status}",
            words if isinstance(words, str) else "",
        )
    raise BadAnswer(f"{host} answered {answer.status}")


def _come_back_to(url: str) -> str:
    return f"{url}{CALLBACK_PATH}"


def _host(url: str) -> str:
    return urlsplit(url).netloc


def _printable(text: str, limit: int) -> str:
    return "".join(char if char.isprintable() else "?" for char in text[:limit])
