"""A small XRPC client for tests: one account's session over real HTTP."""

import json
from dataclasses import dataclass
from typing import Any

import aiohttp


class XrpcError(Exception):
    """An answer that is not 2xx; `body` is its JSON, or its text if it is none."""

    def __init__(self, status: int, body: Any, headers: Any) -> None:
        super().__init__(f"{status} {body}")
        self.status = status
        self.body = body
        self.headers = headers

    @property
    def name(self) -> str:
        """The XRPC error name."""
        return str(self.body["error"]) if isinstance(self.body, dict) else ""


class Client:
    """Calls methods, anonymously or with a bearer token."""

    def __init__(self, http: aiohttp.ClientSession, url: str, token: str | None = None) -> None:
        self.http = http
        self.url = url
        self.token = token

    def with_token(self, token: str | None) -> "Client":
        """Return the same client with another credential."""
        return Client(self.http, self.url, token)

    async def get(self, nsid: str, **params: Any) -> Any:
        """Call a query; lists become repeated parameters. Raises: XrpcError."""
        pairs = [
            (name, _text(item))
            for name, value in params.items()
            for item in (value if isinstance(value, list) else [value])
        ]
        return await self.call("GET", nsid, params=pairs)

    async def post(self, nsid: str, body: Any = None, **fields: Any) -> Any:
        """Call a procedure with JSON: `body`, or an object of the keyword arguments."""
        if body is None and not fields:
            return await self.call("POST", nsid)
        content = json.dumps(fields if body is None else body).encode()
        return await self.call(
            "POST", nsid, data=content, headers={"Content-Type": "application/json"}
        )

    async def upload(self, content: bytes, mime_type: str) -> Any:
        """Upload a blob and return its reference."""
        answer = await self.call(
            "POST",
            "com.atproto.repo.uploadBlob",
            data=content,
            headers={"Content-Type": mime_type},
        )
        return answer["blob"]

    async def call(self, verb: str, nsid: str, **options: Any) -> Any:
        """Send one request; return JSON if the answer is JSON, else bytes."""
        headers = dict(options.pop("headers", {}))
        if self.token is not None:
            headers.setdefault("Authorization", f"Bearer {self.token}")
        url = f"{self.url}/xrpc/{nsid}"
        async with self.http.request(verb, url, headers=headers, **options) as answer:
            content = await answer.read()
            is_json = answer.content_type == "application/json"
            body = json.loads(content) if is_json and content else content
            if answer.status >= 300:
                raise XrpcError(answer.status, body, answer.headers)
            return body


@dataclass
class Person:
    """An account as its owner sees it; `client` is signed in."""

    did: str
    handle: str
    password: str
    refresh_token: str
    client: Client

    async def create(self, collection: str, record: dict[str, Any], **more: Any) -> Any:
        """Create a record of this person."""
        return await self.client.post(
            "com.atproto.repo.createRecord",
            repo=self.did,
            collection=collection,
            record={"$type": collection, **record},
            **more,
        )

    async def post(self, text: str, **more: Any) -> Any:
        """Create a post."""
        record = {"text": text, "createdAt": "2026-01-02T03:04:05.000Z", **more}
        return await self.create("app.bsky.feed.post", record)


async def sign_up(client: Client, handle: str, **more: Any) -> Person:
    """Open an account and return its owner."""
    password = f"{handle}-password"
    answer = await client.post(
        "com.atproto.server.createAccount",
        handle=handle,
        email=f"{handle.partition('.')[0]}@example.test",
        password=password,
        **more,
    )
    return Person(
        did=answer["did"],
        handle=handle,
        password=password,
        refresh_token=answer["refreshJwt"],
        client=client.with_token(answer["accessJwt"]),
    )


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
