"""The Python SDK against a real server: what a mainstream client does in a day."""

import struct
import zlib
from collections.abc import AsyncIterator

import pytest
from atproto import CAR, AsyncClient, models
from atproto.exceptions import BadRequestError, UnauthorizedError

from tests.independent import check_export
from tests.support_live import LiveServer

PASSWORD = "correct horse battery"


def png() -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + crc

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\x00" + b"\xff\x00\x00" * 2 + b"\x00" + b"\x00" * 6))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


@pytest.fixture
async def clients() -> AsyncIterator[list[AsyncClient]]:
    """Clients of a test, closed at its end."""
    opened: list[AsyncClient] = []
    yield opened
    for client in opened:
        await client.request.close()


async def sign_up(clients: list[AsyncClient], url: str, handle: str) -> AsyncClient:
    client = AsyncClient(base_url=url)
    clients.append(client)
    await client.com.atproto.server.create_account(
        models.ComAtprotoServerCreateAccount.Data(
            handle=handle, email=f"{handle}@example.com", password=PASSWORD
        )
    )
    await client.login(handle, PASSWORD, fetch_bsky_profile=False)
    return client


async def test_sdk_signs_up_posts_with_image_and_cleans_up(
    live_server: LiveServer, clients: list[AsyncClient]
) -> None:
    alice = await sign_up(clients, live_server.url, "sdk-alice.test")
    bob = await sign_up(clients, live_server.url, "sdk-bob.test")
    session = await alice.com.atproto.server.get_session()
    assert session.handle == "sdk-alice.test"
    did, bob_did = session.did, (await bob.com.atproto.server.get_session()).did

    image = png()
    post = await alice.send_image("a picture", image, "four pixels", profile_identify=did)
    reply_to = models.AppBskyFeedPost.ReplyRef(
        parent=models.create_strong_ref(post), root=models.create_strong_ref(post)
    )
    reply = await bob.send_post("nice", profile_identify=bob_did, reply_to=reply_to)
    likes = models.AppBskyFeedLike.Record(
        created_at=bob.get_current_time_iso(), subject=models.create_strong_ref(post)
    )
    like = await bob.app.bsky.feed.like.create(bob_did, likes)
    follow = await bob.app.bsky.graph.follow.create(
        bob_did,
        models.AppBskyGraphFollow.Record(created_at=bob.get_current_time_iso(), subject=did),
    )

    posts = await alice.app.bsky.feed.post.list(did)
    assert list(posts.records) == [post.uri]
    record = posts.records[post.uri]
    blob = record.embed.images[0].image
    content = await alice.com.atproto.sync.get_blob(
        models.ComAtprotoSyncGetBlob.Params(did=did, cid=blob.ref.link)
    )
    assert content == image
    blobs = await alice.com.atproto.sync.list_blobs(models.ComAtprotoSyncListBlobs.Params(did=did))
    assert blobs.cids == [blob.ref.link]

    profile = models.AppBskyActorProfile.Record(display_name="Alice", description="first")
    for name in ("Alice", "Alice the second"):
        profile.display_name = name
        await alice.com.atproto.repo.put_record(
            models.ComAtprotoRepoPutRecord.Data(
                repo=did, collection="app.bsky.actor.profile", rkey="self", record=profile
            )
        )
    stored = await bob.app.bsky.actor.profile.get(did, "self")
    assert stored.value.display_name == "Alice the second"

    assert await bob.app.bsky.feed.like.delete(bob_did, like.uri.rsplit("/", 1)[1])
    assert await bob.app.bsky.graph.follow.delete(bob_did, follow.uri.rsplit("/", 1)[1])
    assert await bob.delete_post(reply.uri)
    with pytest.raises(BadRequestError) as refused:
        await bob.app.bsky.feed.post.get(bob_did, reply.uri.rsplit("/", 1)[1])
    assert "Could not locate record" in str(refused.value.response.content.message)

    await live_server.check_repo(did, {post.uri.split("/", 3)[3], "app.bsky.actor.profile/self"})


async def test_sdk_preferences_and_refused_password(
    live_server: LiveServer, clients: list[AsyncClient]
) -> None:
    client = await sign_up(clients, live_server.url, "sdk-carol.test")
    preferences = [models.AppBskyActorDefs.AdultContentPref(enabled=True)]
    await client.app.bsky.actor.put_preferences(
        models.AppBskyActorPutPreferences.Data(preferences=preferences)
    )
    stored = await client.app.bsky.actor.get_preferences()
    assert [type(item) for item in stored.preferences] == [models.AppBskyActorDefs.AdultContentPref]
    assert stored.preferences[0].enabled is True
    stranger = AsyncClient(base_url=live_server.url)
    clients.append(stranger)
    with pytest.raises(UnauthorizedError):
        await stranger.login("sdk-carol.test", "wrong password")


async def test_sdk_car_reader_agrees_with_the_independent_walk(
    live_server: LiveServer, clients: list[AsyncClient]
) -> None:
    client = await sign_up(clients, live_server.url, "sdk-dave.test")
    did = (await client.com.atproto.server.get_session()).did
    for number in range(40):
        await client.send_post(f"post {number}", profile_identify=did)
    content = await client.com.atproto.sync.get_repo(models.ComAtprotoSyncGetRepo.Params(did=did))
    car = CAR.from_bytes(content)
    records = check_export(content, did=did, did_key=await live_server.signing_key(did))
    assert len(records) == 40
    texts = {block.get("text") for block in car.blocks.values() if "text" in block}
    assert texts == {f"post {number}" for number in range(40)}
