"""A service token works once, also when two nodes are shown it at the same moment (XRPC-44)."""

import asyncio
from pathlib import Path

from pds.blobstore.memory import MemoryBlobStore
from pds.errors import RequestError
from pds.protocol.keys import make_signer
from pds.protocol.service_auth import sign_service_token
from pds.protocol.syntax import Did, Nsid
from pds.services.blobs import Blobs, BlobSettings
from pds.services.principal import Principal
from pds.services.service_tokens import ServiceTokens
from pds.store.used_tokens import delete_expired_tokens
from tests.services.account_host import SERVICE_DID
from tests.services.creation_host import CreationHost, creation_host

CREATE = "com.atproto.server.createAccount"
UPLOAD = "com.atproto.repo.uploadBlob"
MOVER = Did("did:web:mover.example.com")
KEY = make_signer("p256", b"\x21" * 32)


def publish(host: CreationHost) -> None:
    method = {
        "id": "#atproto",
        "type": "Multikey",
        "controller": MOVER,
        "publicKeyMultibase": KEY.public_key.multibase,
    }
    host.resolver.documents[MOVER] = {"id": MOVER, "verificationMethod": [method]}


def node(host: CreationHost) -> ServiceTokens:
    """Another node: the same rows, a memory of its own."""
    return ServiceTokens(
        engine=host.engine,
        wall=host.clock,
        keystore=host.keystore,
        accounts=host.cache,
        resolver=host.resolver,
        service_did=SERVICE_DID,
    )


def sign(host: CreationHost, lxm: str, jti: str) -> str:
    now_s = host.clock.now_us() // 1_000_000
    return sign_service_token(
        KEY, iss=MOVER, aud=SERVICE_DID, lxm=Nsid(lxm), iat=now_s, exp=now_s + 60, jti=jti
    )


async def at_two_nodes(host: CreationHost, lxm: str, jti: str = "1") -> list[Principal]:
    """Both nodes take the token for new."""
    token = sign(host, lxm, jti)
    first, second = [await node(host).authenticate(token, lxm=lxm) for _ in range(2)]
    assert first.replay == second.replay
    return [first, second]


def refusals(outcomes: list[object]) -> list[tuple[str, int]]:
    return [(found.name, found.status) for found in outcomes if isinstance(found, RequestError)]


async def test_one_of_two_nodes_opens_the_account(tmp_path: Path) -> None:
    async with creation_host(tmp_path) as host:
        publish(host)
        principals = await at_two_nodes(host, CREATE)
        request = host.request(did=MOVER)
        outcomes = await asyncio.gather(
            *(host.accounts.create(request, principal) for principal in principals),
            return_exceptions=True,
        )
        assert len(refusals(outcomes)) == 1
        # With a new token the same call is answered again (ACC-24), with the used one it is not.
        third, fourth = await at_two_nodes(host, CREATE, "2")
        assert (await host.accounts.create(request, third)).did == MOVER
        (again,) = await asyncio.gather(
            host.accounts.create(request, fourth), return_exceptions=True
        )
        assert refusals([again]) == [("BadJwt", 401)]
        assert await host.count("account") == 1
        assert await host.count("session") == 2


async def test_a_write_that_is_refused_uses_no_token_up(tmp_path: Path) -> None:
    async with creation_host(tmp_path) as host:
        publish(host)
        first, second = await at_two_nodes(host, CREATE)
        await host.accounts.create(host.request(email="b@mail.test"))
        (refused,) = await asyncio.gather(
            host.accounts.create(host.request(did=MOVER), first), return_exceptions=True
        )
        assert refusals([refused]) == [("HandleNotAvailable", 400)]
        assert await host.count("used_token") == 0
        moved = await host.accounts.create(
            host.request(did=MOVER, handle="mover.pds.test", email="m@mail.test"), second
        )
        assert moved.did == MOVER


async def test_one_of_two_nodes_takes_the_blob(tmp_path: Path) -> None:
    async with creation_host(tmp_path) as host:
        publish(host)
        mover, _ = await at_two_nodes(host, CREATE)
        await host.accounts.create(host.request(did=MOVER), mover)
        store = MemoryBlobStore()
        blobs = Blobs(engine=host.engine, clock=host.clock, store=store, settings=BlobSettings())

        async def upload(principal: Principal, content: bytes) -> object:
            async def chunks():  # type: ignore[no-untyped-def]
                yield content

            assert principal.aid is not None
            return await blobs.upload(
                principal.aid, chunks(), declared_type=None, replay=principal.replay
            )

        principals = await at_two_nodes(host, UPLOAD, "2")
        outcomes = await asyncio.gather(
            *(upload(principal, bytes([n])) for n, principal in enumerate(principals)),
            return_exceptions=True,
        )
        assert refusals(outcomes) == [("BadJwt", 401)]
        assert await host.count("blob") == 1
        # Expired ones are forgotten, the others are not.
        assert await host.count("used_token") == 2
        now_us = host.clock.now_us()
        assert await host.engine.transact("test", delete_expired_tokens, now_us + 59_000_000) == 0
        assert await host.engine.transact("test", delete_expired_tokens, now_us + 60_000_000) == 2
