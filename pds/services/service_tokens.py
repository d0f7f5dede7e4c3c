"""Service auth: tokens by which an account speaks to another service, and foreign ones shown to us.

Minting: `mint` for the proxy and other parts of this server, `mint_for_client` for getServiceAuth
with all its conditions. A token always names one method: one without could be used for anything the
audience offers, whatever the session may do.

Accepting: the key is that of the issuer's DID document; if the signature is wrong the document is
fetched anew once, because keys change. A token works once: its replay id is remembered in memory
until it expires, and handed on with the principal, for writes to note it in the database
(`used_tokens`).

Spec: xrpc#inter-service-authentication-jwt (XRPC-40..47)
"""

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Final

from pds.errors import NotResolvable, RequestError, invalid_request
from pds.protocol.jwt import JwtError, decode_jwt
from pds.protocol.keys import PublicKey, Signer
from pds.protocol.service_auth import (
    DEFAULT_LIFE_S,
    MAX_LIFE_S,
    SIGNING_KEY_ID,
    ServiceAuthError,
    ServiceToken,
    check_service_token,
    parse_service_token,
    sign_service_token,
    verify_service_signature,
)
from pds.protocol.syntax import Did, InvalidSyntax, is_blessed_did, parse_did, parse_nsid
from pds.services.account_cache import AccountCache, AidCache
from pds.services.method_policy import CREATE_ACCOUNT, is_privileged, is_protected
from pds.services.principal import Principal, PrincipalKind, ReplayId
from pds.services.resolving import DidDocuments
from pds.store.accounts import Account, AccountStatus
from pds.store.clock import US_PER_S, Clock
from pds.store.engine import Engine
from pds.store.keystore import Keystore

MAX_REMEMBERED: Final = 100_000
"""Replay ids in memory, as digests: issuers choose how long theirs are. Beyond that the oldest are
forgotten early."""
MAX_AUDIENCE_BYTES: Final = 2048

LABELER_ID: Final = "#atproto_labeler"
"""How a moderation service names itself behind its DID, in the older form of issuers."""
LABEL_KEY_ID: Final = "#atproto_label"
"""The key of its DID document that it signs with."""


class ServiceTokens:
    """Mints and accepts service tokens."""

    def __init__(
        self,
        *,
        engine: Engine,
        wall: Clock,
        keystore: Keystore,
        accounts: AccountCache,
        resolver: DidDocuments,
        service_did: str,
        former_dids: Sequence[str] = (),
        moderator_did: str | None = None,
        dev: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._wall = wall
        self._keystore = keystore
        self._accounts = accounts
        self._resolver = resolver
        dids = (service_did, *former_dids)
        self._audiences = frozenset({*dids, *(f"{did}#atproto_pds" for did in dids)})
        self._moderator_did = moderator_did
        self._dev = dev
        self._signers: AidCache[int, Signer] = AidCache(monotonic=monotonic)
        self._used: OrderedDict[bytes, int] = OrderedDict()

    # Minting

    async def mint(
        self, did: Did, *, aud: str, lxm: str, life_s: int = DEFAULT_LIFE_S, exp: int | None = None
    ) -> str:
        """Return a token of the account `did` for one method of `aud`, valid until `exp`.

        Raises: RequestError `AccountNotFound`.
        """
        account = await self._accounts.get(did)
        if account is None or account.key_id is None:
            raise RequestError("AccountNotFound", "Account not found", 403)
        now_s = self._now_s()
        return sign_service_token(
            await self._signer(account, account.key_id),
            iss=account.did,
            aud=aud,
            lxm=parse_nsid(lxm),
            iat=now_s,
            exp=now_s + life_s if exp is None else exp,
            jti=secrets.token_hex(16),
        )

    async def mint_for_client(
        self, principal: Principal, *, aud: str, lxm: str | None, exp: int | None
    ) -> str:
        """Answer getServiceAuth.

        Raises: RequestError `BadExpiration`, `InvalidRequest`, `InvalidToken`. Spec: (XRPC-45)
        """
        if principal.did is None or principal.scope is None:
            raise RequestError("InvalidToken", "Bad token scope")
        if principal.is_takendown and lxm != CREATE_ACCOUNT:
            raise RequestError("InvalidToken", "Bad token scope")
        self._check_audience(aud)
        if exp is not None:
            _check_expiration(exp - self._now_s(), has_method=lxm is not None)
        if lxm is None:
            raise invalid_request("A token must name the method it is for: lxm is required")
        if is_protected(lxm):
            raise invalid_request(
                f"cannot request a service auth token for a protected method: {lxm}"
            )
        if is_privileged(lxm) and not (principal.is_privileged or principal.is_takendown):
            raise invalid_request(f"insufficient access to request a service auth token for {lxm}")
        return await self.mint(principal.did, aud=aud, lxm=lxm, exp=exp)

    def _check_audience(self, aud: str) -> None:
        did, hash_sign, fragment = aud.partition("#")
        try:
            parse_did(did)
        except InvalidSyntax as error:
            raise invalid_request("aud must be a DID or a DID with a service id") from error
        is_whole = not hash_sign or (fragment.isascii() and fragment.isprintable())
        has_fragment = not hash_sign or (fragment and not set(fragment) & set(" #"))
        if len(aud) > MAX_AUDIENCE_BYTES or not (is_whole and has_fragment):
            raise invalid_request("aud must be a DID or a DID with a service id")
        if not is_blessed_did(did, dev=self._dev):
            raise invalid_request("aud must be a did:plc or did:web")

    async def _signer(self, account: Account, key_id: int) -> Signer:
        signer = self._signers.get(key_id)
        if signer is None:
            ticket = self._signers.ticket
            signer = await self._engine.read("service.signer", self._keystore.signer, key_id)
            self._signers.put(key_id, account.aid, signer, ticket=ticket)
        return signer

    # Accepting

    def is_service_token(self, token: str) -> bool:
        """Whether a bearer token names a method, as service tokens do (XRPC-20)."""
        try:
            return "lxm" in decode_jwt(token).claims
        except JwtError:
            return False

    async def authenticate(self, token: str, *, lxm: str) -> Principal:
        """Return the holder of the key of the DID that issued `token` for the method `lxm`.

        Only createAccount may be called by a DID without an account here.

        Raises: RequestError with the names of XRPC-43 (401), `AccountNotFound`, `AccountTakedown`;
        Unreachable when the issuer's key could not be found out. Spec: (XRPC-41..44, XRPC-47)
        """
        try:
            parsed = parse_service_token(token)
            replay = await self._accept(parsed, lxm)
        except ServiceAuthError as error:
            raise RequestError(error.name, error.message, 401) from error
        account = await self._accounts.get(parsed.iss)
        if lxm != CREATE_ACCOUNT:
            if account is None:
                raise RequestError("AccountNotFound", "Account not found", 403)
            if account.status in (AccountStatus.TAKENDOWN, AccountStatus.SUSPENDED):
                raise RequestError("AccountTakedown", "Account has been taken down", 401)
        return Principal(
            PrincipalKind.SERVICE,
            did=parsed.iss,
            aid=None if account is None else account.aid,
            status=None if account is None else account.status,
            lxm=lxm,
            replay=replay,
        )

    async def authenticate_moderator(self, token: str, *, lxm: str) -> Principal:
        """Return the moderation service that issued `token` for the method `lxm`.

        The issuer names itself `did#atproto_labeler`, or bare with the key id `#atproto_label`;
        either way the key is `#atproto_label` of its document. Its account key is not accepted:
        whoever hosts that account, and apps signed in to it, could speak for the moderators.

        Raises: RequestError `UntrustedIss` and the names of XRPC-43 (401); Unreachable.
        Spec: (XRPC-28, XRPC-42)
        """
        try:
            if self._moderator_did is None:
                raise ServiceAuthError("UntrustedIss", "Untrusted issuer")
            parsed = parse_service_token(token)
            if parsed.iss != self._moderator_did:
                raise ServiceAuthError("UntrustedIss", "Untrusted issuer")
            if parsed.key_id == LABELER_ID:
                parsed = replace(parsed, key_id=LABEL_KEY_ID)
            replay = await self._accept(parsed, lxm, key_ids=(LABEL_KEY_ID,))
        except ServiceAuthError as error:
            raise RequestError(error.name, error.message, 401) from error
        return Principal(PrincipalKind.MODERATOR, did=parsed.iss, lxm=lxm, replay=replay)

    async def _accept(
        self, token: ServiceToken, lxm: str, *, key_ids: tuple[str, ...] = (SIGNING_KEY_ID,)
    ) -> ReplayId:
        """Check a token in all respects and remember that it was used.

        Raises: ServiceAuthError, Unreachable.
        """
        replay_text = check_service_token(
            token, audiences=self._audiences, lxm=lxm, now_s=self._now_s(), key_ids=key_ids
        )
        replay_id = sha256(replay_text.encode("utf-8", "surrogatepass")).digest()
        self._refuse_used(replay_id)
        await self._verify(token)
        self._refuse_used(replay_id)  # Another request may have used it meanwhile.
        self._remember(replay_id, token.exp)
        return ReplayId(replay_id, token.exp * US_PER_S)

    async def _verify(self, token: ServiceToken) -> None:
        """Check the signature, with a fresh look at the document before it is refused.

        Spec: (ACC-60, XRPC-43)
        """
        key = await self._key(token, refresh=False)
        if key is not None and verify_service_signature(token, key):
            return
        fresh = await self._key(token, refresh=True)
        if fresh is None:
            raise ServiceAuthError("BadJwtIss", "jwt issuer has no usable signing key")
        if fresh == key or not verify_service_signature(token, fresh):
            raise ServiceAuthError("BadJwtSignature", "jwt signature does not match jwt issuer")

    async def _key(self, token: ServiceToken, *, refresh: bool) -> PublicKey | None:
        try:
            document = await self._resolver.resolve_did(token.iss, refresh=refresh)
        except NotResolvable as error:
            raise ServiceAuthError("BadJwtIss", "jwt issuer does not resolve") from error
        return document.key(token.key_id)

    def _refuse_used(self, replay_id: bytes) -> None:
        if self._used.get(replay_id, 0) > self._now_s():
            raise ServiceAuthError("BadJwt", "jwt was used already")

    def _remember(self, replay_id: bytes, exp: int) -> None:
        now_s = self._now_s()
        while self._used:
            oldest, expires_s = next(iter(self._used.items()))
            if expires_s > now_s and len(self._used) < MAX_REMEMBERED:
                break
            del self._used[oldest]
        self._used[replay_id] = exp

    def _now_s(self) -> int:
        return self._wall.now_us() // US_PER_S


def _check_expiration(life_s: int, *, has_method: bool) -> None:
    if life_s < 0:
        raise RequestError("BadExpiration", "expiration is in past")
    if life_s > MAX_LIFE_S:
        raise RequestError(
            "BadExpiration",
            "cannot request a token with an expiration more than an hour in the future",
        )
    if not has_method and life_s > DEFAULT_LIFE_S:
        raise RequestError(
            "BadExpiration",
            "cannot request a method-less token that expires more than a minute in the future",
        )
