"""Brings an account from its archive to any standard PDS, by public calls and the owner's own key.

No server of ours is needed, and none is asked: this runs where the owner is, in one process, with
the private key in it. The way of an account whose old host cannot vouch for it:

1. the identity gets a signing key that only this process has (an operation with the owner's key);
2. with it a service token is signed, and the new host opens the account, deactivated;
3. repo, blobs and preferences go there;
4. the identity names the new host, with the credentials that it recommends (a second operation);
5. the account is activated.

Whatever was cut off is run again: an account that is there already is signed in to, blobs that are
there are not sent again. Between 1 and 4 the identity still names the old host, with a key that the
old host does not have.

Spec: (ACC-20, ACC-50, ACC-52, ACC-59, ID-55, ID-67)
"""

import asyncio
import hmac
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from pds.errors import BadAnswer, NotResolvable, RequestError
from pds.net.http import HttpClient
from pds.net.xrpc_client import XrpcRejected
from pds.protocol import archive as fmt
from pds.protocol.archive import ArchiveReader, Manifest
from pds.protocol.car import MEDIA_TYPE
from pds.protocol.keys import Signer, generate_secret, make_signer
from pds.protocol.plc import (
    MAX_ROTATION_KEYS,
    SIGNING_KEY_ID,
    PlcError,
    PlcOperation,
    PlcService,
    check_limits,
    make_update,
    sign_operation,
)
from pds.protocol.plc_log import PlcLog
from pds.protocol.plc_recovery import find_fork
from pds.protocol.service_auth import sign_service_token
from pds.protocol.syntax import Did, Nsid
from pds.services.archive_check import check_archive, open_archive
from pds.services.migration_host import RemoteHost
from pds.services.migration_problems import MoveProblem
from pds.services.migration_session import read_tokens
from pds.store.clock import Clock

CHUNK_BYTES: Final = 1 << 18
TOKEN_LIFETIME_S: Final = 60
PAGE: Final = 500
US_PER_S: Final = 1_000_000

_CREATE: Final = Nsid("com.atproto.server.createAccount")


class Directory(Protocol):
    """What this needs of `pds.identity.did_plc.PlcClient`."""

    async def get_audit_log(self, did: Did) -> PlcLog:
        """Return the verified log; raises NotResolvable, Unreachable, BadAnswer."""

    async def submit(self, did: Did, operation: PlcOperation) -> None:
        """Submit an operation; raises PlcRejected, Unreachable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What shall be where, and under which name."""

    archive: Path
    passphrase: str | None
    url: str
    handle: str
    email: str
    password: str
    invite_code: str | None = None
    further_keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended; `missing` counts blobs that the new host still lacks."""

    did: Did
    url: str
    missing: int
    dropped_keys: tuple[str, ...]


Say = Callable[[str], None]
"""Tells the person at the keyboard what is being done."""


class RescueElsewhere:
    """Carries one account to another host."""

    def __init__(
        self, *, plc: Directory, http: HttpClient, clock: Clock, owner: Signer, say: Say
    ) -> None:
        self._plc = plc
        self._http = http
        self._clock = clock
        self._owner = owner
        self._say = say

    async def run(self, wish: Wish) -> Outcome:
        """Do all of it.

        Raises: RequestError with what is wrong here; MoveProblem and RemoteError of the others.
        """
        manifest = await self._check(wish)
        did = manifest.did
        host = RemoteHost(self._http, wish.url)
        if not await self._sign_in(host, did, wish):
            await self._open_account(host, did, wish)
        self._say("repo, blobs and preferences are sent")
        await self._send_all(host, wish, manifest)
        dropped = await self._point(host, did, wish)
        await host.procedure("com.atproto.server.activateAccount")
        missing = await self._missing(host)
        return Outcome(did, wish.url, len(missing), dropped)

    async def _check(self, wish: Wish) -> Manifest:
        self._say("the archive is checked")
        report = await asyncio.to_thread(check_archive, wish.archive, passphrase=wish.passphrase)
        if not report.is_sound or report.manifest is None:
            raise _refused(f"The archive is not sound: {'; '.join(report.problems)}")
        if not report.manifest.did.startswith("did:plc:"):
            raise _refused("Only did:plc identities have rotation keys")
        return report.manifest

    # The account at the new host

    async def _sign_in(self, host: RemoteHost, did: Did, wish: Wish) -> bool:
        """Go on with an account that an earlier run has opened there."""
        try:
            login = await host.log_in(did, wish.password)
        except MoveProblem:  # There is none, or it is somebody else's: creating will tell.
            return False
        if login.status != "deactivated":
            raise _refused(f"The account is at {host.name} already, and not deactivated")
        self._say(f"the account is at {host.name} already; going on with it")
        return True

    async def _open_account(self, host: RemoteHost, did: Did, wish: Wish) -> None:
        service = (await host.query("com.atproto.server.describeServer")).get("did")
        if not isinstance(service, str):
            raise BadAnswer(f"{host.name} does not say which DID it has")
        self._say("the identity gets a signing key of this process")
        signer = _passing_signer(self._owner, did, host.url)
        await self._change(did, wish, lambda last: _with_signing_key(last, signer))
        self._say(f"the account is opened at {host.name}")
        now_s = self._clock.now_us() // US_PER_S
        token = sign_service_token(
            signer,
            iss=did,
            aud=service,
            lxm=_CREATE,
            iat=now_s,
            exp=now_s + TOKEN_LIFETIME_S,
            jti=secrets.token_hex(16),
        )
        fields = {
            "did": did,
            "handle": wish.handle,
            "email": wish.email,
            "password": wish.password,
        }
        if wish.invite_code is not None:
            fields["inviteCode"] = wish.invite_code
        answer = await host.procedure_with(token, _CREATE, fields)
        tokens = read_tokens(answer)
        if answer.get("did") != did or tokens is None:
            raise BadAnswer(f"{host.name} opened an account without a session of {did}")
        await host.use_tokens(tokens)

    async def _send_all(self, host: RemoteHost, wish: Wish, manifest: Manifest) -> None:
        types = manifest.blobs
        missing: set[str] | None = None
        with open_archive(wish.archive, wish.passphrase) as reader:
            while (member := await asyncio.to_thread(reader.next)) is not None:
                cid = fmt.blob_of(member.name)
                if member.name == fmt.REPO:
                    await self._send(
                        host, "com.atproto.repo.importRepo", reader, MEDIA_TYPE, member.size
                    )
                elif member.name == fmt.PREFERENCES:
                    content = await asyncio.to_thread(reader.read_all)
                    await self._put_preferences(host, fmt.decode_json(content, member.name))
                elif cid is not None:
                    if missing is None:
                        missing = await self._missing(host)
                    if str(cid) in missing:
                        known = types.get(cid)
                        media_type = None if known is None else known.mime_type
                        await self._send(
                            host,
                            "com.atproto.repo.uploadBlob",
                            reader,
                            media_type or "application/octet-stream",
                            member.size,
                        )

    async def _send(
        self, host: RemoteHost, nsid: str, reader: ArchiveReader, media_type: str, size: int
    ) -> None:
        await host.check_session()
        await host.send(nsid, _chunks(reader), media_type=media_type, size=size)

    async def _put_preferences(self, host: RemoteHost, content: Any) -> None:
        items = content.get("preferences") if isinstance(content, dict) else None
        if not isinstance(items, list):
            return
        try:
            await host.procedure("app.bsky.actor.putPreferences", {"preferences": items})
        except XrpcRejected as error:
            # Not every host keeps preferences, and an account without them is better than none.
            self._say(f"{host.name} takes no preferences: {error.message or error.error}")

    async def _missing(self, host: RemoteHost) -> set[str]:
        found: set[str] = set()
        params: dict[str, Any] = {"limit": PAGE}
        while True:
            page = await host.query_as_owner("com.atproto.repo.listMissingBlobs", **params)
            cids = {blob["cid"] for blob in page.get("blobs") or []}
            cursor = page.get("cursor")
            if not isinstance(cursor, str) or cids <= found:
                return found | cids
            found |= cids
            params["cursor"] = cursor

    # The identity

    async def _point(self, host: RemoteHost, did: Did, wish: Wish) -> tuple[str, ...]:
        """Have the identity name the new host; return the rotation keys that go out of it."""
        wanted = await host.query_as_owner("com.atproto.identity.getRecommendedDidCredentials")
        self._say(f"the identity is changed to name {host.name}")
        return await self._change(did, wish, lambda last: _recommended(last, wanted, host.name))

    async def _change(
        self, did: Did, wish: Wish, parts: "Callable[[PlcOperation], dict[str, Any]]"
    ) -> tuple[str, ...]:
        """Sign one operation and submit it; only the owner's keys and the new host's stay."""
        try:
            log = await self._plc.get_audit_log(did)
        except NotResolvable as error:
            raise _refused("The DID is not registered in the PLC directory") from error
        owner = self._owner.public_key.did_key
        try:
            fork = find_fork(log, owner, self._clock.now_us())
            changes = parts(fork.last)
            keys = [owner, *wish.further_keys, *changes.pop("rotation_keys", ())]
            keys = list(dict.fromkeys(keys))[:MAX_ROTATION_KEYS]
            fields = make_update(fork.last, rotation_keys=keys, **changes)
            if not fork.undone and fields == make_update(fork.last):
                return ()  # An earlier run has done it.
            operation = sign_operation(fields, self._owner)
            check_limits(operation)
        except PlcError as error:
            raise _refused(str(error)) from error
        await self._plc.submit(did, operation)
        before = () if log.state is None else log.state.rotation_keys
        return tuple(key for key in before if key not in keys)


def _passing_signer(owner: Signer, did: Did, url: str) -> Signer:
    """Return the signing key that the identity has on its way: the same one in every run.

    Hosts remember documents for a while, so another key in a second run would be refused.
    """
    about = f"freehold rescue signing key|{did}|{url}".encode()
    entropy = hmac.digest(owner.secret_bytes(), about, "sha512")
    return make_signer("k256", generate_secret("k256", entropy))


def _with_signing_key(last: PlcOperation, signer: Signer) -> dict[str, Any]:
    methods = {} if last.state is None else dict(last.state.verification_methods)
    return {"verification_methods": {**methods, SIGNING_KEY_ID: signer.public_key.did_key}}


def _recommended(last: PlcOperation, wanted: dict[str, Any], name: str) -> dict[str, Any]:
    """Read what the new host recommends; what it says nothing about stays."""
    try:
        methods = {str(key): str(value) for key, value in wanted["verificationMethods"].items()}
        services = {
            str(key): PlcService(str(value["type"]), str(value["endpoint"]))
            for key, value in wanted["services"].items()
        }
        keys = [str(key) for key in wanted.get("rotationKeys") or ()]
        aliases = [str(alias) for alias in wanted.get("alsoKnownAs") or ()]
    except (KeyError, TypeError, AttributeError) as error:
        raise BadAnswer(f"{name} recommends no credentials") from error
    state = last.state
    return {
        "rotation_keys": keys,
        "verification_methods": {**(state.verification_methods if state else {}), **methods},
        "services": {**(state.services if state else {}), **services},
        "also_known_as": aliases or (list(state.also_known_as) if state else []),
    }


async def _chunks(reader: ArchiveReader) -> AsyncIterator[bytes]:
    while chunk := await asyncio.to_thread(reader.read, CHUNK_BYTES):
        yield chunk


def check_host_url(url: str) -> str:
    """Return the URL of a host. Raises: RequestError when it is none."""
    parts = urlsplit(url)
    if parts.scheme not in ("https", "http") or not parts.hostname or parts.path not in ("", "/"):
        raise _refused("A host is named like https://pds.example.com")
    return url.rstrip("/")


def _refused(message: str) -> RequestError:
    return RequestError("InvalidRequest", message)
