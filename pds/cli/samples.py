"""Two accounts with sample records, for `pds dev`: profiles, posts, a picture, a follow, a like.

They are made through the services that clients reach, so they are what clients would have made.
"""

import struct
import time
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

from pds.protocol.data import Json
from pds.protocol.syntax import format_datetime
from pds.services import Services
from pds.services.accounts import AccountRequest
from pds.services.records_prepare import RecordWrite

SAMPLE_PASSWORDS: Final = {"alice.test": "alice-password", "bob.test": "bob-password"}
PICTURE_SIDE: Final = 96


@dataclass(frozen=True, slots=True)
class _Author:
    services: Services
    did: str
    aid: int

    async def create(self, collection: str, value: dict[str, Any]) -> dict[str, str]:
        """Write one record; return a strong reference to it."""
        record = {"$type": collection, **value}
        rkey = "self" if collection == "app.bsky.actor.profile" else None
        write = RecordWrite("create", collection, rkey, record)
        result = await self.services.repos.write(self.aid, [write])
        outcome = result.outcomes[0]
        return {"uri": outcome.uri, "cid": str(outcome.cid)}


async def make_samples(services: Services) -> None:
    """Make the accounts and their records, unless they are there already."""
    if await services.accounts.lookup("alice.test") is not None:
        return
    alice, bob = [await _open_account(services, handle) for handle in SAMPLE_PASSWORDS]
    picture = await _upload(services, alice, draw_picture(PICTURE_SIDE))
    await alice.create(
        "app.bsky.actor.profile",
        {"displayName": "Alice", "description": "A sample account.", "avatar": picture},
    )
    await bob.create("app.bsky.actor.profile", {"displayName": "Bob"})
    hello = await alice.create(
        "app.bsky.feed.post", {"text": "Hello, this is my own ground.", "createdAt": _now()}
    )
    await alice.create(
        "app.bsky.feed.post",
        {
            "text": "A picture, drawn by the server itself.",
            "createdAt": _now(),
            "langs": ["en"],
            "embed": {
                "$type": "app.bsky.embed.images",
                "images": [
                    {
                        "image": picture,
                        "alt": "A square that goes from blue to green",
                        "aspectRatio": {"width": PICTURE_SIDE, "height": PICTURE_SIDE},
                    }
                ],
            },
        },
    )
    await bob.create("app.bsky.graph.follow", {"subject": alice.did, "createdAt": _now()})
    await bob.create("app.bsky.feed.like", {"subject": hello, "createdAt": _now()})
    await bob.create(
        "app.bsky.feed.post",
        {
            "text": "Good to see you here!",
            "createdAt": _now(),
            "reply": {"root": hello, "parent": hello},
        },
    )


async def _open_account(services: Services, handle: str) -> _Author:
    name = handle.partition(".")[0]
    view = await services.accounts.create(
        AccountRequest(
            handle=handle, email=f"{name}@example.test", password=SAMPLE_PASSWORDS[handle]
        )
    )
    account = await services.accounts.lookup(view.did)
    if account is None:
        raise RuntimeError(f"the account {handle} was made and is not there")
    return _Author(services, view.did, account.aid)


async def _upload(services: Services, author: _Author, content: bytes) -> Json:
    async def chunks() -> AsyncIterator[bytes]:
        yield content

    return await services.blobs.upload(author.aid, chunks(), declared_type="image/png")


def draw_picture(side: int) -> bytes:
    """A PNG of `side` times `side` pixels with a gradient."""
    rows = b"".join(
        b"\0" + b"".join(bytes((40, 255 * y // side, 255 - 255 * x // side)) for x in range(side))
        for y in range(side)
    )
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


def _now() -> str:
    return format_datetime(time.time_ns() // 1000)
