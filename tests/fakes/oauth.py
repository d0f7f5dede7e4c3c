"""An authorization server and a host behind it, as unkind as real ones are allowed to be.

Every request needs a proof with a nonce, which is replaced after each answer; a proof, a code and a
refresh token work once, and a code or token that is shown again ends the session that came of it.
Two names of one port are the host (`localhost`) and its authorization server (`127.0.0.1`). The
host hands calls on to a real server, in sessions of its own, and allows what the reference allows.

Proofs and assertions are verified by another library than the one that made them.
"""

import asyncio
import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import aiohttp
from aiohttp import web
from joserfc import jws, jwt
from joserfc.jwk import ECKey, KeySet

from pds.protocol.encodings import encode_base64url
from pds.protocol.oauth.scopes import ScopeSet

NEEDS_FULL = "app.bsky.actor.defs#personalDetailsPref"
CREATE_ACCOUNT = "com.atproto.server.createAccount"


@dataclass
class Asked:
    """A pushed request."""

    fields: dict[str, str]
    thumbprint: str
    is_used: bool = False


@dataclass
class Grant:
    """What came of a code."""

    sub: str
    scope: str
    thumbprint: str
    client_id: str
    access: str = ""
    refresh: str = ""
    old: set[str] = field(default_factory=set)
    is_over: bool = False


class Refusal(Exception):
    """An OAuth error."""

    def __init__(self, error: str, words: str = "", status: int = 400) -> None:
        super().__init__(error)
        self.error, self.words, self.status = error, words, status


class FakeOAuth:
    """The server; its attributes are what it does wrong."""

    def __init__(self) -> None:
        self.port = 0
        self.upstream = ""
        self.passwords: dict[str, str] = {}
        self.documents: dict[str, dict[str, Any]] = {}
        """Of confidential clients, by client_id."""
        self.resource_changes: dict[str, Any] = {}
        self.server_changes: dict[str, Any] = {}
        self.pages: dict[str, web.Response] = {}
        """Instead of what a path answers."""
        self.slow_paths: set[str] = set()
        self.unknown_scopes: set[str] = set()
        self.withheld_scopes: set[str] = set()
        self.sub: str | None = None
        self.iss: str | None = None
        self.gives_nonces = True
        self.checks_clients_first = False
        """Before it looks whether a proof has a nonce."""
        self.link_life_s = 300
        self.loses_replies_to: set[str] = set()
        """Grant types whose answers do not arrive."""
        self.grants: list[Grant] = []
        self.seen: list[tuple[str, int]] = []
        self.revoked = 0
        self._nonces = [secrets.token_hex(8)]
        self._proofs: set[str] = set()
        self._assertions: set[str] = set()
        self._challenges: set[str] = set()
        self._asked: dict[str, Asked] = {}
        self._codes: dict[str, tuple[Asked, str, Grant | None]] = {}
        self._bearers: dict[str, str] = {}
        self._http: aiohttp.ClientSession | None = None

    @property
    def host_url(self) -> str:
        return f"http://localhost:{self.port}"

    @property
    def issuer(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    # What a browser does

    def sign_in(self, link: str, did: str) -> str:
        """Follow a link, sign in, allow what is asked; return where the browser is sent."""
        asked = self._open(link)
        code = secrets.token_urlsafe(24)
        self._codes[code] = (asked, self.sub or did, None)
        return self._send_back(asked, code=code)

    def decline(self, link: str) -> str:
        """Follow a link and say no."""
        words = {"error": "access_denied", "error_description": "The user rejected the request"}
        return self._send_back(self._open(link), **words)

    def _open(self, link: str) -> Asked:
        assert link.startswith(f"{self.issuer}/oauth/authorize?"), link
        query = {name: values[0] for name, values in parse_qs(urlsplit(link).query).items()}
        assert set(query) == {"client_id", "request_uri"}
        asked = self._asked[query["request_uri"]]
        assert not asked.is_used
        assert asked.fields["client_id"] == query["client_id"]
        asked.is_used = True
        return asked

    def _send_back(self, asked: Asked, **fields: str) -> str:
        fields = {"iss": self.iss or self.issuer, "state": asked.fields["state"], **fields}
        return f"{asked.fields['redirect_uri']}?{urlencode(fields)}"

    def expire_tokens(self) -> None:
        """Let all access tokens be too old."""
        for grant in self.grants:
            grant.access = "expired"

    # Requests

    async def answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        if path in self.slow_paths:
            await asyncio.sleep(30)
        if (page := self.pages.get(path)) is not None:
            return web.Response(status=page.status, body=page.body, headers=page.headers)
        if path.startswith("/xrpc/"):
            return await self._xrpc(request)
        if path == "/.well-known/oauth-protected-resource":
            return web.json_response(self._resource_document() | self.resource_changes)
        if path == "/.well-known/oauth-authorization-server":
            return web.json_response(self._server_document() | self.server_changes)
        if path in ("/oauth/par", "/oauth/token", "/oauth/revoke"):
            return await self._oauth(request)
        return web.json_response({"error": "NotFound"}, status=404)

    def _resource_document(self) -> dict[str, Any]:
        return {"resource": self.host_url, "authorization_servers": [self.issuer]}

    def _server_document(self) -> dict[str, Any]:
        return {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/oauth/authorize",
            "token_endpoint": f"{self.issuer}/oauth/token",
            "pushed_authorization_request_endpoint": f"{self.issuer}/oauth/par",
            "revocation_endpoint": f"{self.issuer}/oauth/revoke",
            "response_types_supported": ["code"],
            "grant_types_supported": ["authorization_code", "refresh_token"],
            "code_challenge_methods_supported": ["S256"],
            "token_endpoint_auth_methods_supported": ["none", "private_key_jwt"],
            "token_endpoint_auth_signing_alg_values_supported": ["ES256"],
            "scopes_supported": ["atproto"],
            "authorization_response_iss_parameter_supported": True,
            "require_pushed_authorization_requests": True,
            "dpop_signing_alg_values_supported": ["ES256"],
            "client_id_metadata_document_supported": True,
        }

    async def _oauth(self, request: web.Request) -> web.StreamResponse:
        fields = {name: str(value) for name, value in (await request.post()).items()}
        try:
            if self.checks_clients_first:
                self._check_client(fields)
            thumbprint = self._check_proof(request, self.issuer, None)
            if not self.checks_clients_first:
                self._check_client(fields)
            act = {"/oauth/par": self._par, "/oauth/token": self._token}.get(request.path)
            status = 201 if request.path == "/oauth/par" else 200
            value = self._revoke(fields) if act is None else act(fields, thumbprint)
        except Refusal as refusal:
            status = refusal.status
            value = {"error": refusal.error, "error_description": refusal.words}
        self.seen.append((request.path, status))
        if status < 300 and fields.get("grant_type") in self.loses_replies_to:
            assert request.transport is not None
            request.transport.abort()
        return web.json_response(value, status=status, headers=self._next_nonce())

    def _next_nonce(self) -> dict[str, str]:
        if not self.gives_nonces:
            return {}
        self._nonces = [*self._nonces[-7:], secrets.token_hex(8)]
        return {"DPoP-Nonce": self._nonces[-1]}

    def _check_proof(self, request: web.Request, origin: str, access: str | None) -> str:
        """Return the thumbprint of the key that is proved."""
        proofs = request.headers.getall("DPoP", [])
        if len(proofs) != 1:
            raise Refusal("invalid_dpop_proof", "one proof is needed")
        header = jws.extract_compact(proofs[0].encode()).headers()
        assert (header["typ"], header["alg"]) == ("dpop+jwt", "ES256")
        assert "d" not in header["jwk"]
        key = ECKey.import_key(header["jwk"])
        claims = jwt.decode(proofs[0], key, algorithms=["ES256"]).claims
        assert claims["htm"] == request.method
        assert claims["htu"] == origin + request.path
        expected = None if access is None else _hash(access)
        assert claims.get("ath") == expected
        if self.gives_nonces and claims.get("nonce") not in self._nonces:
            raise Refusal("use_dpop_nonce", "a nonce is needed", 400 if access is None else 401)
        if claims["jti"] in self._proofs:
            raise Refusal("invalid_dpop_proof", "shown before")
        self._proofs.add(claims["jti"])
        return str(key.thumbprint())

    def _check_client(self, fields: Mapping[str, str]) -> None:
        client_id = fields.get("client_id", "")
        if client_id.startswith("http://localhost?"):
            assert "client_assertion" not in fields
            return
        document = self.documents.get(client_id)
        if document is None:
            raise Refusal("invalid_client", "no such client")
        assertion = fields["client_assertion"]
        token = jwt.decode(assertion, KeySet.import_key_set(document["jwks"]), algorithms=["ES256"])
        assert token.header["kid"] == document["jwks"]["keys"][0]["kid"]
        claims = token.claims
        assert (claims["iss"], claims["sub"], claims["aud"]) == (client_id, client_id, self.issuer)
        if claims["jti"] in self._assertions:
            raise Refusal("invalid_client", "assertion shown before", 401)
        self._assertions.add(claims["jti"])

    def _par(self, fields: dict[str, str], thumbprint: str) -> dict[str, Any]:
        wanted = set(fields["scope"].split(" "))
        assert fields["response_type"] == "code"
        assert fields["code_challenge_method"] == "S256"
        assert "atproto" in wanted
        if wanted & self.unknown_scopes:
            raise Refusal("invalid_scope", "unknown scope")
        if fields["code_challenge"] in self._challenges:
            raise Refusal("invalid_request", "the challenge was used before")
        self._challenges.add(fields["code_challenge"])
        request_uri = f"urn:ietf:params:oauth:request_uri:{secrets.token_hex(16)}"
        self._asked[request_uri] = Asked(fields, thumbprint)
        return {"request_uri": request_uri, "expires_in": self.link_life_s}

    def _token(self, fields: dict[str, str], thumbprint: str) -> dict[str, Any]:
        if fields.get("grant_type") == "authorization_code":
            grant = self._redeem(fields, thumbprint)
        elif fields.get("grant_type") == "refresh_token":
            grant = self._refresh(fields["refresh_token"], thumbprint, fields["client_id"])
        else:
            raise Refusal("unsupported_grant_type")
        grant.access, grant.refresh = f"tok-{secrets.token_hex(8)}", f"ref-{secrets.token_hex(8)}"
        return {
            "access_token": grant.access,
            "refresh_token": grant.refresh,
            "token_type": "DPoP",
            "expires_in": 300,
            "scope": grant.scope,
            "sub": grant.sub,
        }

    def _redeem(self, fields: Mapping[str, str], thumbprint: str) -> Grant:
        asked, sub, used = self._codes.get(fields["code"], (None, "", None))
        if asked is None:
            raise Refusal("invalid_grant", "no such code")
        if used is not None:
            used.is_over = True
            raise Refusal("invalid_grant", "the code was used")
        assert fields["redirect_uri"] == asked.fields["redirect_uri"]
        assert fields["client_id"] == asked.fields["client_id"]
        assert _hash(fields["code_verifier"]) == asked.fields["code_challenge"]
        assert thumbprint == asked.thumbprint
        granted = [s for s in asked.fields["scope"].split(" ") if s not in self.withheld_scopes]
        grant = Grant(sub, " ".join(granted), thumbprint, fields["client_id"])
        self._codes[fields["code"]] = (asked, sub, grant)
        self.grants.append(grant)
        return grant

    def _refresh(self, token: str, thumbprint: str, client_id: str) -> Grant:
        for grant in self.grants:
            if token in grant.old:
                grant.is_over = True
            if grant.refresh == token and not grant.is_over:
                assert (grant.thumbprint, grant.client_id) == (thumbprint, client_id)
                grant.old.add(token)
                return grant
        raise Refusal("invalid_grant", "no such session")

    def _revoke(self, fields: Mapping[str, str]) -> dict[str, Any]:
        for grant in self.grants:
            if fields["token"] in (grant.access, grant.refresh) and not grant.is_over:
                grant.is_over = True
                self.revoked += 1
        return {}

    # The host

    async def _xrpc(self, request: web.Request) -> web.StreamResponse:
        scheme, _, access = request.headers.get("Authorization", "").partition(" ")
        headers = {
            name: value
            for name, value in request.headers.items()
            if name in ("Content-Type", "Accept")
        }
        grant: Grant | None = None
        if scheme == "DPoP":
            try:
                grant = self._authorize(request, access)
            except Refusal as refusal:
                self.seen.append((request.path, refusal.status))
                value = {"error": refusal.error, "message": refusal.words}
                more = {"WWW-Authenticate": f'DPoP error="{refusal.error}"'}
                return web.json_response(
                    value, status=refusal.status, headers=more | self._next_nonce()
                )
            headers["Authorization"] = f"Bearer {await self._bearer(grant.sub)}"
        elif access:
            headers["Authorization"] = request.headers["Authorization"]
        assert self._http is not None
        async with self._http.request(
            request.method,
            f"{self.upstream}{request.path_qs}",
            headers=headers,
            data=await request.read(),
        ) as answer:
            body = await answer.read()
            response = web.Response(status=answer.status, body=body)
            response.headers["Content-Type"] = answer.headers.get("Content-Type", "text/plain")
        if grant is not None:
            response.headers.update(self._next_nonce())
            self._as_the_reference(request, grant, response)
        self.seen.append((request.path, response.status))
        return response

    def _authorize(self, request: web.Request, access: str) -> Grant:
        thumbprint = self._check_proof(request, self.host_url, access)
        for grant in self.grants:
            if grant.access == access and not grant.is_over:
                assert grant.thumbprint == thumbprint
                self._check_scope(request, ScopeSet.parse(grant.scope))
                return grant
        raise Refusal("invalid_token", "the token has expired", 401)

    def _check_scope(self, request: web.Request, granted: ScopeSet) -> None:
        method = request.path.removeprefix("/xrpc/")
        name = method.rpartition(".")[2]
        lxm, aud = request.query.get("lxm", "*"), request.query.get("aud", "")
        is_allowed = {
            "getServiceAuth": granted.allows_rpc(lxm, aud),
            "getPreferences": granted.allows_rpc(method, "did:web:api.bsky.app#bsky_appview"),
            "requestPlcOperationSignature": granted.allows_identity("*"),
            "signPlcOperation": granted.allows_identity("*"),
            "deactivateAccount": granted.allows_account("status", "manage"),
        }.get(name, True)
        if not is_allowed:
            raise Refusal("ScopeMissingError", f"Missing required scope for {name}", 403)

    async def _bearer(self, did: str) -> str:
        if did not in self._bearers:
            assert self._http is not None
            given = {"identifier": did, "password": self.passwords[did]}
            url = f"{self.upstream}/xrpc/com.atproto.server.createSession"
            async with self._http.post(url, json=given) as answer:
                self._bearers[did] = (await answer.json())["accessJwt"]
        return self._bearers[did]

    def _as_the_reference(self, request: web.Request, grant: Grant, response: web.Response) -> None:
        """The reference keeps birth dates from apps, and ends all sessions at a deactivation."""
        assert isinstance(response.body, bytes)
        if request.path.endswith("getPreferences") and response.status == 200:
            items = json.loads(response.body)["preferences"]
            kept = [item for item in items if item["$type"] != NEEDS_FULL]
            response.body = json.dumps({"preferences": kept}).encode()
        if request.path.endswith("getSession") and response.status == 200:
            value = json.loads(response.body)
            if not ScopeSet.parse(grant.scope).allows_account("email", "read"):
                value.pop("email", None)
            response.body = json.dumps(value).encode()
        if request.path.endswith("deactivateAccount") and response.status == 200:
            grant.is_over = True


def _hash(text: str) -> str:
    return encode_base64url(hashlib.sha256(text.encode()).digest())


@asynccontextmanager
async def running_oauth(upstream: str = "") -> AsyncIterator[FakeOAuth]:
    """Run the server on a free port, in front of the host at `upstream`."""
    fake = FakeOAuth()
    fake.upstream = upstream
    app = web.Application(client_max_size=10 << 20)
    app.router.add_route("*", "/{path:.*}", fake.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        fake.port = runner.addresses[0][1]
        async with aiohttp.ClientSession() as http:
            fake._http = http
            yield fake
    finally:
        await runner.cleanup()
