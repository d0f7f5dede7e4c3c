"""Writers that keep a book of what the server acknowledged.

Each `Writer` owns one account and makes one request at a time, so that after a crash at most one of
its requests is in doubt: it must have happened whole or not at all.
"""

import asyncio
import os
import random
from dataclasses import dataclass, field
from typing import Any

import aiohttp

POST = "app.bsky.feed.post"
COLLECTIONS = (POST, "com.example.note", "com.example.other")


class Failed(AssertionError):
    """The server refused something that it had to accept."""


async def call(
    session: aiohttp.ClientSession,
    url: str,
    nsid: str,
    *,
    token: str | None = None,
    body: Any = None,
    params: Any = None,
) -> Any:
    """Call a method that must succeed and return its JSON answer."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    address = f"{url}/xrpc/{nsid}"
    if isinstance(body, bytes):
        headers["Content-Type"] = "application/octet-stream"
        request = session.post(address, data=body, headers=headers)
    elif body is not None:
        request = session.post(address, json=body, headers=headers)
    else:
        request = session.get(address, params=params, headers=headers)
    async with request as answer:
        if answer.status != 200:
            raise Failed(f"{nsid}: {answer.status} {await answer.text()}")
        return await answer.json() if answer.content_type == "application/json" else None


Change = dict[str, str | None]
"""The effect of a request: path -> record CID, or None for a deletion; "?" is any CID."""


@dataclass
class Account:
    """An account that was made for load."""

    did: str
    token: str


async def sign_up(url: str, count: int, prefix: str) -> list[Account]:
    """Create `count` accounts."""
    found = []
    async with aiohttp.ClientSession() as session:
        for number in range(count):
            handle = f"{prefix}{number}.test"
            answer = await call(
                session,
                url,
                "com.atproto.server.createAccount",
                body={"handle": handle, "email": f"{handle}@example.com", "password": "bench 1234"},
            )
            found.append(Account(answer["did"], answer["accessJwt"]))
    return found


async def fill_repo(url: str, account: Account, records: int) -> None:
    """Give a repo records, 200 to a commit."""
    async with aiohttp.ClientSession() as session:
        for start in range(0, records, 200):
            writes = [
                {
                    "$type": "com.atproto.repo.applyWrites#create",
                    "collection": "app.bsky.feed.post",
                    "value": {
                        "$type": "app.bsky.feed.post",
                        "text": f"post number {number} of many, as long as people write them",
                        "createdAt": "2026-01-01T00:00:00.000Z",
                    },
                }
                for number in range(start, start + 200)
            ]
            await call(
                session,
                url,
                "com.atproto.repo.applyWrites",
                token=account.token,
                body={"repo": account.did, "writes": writes},
            )


@dataclass
class Writer:
    """One account and what is known of its repository."""

    url: str
    handle: str
    rng: random.Random
    did: str = ""
    token: str = ""
    records: dict[str, str] = field(default_factory=dict)
    blobs: dict[str, tuple[str, str, bytes]] = field(default_factory=dict)
    """Records with a blob: path -> CID of the record, CID of the blob, bytes of the blob."""
    doubt: Change | None = None
    acknowledged: int = 0

    async def sign_up(self, session: aiohttp.ClientSession) -> None:
        answer = await call(
            session,
            self.url,
            "com.atproto.server.createAccount",
            body={
                "handle": self.handle,
                "email": f"{self.handle}@example.com",
                "password": "a password for tests",
            },
        )
        self.did, self.token = answer["did"], answer["accessJwt"]

    def _record(self, blob: dict[str, Any] | None = None) -> dict[str, Any]:
        text = "".join(self.rng.choices("abcdefgh ", k=self.rng.randrange(1, 200)))
        record: dict[str, Any] = {"text": text, "createdAt": "2026-01-01T00:00:00Z"}
        if blob is not None:
            record["attached"] = blob
        return record

    async def step(self, session: aiohttp.ClientSession) -> None:
        """Make one random change and note it."""
        kind = self.rng.random()
        if kind < 0.5 or not self.records:
            await self._create(session)
        elif kind < 0.65:
            await self._put(session)
        elif kind < 0.8:
            await self._delete(session)
        elif kind < 0.95:
            await self._batch(session)
        else:
            await self._create_with_blob(session)

    async def _do(
        self, session: aiohttp.ClientSession, method: str, body: dict[str, Any], change: Change
    ) -> dict[str, Any]:
        self.doubt = change
        answer: dict[str, Any] = await call(
            session,
            self.url,
            f"com.atproto.repo.{method}",
            token=self.token,
            body={"repo": self.did, **body},
        )
        for path, cid in change.items():
            if cid is None:
                self.records.pop(path, None)
        self.doubt = None
        self.acknowledged += 1
        return answer

    def _rkey(self) -> str:
        return f"{self.rng.randrange(1 << 40):011x}"

    async def _create(
        self, session: aiohttp.ClientSession, blob: dict[str, Any] | None = None
    ) -> str:
        collection = self.rng.choice(COLLECTIONS)
        path = f"{collection}/{self._rkey()}"
        body = {
            "collection": collection,
            "rkey": path.split("/")[1],
            "record": {"$type": collection, **self._record(blob)},
            "validate": False,
        }
        answer = await self._do(session, "createRecord", body, {path: "?"})
        self.records[path] = answer["cid"]
        return path

    async def _put(self, session: aiohttp.ClientSession) -> None:
        path = self.rng.choice(list(self.records))
        collection, rkey = path.split("/")
        body = {
            "collection": collection,
            "rkey": rkey,
            "record": {"$type": collection, **self._record()},
            "validate": False,
        }
        answer = await self._do(session, "putRecord", body, {path: "?"})
        self.records[path] = answer["cid"]

    async def _delete(self, session: aiohttp.ClientSession) -> None:
        path = self.rng.choice(list(self.records))
        collection, rkey = path.split("/")
        await self._do(
            session, "deleteRecord", {"collection": collection, "rkey": rkey}, {path: None}
        )

    async def _batch(self, session: aiohttp.ClientSession) -> None:
        change: Change = {}
        writes: list[dict[str, Any]] = []
        for _ in range(self.rng.randrange(1, 12)):
            collection = self.rng.choice(COLLECTIONS)
            rkey = self._rkey()
            change[f"{collection}/{rkey}"] = "?"
            writes.append(
                {
                    "$type": "com.atproto.repo.applyWrites#create",
                    "collection": collection,
                    "rkey": rkey,
                    "value": {"$type": collection, **self._record()},
                }
            )
        for path in self.rng.sample(sorted(self.records), min(3, len(self.records))):
            collection, rkey = path.split("/")
            change[path] = None
            writes.append(
                {
                    "$type": "com.atproto.repo.applyWrites#delete",
                    "collection": collection,
                    "rkey": rkey,
                }
            )
        answer = await self._do(
            session, "applyWrites", {"writes": writes, "validate": False}, change
        )
        for write, result in zip(writes, answer["results"], strict=True):
            if "cid" in result:
                self.records[f"{write['collection']}/{write['rkey']}"] = result["cid"]

    async def _create_with_blob(self, session: aiohttp.ClientSession) -> None:
        content = os.urandom(self.rng.randrange(1, 20_000))
        answer = await call(
            session, self.url, "com.atproto.repo.uploadBlob", token=self.token, body=content
        )
        path = await self._create(session, answer["blob"])
        self.blobs[path] = (self.records[path], answer["blob"]["ref"]["$link"], content)

    def settle(self, found: dict[str, str]) -> None:
        """Compare the repository after a crash with the book, and take over what was in doubt."""
        expected = dict(self.records)
        if self.doubt is not None and found != expected:
            for path, cid in self.doubt.items():
                if cid is None:
                    expected.pop(path, None)
                else:
                    assert path in found, f"{path} of a half done request is missing"
                    expected[path] = found[path]
        assert found == expected, (
            f"{self.handle}: lost {sorted(set(expected.items()) - set(found.items()))[:3]}, "
            f"unexpected {sorted(set(found.items()) - set(expected.items()))[:3]}"
        )
        self.records = expected
        self.doubt = None

    async def run(self, session: aiohttp.ClientSession, stop: asyncio.Event) -> None:
        """Write until `stop`, or until the server goes away."""
        while not stop.is_set():
            try:
                await self.step(session)
            except (aiohttp.ClientError, ConnectionError, TimeoutError):
                return
